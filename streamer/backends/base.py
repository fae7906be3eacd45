"""What every inference backend offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias, runtime_checkable

from streamer.manifest import Manifest
from streamer.types import Float32Array, Images

Outputs: TypeAlias = Callable[[], tuple[Float32Array, ...]]
"""Waits for a batch."""


class Network(Protocol):
    """A network ready to run; `run` may be called from several threads at once."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def device(self) -> str:
        """Where and how it runs, for people: e.g. `openvino int8 on CPU`."""
        ...

    def run(self, images: Images) -> tuple[Float32Array, ...]:
        """Run a batch.

        images: (n, height, width, 3) uint8 RGB, n >= 1, height and width as in the manifest; normalisation is
        the backend's work, after the manifest. Tensors are for the backends `torch` and `tensorrt`. Returns
        the outputs in the manifest's order, each (n, ...) float32. Blocks, releases the GIL. Raises
        InferenceError with the network's name.
        """
        ...

    def close(self) -> None:
        """Free what it holds; idempotent."""
        ...


@runtime_checkable
class AsynchronousNetwork(Network, Protocol):
    """One that computes beside us, on a GPU."""

    def start(self, images: Images) -> Outputs:
        """Begin a batch. What is returned gives its outputs as `run` does, and must be called."""
        ...


def start(network: Network, images: Images) -> Outputs:
    """Begin a batch, where the network can; else run it."""
    if isinstance(network, AsynchronousNetwork):
        return network.start(images)
    outputs = network.run(images)
    return lambda: outputs

"""What every inference backend offers."""

from __future__ import annotations

from typing import Protocol

from streamer.manifest import Manifest
from streamer.types import Float32Array, UInt8Array


class Network(Protocol):
    """A network ready to run; `run` may be called from several threads at once."""

    @property
    def manifest(self) -> Manifest: ...

    @property
    def device(self) -> str:
        """Where and how it runs, for people: e.g. `openvino int8 on CPU`."""
        ...

    def run(self, images: UInt8Array) -> tuple[Float32Array, ...]:
        """Run a batch.

        images: (n, height, width, 3) uint8 RGB, n >= 1, height and width as in the manifest; normalisation is
        the backend's work, after the manifest. Returns the outputs in the manifest's order, each (n, ...)
        float32. Blocks, releases the GIL. Raises InferenceError with the network's name.
        """
        ...

    def close(self) -> None:
        """Free what it holds; idempotent."""
        ...

"""The one place that chooses an inference backend. Asked for by name, it is that one or an error."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from streamer.backends.base import Network
from streamer.backends.compiled import find_int8
from streamer.backends.probe import Precision, probe
from streamer.errors import BackendError
from streamer.manifest import read_manifest

Backend = Literal["openvino", "onnxruntime", "torch"]

_INSTALL: dict[Backend, str] = {
    "openvino": "pip install openvino",
    "onnxruntime": "pip install 'streamer[onnxruntime]'",
    "torch": "pip install 'streamer[train]'",
}


def load_network(
    manifest_path: Path, *, backend: str, precision: str, threads: int = 0, streams: int = 0
) -> Network:
    """Load a network after its manifest.

    manifest_path: `engines/NAME.json`. backend: `openvino`, `onnxruntime` or `torch`. precision: `f32`,
    `bf16` or `int8`, the last two for openvino alone; int8 takes what `build_engines.py --precision int8`
    made. threads: CPU threads, 0: all cores. streams: images computed at the same time, 0: as many as
    threads; openvino alone. Raises ManifestError, BackendError.
    """
    if backend == "tensorrt":
        raise BackendError("backend tensorrt (extra gpu) is not part of this release; use openvino")
    if backend not in get_args(Backend):
        raise BackendError(f"no backend {backend!r}; there are {', '.join(get_args(Backend))}")
    if precision not in get_args(Precision):
        raise BackendError(f"no precision {precision!r}; there are {', '.join(get_args(Precision))}")
    if backend != "openvino" and precision != "f32":
        raise BackendError(f"backend {backend} runs f32 alone, not {precision}; use backend openvino")
    manifest = read_manifest(manifest_path)
    file = manifest.path(manifest_path.parent)
    # Imported here: each of them imports a library that need not be installed.
    if backend == "onnxruntime":
        from streamer.backends.onnxruntime_backend import OnnxRuntimeNetwork

        return OnnxRuntimeNetwork(file, manifest, threads=threads)
    if backend == "torch":
        from streamer.backends.torch_backend import TorchNetwork

        return TorchNetwork(file, manifest, threads=threads)
    from streamer.backends.openvino_backend import OpenVinoNetwork

    if precision == "int8":
        file = find_int8(manifest_path, manifest)
    return OpenVinoNetwork(
        file, manifest, precision=cast("Precision", precision), threads=threads, streams=streams
    )


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """What can be said of a backend on this machine."""

    name: Backend
    usable: bool
    version: str | None
    """Of the library; None if it is not installed."""
    reason: str
    """Why it is not usable, with what to do; empty if it is."""
    precisions: tuple[Precision, ...]
    """Usable here; int8 besides needs members quantised by build_engines.py."""
    notes: tuple[str, ...]
    """What was found out about precisions, for people."""


def describe_backends() -> list[BackendStatus]:
    """Look at every backend. Probes bf16 and int8 in subprocesses: some seconds on the first call."""
    return [_describe(backend) for backend in get_args(Backend)]


def _describe(backend: Backend) -> BackendStatus:
    try:
        version = importlib.metadata.version(backend)
    except importlib.metadata.PackageNotFoundError:
        return BackendStatus(backend, False, None, f"not installed: {_INSTALL[backend]}", (), ())
    if backend != "openvino":
        try:
            importlib.import_module(backend)
        except Exception as error:  # noqa: BLE001 (a broken installation may raise anything)
            return BackendStatus(backend, False, version, f"cannot be imported: {error}", (), ())
        return BackendStatus(backend, True, version, "", ("f32",), ())
    found = {precision: probe(precision) for precision in get_args(Precision)}
    return BackendStatus(
        backend,
        found["f32"].usable,
        version,
        found["f32"].reason,
        tuple(precision for precision, outcome in found.items() if outcome.usable),
        tuple(f"{precision}: {outcome.reason}" for precision, outcome in found.items() if outcome.reason),
    )

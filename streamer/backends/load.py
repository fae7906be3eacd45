"""The one place that chooses an inference backend. Asked for by name, it is that one or an error."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

from streamer.backends.base import Network
from streamer.backends.compiled import find_int8
from streamer.backends.probe import Precision
from streamer.errors import BackendError
from streamer.manifest import read_manifest

BACKENDS = ("openvino", "onnxruntime", "torch")


def load_network(
    manifest_path: Path, *, backend: str, precision: str, threads: int = 0, streams: int = 0
) -> Network:
    """Load a network after its manifest.

    manifest_path: `engines/NAME.json`. backend: `openvino`, `onnxruntime` or `torch`. precision: `f32`,
    `bf16` or `int8`; int8 takes what `build_engines.py --precision int8` made. threads: CPU threads, 0: all.
    streams: batches or images computed at the same time, 0: the backend's best. Raises ManifestError,
    BackendError.
    """
    if backend == "tensorrt":
        raise BackendError("backend tensorrt is not part of this release; use openvino")
    if backend not in BACKENDS:
        raise BackendError(f"no backend {backend!r}; there are {', '.join(BACKENDS)}")
    if precision not in get_args(Precision):
        raise BackendError(f"no precision {precision!r}; there are {', '.join(get_args(Precision))}")
    manifest = read_manifest(manifest_path)
    file = manifest.path(manifest_path.parent)
    if backend == "openvino":
        from streamer.backends.openvino_backend import OpenVinoNetwork

        if precision == "int8":
            file = find_int8(manifest_path, manifest)
        return OpenVinoNetwork(file, manifest, precision=precision, threads=threads, streams=streams)  # type: ignore[arg-type]
    raise BackendError(f"backend {backend} is not installed; use openvino")

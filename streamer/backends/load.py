"""The one place that chooses an inference backend. Asked for by name, it is that one or an error."""

from __future__ import annotations

import importlib
import importlib.metadata
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from streamer.backends.base import Network
from streamer.backends.compiled import find_compiled, find_int8, tensorrt_folder
from streamer.backends.probe import Precision, probe
from streamer.errors import BackendError, ManifestError, missing_extra
from streamer.gpu.stamp import import_tensorrt, machine_stamp
from streamer.manifest import Manifest, read_manifest

Backend = Literal["openvino", "tensorrt", "onnxruntime", "torch"]

PRECISIONS: dict[Backend, tuple[str, ...]] = {
    "openvino": get_args(Precision),
    "tensorrt": ("f32", "fp16", "bf16", "int8", "fp8"),
    "onnxruntime": ("f32",),
    "torch": ("f32",),
}
"""What each backend computes in."""

_INSTALL: dict[Backend, str] = {
    "openvino": "pip install openvino",
    "tensorrt": f"{missing_extra('gpu')}, on a node with an NVIDIA GPU",
    "onnxruntime": missing_extra("onnxruntime"),
    "torch": missing_extra("train"),
}


def load_network(
    manifest_path: Path,
    *,
    backend: str,
    precision: str,
    threads: int = 0,
    streams: int = 0,
    device: str = "cuda:0",
) -> Network:
    """Load a network after its manifest.

    manifest_path: `engines/NAME.json`. backend, precision: see `PRECISIONS`; int8 of openvino and every one
    of tensorrt take what build_engines.py made. threads: CPU threads, 0: all cores. streams: images computed
    at the same time, 0: as many as threads; openvino alone. device: GPU as PyTorch names it; tensorrt alone.
    Raises ManifestError, BackendError.
    """
    known = PRECISIONS.get(cast("Backend", backend))
    if known is None:
        raise BackendError(f"no backend {backend!r}; there are {', '.join(PRECISIONS)}")
    if precision not in known:
        raise BackendError(f"backend {backend} computes in {', '.join(known)}, not in {precision!r}")
    manifest = read_manifest(manifest_path)
    file = manifest.path(manifest_path.parent)
    # Imported here: each of them imports a library that need not be installed.
    if backend == "onnxruntime":
        from streamer.backends.onnxruntime_backend import OnnxRuntimeNetwork

        return OnnxRuntimeNetwork(file, manifest, threads=threads)
    if backend == "torch":
        from streamer.backends.torch_backend import TorchNetwork

        return TorchNetwork(file, manifest, threads=threads)
    if backend == "tensorrt":
        return _load_engine(manifest_path, manifest, precision, device)
    from streamer.backends.openvino_backend import OpenVinoNetwork

    if precision == "int8":
        file = find_int8(manifest_path, manifest)
    return OpenVinoNetwork(
        file, manifest, precision=cast("Precision", precision), threads=threads, streams=streams
    )


def _load_engine(manifest_path: Path, manifest: Manifest, precision: str, device: str) -> Network:
    stamp = machine_stamp(device)
    variant = tensorrt_folder(precision, stamp["gpu"])
    crops = "--calibration CROPS " if precision in ("int8", "fp8") else ""
    command = f"python build_engines.py --target tensorrt --precision {precision} {crops}{manifest.name}"
    path, compiled = find_compiled(manifest_path, manifest, variant, command, stamp)
    if compiled.max_batch is None:
        raise ManifestError(f"{path}: max_batch is missing; run: {command}")
    from streamer.backends.tensorrt_backend import TensorRtNetwork

    file = path.parent / next(iter(compiled.files))
    return TensorRtNetwork(file, manifest, precision=precision, device=device, max_batch=compiled.max_batch)


_DISTRIBUTIONS: dict[Backend, tuple[str, ...]] = {
    "tensorrt": ("tensorrt", "tensorrt-cu13", "tensorrt-cu13-bindings", "tensorrt-cu12"),
}
"""Names on the package index, where they are not the backend's."""


@dataclass(frozen=True, slots=True)
class BackendStatus:
    """What can be said of a backend on this machine."""

    name: Backend
    usable: bool
    version: str | None
    """Of the library; None if it is not installed."""
    reason: str
    """Why it is not usable, with what to do; empty if it is."""
    precisions: tuple[str, ...]
    """Usable here; int8 besides needs members quantised by build_engines.py."""
    notes: tuple[str, ...]
    """What was found out about precisions, for people."""


def describe_backends() -> list[BackendStatus]:
    """Look at every backend. Probes bf16 and int8 in subprocesses: some seconds on the first call."""
    return [_describe(backend) for backend in get_args(Backend)]


def _describe(backend: Backend) -> BackendStatus:
    version = next(filter(None, map(installed_version, _DISTRIBUTIONS.get(backend, (backend,)))), None)
    if version is None:
        return BackendStatus(backend, False, None, f"not installed: {_INSTALL[backend]}", (), ())
    if backend == "tensorrt":
        try:
            import_tensorrt()
        except BackendError as error:
            return BackendStatus(backend, False, version, str(error), (), ())
        return BackendStatus(backend, True, version, "", PRECISIONS[backend], ())
    if backend != "openvino":
        try:
            importlib.import_module(backend)
        except Exception as error:  # noqa: BLE001 (a broken installation may raise anything)
            return BackendStatus(backend, False, version, f"cannot be imported: {error}", (), ())
        return BackendStatus(backend, True, version, "", PRECISIONS[backend], ())
    found = {precision: probe(precision) for precision in get_args(Precision)}
    return BackendStatus(
        backend,
        found["f32"].usable,
        version,
        found["f32"].reason,
        tuple(precision for precision, outcome in found.items() if outcome.usable),
        tuple(f"{precision}: {outcome.reason}" for precision, outcome in found.items() if outcome.reason),
    )


def installed_version(distribution: str) -> str | None:
    """Of a distribution; None: it is not installed."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None

"""Inference on CPUs with ONNX Runtime, f32: an independent check of the other backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from streamer.backends.images import in_memory, normalise
from streamer.errors import BackendError, InferenceError, ManifestError, missing_extra
from streamer.manifest import Manifest
from streamer.types import Float32Array, Images


class OnnxRuntimeNetwork:
    """A network in ONNX Runtime; see `streamer.backends.base.Network`."""

    device = "onnxruntime f32 on CPU"

    def __init__(self, file: Path, manifest: Manifest, *, threads: int = 0) -> None:
        """file: ONNX. threads: CPU threads for each run, 0: all cores. Raises BackendError, ManifestError."""
        try:
            import onnxruntime
        except ImportError as error:
            raise BackendError(
                f"backend onnxruntime: cannot import it: {error}; {missing_extra('onnxruntime')}"
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        try:
            session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its exceptions share no base class
            raise BackendError(f"{manifest.name}: ONNX Runtime cannot use {file}: {error}") from error
        present = [output.name for output in session.get_outputs()]
        if missing := [name for name in manifest.outputs if name not in present]:
            raise ManifestError(f"{manifest.name}: no output {missing[0]!r}; it has {sorted(present)}")
        self._input = session.get_inputs()[0].name
        self._session: Any = session
        self.manifest = manifest

    def run(self, images: Images) -> tuple[Float32Array, ...]:
        """See `Network.run`."""
        images = in_memory(images, self.manifest)
        session = self._session
        if session is None:
            raise InferenceError(f"{self.manifest.name}: used after close()")
        try:
            outputs = session.run(
                list(self.manifest.outputs), {self._input: normalise(images, self.manifest.input)}
            )
        except Exception as error:  # its exceptions share no base class
            raise InferenceError(f"{self.manifest.name}: {error}") from error
        return tuple(outputs)

    def close(self) -> None:
        """See `Network.close`."""
        self._session = None

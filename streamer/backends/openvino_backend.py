"""Inference on CPUs with OpenVINO.

One image per inference request, as many streams as threads: every stream computes one image on one core, with
no synchronisation inside a layer, and a batch is spread over the streams. So a result does not depend on the
batch it came in, and one compiled network serves where padded batch buckets need one each. A dynamic batch
dimension is no option: with two streams, OpenVINO 2026.4 corrupts its heap within seconds (compare its issues
20633 and 37577).
"""

from __future__ import annotations

import os
import sys
import threading
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from streamer.backends.images import in_memory
from streamer.backends.probe import Precision, cpu_shows_amx, lower_isa, probe
from streamer.errors import BackendError, InferenceError, ManifestError, one_line
from streamer.manifest import Manifest
from streamer.types import Float32Array, Images, UInt8Array

_lock = threading.Lock()
_core: Any = None


class OpenVinoNetwork:
    """A network compiled for the CPU; see `streamer.backends.base.Network`."""

    def __init__(
        self, file: Path, manifest: Manifest, *, precision: Precision, threads: int = 0, streams: int = 0
    ) -> None:
        """Compile the network.

        file: ONNX or OpenVINO IR. precision: `int8` expects a network that is quantised already. threads: CPU
        threads, 0: all cores. streams: images computed at the same time, 0: as many as threads. Raises
        BackendError, ManifestError.
        """
        self.manifest = manifest
        self.device = f"openvino {precision} on CPU"
        threads = threads or len(os.sched_getaffinity(0))
        streams = min(streams or threads, threads)
        core = shared_core(precision)
        ov = import_openvino()
        try:
            model = _with_preprocessing(ov, core.read_model(file), manifest)
            self._compiled = core.compile_model(
                model,
                "CPU",
                {
                    "NUM_STREAMS": streams,
                    "INFERENCE_NUM_THREADS": threads,
                    # int8 layers stay int8; this is for the layers between them.
                    "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
                    # Cores are shared with decoders and the other networks: leave placement to the kernel.
                    "ENABLE_CPU_PINNING": False,
                },
            )
            self._outputs = [self._compiled.output(name) for name in manifest.outputs]
            self._local = threading.local()
            # One run before any two threads meet. OpenVINO's binding sets something up on first use: where
            # two first uses met, one thread held a lock and waited for the GIL and the other the reverse, for
            # ever (seen with 2026.4.1 in about one start in four of `streamer run`).
            self._infer(np.zeros((1, manifest.input.height, manifest.input.width, 3), np.uint8))
        except RuntimeError as error:
            raise BackendError(f"{manifest.name}: OpenVINO cannot use {file}: {one_line(error)}") from error
        self._workers = ThreadPoolExecutor(streams, thread_name_prefix=f"openvino-{manifest.name}")

    def run(self, images: Images) -> tuple[Float32Array, ...]:
        """See `Network.run`."""
        images = in_memory(images, self.manifest)
        try:
            futures = [self._workers.submit(self._infer, images[i : i + 1]) for i in range(len(images))]
        except RuntimeError as error:
            raise InferenceError(f"{self.manifest.name}: used after close()") from error
        wait(futures)  # all of them, also after a failure: `images` belongs to the caller again
        try:
            rows = [future.result() for future in futures]
        except RuntimeError as error:
            raise InferenceError(f"{self.manifest.name}: {one_line(error)}") from error
        return tuple(np.concatenate(parts) for parts in zip(*rows, strict=True))

    def _infer(self, image: UInt8Array) -> list[Float32Array]:
        """(1, height, width, 3) uint8 -> outputs, each (1, ...) float32, owned by the caller."""
        request = getattr(self._local, "request", None)
        if request is None:
            request = self._local.request = self._compiled.create_infer_request()
        results = request.infer([image], share_inputs=False, share_outputs=False)
        return [results[output] for output in self._outputs]

    def close(self) -> None:
        """See `Network.close`. Waits for the runs under way."""
        self._workers.shutdown(wait=True)


def import_openvino() -> ModuleType:
    """Import OpenVINO with its telemetry off. Raises BackendError if it is not installed."""
    # None makes `import openvino_telemetry` fail; OpenVINO then takes its built-in stub, which sends nothing.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    try:
        import openvino
    except ImportError as error:
        raise BackendError(f"backend openvino: cannot import it: {error}; pip install openvino") from error
    return openvino  # type: ignore[no-any-return]


def shared_core(precision: Precision) -> Any:
    """The process's one `openvino.Core`, made after the machine was probed for `precision`.

    Raises BackendError when the machine cannot run this precision.
    """
    global _core
    # A f32 network must not create the CPU plugin on a machine where a later int8 network needs a lower ISA.
    kinds: tuple[Precision, ...] = ("bf16", "int8") if precision != "f32" or cpu_shows_amx() else ()
    with _lock:
        for kind in kinds:
            found = probe(kind)
            if kind == precision and not found.usable:
                raise BackendError(f"precision {precision} with backend openvino: {found.reason}")
            if kind == precision or _core is None:
                lower_isa(found, too_late="openvino" in sys.modules)
        if _core is None:
            _core = import_openvino().Core()
        return _core


def _with_preprocessing(ov: ModuleType, model: Any, manifest: Manifest) -> Any:
    """Graph that takes (1, height, width, 3) uint8 RGB; layout and normalisation become part of it."""
    if len(model.inputs) != 1:
        raise ManifestError(f"{manifest.name}: one input expected, {manifest.file} has {len(model.inputs)}")
    present = {name for output in model.outputs for name in output.get_names()}
    if missing := [name for name in manifest.outputs if name not in present]:
        raise ManifestError(f"{manifest.name}: no output {missing[0]!r}; it has {sorted(present)}")
    spec = manifest.input
    steps = ov.preprocess.PrePostProcessor(model)
    steps.input().tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC"))
    steps.input().preprocess().convert_element_type(ov.Type.f32).mean(list(spec.mean)).scale(list(spec.std))
    steps.input().model().set_layout(ov.Layout(spec.layout))
    for index in range(len(model.outputs)):
        steps.output(index).tensor().set_element_type(ov.Type.f32)
    model = steps.build()
    model.reshape([1, spec.height, spec.width, 3])
    return model

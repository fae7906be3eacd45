"""A network of `engines/` -> the ONNX graph that TensorRT builds: images in, number formats stated at every
node.

int8 is stated by pairs of QuantizeLinear and DequantizeLinear, which ONNX Runtime's tools insert after
looking at calibration images. TensorRT wants them symmetric and signed, weights per channel (Jacob et al.,
CVPR 2018).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import onnx
import onnx.version_converter

from streamer.backends.images import normalise
from streamer.errors import BackendError, ModelError
from streamer.manifest import InputSpec, Manifest
from streamer.models.onnx_graph import cast_floats, fold_constants, keep_outputs, take_images
from streamer.types import UInt8Array

QUANTISED = ("Conv", "Gemm", "MatMul")
"""Operators that compute in int8; the others stay in float16."""

_OPSETS = {"int8": 19, "bf16": 22}
"""From which on scales of quantisation may be float16, and convolutions bfloat16."""


def engine_graph(
    file: Path, manifest: Manifest, precision: str, calibration: UInt8Array | None = None
) -> onnx.ModelProto:
    """The graph of a network in `f32`, `fp16`, `bf16` or `int8`.

    Input: `images`, (n, height, width, 3) uint8 RGB. Outputs: those of the manifest, float32. calibration:
    (n, height, width, 3) uint8 crops, for int8, whose other layers are float16. Raises ModelError,
    BackendError.
    """
    try:
        model = onnx.load(file)
        keep_outputs(model, manifest.outputs)
        if precision in _OPSETS:
            model = onnx.version_converter.convert_version(model, _OPSETS[precision])
        fold_constants(model)
        if precision == "int8":
            if calibration is None:
                raise ModelError("int8 needs images to calibrate with")
            model = _quantised(model, manifest.input, calibration)
        if precision in ("fp16", "int8"):
            cast_floats(model, "fp16")
        elif precision == "bf16":
            cast_floats(model, "bf16")
        take_images(model, manifest.input)
        onnx.checker.check_model(model, full_check=True)
    except (ModelError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{manifest.name}: {error}") from error
    return model


def _quantised(model: onnx.ModelProto, spec: InputSpec, images: UInt8Array) -> onnx.ModelProto:
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise BackendError(
            f"int8 needs ONNX Runtime: {error}; pip install 'streamer[onnxruntime]'"
        ) from error
    name = model.graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter(range(len(images)))

        def get_next(self) -> dict[str, Any] | None:
            row = next(self._rows, None)
            return None if row is None else {name: normalise(images[row : row + 1], spec)}

    with tempfile.TemporaryDirectory(prefix="streamer-int8-") as folder:
        source, fused, made = (Path(folder) / f"{stage}.onnx" for stage in ("source", "fused", "made"))
        onnx.save(model, source)
        # Batch normalisation goes into the convolutions first: between them it would need a pair of its own.
        quant_pre_process(source, fused, skip_symbolic_shape=True)
        quantize_static(
            fused,
            made,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
            },
        )
        return onnx.load(made)

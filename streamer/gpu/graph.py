"""A network of `engines/` -> the ONNX graph that TensorRT builds: images in, number formats stated at every
node.

int8 and fp8 are stated by pairs of QuantizeLinear and DequantizeLinear before what computes in them, which
ONNX Runtime's tools insert after looking at calibration images: the largest magnitude seen becomes the
largest number of the format. TensorRT wants them symmetric and signed, weights per channel (Jacob et al.,
CVPR 2018; Micikevicius et al., arXiv:2209.05433). Everything else, and what comes out of them, is float16.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
from onnx import TensorProto, helper, numpy_helper

from streamer.backends.images import normalise
from streamer.errors import BackendError, ModelError, missing_extra
from streamer.manifest import InputSpec, Manifest
from streamer.models.onnx_graph import cast_floats, fold_constants, keep_outputs, take_images
from streamer.types import Float32Array, UInt8Array

QUANTISED = ("Conv", "Gemm", "MatMul")
"""Operators that compute in int8 or fp8."""

FP8_CHANNELS, FP8_TAPS = 16, 32
"""Channels, in and out, beyond which TensorRT has convolutions in fp8, and the most weights that a kernel may
have between two of them (5 x 5, not 7 x 7); the grouped ones are slower than in float16. After the notes of
TensorRT 10.12 to 10.16 ("no optimized FP8 Convolutions for Group Convolutions", "do not support kernel sizes
larger than 32") and NVIDIA's Model Optimizer, which leaves the same out."""


@dataclass(frozen=True, slots=True)
class _Format:
    """Numbers of 8 bits, which stand for themselves times a scale."""

    kind: int
    """`TensorProto.DataType`."""
    largest: float
    least_scale: float
    """So that it is no zero in float16, nor, with fp8, which loses nothing by it, a coarse one."""


FORMATS = MappingProxyType(
    {
        "int8": _Format(TensorProto.INT8, 127.0, 2.0**-24),
        "fp8": _Format(TensorProto.FLOAT8E4M3FN, 448.0, 2.0**-14),
    }
)
"""Precisions that need calibration images."""

_OPSETS = {"int8": 19, "fp8": 21, "bf16": 22}
"""From which on scales of quantisation may be float16, also those of fp8, and convolutions bfloat16."""


def engine_graph(
    file: Path, manifest: Manifest, precision: str, calibration: UInt8Array | None = None
) -> onnx.ModelProto:
    """The graph of a network in `f32`, `fp16`, `bf16`, `int8` or `fp8`.

    Input: `images`, (n, height, width, 3) uint8 RGB. Outputs: those of the manifest, float32. calibration:
    (n, height, width, 3) uint8 crops, for int8 and fp8. Raises ModelError, BackendError.
    """
    try:
        model = onnx.load(file)
        keep_outputs(model, manifest.outputs)
        if precision in _OPSETS:
            model = onnx.version_converter.convert_version(model, _OPSETS[precision])
        fold_constants(model)
        if precision in FORMATS:
            model = _fold_into_convolutions(model)
        if precision != "f32":
            split_batch_normalisation(model)
        if precision in FORMATS:
            if calibration is None:
                raise ModelError(f"{precision} needs images to calibrate with")
            model = _quantised(model, manifest.input, calibration, precision)
        if precision != "f32":
            cast_floats(model, "bf16" if precision == "bf16" else "fp16")
        take_images(model, manifest.input)
        onnx.checker.check_model(model, full_check=True)
    except (ModelError, onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ModelError(f"{manifest.name}: {error}") from error
    return model


def split_batch_normalisation(model: onnx.ModelProto) -> None:
    """Make batch normalisations a product and a sum, in place, in float32, before numbers are cast.

    With statistics in another format TensorRT computes in that, root and quotient included. They do not
    become part of the convolutions before them: of the members, whose weights are stored as float16, those
    would no longer be exact in it.
    """
    graph = model.graph
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.op_type != "BatchNormalization" or not tensors.keys() >= set(node.input[1:]):
            nodes.append(node)
            continue
        gain, shift, mean, variance = (numpy_helper.to_array(tensors[name]) for name in node.input[1:])
        epsilon = next((a.f for a in node.attribute if a.name == "epsilon"), 1e-5)
        factor = gain / np.sqrt(variance + epsilon)
        name, scaled = node.output[0], f"{node.output[0]}.scaled"
        for what, values in (("factor", factor), ("shift", shift - mean * factor)):
            row = values.astype(np.float32).reshape(-1, 1, 1)
            graph.initializer.append(numpy_helper.from_array(row, f"{name}.{what}"))
        nodes.append(helper.make_node("Mul", [node.input[0], f"{name}.factor"], [scaled]))
        nodes.append(helper.make_node("Add", [scaled, f"{name}.shift"], [name]))
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def _fold_into_convolutions(model: onnx.ModelProto) -> onnx.ModelProto:
    """Batch normalisation where it follows a convolution: in 8 bits it would need a pair of its own. Raises
    BackendError."""
    try:
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise BackendError(f"{error}; {missing_extra('onnxruntime')}") from error
    with tempfile.TemporaryDirectory(prefix="streamer-fold-") as folder:
        source, folded = Path(folder) / "source.onnx", Path(folder) / "folded.onnx"
        onnx.save(model, source)
        quant_pre_process(source, folded, skip_symbolic_shape=True)
        return onnx.load(folded)


def run_on_cpu(graph: onnx.ModelProto, images: UInt8Array) -> list[Float32Array]:
    """Outputs of a graph from `engine_graph` in ONNX Runtime, for a check. Slow. Raises BackendError."""
    try:
        import onnxruntime
    except ImportError as error:
        raise BackendError(f"a check of {graph.graph.name} needs ONNX Runtime: {error}") from error
    options = onnxruntime.SessionOptions()
    # Of a Clip or Relu before fp8 they think that it saturates at the format's zero, and drop it.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(
        graph.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    rows = [session.run(None, {"images": images[k : k + 8]}) for k in range(0, len(images), 8)]
    return [np.concatenate(parts) for parts in zip(*rows, strict=True)]


def _quantised(
    model: onnx.ModelProto, spec: InputSpec, images: UInt8Array, precision: str
) -> onnx.ModelProto:
    try:
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise BackendError(
            f"{precision} needs ONNX Runtime: {error}; {missing_extra('onnxruntime')}"
        ) from error
    name = model.graph.input[0].name

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._rows = iter(range(len(images)))

        def get_next(self) -> dict[str, Any] | None:
            row = next(self._rows, None)
            return None if row is None else {name: normalise(images[row : row + 1], spec)}

    with tempfile.TemporaryDirectory(prefix="streamer-quantise-") as folder:
        made = Path(folder) / "made.onnx"
        for k, node in enumerate(model.graph.node):
            node.name = f"{node.op_type}_{k}"  # nodes are excluded by name, and need not have one
        quantize_static(
            model,
            made,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=list(QUANTISED),
            nodes_to_exclude=_not_in_fp8(model) if precision == "fp8" else [],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                "AddQDQPairToWeight": True,
                # What follows a convolution, TensorRT computes in the same kernel, before it rounds.
                "OpTypesToExcludeOutputQuantization": list(QUANTISED),
            },
        )
        quantised = onnx.load(made)
    _set_format(quantised, FORMATS[precision])
    return quantised


def _not_in_fp8(model: onnx.ModelProto) -> list[str]:
    """Names of the operators that stay in float16. Raises ModelError if all do."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    candidates = [node for node in model.graph.node if node.op_type in QUANTISED]
    excluded = []
    for node in candidates:
        groups = next((a.i for a in node.attribute if a.name == "group"), 1)
        outer, inner, *kernel = shapes.get(node.input[1], (0, 0))
        if groups > 1 or min(outer, inner) <= FP8_CHANNELS or prod(kernel) > FP8_TAPS:
            excluded.append(node.name)
    if len(excluded) == len(candidates):
        raise ModelError("nothing of it can compute in fp8; use fp16")
    return excluded


def _set_format(model: onnx.ModelProto, format_: _Format) -> None:
    """Let the pairs, made for int8, be of another format, in place."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    for scale, zero in {(node.input[1], node.input[2]) for node in pairs}:
        made_for_int8 = numpy_helper.to_array(tensors[scale])
        scales = made_for_int8 * (FORMATS["int8"].largest / format_.largest)
        scales = np.maximum(scales, format_.least_scale).astype(np.float32)
        tensors[scale].CopyFrom(numpy_helper.from_array(scales, scale))
        size = prod(tensors[zero].dims)
        tensors[zero].CopyFrom(
            helper.make_tensor(zero, format_.kind, tensors[zero].dims, bytes(size), raw=True)
        )
    del model.graph.value_info[:]  # which tells of int8

"""Graphs for TensorRT, run by ONNX Runtime: they compute what the network in `engines/` does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import make_network
from onnx import TensorProto, numpy_helper

from streamer.backends.load import load_network
from streamer.errors import ModelError
from streamer.gpu.graph import engine_graph
from streamer.manifest import read_manifest
from streamer.types import UInt8Array

ENGINES = Path(__file__).parents[2] / "engines"
NETWORKS = sorted(path.stem for path in ENGINES.glob("*.json") if path.stem != "face_landmark")


def crops(size: int, n: int = 4) -> UInt8Array:
    """Photographs of people, resized."""
    import cv2
    import skimage.data

    photograph = skimage.data.astronaut()
    cuts = [photograph[20 * k : 20 * k + 250, 100 + 10 * k : 350 + 10 * k] for k in range(n)]
    return np.stack([cv2.resize(cut, (size, size), interpolation=cv2.INTER_AREA) for cut in cuts])


def run(model: onnx.ModelProto, images: UInt8Array) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    outputs: list[np.ndarray] = session.run(None, {"images": images})
    assert all(output.dtype == np.float32 for output in outputs)
    return outputs


def graph_of(path: Path, precision: str, calibration: UInt8Array | None = None) -> onnx.ModelProto:
    manifest = read_manifest(path)
    return engine_graph(manifest.path(path.parent), manifest, precision, calibration)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize(("precision", "allowed"), [("f32", 1e-3), ("fp16", 0.03)])
def test_outputs_are_those_of_the_network(name: str, precision: str, allowed: float) -> None:
    path = ENGINES / f"{name}.json"
    network = load_network(path, backend="onnxruntime", precision="f32")
    images = crops(network.manifest.input.height)
    expected = network.run(images)
    network.close()
    got = run(graph_of(path, precision), images)
    for output, wanted in zip(got, expected, strict=True):
        scale = max(1.0, float(np.abs(wanted).max()))
        assert np.abs(output - wanted).max() / scale < allowed


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8"])
def test_every_number_is_of_the_precision(tmp_path: Path, layout: str, precision: str) -> None:
    path = make_network(tmp_path, layout=layout)
    calibration = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    model = onnx.shape_inference.infer_shapes(graph_of(path, precision, calibration), strict_mode=True)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    types |= {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    wanted = TensorProto.BFLOAT16 if precision == "bf16" else TensorProto.FLOAT16
    assert {types[name] for node in convolutions for name in (*node.input, *node.output)} == {wanted}


def test_bf16_weights_are_the_nearest(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    source = onnx.load(path.with_suffix(".onnx"))
    exact = {tensor.name: numpy_helper.to_array(tensor) for tensor in source.graph.initializer}
    for tensor in graph_of(path, "bf16").graph.initializer:
        if tensor.name in exact:
            rounded = numpy_helper.to_array(tensor).astype(np.float32)
            assert np.abs(rounded - exact[tensor.name]).max() <= np.abs(exact[tensor.name]).max() / 256
            assert not np.array_equal(rounded, exact[tensor.name])


def test_int8_is_as_tensorrt_wants_it(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    model = graph_of(path, "int8", images[:16])
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        assert constants[node.input[1]].dtype == np.float16
        zero = constants[node.input[2]]
        assert zero.dtype == np.int8
        assert not zero.any()
    network = load_network(path, backend="onnxruntime", precision="f32")
    (expected,) = network.run(images[16:])
    (got,) = run(model, images[16:])
    assert np.abs(got - expected).max() < 0.05 * max(1.0, float(np.abs(expected).max()))
    assert not np.array_equal(got, expected)


def test_int8_needs_images(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="small: int8 needs images to calibrate with"):
        graph_of(make_network(tmp_path), "int8")


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="small: w3: beyond float16; use bf16 or f32"):
        graph_of(make_network(tmp_path, scale=1e6), "fp16")
    assert graph_of(make_network(tmp_path, scale=1e6), "bf16")

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
from streamer.classify import probability
from streamer.errors import ModelError
from streamer.gpu.graph import FORMATS, engine_graph, run_on_cpu, split_batch_normalisation
from streamer.manifest import read_manifest
from streamer.models.onnx_graph import keep_outputs, take_images
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


@pytest.mark.parametrize("name", NETWORKS)
def test_batch_normalisation_is_split_in_f32(name: str) -> None:
    path = ENGINES / f"{name}.json"
    manifest = read_manifest(path)
    split = onnx.load(manifest.path(ENGINES))
    keep_outputs(split, manifest.outputs)
    split_batch_normalisation(split)
    assert "BatchNormalization" not in {node.op_type for node in split.graph.node}
    used = {name for node in split.graph.node for name in node.input}
    assert {tensor.name for tensor in split.graph.initializer} <= used
    images = crops(manifest.input.height)
    network = load_network(path, backend="onnxruntime", precision="f32")
    expected = network.run(images)
    network.close()
    take_images(split, manifest.input)
    for output, wanted in zip(run_on_cpu(split, images), expected, strict=True):
        np.testing.assert_allclose(output, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_no_statistics_are_cast(precision: str) -> None:
    """Of a network with normalisations before convolutions, into which they cannot be folded."""
    path = ENGINES / "densenet_efficientnet.json"
    model = graph_of(path, precision, crops(read_manifest(path).input.height, 2))
    assert "BatchNormalization" not in {node.op_type for node in model.graph.node}


def test_statistics_that_float16_does_not_have(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    source = onnx.load(path.with_suffix(".onnx"))
    for tensor in source.graph.initializer:  # below, and above, what float16 has
        if tensor.name == "variance":
            spread = np.where(np.arange(16) % 2, 1e-7, 1e6).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(spread, "variance"))
        if tensor.name == "w1":
            weights = (
                numpy_helper.to_array(tensor) * np.where(np.arange(16) % 2, 1e-3, 1e3)[:, None, None, None]
            )
            tensor.CopyFrom(numpy_helper.from_array(weights.astype(np.float32), "w1"))
    manifest = read_manifest(path)
    onnx.save(source, path.with_suffix(".onnx"))
    exact = engine_graph(path.with_suffix(".onnx"), manifest, "f32")
    half = engine_graph(path.with_suffix(".onnx"), manifest, "fp16")
    images = crops(32)
    np.testing.assert_allclose(run(half, images)[0], run(exact, images)[0], rtol=5e-3)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("precision", ["fp16", "bf16", "int8", "fp8"])
def test_every_number_is_of_the_precision(tmp_path: Path, layout: str, precision: str) -> None:
    path = make_network(tmp_path, layout=layout, channels=64)
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


@pytest.mark.parametrize("precision", FORMATS)
def test_8_bits_are_as_tensorrt_wants_them(tmp_path: Path, precision: str) -> None:
    path = make_network(tmp_path, channels=64)
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    model = graph_of(path, precision, images[:16])
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    pairs = [node for node in model.graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert pairs
    for node in pairs:
        assert tensors[node.input[1]].data_type == TensorProto.FLOAT16
        zero = tensors[node.input[2]]
        assert zero.data_type == FORMATS[precision].kind
        assert not any(zero.raw_data)
    # the largest weight of a channel is the largest number of the format
    weights = numpy_helper.to_array(tensors["w2"]).astype(np.float32)
    (of_weights,) = [node for node in pairs if node.input[0] == "w2"]
    scales = numpy_helper.to_array(tensors[of_weights.input[1]]).astype(np.float32)
    np.testing.assert_allclose(
        scales, np.abs(weights).max(axis=(1, 2, 3)) / FORMATS[precision].largest, rtol=2e-3
    )
    network = load_network(path, backend="onnxruntime", precision="f32")
    (expected,) = network.run(images[16:])
    (got,) = run_on_cpu(model, images[16:])
    assert np.abs(got - expected).max() < 0.05 * max(1.0, float(np.abs(expected).max()))
    assert not np.array_equal(got, expected)


def quantised_layers(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Those whose inputs and weights both come from 8 bits."""
    made = {
        output for node in model.graph.node if node.op_type == "DequantizeLinear" for output in node.output
    }
    return [node for node in model.graph.node if len(node.input) > 1 and set(node.input[:2]) <= made]


def test_fp8_is_for_what_tensorrt_is_faster_in() -> None:
    path = ENGINES / "mobilenet_v2.json"
    model = graph_of(path, "fp8", crops(read_manifest(path).input.height, 2))
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    sources = {node.output[0]: node.input[0] for node in model.graph.node if "uantizeLinear" in node.op_type}
    layers = quantised_layers(model)
    assert {node.op_type for node in layers} == {"Conv"}
    assert len(layers) == 33
    for node in layers:
        outer, inner, *kernel = shapes[sources[sources[node.input[1]]]]
        assert min(outer, inner) > 16
        assert kernel in ([1, 1], [3, 3])
        assert all(attribute.i == 1 for attribute in node.attribute if attribute.name == "group")


def test_fp8_of_a_member_is_close() -> None:
    path = ENGINES / "mobilenet_v2.json"
    manifest = read_manifest(path)
    images = crops(manifest.input.height, 6)
    network = load_network(path, backend="onnxruntime", precision="f32")
    exact = probability(network.run(images)[0], manifest.calibration)
    network.close()
    got = probability(run_on_cpu(graph_of(path, "fp8", images), images)[0], manifest.calibration)
    assert 0 < np.abs(got - exact).max() < 0.1


def test_a_network_too_narrow_for_fp8(tmp_path: Path) -> None:
    images = np.zeros((2, 32, 32, 3), np.uint8)
    with pytest.raises(ModelError, match="small: nothing of it can compute in fp8; use fp16"):
        graph_of(make_network(tmp_path, channels=16), "fp8", images)


@pytest.mark.parametrize("precision", FORMATS)
def test_a_dead_channel_has_a_scale(tmp_path: Path, precision: str) -> None:
    path = make_network(tmp_path, channels=64)
    manifest = read_manifest(path)
    source = onnx.load(path.with_suffix(".onnx"))
    (w2,) = [tensor for tensor in source.graph.initializer if tensor.name == "w2"]
    weights = numpy_helper.to_array(w2).copy()
    weights[0], weights[1] = 0, weights[1] * 1e-9
    w2.CopyFrom(numpy_helper.from_array(weights, "w2"))
    onnx.save(source, path.with_suffix(".onnx"))
    images = np.random.default_rng(1).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    model = engine_graph(path.with_suffix(".onnx"), manifest, precision, images)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            assert (numpy_helper.to_array(tensors[node.input[1]]) > 0).all()
    (got,) = run_on_cpu(model, images)
    assert np.isfinite(got).all()


@pytest.mark.parametrize("precision", FORMATS)
def test_8_bits_need_images(tmp_path: Path, precision: str) -> None:
    with pytest.raises(ModelError, match=f"small: {precision} needs images to calibrate with"):
        graph_of(make_network(tmp_path), precision)


def test_weights_beyond_float16_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="small: w3: beyond float16; use bf16 or f32"):
        graph_of(make_network(tmp_path, scale=1e6), "fp16")
    assert graph_of(make_network(tmp_path, scale=1e6), "bf16")

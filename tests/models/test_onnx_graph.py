"""Graphs keep what they compute, with fewer nodes and fewer bytes."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from streamer.errors import ModelError
from streamer.models.onnx_graph import fold_constants, store_as_f16


def padded_product(weight: np.ndarray) -> onnx.ModelProto:
    """image (n, 2) -> padded by a chain of constants to (n, 3), times weight (3, 4), plus a bias."""
    pads = [
        helper.make_node("Constant", [], ["zeros"], value_ints=[0, 0, 0]),
        helper.make_node("Constant", [], ["one"], value_ints=[1]),
        helper.make_node("Concat", ["zeros", "one"], ["pads"], axis=0),
    ]
    nodes = [
        *pads,
        helper.make_node("Pad", ["image", "pads"], ["padded"]),
        helper.make_node("MatMul", ["padded", "weight"], ["product"]),
        helper.make_node("Identity", ["bias"], ["same_bias"]),
        helper.make_node("Add", ["product", "same_bias"], ["logit"]),
    ]
    graph = helper.make_graph(
        nodes,
        "padded",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n", 4])],
        [
            numpy_helper.from_array(weight.astype(np.float32), "weight"),
            numpy_helper.from_array(np.arange(4, dtype=np.float32) / 3, "bias"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def run(model: onnx.ModelProto) -> np.ndarray:
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    image = np.array([[1, -2], [0.5, 4]], np.float32)
    return np.asarray(session.run(["logit"], {"image": image})[0])


WEIGHT = np.array([[0.5, -1, 2, 0.25], [1, 3, -0.125, 8], [1, 1, 1, 1]])


def test_constant_chains_are_computed_beforehand() -> None:
    model = padded_product(WEIGHT)
    expected = run(model)
    fold_constants(model)
    assert [node.op_type for node in model.graph.node] == ["Pad", "MatMul", "Add"]
    assert {tensor.name for tensor in model.graph.initializer} == {"pads", "weight", "same_bias"}
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(run(model), expected)
    before = model.SerializeToString()
    fold_constants(model)
    assert model.SerializeToString() == before


def test_weights_take_half_the_bytes_and_mean_the_same() -> None:
    model = padded_product(WEIGHT)
    expected = run(model)
    store_as_f16(model)
    kinds = {tensor.name: tensor.data_type for tensor in model.graph.initializer}
    assert kinds == {"weight": TensorProto.FLOAT16, "bias": TensorProto.FLOAT}
    assert model.graph.node[0].op_type == "Cast"
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(run(model), expected)


@pytest.mark.parametrize("value", [0.1, 1e5, 1e-9])
def test_weights_that_float16_cannot_hold_are_refused(value: float) -> None:
    with pytest.raises(ModelError, match="weight: not representable as float16"):
        store_as_f16(padded_product(np.full((3, 4), value)))

"""Architectures by their published sizes, and graphs that run."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from streamer.models.untrained import densenet121, random_weights, resnext50_32x4d

BUILDERS = {"resnext50_32x4d": resnext50_32x4d, "densenet121": densenet121}


def parameter_count(model: onnx.ModelProto) -> int:
    """Trainable parameters: all tensors but the running statistics of batch normalisation."""
    return sum(
        int(np.prod(tensor.dims))
        for tensor in model.graph.initializer
        if not tensor.name.endswith(("running_mean", "running_var"))
    )


@pytest.mark.parametrize(
    ("name", "published"),
    # https://docs.pytorch.org/vision/stable/models.html, `num_params`
    [("resnext50_32x4d", 25_028_904), ("densenet121", 7_978_856)],
)
def test_parameters_as_published(name: str, published: int) -> None:
    assert parameter_count(BUILDERS[name](random_weights(0, "in"), outputs=1000)) == published


@pytest.mark.parametrize(
    ("name", "convolutions", "macs"),
    # Multiply-accumulates, x 10^9: `_ops` of the same page
    [("resnext50_32x4d", 53, 4.23), ("densenet121", 120, 2.834)],
)
def test_work_as_published(name: str, convolutions: int, macs: float) -> None:
    model = onnx.shape_inference.infer_shapes(BUILDERS[name](random_weights(0, "in"), outputs=1000))
    shapes = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*model.graph.value_info, *model.graph.output)
    }
    weights = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    work = 0
    for node in layers:
        out = shapes[node.output[0]]
        work += int(np.prod(weights[node.input[1]])) * (
            int(np.prod(out[2:])) if node.op_type == "Conv" else 1
        )
    assert sum(node.op_type == "Conv" for node in layers) == convolutions
    assert round(work / 1e9, 2) == pytest.approx(macs, abs=0.01)


def test_weights_follow_from_seed_and_name_alone() -> None:
    draw, same, other = random_weights(1, "in"), random_weights(1, "in"), random_weights(2, "in")
    shape = (8, 4, 3, 3)
    same("something.else.weight", shape)
    np.testing.assert_array_equal(draw("a.weight", shape), same("a.weight", shape))
    assert (draw("a.weight", shape) != other("a.weight", shape)).all()
    assert (draw("a.weight", shape) != draw("b.weight", shape)).all()


@pytest.mark.parametrize(("fan", "spread"), [("in", (2 / (32 * 9)) ** 0.5), ("out", (2 / (64 * 9)) ** 0.5)])
def test_he_initialisation(fan: str, spread: float) -> None:
    weights = random_weights(3, fan)("x.weight", (64, 32, 3, 3))  # type: ignore[arg-type]
    assert weights.std() == pytest.approx(spread, rel=0.02)
    assert abs(weights.mean()) < 0.01 * spread * 10


def test_tensor_names_are_those_of_a_torchvision_state_dict() -> None:
    names = {tensor.name for tensor in resnext50_32x4d(random_weights(0, "out")).graph.initializer}
    assert {"conv1.weight", "layer1.0.downsample.1.running_var", "layer4.2.bn3.bias", "fc.bias"} <= names
    names = {tensor.name for tensor in densenet121(random_weights(0, "in")).graph.initializer}
    assert {
        "features.norm0.weight",
        "features.denseblock4.denselayer16.conv2.weight",
        "features.transition3.norm.running_mean",
        "classifier.weight",
    } <= names


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"conv1.weight: shape \(64, 3, 7, 7\) needed, got \(1,\)"):
        resnext50_32x4d(lambda name, shape: np.zeros(1, np.float32))


def test_batch_normalisation_is_neutral() -> None:
    tensors = {t.name: t for t in densenet121(random_weights(0, "in")).graph.initializer}
    for part, value in (("weight", 1), ("bias", 0), ("running_mean", 0), ("running_var", 1)):
        assert (numpy_helper.to_array(tensors[f"features.norm0.{part}"]) == value).all()

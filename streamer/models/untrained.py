"""Classifiers with the true architecture and random weights, as ONNX, written without torch.

They stand in for trained members where only the work matters, not the score: trials of the plumbing,
benchmarks, the doctor. Architectures and tensor names are torchvision's (`torchvision.models.resnext50_32x4d`
and `densenet121`), so that a state dict fits name by name; with random state dicts
of torchvision 0.29 the outputs agree to 1.1e-6. Batch normalisations are kept as nodes; backends fold them
into convolutions.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

Weights = Callable[[str, tuple[int, ...]], NDArray[np.float32]]
"""(name as in torchvision's state dict, shape) -> tensor."""

OPSET = 17
IR_VERSION = 10
"""Readable by ONNX Runtime since 1.18."""

IMAGE_PX = 224

RESNEXT50_BLOCKS = (3, 4, 6, 3)
RESNEXT50_GROUPS, RESNEXT50_WIDTH_PER_GROUP = 32, 4
DENSENET121_BLOCKS = (6, 12, 24, 16)
DENSENET121_GROWTH, DENSENET121_BOTTLENECK = 32, 4

_BATCH_NORM_EPSILON = 1e-5


def resnext50_32x4d(weights: Weights, outputs: int = 1) -> onnx.ModelProto:
    """ResNeXt-50 32x4d (Xie et al., 2017): (N, 3, 224, 224) float32 `image` -> (N, outputs) `logit`."""
    graph = _Graph(weights)
    x = graph.conv("conv1", "image", 3, 64, kernel=7, stride=2)
    x = graph.max_pool(graph.relu(graph.batch_norm("bn1", x, 64)))
    channels = 64
    for stage, blocks in enumerate(RESNEXT50_BLOCKS, start=1):
        planes = 64 * 2 ** (stage - 1)
        for block in range(blocks):
            stride = 2 if stage > 1 and block == 0 else 1
            x = _resnext_block(graph, f"layer{stage}.{block}", x, channels, planes, stride)
            channels = 4 * planes
    return graph.finish("resnext50_32x4d", graph.linear("fc", graph.mean(x), channels, outputs), outputs)


def _resnext_block(graph: _Graph, name: str, x: str, channels: int, planes: int, stride: int) -> str:
    width = planes * RESNEXT50_WIDTH_PER_GROUP * RESNEXT50_GROUPS // 64
    y = graph.conv(f"{name}.conv1", x, channels, width, kernel=1)
    y = graph.relu(graph.batch_norm(f"{name}.bn1", y, width))
    y = graph.conv(f"{name}.conv2", y, width, width, kernel=3, stride=stride, groups=RESNEXT50_GROUPS)
    y = graph.relu(graph.batch_norm(f"{name}.bn2", y, width))
    y = graph.conv(f"{name}.conv3", y, width, 4 * planes, kernel=1)
    y = graph.batch_norm(f"{name}.bn3", y, 4 * planes)
    if stride != 1 or channels != 4 * planes:
        x = graph.conv(f"{name}.downsample.0", x, channels, 4 * planes, kernel=1, stride=stride)
        x = graph.batch_norm(f"{name}.downsample.1", x, 4 * planes)
    return graph.relu(graph.node("Add", [y, x]))


def densenet121(weights: Weights, outputs: int = 1) -> onnx.ModelProto:
    """DenseNet-121 (Huang et al., 2017): (N, 3, 224, 224) float32 `image` -> (N, outputs) `logit`."""
    graph = _Graph(weights)
    x = graph.conv("features.conv0", "image", 3, 64, kernel=7, stride=2)
    x = graph.max_pool(graph.relu(graph.batch_norm("features.norm0", x, 64)))
    channels = 64
    for number, layers in enumerate(DENSENET121_BLOCKS, start=1):
        features = [x]
        for layer in range(1, layers + 1):
            name = f"features.denseblock{number}.denselayer{layer}"
            features.append(_dense_layer(graph, name, features, channels))
            channels += DENSENET121_GROWTH
        x = graph.node("Concat", features, axis=1)
        if number < len(DENSENET121_BLOCKS):
            name = f"features.transition{number}"
            x = graph.relu(graph.batch_norm(f"{name}.norm", x, channels))
            x = graph.conv(f"{name}.conv", x, channels, channels // 2, kernel=1)
            x = graph.node("AveragePool", [x], kernel_shape=[2, 2], strides=[2, 2])
            channels //= 2
    x = graph.mean(graph.relu(graph.batch_norm("features.norm5", x, channels)))
    return graph.finish("densenet121", graph.linear("classifier", x, channels, outputs), outputs)


def _dense_layer(graph: _Graph, name: str, features: Sequence[str], channels: int) -> str:
    width = DENSENET121_BOTTLENECK * DENSENET121_GROWTH
    x = graph.node("Concat", features, axis=1) if len(features) > 1 else features[0]
    x = graph.relu(graph.batch_norm(f"{name}.norm1", x, channels))
    x = graph.conv(f"{name}.conv1", x, channels, width, kernel=1)
    x = graph.relu(graph.batch_norm(f"{name}.norm2", x, width))
    return graph.conv(f"{name}.conv2", x, width, DENSENET121_GROWTH, kernel=3)


def random_weights(seed: int, fan: Literal["in", "out"]) -> Weights:
    """Initial weights: He-normal convolutions, neutral batch normalisation, torch's default for linear ones.

    fan: which side's size sets the spread; torchvision takes `out` for its ResNets, `in` for its DenseNets.

    Every tensor has its own generator, seeded by (seed, name), so that none depends on the order of calls.
    """

    def draw(name: str, shape: tuple[int, ...]) -> NDArray[np.float32]:
        if len(shape) == 1:
            return np.full(shape, 1.0 if name.endswith(("running_var", "weight")) else 0.0, np.float32)
        key = hashlib.sha256(f"{seed}/{name}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(key[:8], "big"))
        if len(shape) == 4:
            spread = np.sqrt(2 / (shape[1 if fan == "in" else 0] * shape[2] * shape[3]))
            return generator.standard_normal(shape, np.float32) * np.float32(spread)
        return (generator.random(shape, np.float32) * 2 - 1) * np.float32(shape[1] ** -0.5)

    return draw


class _Graph:
    """Collects nodes and tensors; every method adds a node and returns the name of its output."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._nodes: list[onnx.NodeProto] = []
        self._tensors: list[onnx.TensorProto] = []

    def node(self, kind: str, inputs: Sequence[str], output: str | None = None, **attributes: Any) -> str:
        output = output or f"{kind.lower()}_{len(self._nodes)}"
        self._nodes.append(helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def tensor(self, name: str, *shape: int) -> str:
        values = self._weights(name, shape)
        if values.shape != shape:
            raise ValueError(f"{name}: shape {shape} needed, got {values.shape}")
        self._tensors.append(numpy_helper.from_array(np.asarray(values, np.float32), name))
        return name

    def conv(
        self, name: str, x: str, channels: int, out: int, *, kernel: int, stride: int = 1, groups: int = 1
    ) -> str:
        weight = self.tensor(f"{name}.weight", out, channels // groups, kernel, kernel)
        pad = kernel // 2
        return self.node(
            "Conv",
            [x, weight],
            name,
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[pad] * 4,
            group=groups,
        )

    def batch_norm(self, name: str, x: str, channels: int) -> str:
        parts = ("weight", "bias", "running_mean", "running_var")
        tensors = [self.tensor(f"{name}.{part}", channels) for part in parts]
        return self.node("BatchNormalization", [x, *tensors], name, epsilon=_BATCH_NORM_EPSILON)

    def relu(self, x: str) -> str:
        return self.node("Relu", [x])

    def max_pool(self, x: str) -> str:
        return self.node("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)

    def mean(self, x: str) -> str:
        """(N, C, H, W) -> (N, C)."""
        return self.node("Flatten", [self.node("GlobalAveragePool", [x])], axis=1)

    def linear(self, name: str, x: str, channels: int, outputs: int) -> str:
        tensors = [self.tensor(f"{name}.weight", outputs, channels), self.tensor(f"{name}.bias", outputs)]
        return self.node("Gemm", [x, *tensors], "logit", transB=1)

    def finish(self, name: str, output: str, outputs: int) -> onnx.ModelProto:
        image: list[str | int | None] = ["N", 3, IMAGE_PX, IMAGE_PX]
        graph = helper.make_graph(
            self._nodes,
            name,
            [helper.make_tensor_value_info("image", TensorProto.FLOAT, image)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, ["N", outputs])],
            self._tensors,
        )
        model = helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="streamer"
        )
        model.ir_version = IR_VERSION
        onnx.checker.check_model(model)
        return model

"""Small networks with random weights, and their manifests, for tests of backends."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from streamer.manifest import InputSpec, Manifest, sha256_of
from streamer.types import UInt8Array

SIZE = 32


def make_network(
    folder: Path,
    name: str = "small",
    *,
    layout: Literal["NCHW", "NHWC"] = "NCHW",
    size: int = SIZE,
    seed: int = 0,
    scale: float = 1.0,
    channels: int = 16,
    **fields: Any,
) -> Path:
    """Write NAME.onnx and NAME.json: conv, batch norm, relu, conv, relu, mean -> `logit` (n, 1), and
    `features` (n, channels / 2). `fields` replace those of the manifest. Returns the manifest's path."""
    folder.mkdir(parents=True, exist_ok=True)
    network = folder / f"{name}.onnx"
    onnx.save(small_classifier(layout, size, seed, scale, channels), network)
    manifest = Manifest(
        **{
            "name": name,
            "kind": "classifier",
            "architecture": "small",
            "file": network.name,
            "sha256": sha256_of(network),
            "input": InputSpec(
                layout=layout, height=size, width=size, mean=(123.7, 116.3, 103.5), std=(58.4, 57.1, 57.4)
            ),
            "outputs": ("logit",),
            "trained": False,
            "licence": "Apache-2.0",
            "origin": "tests/networks.py",
            "measured": "nothing",
        }
        | fields
    )
    path = folder / f"{name}.json"
    path.write_text(manifest.model_dump_json())
    return path


def small_classifier(layout: str, size: int, seed: int, scale: float, channels: int = 16) -> onnx.ModelProto:
    generator = np.random.default_rng(seed)

    def tensor(name: str, *shape: int, low: float = -0.4, high: float = 0.4) -> onnx.TensorProto:
        return numpy_helper.from_array(generator.uniform(low, high, shape).astype(np.float32), name)

    tensors = [
        tensor("w1", channels, 3, 3, 3),
        tensor("gain", channels, low=0.5, high=1.5),
        tensor("shift", channels),
        tensor("mean", channels),
        tensor("variance", channels, low=0.5, high=1.5),
        tensor("w2", channels // 2, channels, 3, 3),
        tensor("w3", 1, channels // 2, low=-scale, high=scale),
        tensor("b3", 1),
    ]
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["c1"], pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "gain", "shift", "mean", "variance"], ["n1"]),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("Conv", ["r1", "w2"], ["c2"], strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["features"]),
        helper.make_node("Gemm", ["features", "w3", "b3"], ["logit"], transB=1),
    ]
    shape: list[Any] = ["n", size, size, 3] if layout == "NHWC" else ["n", 3, size, size]
    if layout == "NHWC":
        nodes.insert(0, helper.make_node("Transpose", ["image"], ["x"], perm=[0, 3, 1, 2]))
    else:
        nodes.insert(0, helper.make_node("Identity", ["image"], ["x"]))
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, shape)],
        [
            helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n", 1]),
            helper.make_tensor_value_info("features", TensorProto.FLOAT, ["n", channels // 2]),
        ],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def images(n: int, size: int = SIZE, seed: int = 1) -> UInt8Array:
    """(n, size, size, 3) uint8 noise of different brightness."""
    generator = np.random.default_rng(seed)
    top = generator.integers(2, 256, (n, 1, 1, 1))
    return (generator.integers(0, 256, (n, size, size, 3)) % top).astype(np.uint8)

"""Small members that count as trained, so that scores are shown: the same logit whatever the face."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from streamer.manifest import InputSpec, Manifest, sha256_of

ROOT = Path(__file__).parents[1]


def make_engines(folder: Path, **logits: float) -> Path:
    """An `engines` folder with the repository's detectors and one constant member per name."""
    folder.mkdir()
    for file in (ROOT / "engines").glob("blazeface_*"):
        shutil.copy(file, folder)
    for name, logit in logits.items():
        make_member(folder, name, logit)
    return folder


def make_member(
    folder: Path,
    name: str,
    logit: float,
    *,
    trained: bool = True,
    weight: float = 0.0,
    mask: bool = False,
) -> None:
    """Write `folder/NAME.onnx` and its manifest. weight: of the mean of each channel, [0, 1]. mask: with a
    second output: the brightness of each of 2 x 2 cells."""
    network = folder / f"{name}.onnx"
    onnx.save(_linear_classifier(logit, weight, mask), network)
    manifest = Manifest(
        name=name,
        kind="classifier",
        architecture="constant",
        file=network.name,
        sha256=sha256_of(network),
        input=InputSpec(layout="NCHW", height=32, width=32, mean=(0, 0, 0), std=(255, 255, 255)),
        outputs=("logit", "mask") if mask else ("logit",),
        trained=trained,
        licence="Apache-2.0",
        origin="tests/members.py",
        measured="nothing",
    )
    (folder / f"{name}.json").write_text(manifest.model_dump_json())


def make_picky_member(folder: Path, name: str, brightest: float) -> None:
    """A member whose logit is sqrt(brightest - mean of the crop), in [0, 1]: NaN for brighter ones."""
    make_member(folder, name, 0.0)
    nodes = [
        helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0),
        helper.make_node("ReduceMean", ["mean"], ["grey"], axes=[1]),
        helper.make_node("Sub", ["brightest", "grey"], ["left"]),
        helper.make_node("Sqrt", ["left"], ["logit"]),
    ]
    graph = helper.make_graph(
        nodes,
        "picky",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 32])],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n", 1])],
        [numpy_helper.from_array(np.array([[brightest]], np.float32), "brightest")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    _replace_network(folder / f"{name}.json", model)


def make_picky_detector(folder: Path, name: str, brightest: float) -> None:
    """Change a detector of `folder`: NaN for images whose mean, in [-1, 1], is above `brightest`."""
    described = folder / f"{name}.json"
    manifest = Manifest.model_validate_json(described.read_text())
    model = onnx.load(manifest.path(folder))
    logits = manifest.outputs[1]
    for node in model.graph.node:
        node.output[:] = [f"{each} as it was" if each == logits else each for each in node.output]
    model.graph.node.extend(
        [
            helper.make_node("ReduceMean", [model.graph.input[0].name], ["grey"], axes=[1, 2, 3], keepdims=1),
            helper.make_node("Reshape", ["grey", "one per image"], ["column"]),
            helper.make_node("Sub", ["brightest", "column"], ["left"]),
            helper.make_node("Sqrt", ["left"], ["root"]),
            helper.make_node("Mul", ["root", "next to nothing"], ["added"]),
            helper.make_node("Add", [f"{logits} as it was", "added"], [logits]),
        ]
    )
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([-1, 1, 1], np.int64), "one per image"),
            numpy_helper.from_array(np.array([[[brightest]]], np.float32), "brightest"),
            numpy_helper.from_array(np.array([[[1e-6]]], np.float32), "next to nothing"),
        ]
    )
    _replace_network(described, model)


def _replace_network(described: Path, model: onnx.ModelProto) -> None:
    """Another network under a manifest, which then states its hash."""
    manifest = Manifest.model_validate_json(described.read_text())
    network = manifest.path(described.parent)
    onnx.save(model, network)
    described.write_text(manifest.model_copy(update={"sha256": sha256_of(network)}).model_dump_json())


def _linear_classifier(logit: float, weight: float, mask: bool) -> onnx.ModelProto:
    """Mean of each channel over height and width, times the weight, plus the logit."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "weight", "bias"], ["logit"]),
    ]
    outputs = [helper.make_tensor_value_info("logit", TensorProto.FLOAT, ["n", 1])]
    if mask:
        nodes += [
            helper.make_node("AveragePool", ["image"], ["cells"], kernel_shape=[16, 16], strides=[16, 16]),
            helper.make_node("ReduceMean", ["cells"], ["mask"], axes=[1]),
        ]
        outputs.append(helper.make_tensor_value_info("mask", TensorProto.FLOAT, ["n", 1, 2, 2]))
    graph = helper.make_graph(
        nodes,
        "constant",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 32, 32])],
        outputs,
        [
            numpy_helper.from_array(np.full((3, 1), weight, np.float32), "weight"),
            numpy_helper.from_array(np.array([logit], np.float32), "bias"),
        ],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)

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

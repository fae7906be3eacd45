"""The reference backend, operator by operator beside ONNX Runtime; needs torch (extra `train`)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import images, make_network
from onnx import TensorProto, helper, numpy_helper

from streamer.backends.load import load_network
from streamer.errors import BackendError
from streamer.manifest import sha256_of

ENGINES = Path(__file__).parents[2] / "engines"


def test_without_torch_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendError, match=r"backend torch: cannot import it.*\.\[train\]"):
        load_network(make_network(tmp_path), backend="torch", precision="f32")


@pytest.fixture
def torch() -> Any:
    return importlib.import_module("torch")


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.needs_torch
def test_agrees_with_onnxruntime(torch: Any, tmp_path: Path, layout: Any) -> None:
    path = make_network(tmp_path, layout=layout, outputs=("features", "logit"))
    compare(path, images(3), atol=1e-5)


@pytest.mark.parametrize("name", ["blazeface_short_range", "blazeface_back", "blazeface_full_range"])
@pytest.mark.needs_torch
def test_detectors(torch: Any, name: str) -> None:
    path = ENGINES / f"{name}.json"
    size = load_network(path, backend="onnxruntime", precision="f32").manifest.input.height
    compare(path, images(2, size=size), atol=1e-3)


def compare(path: Path, batch: np.ndarray, atol: float) -> None:
    ours = load_network(path, backend="torch", precision="f32").run(batch)
    theirs = load_network(path, backend="onnxruntime", precision="f32").run(batch)
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.shape, mine.dtype) == (other.shape, np.float32)
        np.testing.assert_allclose(mine, other, atol=atol)


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


OPERATORS: dict[str, tuple[str, dict[str, Any], list[np.ndarray]]] = {
    "Add": ("Add", {}, [floats(1, 2, 3).reshape(1, 3, 1, 1)]),
    "Mul": ("Mul", {}, [floats(1, 2, 3).reshape(1, 3, 1, 1)]),
    "AveragePool": ("AveragePool", {"kernel_shape": [3, 2], "strides": [2, 1]}, []),
    "AveragePool, padding counted": (
        "AveragePool",
        {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1},
        [],
    ),
    "Cast": ("Cast", {"to": TensorProto.FLOAT}, []),
    "Clip": ("Clip", {}, [np.float32(0), np.float32(1)]),  # type: ignore[list-item]
    "Conv, grouped, uneven padding": (
        "Conv",
        {"group": 3, "pads": [0, 1, 2, 1], "strides": [2, 1], "dilations": [1, 2]},
        [np.linspace(-1, 1, 6 * 9, dtype=np.float32).reshape(6, 1, 3, 3), floats(0, 1, 2, 3, 4, 5)],
    ),
    "Flatten": ("Flatten", {}, []),
    "GlobalAveragePool": ("GlobalAveragePool", {}, []),
    "MaxPool": ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, []),
    "PRelu": ("PRelu", {}, [floats(0.1, 0.2, -0.3).reshape(3, 1, 1)]),
    "Pad": ("Pad", {}, [np.array([0, 1, 2, 0, 0, 2, 0, 1]), np.float32(0.5)]),  # type: ignore[list-item]
    "ReduceMean": ("ReduceMean", {"axes": [2, 3], "keepdims": 0}, []),
    "ReduceMean, dimensions kept": ("ReduceMean", {"axes": [1]}, []),
    "Reshape": ("Reshape", {}, [np.array([0, -1, 2])]),
    "Resize": (
        "Resize",
        {"mode": "linear", "coordinate_transformation_mode": "half_pixel"},
        [floats(), floats(1, 1, 2, 2)],
    ),
    "Sigmoid": ("Sigmoid", {}, []),
    "Transpose": ("Transpose", {"perm": [0, 2, 3, 1]}, []),
}


@pytest.mark.parametrize("case", OPERATORS)
@pytest.mark.needs_torch
def test_operator(torch: Any, tmp_path: Path, case: str) -> None:
    kind, attributes, constants = OPERATORS[case]
    compare(one_operator(tmp_path, kind, attributes, constants), images(2, size=8), atol=1e-5)


def one_operator(folder: Path, kind: str, attributes: dict[str, Any], constants: list[Any]) -> Path:
    """A network of one operator on (n, 3, 8, 8), named like the small classifier."""
    path = make_network(folder, size=8)
    names = [f"c{index}" for index in range(len(constants))]
    graph = helper.make_graph(
        [helper.make_node(kind, ["image", *names], ["logit"], **attributes)],
        "one",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["n", 3, 8, 8])],
        [helper.make_tensor_value_info("logit", TensorProto.FLOAT, None)],
        [
            numpy_helper.from_array(np.asarray(value), name)
            for name, value in zip(names, constants, strict=True)
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save(model, folder / "small.onnx")
    return make_described(path)


def make_described(path: Path) -> Path:
    """Make the manifest fit its file again."""
    from streamer.manifest import Manifest

    manifest = Manifest.model_validate_json(path.read_text())
    manifest = manifest.model_copy(update={"sha256": sha256_of(path.parent / manifest.file)})
    path.write_text(manifest.model_dump_json())
    return path


@pytest.mark.needs_torch
def test_an_operator_it_has_not(torch: Any, tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="small: the torch backend has no operator Erf"):
        load_network(one_operator(tmp_path, "Erf", {}, []), backend="torch", precision="f32")

"""Choosing a backend: the one asked for, or an error that says what to do."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from networks import make_network

from streamer.backends.compiled import INT8_FOLDER
from streamer.backends.load import describe_backends, load_network
from streamer.errors import BackendError, ManifestError
from streamer.manifest import read_manifest, sha256_of


@pytest.mark.parametrize(
    ("backend", "precision", "message"),
    [
        ("tensorflow", "f32", "no backend 'tensorflow'; there are openvino, tensorrt, onnxruntime, torch"),
        ("openvino", "fp16", "backend openvino computes in f32, bf16, int8, not in 'fp16'"),
        ("onnxruntime", "int8", "backend onnxruntime computes in f32, not in 'int8'"),
        ("torch", "bf16", "backend torch computes in f32, not in 'bf16'"),
        ("tensorrt", "f16", "backend tensorrt computes in f32, fp16, bf16, int8, fp8, not in 'f16'"),
    ],
)
def test_what_there_is_not(tmp_path: Path, backend: str, precision: str, message: str) -> None:
    with pytest.raises(BackendError, match=message):
        load_network(make_network(tmp_path), backend=backend, precision=precision)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_each_backend_says_where_it_runs(tmp_path: Path, backend: str) -> None:
    network = load_network(make_network(tmp_path), backend=backend, precision="f32")
    assert network.device == f"{backend} f32 on CPU"
    assert network.manifest.name == "small"


def test_int8_without_a_quantised_member_names_the_command(tmp_path: Path) -> None:
    path = make_network(tmp_path / "untrained")
    command = "build_engines.py --target openvino --precision int8 small"
    with pytest.raises(BackendError, match=f"not built.*{command}"):
        load_network(path, backend="openvino", precision="int8")
    path = make_network(tmp_path, trained=True)
    with pytest.raises(BackendError, match=r"--precision int8 --calibration CROPS small$"):
        load_network(path, backend="openvino", precision="int8")


def pretend_int8(path: Path, **fields: object) -> Path:
    """The manifest of an int8 variant whose file is no network."""
    folder = path.parent / INT8_FOLDER
    folder.mkdir(parents=True)
    (folder / "small.xml").write_text("<net/>")
    described = {
        "name": "small",
        "target": "openvino",
        "precision": "int8",
        "files": {"small.xml": sha256_of(folder / "small.xml")},
        "source_sha256": read_manifest(path).sha256,
        "calibration": "nothing",
        "calibration_images": 0,
        "check": "nothing",
        "check_images": 0,
        "max_difference": 0,
        "max_ensemble_difference": 0,
        "allowed_difference": 0.05,
        "made_with": "hand",
    } | fields
    (folder / "small.json").write_text(json.dumps(described))
    return folder


def test_an_int8_variant_of_other_weights_is_stale(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    pretend_int8(path, source_sha256="0" * 64)
    with pytest.raises(BackendError, match=r"another version of it.*--precision int8 small"):
        load_network(path, backend="openvino", precision="int8")


def test_an_int8_variant_that_was_changed_is_refused(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    folder = pretend_int8(path)
    (folder / "small.xml").write_text("<net></net>")
    with pytest.raises(ManifestError, match="missing or changed"):
        load_network(path, backend="openvino", precision="int8")


def test_an_int8_manifest_cannot_point_elsewhere(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    pretend_int8(path, files={"../../small.onnx": read_manifest(path).sha256})
    with pytest.raises(ManifestError, match="missing or changed"):
        load_network(path, backend="openvino", precision="int8")


def test_an_int8_manifest_that_is_none(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    described = pretend_int8(path, files={}) / "small.json"
    with pytest.raises(BackendError, match=r"not a valid manifest: files: .*at least 1"):
        load_network(path, backend="openvino", precision="int8")
    described.write_text("{}")
    with pytest.raises(BackendError, match=r"not a valid manifest: name: Field required; .*; run: python"):
        load_network(path, backend="openvino", precision="int8")


def test_describe_backends() -> None:
    found = {status.name: status for status in describe_backends()}
    assert list(found) == ["openvino", "tensorrt", "onnxruntime", "torch"]
    assert found["openvino"].usable
    assert "f32" in found["openvino"].precisions
    assert found["onnxruntime"].precisions == ("f32",)
    for status in found.values():
        assert status.usable == bool(status.precisions) == (not status.reason)
        assert status.usable or "pip install" in status.reason or "cannot be imported" in status.reason

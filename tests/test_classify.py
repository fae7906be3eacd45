"""The ensemble: which members it takes, what it makes of their logits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import SIZE, images, make_network
from onnx import numpy_helper

from streamer.classify import Ensemble, model_set_of, probability
from streamer.config import ClassifyConfig
from streamer.errors import BackendError, InferenceError, ManifestError, UntrainedError
from streamer.manifest import Calibration, read_manifest, sha256_of


def config(engines: Path, *members: str, **fields: Any) -> ClassifyConfig:
    return ClassifyConfig(engines=engines, members=members, threads=1, **fields)


@pytest.fixture
def engines(tmp_path: Path) -> Path:
    """Members a and b, trained, and c, not."""
    make_network(tmp_path, "a", seed=1, trained=True)
    make_network(
        tmp_path,
        "b",
        seed=2,
        trained=True,
        calibration=Calibration(temperature=2.0, bias=-1.0),
        layout="NHWC",
    )
    make_network(tmp_path, "c", seed=3)
    return tmp_path


def reference(path: Path, crops: np.ndarray) -> np.ndarray:
    """Probabilities by ONNX Runtime and the textbook sigmoid."""
    import onnxruntime

    manifest = read_manifest(path)
    x = (crops - np.array(manifest.input.mean)) / np.array(manifest.input.std)
    if manifest.input.layout == "NCHW":
        x = x.transpose(0, 3, 1, 2)
    session = onnxruntime.InferenceSession(manifest.path(path.parent))
    (logits,) = session.run(["logit"], {"image": x.astype(np.float32)})
    scaled = logits[:, 0] / manifest.calibration.temperature + manifest.calibration.bias
    return 1 / (1 + np.exp(-scaled))


@pytest.mark.parametrize("n", [1, 5])
def test_one_column_per_member_calibrated(engines: Path, n: int) -> None:
    ensemble = Ensemble(config(engines, "b", "a"))
    got = ensemble.classify((images(n),))
    assert ensemble.names == ("b", "a")
    assert ensemble.trained
    assert ensemble.crop_sizes == (SIZE,)
    assert (got.shape, got.dtype) == ((n, 2), np.float32)
    for column, name in enumerate("ba"):
        np.testing.assert_allclose(got[:, column], reference(engines / f"{name}.json", images(n)), atol=1e-5)
    ensemble.close()
    ensemble.close()


def test_no_crops_no_rows(engines: Path) -> None:
    assert Ensemble(config(engines, "a", "b")).classify((images(0),)).shape == (0, 2)


def test_crops_of_many_callers(engines: Path) -> None:
    ensemble = Ensemble(config(engines, "a", "b"))
    crops = images(6)
    parts = ensemble.classify_many([(crops[:2],), (crops[2:2],), (crops[2:3],), (crops[3:],)])
    assert [len(part) for part in parts] == [2, 0, 1, 3]
    np.testing.assert_array_equal(np.concatenate(parts), ensemble.classify((crops,)))
    assert ensemble.classify_many([]) == []


def test_each_member_gets_crops_of_its_size(engines: Path) -> None:
    make_network(engines, "wide", size=2 * SIZE, trained=True)
    ensemble = Ensemble(config(engines, "a", "wide", "b"))
    assert ensemble.crop_sizes == (2 * SIZE, SIZE)
    small, large = images(3), images(3, size=2 * SIZE)
    got = ensemble.classify((large, small))
    for column, (name, crops) in enumerate((("a", small), ("wide", large), ("b", small))):
        np.testing.assert_allclose(got[:, column], reference(engines / f"{name}.json", crops), atol=1e-5)
    (many,) = ensemble.classify_many([(large, small)])
    np.testing.assert_array_equal(many, got)
    with pytest.raises(InferenceError, match="crops must be"):
        ensemble.classify((small, large))
    with pytest.raises(InferenceError, match="crops must be"):
        ensemble.classify((large, small[:2]))


@pytest.mark.parametrize(
    "wrong", [np.zeros((2, SIZE, SIZE + 2, 3), np.uint8), np.zeros((2, SIZE, SIZE, 3), np.float32)]
)
def test_other_crops_are_refused(engines: Path, wrong: np.ndarray) -> None:
    with pytest.raises(InferenceError, match="crops must be"):
        Ensemble(config(engines, "a")).classify((wrong,))


def test_untrained_members_are_refused_before_anything_is_loaded(engines: Path) -> None:
    with pytest.raises(UntrainedError, match=r"^c: random weights.*allow_untrained"):
        Ensemble(config(engines, "a", "c", precision="int8"))


def test_unless_they_are_allowed_and_then_it_shows(engines: Path) -> None:
    ensemble = Ensemble(config(engines, "a", "c", allow_untrained=True))
    assert not ensemble.trained


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_logit_that_is_no_number_never_becomes_one(engines: Path, bad: float) -> None:
    network = engines / "a.onnx"
    model = onnx.load(network)
    (bias,) = (tensor for tensor in model.graph.initializer if tensor.name == "b3")
    bias.CopyFrom(numpy_helper.from_array(np.array([bad], np.float32), "b3"))
    onnx.save(model, network)
    described = read_text_with(engines / "a.json", sha256=sha256_of(network))
    (engines / "a.json").write_text(described)
    ensemble = Ensemble(config(engines, "b", "a"))
    with pytest.raises(InferenceError, match="a: 3 of 3 logits are NaN or infinite"):
        ensemble.classify((images(3),))
    with pytest.raises(InferenceError, match="a: 1 of 1 logits are NaN or infinite"):
        ensemble.check()


def read_text_with(path: Path, **fields: Any) -> str:
    """The manifest's text with some fields replaced."""
    from streamer.manifest import Manifest

    return Manifest.model_validate_json(path.read_text()).model_copy(update=fields).model_dump_json()


def test_members_that_do_not_fit(engines: Path) -> None:
    make_network(engines, "detector", kind="detector", trained=True)
    make_network(engines, "two", outputs=("logit", "features"), trained=True)
    make_network(engines / "more", "a", trained=True)
    make_network(engines, "vector", outputs=("features",), trained=True)
    with pytest.raises(ManifestError, match="this is a detector"):
        Ensemble(config(engines, "detector"))
    with pytest.raises(
        ManifestError,
        match="a logit, and perhaps a mask, is needed; this is a classifier with logit, features",
    ):
        Ensemble(config(engines, "two"))
    with pytest.raises(ManifestError, match="two members are called 'a'"):
        Ensemble(config(engines, "a", "more/a"))
    with pytest.raises(ManifestError, match="cannot read the manifest"):
        Ensemble(config(engines, "absent"))
    with pytest.raises(InferenceError, match=r"logits must be \(1, 1\), got \(1, 8\)"):
        Ensemble(config(engines, "vector")).classify((images(1),))


def test_int8_needs_quantised_members(engines: Path) -> None:
    with pytest.raises(BackendError, match="a: not built"):
        Ensemble(config(engines, "a", precision="int8"))


def test_model_set_stands_for_weights_calibration_and_order(engines: Path) -> None:
    a, b = read_manifest(engines / "a.json"), read_manifest(engines / "b.json")
    sets = [
        [a, b],
        [b, a],
        [a],
        [a.model_copy(update={"sha256": "0" * 64}), b],
        [a.model_copy(update={"calibration": Calibration(bias=0.1)}), b],
    ]
    assert len({model_set_of(manifests) for manifests in sets}) == len(sets)
    assert model_set_of([a, b]) == model_set_of([a.model_copy(update={"measured": "more"}), b])
    assert Ensemble(config(engines, "a", "b")).model_set == model_set_of([a, b])
    precisions = {
        precision: model_set_of([a, b], precision) for precision in ("f32", "fp16", "bf16", "int8", "fp8")
    }
    assert precisions["f32"] == precisions["fp16"] == precisions["bf16"] == model_set_of([a, b])
    assert len(set(precisions.values())) == 3, "each of 8 bits is an ensemble of its own"


def test_probability_without_overflow() -> None:
    logits = np.array([-1e30, -800, -2, 0, 2, 800, 1e30], np.float32)
    got = probability(logits, Calibration())
    np.testing.assert_allclose(got, [0, 0, 0.1192029, 0.5, 0.8807971, 1, 1], atol=1e-7)

"""int8 variants by the real NNCF: built, checked, found by the loader; refused when they are far off."""

from __future__ import annotations

import json
import resource
from pathlib import Path

import cv2
import numpy as np
import pytest
from networks import SIZE, images, make_network

from streamer.backends.compiled import INT8_FOLDER, CompiledManifest
from streamer.backends.load import load_network
from streamer.errors import BackendError, ModelError
from streamer.manifest import sha256_of
from streamer.quantise import (
    CALIBRATION_IMAGES,
    check_precision,
    find_members,
    quantise,
    random_images,
    read_images,
)


def write_crops(folder: Path, n: int) -> Path:
    folder.mkdir()
    for index, image in enumerate(images(n, size=2 * SIZE)):
        cv2.imwrite(str(folder / f"{index:03}.png"), image)
    return folder


def test_built_checked_and_found(tmp_path: Path) -> None:
    make_network(tmp_path / "untrained", "a", seed=1)
    make_network(tmp_path, "b", seed=2, layout="NHWC")
    steps: list[str] = []
    members = find_members(tmp_path, ["a", "b"])
    made = quantise(members, tmp_path, calibration=None, max_difference=0.2, report=steps.append)
    assert [manifest.name for manifest in made] == ["a", "b"]
    assert len(steps) == 4
    for manifest, member in zip(made, members, strict=True):
        assert manifest.calibration.startswith("random images")
        assert manifest.source_sha256 == member.manifest.sha256
        assert 0 < manifest.max_difference <= manifest.allowed_difference == 0.2
        assert manifest.max_ensemble_difference <= max(m.max_difference for m in made)
        assert "nncf" in manifest.made_with
        text = (tmp_path / INT8_FOLDER / f"{manifest.name}.json").read_text()
        assert CompiledManifest.model_validate_json(text) == manifest
        assert "I8" in (tmp_path / INT8_FOLDER / f"{manifest.name}.xml").read_text().upper()

        network = load_network(member.path, backend="openvino", precision="int8")
        assert network.device == "openvino int8 on CPU"
        crops = random_images(SIZE).check
        (exact,) = load_network(member.path, backend="openvino", precision="f32").run(crops)
        (approximate,) = network.run(crops)
        assert 0 < np.abs(approximate - exact).max() < 0.5
    leftovers = [path.name for path in (tmp_path / INT8_FOLDER).iterdir() if path.name.startswith(".")]
    assert leftovers == []


def test_changed_weights_make_it_stale(tmp_path: Path) -> None:
    path = make_network(tmp_path, "a", seed=1)
    quantise(find_members(tmp_path, []), tmp_path, calibration=None, max_difference=0.5)
    make_network(tmp_path, "a", seed=2)
    with pytest.raises(BackendError, match=r"another version.*--precision int8 a$"):
        load_network(path, backend="openvino", precision="int8")


def test_too_far_from_f32_is_refused_and_nothing_is_installed(tmp_path: Path) -> None:
    make_network(tmp_path, "a", seed=1)
    with pytest.raises(ModelError, match=r"not installed.*a by 0\.\d+ \(allowed 1e-09\)"):
        quantise(find_members(tmp_path, ["a"]), tmp_path, calibration=None, max_difference=1e-9)
    assert list((tmp_path / INT8_FOLDER).iterdir()) == []


def test_a_network_that_is_none_is_said(tmp_path: Path) -> None:
    path = make_network(tmp_path, "a")
    (tmp_path / "a.onnx").write_bytes((tmp_path / "a.onnx").read_bytes()[:1000])
    text = json.loads(path.read_text()) | {"sha256": sha256_of(tmp_path / "a.onnx")}
    path.write_text(json.dumps(text))
    with pytest.raises(BackendError, match=r"^a: cannot be quantised: [^\n]+$"):
        quantise(find_members(tmp_path, ["a"]), tmp_path, calibration=None, max_difference=0.2)
    with pytest.raises(BackendError, match=r"^a: OpenVINO cannot use [^\n]+$"):
        load_network(path, backend="openvino", precision="f32")


def test_a_full_disk_is_said_and_nothing_is_installed(tmp_path: Path) -> None:
    make_network(tmp_path, "a")
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, hard))
    try:
        with pytest.raises(ModelError, match=r"a\.xml: cannot be written, is there room\?"):
            quantise(find_members(tmp_path, ["a"]), tmp_path, calibration=None, max_difference=0.2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert list((tmp_path / INT8_FOLDER).iterdir()) == []


def test_trained_members_need_real_crops(tmp_path: Path) -> None:
    make_network(tmp_path, "a", trained=True)
    with pytest.raises(ModelError, match="a: trained, so it needs --calibration"):
        quantise(find_members(tmp_path, ["a"]), tmp_path, calibration=None, max_difference=0.2)
    crops = write_crops(tmp_path / "crops", 40)
    (made,) = quantise(find_members(tmp_path, ["a"]), tmp_path, calibration=crops, max_difference=0.5)
    assert (made.calibration, made.calibration_images, made.check_images) == ("images of crops", 30, 10)


def test_images_of_a_folder_are_split_and_resized(tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops", 33)
    read = read_images(crops, SIZE)
    assert read.calibration.shape == (25, SIZE, SIZE, 3)
    assert read.check.shape == (8, SIZE, SIZE, 3)
    everything = {image.tobytes() for image in (*read.calibration, *read.check)}
    assert len(everything) == 33
    again = read_images(crops, SIZE)
    np.testing.assert_array_equal(read.check, again.check)
    full_size = read_images(crops, 2 * SIZE)
    originals = {image.tobytes() for image in images(33, size=2 * SIZE)[..., ::-1]}  # cv2 wrote them as BGR
    assert {image.tobytes() for image in (*full_size.calibration, *full_size.check)} == originals


def test_too_few_or_damaged_images(tmp_path: Path) -> None:
    crops = write_crops(tmp_path / "crops", 31)
    with pytest.raises(ModelError, match=r"31 images .* at least 32 needed"):
        read_images(crops, SIZE)
    (crops / "x.png").write_bytes(b"no image")
    with pytest.raises(ModelError, match=r"x\.png: cannot be read as an image"):
        read_images(crops, SIZE)


def test_random_images_are_varied_and_repeatable() -> None:
    first, second = random_images(64), random_images(64)
    np.testing.assert_array_equal(first.calibration, second.calibration)
    assert len(first.calibration) + len(first.check) <= CALIBRATION_IMAGES
    means = first.calibration.mean(axis=(1, 2, 3))
    assert means.std() > 5


def test_precisions_that_need_no_building_are_only_checked(tmp_path: Path) -> None:
    make_network(tmp_path, "a")
    (member,) = find_members(tmp_path, ["a"])
    assert check_precision(member, "f32", calibration=None) < 1e-5
    assert not (tmp_path / "compiled").exists()


def test_members_by_name_or_path(tmp_path: Path) -> None:
    make_network(tmp_path, "a", trained=True)
    make_network(tmp_path / "untrained", "a")
    make_network(tmp_path / "untrained", "b")
    make_network(tmp_path, "faces", kind="detector")
    assert [m.path for m in find_members(tmp_path, ["untrained/a", "b"])] == [
        tmp_path / "untrained" / "a.json",
        tmp_path / "untrained" / "b.json",
    ]
    assert len(find_members(tmp_path, [])) == 3
    with pytest.raises(
        ModelError, match=r"no classifier called 'faces'.*there are: a, untrained/a, untrained/b"
    ):
        find_members(tmp_path, ["faces"])
    # as the service names it where the engine of a detector is missing
    (found,) = find_members(tmp_path, ["faces"], ("classifier", "detector"))
    assert found.manifest.kind == "detector"

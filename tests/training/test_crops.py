from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import skimage.data

from streamer.errors import TrainingError
from streamer.faces.crop import crop_faces
from streamer.training.crops import (
    INDEX,
    MAX_SIDE,
    Crop,
    Finished,
    cut_crop,
    file_of,
    largest,
    read_crop,
    read_index,
    read_landmarks,
    to_lines,
    write_crop,
)
from streamer.training.types import CropRecord
from streamer.types import Faces, Float32Array, UInt8Array

RECORD = CropRecord(
    file="crops/set/real/a.mp4.003.png",
    item="set/real/a.mp4",
    frame=3,
    time_seconds=1.25,
    label=1,
    generator="gan",
    source="folder",
    group="set/a",
    split="validation",
    box=(10.5, 11.25, 60.0, 61.0),
    keypoints=((1.0, 2.5), (3.0, 4.0)),
    landmarks=True,
    original="set/real/b.mp4",
)


def face(*box: float) -> Faces:
    keypoints = np.array([box[:2], box[2:]] * 3, np.float32)
    return Faces(np.array([box], np.float32), np.ones(1, np.float32), keypoints[None])


def frame() -> UInt8Array:
    return np.random.default_rng(1).integers(0, 256, (400, 700, 3), np.uint8)


@pytest.mark.parametrize(
    "box",
    [
        (300.0, 150.0, 360.0, 210.0),
        (300.3, 150.6, 361.1, 209.9),
        (300.5, 150.5, 371.0, 200.5),  # wide
        (-10.0, 5.0, 50.0, 65.0),  # beyond an edge
        (660.2, 370.1, 730.7, 440.6),
        (250.0, 100.0, 400.0, 270.0),
    ],
)
def test_serving_would_cut_the_same_out_of_the_frame(box: tuple[float, float, float, float]) -> None:
    rgb = frame()
    crop, in_crop, keypoints, square = cut_crop(rgb, face(*box))
    assert crop.shape[0] == crop.shape[1] <= MAX_SIDE
    assert crop.shape[0] == pytest.approx(2.2 * max(box[2] - box[0], box[3] - box[1]), abs=1)
    expected = crop_faces(rgb, face(*box).boxes, margin=0.3, size=96)
    np.testing.assert_array_equal(crop_faces(crop, in_crop[None], margin=0.3, size=96), expected)
    # and the keypoints stay where they are in the face
    np.testing.assert_allclose(keypoints[0], in_crop[:2], atol=1e-3)
    np.testing.assert_allclose(keypoints[1], in_crop[2:], atol=1e-3)
    assert (in_crop.dtype, keypoints.dtype, keypoints.shape) == (np.float32, np.float32, (6, 2))
    np.testing.assert_allclose(in_crop + np.tile(square[:2], 2), box, atol=1e-3)
    assert square[2] == crop.shape[0]


def test_a_large_crop_is_shrunk() -> None:
    rgb = np.ascontiguousarray(skimage.data.astronaut())
    box = (177.0, 81.0, 377.0, 281.0)  # 440 px with the margin
    crop, in_crop, keypoints, square = cut_crop(rgb, face(*box))
    assert crop.shape == (MAX_SIDE, MAX_SIDE, 3)
    assert square == (57, -39, 440)
    np.testing.assert_allclose(in_crop[2:] - in_crop[:2], 200 * MAX_SIDE / 440, rtol=1e-5)
    np.testing.assert_allclose((in_crop[:2] + in_crop[2:]) / 2, MAX_SIDE / 2, atol=0.5)
    np.testing.assert_allclose(keypoints[0], in_crop[:2], atol=1e-3)
    expected = crop_faces(rgb, face(*box).boxes, margin=0.3, size=224).astype(int)
    assert np.abs(crop_faces(crop, in_crop[None], margin=0.3, size=224) - expected).mean() < 4  # shrunk twice


def test_a_small_crop_is_not_enlarged() -> None:
    crop, _, _, _ = cut_crop(frame(), face(100, 100, 120, 120))
    assert crop.shape == (44, 44, 3)


def test_the_largest_face() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 0, 30, 20], [5, 5, 25, 25]], np.float32)
    faces = Faces(boxes, np.array([0.9, 0.8, 0.7], np.float32), np.zeros((3, 6, 2), np.float32))
    assert largest(faces).tolist() == [1]


# files


def landmarks() -> Float32Array:
    return np.random.default_rng(2).uniform(0, 100, (468, 2)).astype(np.float32)


def put(cache: Path, points: Float32Array | None) -> UInt8Array:
    rgb = np.random.default_rng(3).integers(0, 256, (100, 100, 3), np.uint8)
    write_crop(cache, RECORD.file, Crop(rgb, 1.25, (0, 0, 1, 1), (), points))
    return rgb


def test_written_and_read(tmp_path: Path) -> None:
    points = landmarks()
    rgb = put(tmp_path, points)
    np.testing.assert_array_equal(read_crop(tmp_path, RECORD), rgb)
    np.testing.assert_array_equal(read_landmarks(tmp_path, RECORD), points)
    assert {path.name for path in (tmp_path / "crops/set/real").iterdir()} == {
        "a.mp4.003.png",
        "a.mp4.003.npy",
    }


def test_without_landmarks(tmp_path: Path) -> None:
    put(tmp_path, None)
    record = dataclasses.replace(RECORD, landmarks=False)
    with pytest.raises(TrainingError, match="has no landmarks"):
        read_landmarks(tmp_path, record)
    with pytest.raises(TrainingError, match="cannot read the landmarks"):
        read_landmarks(tmp_path, RECORD)


def test_a_crop_is_called_after_its_item_as_far_as_there_is_room(tmp_path: Path) -> None:
    assert file_of("set/real/a.mp4", 3) == RECORD.file
    files = {file_of(f"set/{'é' * 120}{end}.mp4", 0) for end in "ab"}
    assert len(files) == 2
    for file in files:
        assert file.startswith("crops/set/ééé")
        write_crop(tmp_path, file, Crop(frame()[:9, :9], 1.25, (0, 0, 1, 1), (), landmarks()))


@pytest.mark.parametrize("content", [b"", b"nonsense", None])
def test_a_damaged_crop(tmp_path: Path, content: bytes | None) -> None:
    put(tmp_path, landmarks())
    for suffix in (".png", ".npy"):
        path = (tmp_path / RECORD.file).with_suffix(suffix)
        path.write_bytes(path.read_bytes()[:60] if content is None else content)
    with pytest.raises(TrainingError, match=r"003\.png: damaged"):
        read_crop(tmp_path, RECORD)
    with pytest.raises(TrainingError, match=r"003\.npy: damaged"):
        read_landmarks(tmp_path, RECORD)


def test_landmarks_of_another_shape(tmp_path: Path) -> None:
    put(tmp_path, landmarks()[:400])
    with pytest.raises(TrainingError, match=r"\(400, 2\) float32 instead of \(468, 2\)"):
        read_landmarks(tmp_path, RECORD)


def test_a_missing_crop(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="prepare again"):
        read_crop(tmp_path, RECORD)


def test_the_cache_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "crops").touch()
    with pytest.raises(TrainingError, match="cannot write to the cache"):
        put(tmp_path, None)


def test_index(tmp_path: Path) -> None:
    records = [RECORD, dataclasses.replace(RECORD, landmarks=False, original=None, item="Ü\n\udc80.mp4")]
    (tmp_path / INDEX).write_text(to_lines(records))
    assert read_index(tmp_path) == records


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"file": "a"}', '{"box": [1, 2, 3, 4], "keypoints": []}'])
def test_a_damaged_index(tmp_path: Path, line: str) -> None:
    (tmp_path / INDEX).write_text(to_lines([RECORD]) + line)
    with pytest.raises(TrainingError, match=r"index\.jsonl: damaged"):
        read_index(tmp_path)


def test_no_index(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="prepare first"):
        read_index(tmp_path)


def test_what_may_change() -> None:
    assert Finished("a", 0, 0, "missing").may_change
    assert not Finished("a", 3, 0, "no_face").may_change

"""Outlines of parts of a face: where they must be, by landmarks and by keypoints."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from portraits import astronaut

from streamer.errors import TrainingError
from streamer.training.face_regions import REGIONS, Region, face_size_px, region_outline
from streamer.types import Float32Array

RIGHT_EYE, LEFT_EYE, NOSE, MOUTH = range(4)

INSIDE: dict[Region, tuple[set[int], set[int]]] = {
    # region: keypoints that lie inside, keypoints that lie outside
    "face": ({RIGHT_EYE, LEFT_EYE, NOSE, MOUTH}, set()),
    "jaw_to_brows": ({RIGHT_EYE, LEFT_EYE, NOSE, MOUTH}, set()),
    "inner_face": ({RIGHT_EYE, LEFT_EYE, NOSE, MOUTH}, set()),
    "lower_half": ({MOUTH}, {RIGHT_EYE, LEFT_EYE}),
    "mouth_and_chin": ({MOUTH}, {RIGHT_EYE, LEFT_EYE, NOSE}),
    "mouth": ({MOUTH}, {RIGHT_EYE, LEFT_EYE, NOSE}),
    "eyes": ({RIGHT_EYE, LEFT_EYE}, {NOSE, MOUTH}),
    "nose": ({NOSE}, {RIGHT_EYE, LEFT_EYE, MOUTH}),
}


def contains(outline: Float32Array, point: Float32Array) -> bool:
    return cv2.pointPolygonTest(outline[:, None], tuple(map(float, point)), False) >= 0


def area(outline: Float32Array) -> float:
    return cv2.contourArea(outline[:, None])


@pytest.mark.parametrize("with_landmarks", [True, False])
@pytest.mark.parametrize("region", REGIONS)
def test_a_region_holds_its_parts_and_no_others(region: Region, with_landmarks: bool) -> None:
    picture = astronaut(landmarks=with_landmarks).picture
    outline = region_outline(region, picture.landmarks, picture.keypoints)
    assert outline.dtype == np.float32
    assert cv2.isContourConvex(outline[:, None])
    inside, outside = INSIDE[region]
    held = {k for k in range(4) if contains(outline, picture.keypoints[k])}
    assert inside <= held
    assert not outside & held


@pytest.mark.parametrize("region", REGIONS)
def test_keypoints_put_a_region_where_landmarks_do(region: Region) -> None:
    picture = astronaut().picture
    by_landmarks = region_outline(region, picture.landmarks, picture.keypoints)
    by_keypoints = region_outline(region, None, picture.keypoints)
    common, _ = cv2.intersectConvexConvex(by_landmarks, by_keypoints)
    assert common / (area(by_landmarks) + area(by_keypoints) - common) > 0.4


def test_parts_are_smaller_than_the_face() -> None:
    picture = astronaut().picture
    areas = {r: area(region_outline(r, picture.landmarks, picture.keypoints)) for r in REGIONS}
    assert areas["face"] > areas["jaw_to_brows"] > areas["inner_face"] > areas["eyes"] > areas["mouth"]
    assert areas["lower_half"] > areas["mouth_and_chin"] > areas["mouth"]


def test_profile_keeps_its_width() -> None:
    keypoints = astronaut().picture.keypoints.copy()
    frontal = area(region_outline("face", None, keypoints))
    keypoints[LEFT_EYE] = keypoints[RIGHT_EYE] + 1
    assert area(region_outline("face", None, keypoints)) > 0.4 * frontal


def test_size_of_the_face() -> None:
    face = astronaut()
    assert 0.9 < face_size_px(face.picture.keypoints) / (face.box[2] - face.box[0]) < 1.2
    with pytest.raises(TrainingError, match=r"a face of 0\.0 px, at least 8"):
        face_size_px(np.zeros((6, 2), np.float32))
    with pytest.raises(TrainingError, match="nan"):
        face_size_px(np.full((6, 2), np.nan, np.float32))


def test_wrong_shapes() -> None:
    keypoints = astronaut().picture.keypoints
    with pytest.raises(ValueError, match=r"got \(68, 2\), \(6, 2\)"):
        region_outline("face", np.zeros((68, 2), np.float32), keypoints)
    with pytest.raises(ValueError, match=r"got None, \(5, 2\)"):
        region_outline("face", None, keypoints[:5])

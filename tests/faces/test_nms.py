from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.faces.nms import blend_overlapping, overlaps, repeats
from streamer.types import Faces


def faces(boxes: list[tuple[float, ...]], scores: list[float]) -> Faces:
    array = np.array(boxes, np.float32).reshape(-1, 4)
    corners = array.reshape(-1, 2, 2)
    keypoints = np.repeat(corners.mean(axis=1, keepdims=True), 6, axis=1)
    return Faces(array, np.array(scores, np.float32), keypoints)


def alike(count: int) -> np.ndarray:
    """All seen at the same scale."""
    return np.ones(count, np.float32)


def whole(count: int) -> np.ndarray:
    return np.zeros(count, np.bool_)


def test_nothing() -> None:
    blended, index, _ = blend_overlapping(Faces.empty(), whole(0), alike(0), 0.3)
    assert len(blended) == 0
    assert index.shape == (0,)
    assert overlaps(np.zeros((0, 4), np.float32), np.zeros((3, 4), np.float32))[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("other", "iou", "ios"),
    [
        ((0, 0, 10, 10), 1, 1),
        ((5, 0, 15, 10), 50 / 150, 0.5),
        ((2, 2, 4, 4), 0.04, 1),
        ((10, 0, 20, 10), 0, 0),  # they only touch
        ((5, 5, 5, 5), 0, 0),  # no area
    ],
)
def test_overlaps(other: tuple[float, ...], iou: float, ios: float) -> None:
    a, b = np.array([[0, 0, 10, 10]], np.float32), np.array([other], np.float32)
    over_union, over_smaller = overlaps(a, b)
    assert over_union[0, 0] == pytest.approx(iou)
    assert over_smaller[0, 0] == pytest.approx(ios)


def test_blends_by_score() -> None:
    blended, index, _ = blend_overlapping(
        faces([(0, 0, 10, 10), (3, 0, 13, 10), (50, 50, 60, 60)], [0.8, 0.4, 0.9]), whole(3), alike(3), 0.3
    )
    np.testing.assert_allclose(blended.boxes, [[50, 50, 60, 60], [1, 0, 11, 10]], atol=1e-5)
    np.testing.assert_allclose(blended.scores, [0.9, 0.8])
    np.testing.assert_allclose(blended.keypoints[1, 0], [6, 5], atol=1e-5)
    assert index.tolist() == [2, 0]


def test_a_doubtful_box_does_not_pull_a_sure_one() -> None:
    blended, _, _ = blend_overlapping(
        faces([(0, 0, 10, 10), (3, 0, 13, 10)], [0.9, 0.2]), whole(2), alike(2), 0.3
    )
    np.testing.assert_allclose(blended.boxes, [[0, 0, 10, 10]])


def test_a_box_seen_larger_weighs_more() -> None:
    scales = np.array([0.1, 0.2], np.float32)
    found = faces([(0, 0, 10, 10), (5, 0, 15, 10)], [0.8, 0.8])
    blended, _, finest = blend_overlapping(found, whole(2), scales, 0.3)
    np.testing.assert_array_equal(finest, scales[1:])
    np.testing.assert_allclose(blended.boxes, [[4, 0, 14, 10]], atol=1e-5)


def test_a_face_cut_by_a_window_stands_back_behind_the_whole_one() -> None:
    both = faces([(0, 0, 10, 10), (0, 0, 12, 12)], [0.95, 0.7])
    blended, index, _ = blend_overlapping(both, np.array([True, False]), alike(2), 0.3)
    np.testing.assert_allclose(blended.boxes, [[0, 0, 12, 12]])
    assert index.tolist() == [1]


def test_a_face_that_every_window_cuts_is_found_all_the_same() -> None:
    both = faces([(0, 0, 10, 10), (3, 0, 13, 10)], [0.8, 0.4])
    blended, index, _ = blend_overlapping(both, np.array([True, True]), alike(2), 0.3)
    np.testing.assert_allclose(blended.boxes, [[1, 0, 11, 10]], atol=1e-5)
    assert index.tolist() == [0]


def test_repeats() -> None:
    a = np.array([(0, 0, 10, 10), (3, 0, 13, 10), (8, 0, 18, 10), (2, 2, 4, 4)], np.float32)
    assert repeats(a, a[:1], 0.3).tolist() == [True, True, False, True]
    assert repeats(a, a[:0], 0.3).tolist() == [False] * 4


def test_a_box_inside_another_is_no_face_of_its_own() -> None:
    blended, _, _ = blend_overlapping(
        faces([(0, 0, 100, 100), (20, 20, 40, 40)], [0.7, 0.6]), whole(2), alike(2), 0.3
    )
    np.testing.assert_allclose(blended.boxes, [[0, 0, 100, 100]])


@given(st.data())
def test_what_is_left_does_not_overlap_as_found_and_keeps_the_best(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    numbers = st.lists(st.integers(0, 60), min_size=count, max_size=count)
    x, y, side = data.draw(numbers), data.draw(numbers), data.draw(numbers)
    scores = data.draw(st.lists(st.floats(0.0625, 1, width=16), min_size=count, max_size=count))
    found = faces([(a, b, a + s + 1, b + s + 1) for a, b, s in zip(x, y, side, strict=True)], scores)
    blended, index, _ = blend_overlapping(found, whole(count), alike(count), 0.3)
    assert 1 <= len(blended) <= count
    assert blended.scores[0] == found.scores.max()
    assert (np.diff(blended.scores) <= 0).all()
    leaders = found.boxes[index]
    over_union, _ = overlaps(leaders, leaders)
    assert (over_union[~np.eye(len(index), dtype=bool)] <= 0.3).all()
    assert (blended.boxes.min(axis=0) >= found.boxes.min(axis=0) - 1e-3).all()
    assert (blended.boxes.max(axis=0) <= found.boxes.max(axis=0) + 1e-3).all()

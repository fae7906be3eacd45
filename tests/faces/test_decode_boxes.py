from __future__ import annotations

import numpy as np

from streamer.faces.decode_boxes import decode_boxes

ANCHORS = np.array([[0.25, 0.5], [0.75, 0.5]], np.float32)


def test_nothing_reaches_the_score() -> None:
    raw = decode_boxes(
        np.zeros((3, 2, 16), np.float32), np.full((3, 2, 1), -5, np.float32), ANCHORS, 128, 0.5
    )
    assert raw.image.shape == raw.scores.shape == (0,)
    assert raw.points.shape == (0, 8, 2)


def test_boxes_and_keypoints_are_relative_to_their_anchor_in_input_pixels() -> None:
    regressors = np.zeros((2, 2, 16), np.float32)
    regressors[1, 1, :6] = 4, -2, 20, 10, 1, 2  # centre, size, first keypoint
    logits = np.full((2, 2, 1), -100, np.float32)
    logits[1, 1] = 100  # clipped: no overflow, which would be a warning and so an error here
    raw = decode_boxes(regressors, logits, ANCHORS, 128, 0.5)
    assert raw.image.tolist() == [1]
    np.testing.assert_allclose(raw.scores, [1.0])
    np.testing.assert_allclose(raw.points[0, :3], [[90, 57], [110, 67], [97, 66]])
    np.testing.assert_allclose(raw.points[0, 3:], [[96, 64]] * 5)


def test_boxes_without_area_are_left_out() -> None:
    regressors = np.zeros((1, 2, 16), np.float32)
    regressors[0, 0, 2:4] = 10, 10
    regressors[0, 1, 2:4] = -10, 10
    raw = decode_boxes(regressors, np.full((1, 2, 1), 3, np.float32), ANCHORS, 128, 0.5)
    np.testing.assert_allclose(raw.points[0, :2], [[27, 59], [37, 69]])
    assert len(raw.scores) == 1


def test_leaves_its_input_alone() -> None:
    regressors = np.ones((1, 2, 16), np.float32)
    decode_boxes(regressors, np.full((1, 2, 1), 3, np.float32), ANCHORS, 128, 0.5)
    assert (regressors == 1).all()

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamer.faces.nms import overlaps
from streamer.faces.track import assign_tracks

NONE = np.zeros((0, 4), np.float32)


def boxes(*corners: tuple[float, float]) -> np.ndarray:
    """Boxes of 10 px at these corners."""
    return np.array([(x, y, x + 10, y + 10) for x, y in corners], np.float32).reshape(-1, 4)


def test_nothing_to_match() -> None:
    assert assign_tracks(NONE, NONE, NONE, 0.3).shape == (0,)
    assert assign_tracks(boxes((0, 0)), boxes((0, 0)), NONE, 0.3).shape == (0,)
    assert assign_tracks(NONE, NONE, boxes((0, 0), (5, 5)), 0.3).tolist() == [-1, -1]


def test_one_to_one_best_first() -> None:
    tails = boxes((0, 0), (100, 100))
    # Two faces claim the first track; the nearer one gets it, the other starts a track of its own.
    assert assign_tracks(tails, tails, boxes((3, 0), (1, 0), (100, 101)), 0.3).tolist() == [-1, 0, 1]


def test_too_little_overlap_is_a_new_track() -> None:
    assert assign_tracks(boxes((0, 0)), boxes((0, 0)), boxes((9, 0)), 0.3).tolist() == [-1]


def test_either_where_it_was_or_where_it_should_be() -> None:
    tails, expected = boxes((0, 0), (100, 0)), boxes((20, 0), (80, 0))
    assert assign_tracks(tails, expected, boxes((79, 0), (21, 0)), 0.3).tolist() == [1, 0]
    assert assign_tracks(tails, expected, boxes((99, 0), (1, 0)), 0.3).tolist() == [1, 0]


def test_touching_boxes_do_not_match_even_at_zero() -> None:
    assert assign_tracks(boxes((0, 0)), boxes((0, 0)), boxes((50, 50)), 0.0).tolist() == [-1]


corners = st.integers(0, 6).flatmap(lambda n: arrays(np.float32, (n, 2), elements=st.integers(0, 30)))


@given(tails=corners, moved=st.integers(-30, 30), found=corners, min_iou=st.floats(0.01, 1))
def test_one_to_one_and_maximal(tails: np.ndarray, moved: int, found: np.ndarray, min_iou: float) -> None:
    a, b = boxes(*map(tuple, tails.tolist())), boxes(*map(tuple, found.tolist()))
    tracks = assign_tracks(a, a + moved, b, min_iou)
    taken = tracks[tracks >= 0]
    assert len(set(taken.tolist())) == len(taken)
    iou = np.maximum(overlaps(a, b)[0], overlaps(a + moved, b)[0])
    free_tails = [k for k in range(len(a)) if k not in taken]
    for box, tail in enumerate(tracks.tolist()):
        if tail >= 0:
            assert iou[tail, box] >= min_iou
        else:
            assert all(iou[k, box] < min_iou for k in free_tails)  # nothing left to match

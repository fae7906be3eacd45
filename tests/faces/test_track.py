from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from streamer.faces.nms import overlaps
from streamer.faces.track import SAME, Tails, assign_tracks, differences

NONE = np.zeros((0, 4), np.float32)
ANN, BOB, CLEO = np.random.default_rng(0).integers(0, 255, (3, 64)).astype(np.float32)
UNKNOWN = np.full(64, np.nan, np.float32)


def boxes(*corners: tuple[float, float]) -> np.ndarray:
    """Boxes of 10 px at these corners."""
    return np.array([(x, y, x + 10, y + 10) for x, y in corners], np.float32).reshape(-1, 4)


def looks(*thumbnails: np.ndarray) -> np.ndarray:
    return np.array(thumbnails, np.float32).reshape(-1, 64)


def assign(
    tails: np.ndarray,
    found: np.ndarray,
    *,
    expected: np.ndarray | None = None,
    were: np.ndarray | None = None,
    are: np.ndarray | None = None,
    unseen: float = 0.25,
    min_iou: float = 0.3,
) -> list[int]:
    """Tracks of the faces in boxes `found`; nobody's look is known unless it is told."""
    ends = Tails(
        tails,
        tails if expected is None else expected,
        np.full(len(tails), unseen),
        looks(*[UNKNOWN] * len(tails)) if were is None else were,
    )
    shown = looks(*[UNKNOWN] * len(found)) if are is None else are
    return assign_tracks(ends, found, shown, min_iou=min_iou, max_gap_seconds=2.0).tolist()


def test_nothing_to_match() -> None:
    assert assign(NONE, NONE) == []
    assert assign(boxes((0, 0)), NONE) == []
    assert assign(NONE, boxes((0, 0), (5, 5))) == [-1, -1]


def test_one_to_one_best_first() -> None:
    # Two faces claim the first track; the nearer one gets it, the other starts a track of its own.
    assert assign(boxes((0, 0), (100, 100)), boxes((3, 0), (1, 0), (100, 101))) == [-1, 0, 1]


def test_too_little_overlap_is_a_new_track() -> None:
    assert assign(boxes((0, 0)), boxes((9, 0))) == [-1]


def test_away_for_too_long_is_a_new_track() -> None:
    assert assign(boxes((0, 0)), boxes((0, 0)), unseen=1.9) == [0]
    assert assign(boxes((0, 0)), boxes((0, 0)), unseen=2.1) == [-1]


def test_either_where_it_was_or_where_it_should_be() -> None:
    tails, expected = boxes((0, 0), (100, 0)), boxes((20, 0), (80, 0))
    assert assign(tails, boxes((79, 0), (21, 0)), expected=expected) == [1, 0]
    assert assign(tails, boxes((99, 0), (1, 0)), expected=expected) == [1, 0]


def test_touching_boxes_do_not_match_even_at_zero() -> None:
    assert assign(boxes((0, 0)), boxes((50, 50)), min_iou=0.0) == [-1]


def test_another_person_in_the_same_place_is_a_new_track() -> None:
    assert assign(boxes((0, 0)), boxes((0, 0)), were=looks(ANN), are=looks(BOB)) == [-1]


def test_a_change_of_light_or_a_small_one_is_no_other_person() -> None:
    turned = ANN + 0.9 * (BOB - BOB.mean())
    assert SAME < differences(looks(ANN), looks(turned))[0, 0] < 0.4
    for now in (0.5 * ANN + 60, turned):
        assert assign(boxes((0, 0)), boxes((0, 0)), were=looks(ANN), are=looks(now)) == [0]


def test_who_looks_the_same_is_known_again_anywhere_and_after_any_time() -> None:
    again = looks(BOB, CLEO, ANN + 1)
    found = boxes((500, 500), (0, 0), (900, 0))
    for unseen in (0.25, 600.0, np.inf):
        assert assign(boxes((0, 0), (30, 0)), found, were=looks(ANN, BOB), are=again, unseen=unseen) == [
            1,
            -1,
            0,
        ]


def test_who_pass_each_other_are_told_apart_by_their_looks() -> None:
    assert assign(
        boxes((0, 0), (4, 0)), boxes((1, 0), (3, 0)), were=looks(ANN, BOB), are=looks(BOB, ANN)
    ) == [1, 0]


def test_who_stays_in_place_is_not_given_to_who_only_looks_the_same() -> None:
    alike = looks(ANN, ANN)
    assert assign(boxes((0, 0), (50, 0)), boxes((50, 0), (0, 0)), were=alike, are=alike) == [1, 0]


def test_a_picture_of_one_shade_has_no_look() -> None:
    flat = np.full(64, 17, np.float32)
    assert np.isnan(differences(looks(flat, UNKNOWN), looks(ANN, flat))).all()
    assert assign(boxes((0, 0)), boxes((0, 0)), were=looks(flat), are=looks(ANN)) == [0]
    assert assign(boxes((0, 0)), boxes((90, 0)), were=looks(flat), are=looks(flat)) == [-1]


corners = st.integers(0, 6).flatmap(lambda n: arrays(np.float32, (n, 2), elements=st.integers(0, 30)))


@given(tails=corners, moved=st.integers(-30, 30), found=corners, min_iou=st.floats(0.01, 1))
def test_one_to_one_and_maximal(tails: np.ndarray, moved: int, found: np.ndarray, min_iou: float) -> None:
    a, b = boxes(*map(tuple, tails.tolist())), boxes(*map(tuple, found.tolist()))
    tracks = assign(a, b, expected=a + moved, min_iou=min_iou)
    taken = [track for track in tracks if track >= 0]
    assert len(set(taken)) == len(taken)
    iou = np.maximum(overlaps(a, b)[0], overlaps(a + moved, b)[0])
    free_tails = [k for k in range(len(a)) if k not in taken]
    for box, tail in enumerate(tracks):
        if tail >= 0:
            assert iou[tail, box] >= min_iou
        else:
            assert all(iou[k, box] < min_iou for k in free_tails)  # nothing left to match

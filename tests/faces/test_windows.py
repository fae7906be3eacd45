from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.faces.windows import (
    close_ups,
    coarse_windows,
    matrix_side,
    matrix_windows,
    slide,
    squares,
    whole_frame,
)

sides = st.integers(1, 3000)
shares = st.floats(0, 0.75)


@given(length=sides, side=st.integers(1, 3000), overlap=shares)
def test_slide_covers_inside_and_overlaps(length: int, side: int, overlap: float) -> None:
    starts = slide(length, side, overlap)
    assert starts[0] == 0
    if side >= length:
        assert starts == [0]
        return
    assert starts[-1] + side == length
    steps = np.diff(starts)
    assert (steps > 0).all()
    assert (steps <= max(1, side * (1 - overlap)) + 1).all()  # + 1: starts are whole pixels
    assert steps.max() - steps.min() <= 1  # evenly spread


def test_slide_takes_no_more_than_needed() -> None:
    assert slide(100, 100, 0.5) == [0]
    assert slide(200, 100, 0) == [0, 100]
    assert slide(201, 100, 0) == [0, 50, 101]
    assert slide(1920, 1080, 0.15) == [0, 840]


@given(
    width=st.integers(1, 2000),
    height=st.integers(1, 2000),
    side=st.integers(50, 2500),
    overlap=st.floats(0, 0.5),
)
def test_squares_cover_every_pixel_and_stay_inside(
    width: int, height: int, side: int, overlap: float
) -> None:
    windows = squares(width, height, side, overlap)
    seen = np.zeros((height, width), np.bool_)
    for x_min, y_min, x_max, y_max in windows.tolist():
        assert 0 <= x_min < x_max <= width
        assert 0 <= y_min < y_max <= height
        assert (x_max - x_min, y_max - y_min) == (min(side, width), min(side, height))
        seen[y_min:y_max, x_min:x_max] = True
    assert seen.all()
    assert len(np.unique(windows, axis=0)) == len(windows)


def test_whole_frame() -> None:
    assert whole_frame(640, 480).tolist() == [[0, 0, 640, 480]]


@pytest.mark.parametrize(
    ("width", "height", "kinds", "expected"),
    [
        (1920, 1080, (), [[0, 0, 1920, 1080]]),
        (1920, 1080, ("horizontal",), [[0, 0, 1920, 1080], [0, 0, 1080, 1080], [840, 0, 1920, 1080]]),
        (1920, 1080, ("vertical",), [[0, 0, 1920, 1080]]),
        (1080, 1920, ("vertical",), [[0, 0, 1080, 1920], [0, 0, 1080, 1080], [0, 840, 1080, 1920]]),
        (1080, 1920, ("horizontal", "matrix"), [[0, 0, 1080, 1920]]),
        (500, 500, ("horizontal", "vertical", "matrix"), [[0, 0, 500, 500]]),
    ],
)
def test_coarse_windows(width: int, height: int, kinds: tuple[str, ...], expected: list[list[int]]) -> None:
    assert coarse_windows(width, height, kinds, 0.15).tolist() == expected


def test_matrix_of_a_1080p_frame() -> None:
    windows = matrix_windows(1920, 1080, 640, 0.15, 12)
    assert len(windows) == 8
    assert set(np.unique(windows[:, 2:] - windows[:, :2])) == {640}


@given(width=sides, height=sides, side=st.integers(1, 1000), most=st.integers(1, 40))
def test_matrix_never_exceeds_its_bound(width: int, height: int, side: int, most: int) -> None:
    windows = matrix_windows(width, height, side, 0.15, most)
    assert len(windows) <= most
    assert matrix_side(width, height, side, 0.15, most) >= side


def test_matrix_windows_of_a_small_frame_show_nothing_new() -> None:
    assert matrix_windows(600, 400, 640, 0.15, 12).shape == (0, 4)


def test_close_ups_of_nothing() -> None:
    assert close_ups(np.zeros((0, 4), np.float32), 100, 100, zoom=3, smallest_px=8).shape == (0, 4)


@given(
    x=st.floats(-50, 1300, width=32),
    y=st.floats(-50, 800, width=32),
    w=st.floats(1, 900, width=32),
    h=st.floats(1, 900, width=32),
)
def test_close_ups_are_inside_and_hold_the_box(x: float, y: float, w: float, h: float) -> None:
    box = np.array([[x, y, x + w, y + h]], np.float32)
    x_min, y_min, x_max, y_max = close_ups(box, 1280, 720, zoom=3, smallest_px=32)[0].tolist()
    assert 0 <= x_min < x_max <= 1280
    assert 0 <= y_min < y_max <= 720
    if 3 * max(w, h) < 720:  # otherwise the frame cuts it
        assert x_max - x_min == y_max - y_min >= 32
    inside = np.clip(box[0], 0, [1280, 720, 1280, 720])  # the box as far as it is in the frame
    assert x_min <= inside[0] + 1
    assert y_min <= inside[1] + 1
    assert x_max >= inside[2] - 1
    assert y_max >= inside[3] - 1

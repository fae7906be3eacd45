from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.faces.crop import crop_faces, crop_squares


def checkered(width: int, height: int) -> np.ndarray:
    """Red is the column, green the row, each up to 255."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    return np.stack([x, y, np.full_like(x, 50)], axis=2).astype(np.uint8)


def test_nothing() -> None:
    none = np.zeros((0, 4), np.float32)
    assert crop_faces(checkered(50, 40), none, margin=0.3, size=32).shape == (0, 32, 32, 3)
    assert crop_squares(none, 0.3).shape == (0, 4)


def test_square_around_the_longer_side() -> None:
    squares = crop_squares(np.array([[10, 20, 30, 60]], np.float32), 0.25)
    np.testing.assert_allclose(squares, [[-10, 10, 50, 70]])  # centre (20, 40), side 40 * 1.5


def test_inside_the_frame_it_is_the_picture_itself() -> None:
    crop = crop_faces(checkered(200, 150), np.array([[50, 40, 90, 80]], np.float32), margin=0.25, size=60)
    np.testing.assert_array_equal(crop[0], checkered(200, 150)[30:90, 40:100])


def test_beyond_the_frame_its_edge_goes_on() -> None:
    frame = checkered(100, 80)
    (crop,) = crop_faces(frame, np.array([[-10, -10, 30, 30]], np.float32), margin=0, size=40)
    np.testing.assert_array_equal(crop[10:, 10:], frame[:30, :30])
    np.testing.assert_array_equal(crop[:10, 10:], np.broadcast_to(frame[0, :30], (10, 30, 3)))
    np.testing.assert_array_equal(crop[10:, :10], np.broadcast_to(frame[:30, :1], (30, 10, 3)))


@pytest.mark.parametrize("box", [(200, 200, 240, 240), (-90, 10, -50, 50), (99, 79, 99.2, 79.2)])
def test_a_box_outside_or_of_no_size_still_gives_a_crop(box: tuple[float, ...]) -> None:
    crop = crop_faces(checkered(100, 80), np.array([box], np.float32), margin=0.3, size=16)
    assert crop.shape == (1, 16, 16, 3)


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((400, 400, 3), np.uint8)
    stripes[:, ::2] = 255
    crop = crop_faces(stripes, np.array([[50, 50, 350, 350]], np.float32), margin=0, size=64)
    assert crop.min() > 100
    assert crop.max() < 155


@given(
    x=st.floats(-60, 160, width=32),
    y=st.floats(-60, 140, width=32),
    w=st.floats(0, 250, width=32),
    h=st.floats(0, 250, width=32),
    margin=st.floats(0, 2),
)
def test_any_box_gives_pixels_of_the_frame(x: float, y: float, w: float, h: float, margin: float) -> None:
    box = np.array([[x, y, x + w, y + h]], np.float32)
    (crop,) = crop_faces(checkered(100, 80), box, margin=margin, size=24)
    assert crop.shape == (24, 24, 3)
    assert crop.dtype == np.uint8
    assert (crop[..., 0] <= 99).all()
    assert (crop[..., 1] <= 79).all()
    assert (crop[..., 2] == 50).all()

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from streamer.faces.resize import Pyramid, to_frame


def ramp(width: int, height: int) -> np.ndarray:
    """A frame whose red grows with x and whose green grows with y."""
    x = np.linspace(0, 255, width)[None, :].repeat(height, axis=0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, axis=1)
    return np.rint(np.stack([x, y, np.full_like(x, 200)], axis=2)).astype(np.uint8)


@given(
    width=st.integers(1, 700),
    height=st.integers(1, 700),
    size=st.sampled_from([128, 192, 256]),
    corners=st.tuples(*[st.floats(0, 1)] * 4),
)
@example(width=256, height=3, size=128, corners=(0.0, 1.0, 1.0, 1.0))  # in the row that halving leaves out
def test_letterbox_round_trip(
    width: int, height: int, size: int, corners: tuple[float, float, float, float]
) -> None:
    x_min, x_max = sorted((int(corners[0] * (width - 1)), int(corners[1] * (width - 1))))
    y_min, y_max = sorted((int(corners[2] * (height - 1)), int(corners[3] * (height - 1))))
    window = np.array([[x_min, y_min, x_max + 1, y_max + 1]], np.int32)
    _, placed = Pyramid(np.zeros((height, width, 3), np.uint8)).cut(window, size)
    points = np.array([[[x_min, y_min], [x_max + 1, y_max + 1]]], np.float32)
    inside = points * placed[:, None, :2] + placed[:, None, 2:]
    np.testing.assert_allclose(to_frame(inside, placed), points, atol=1e-2)
    # A window that was halved k times lies on whole pixels of that level: up to one pixel of the input off.
    assert (inside > -1.01).all()
    assert (inside < size + 1.01).all()


@pytest.mark.parametrize("window", [[0, 0, 1920, 1080], [840, 0, 1920, 1080], [101, 203, 742, 843]])
def test_pixels_come_from_where_the_placement_says(window: list[int]) -> None:
    width, height, size = 1920, 1080, 128
    inputs, placed = Pyramid(ramp(width, height)).cut(np.array([window], np.int32), size)
    centres = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1).reshape(1, -1, 2) + 0.5
    where = to_frame(centres.astype(np.float32), placed)[0]
    picture = inputs[0].reshape(-1, 3)
    shown = picture[:, 2] == 200
    # Each halving rounds half a grey level up: 2 grey levels are less than half a pixel of the input.
    np.testing.assert_allclose(picture[shown, 0], where[shown, 0] / width * 255, atol=2.0)
    np.testing.assert_allclose(picture[shown, 1], where[shown, 1] / height * 255, atol=2.0)
    assert (picture[~shown] == 0).all()
    bars = size - 72 if window[2] - window[0] == 1920 else 0  # 128 / 1920 * 1080 = 72
    assert (~shown).sum() == bars * size


def test_shrinking_does_not_alias() -> None:
    stripes = np.zeros((1080, 1920, 3), np.uint8)
    stripes[:, ::2] = 255  # a pattern at the limit of the frame must become grey, not a coarser pattern
    inputs, _ = Pyramid(stripes).cut(np.array([[0, 0, 1080, 1080]], np.int32), 128)
    assert inputs.min() >= 126
    assert inputs.max() <= 129


def test_halving_leaves_out_an_odd_last_row_and_column() -> None:
    assert Pyramid(np.zeros((1081, 1921, 3), np.uint8)).level(1).shape == (540, 960, 3)

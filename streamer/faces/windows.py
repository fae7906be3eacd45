"""Which parts of a frame the networks look at. Pure: sizes and boxes in, windows out.

A window is (x_min, y_min, x_max, y_max), whole pixels of the frame, half-open [min, max). BlazeFace misses a
face that is a small part of its input, so beside the whole frame it is shown overlapping squares:

- `horizontal`: squares as high as the frame, slid from left to right (a frame wider than high);
- `vertical`: squares as wide as the frame, slid from top to bottom (a frame higher than wide);
- `matrix`: squares of a given side, slid both ways.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from streamer.types import Float32Array

IntArray: TypeAlias = NDArray[np.int32]


def slide(length: int, side: int, overlap: float) -> list[int]:
    """Starts of the fewest evenly spread intervals that cover [0, length).

    side: length of an interval, >= 1; longer than `length` gives one interval at 0. overlap: smallest share
    of an interval that its neighbour sees too, in [0, 1).
    """
    if side >= length:
        return [0]
    step = max(1, math.floor(side * (1 - overlap)))
    count = math.ceil((length - side) / step) + 1
    return [round(k * (length - side) / (count - 1)) for k in range(count)]


def whole_frame(width: int, height: int) -> IntArray:
    """The frame itself as its only window, (1, 4)."""
    return np.array([[0, 0, width, height]], np.int32)


def squares(width: int, height: int, side: int, overlap: float) -> IntArray:
    """Squares of `side` px (shorter where the frame is) that cover the frame, row by row, (n, 4)."""
    side_x, side_y = min(side, width), min(side, height)
    return np.array(
        [
            (x, y, x + side_x, y + side_y)
            for y in slide(height, side_y, overlap)
            for x in slide(width, side_x, overlap)
        ],
        np.int32,
    )


def coarse_windows(width: int, height: int, kinds: Collection[str], overlap: float) -> IntArray:
    """The whole frame, and `horizontal` and `vertical` windows where they show it larger, (n, 4)."""
    windows = whole_frame(width, height)
    slides = "horizontal" if width > height else "vertical"
    if slides in kinds and width != height:
        windows = np.concatenate([windows, squares(width, height, min(width, height), overlap)])
    return windows


def matrix_side(width: int, height: int, side: int, overlap: float, max_windows: int) -> int:
    """The side, at least `side` px, of which at most `max_windows` squares cover the frame."""
    while side < max(width, height):
        count = len(slide(width, min(side, width), overlap)) * len(slide(height, min(side, height), overlap))
        if count <= max_windows:
            break
        side = math.ceil(side * 1.05)
    return side


def matrix_windows(width: int, height: int, side: int, overlap: float, max_windows: int) -> IntArray:
    """`matrix` windows, (n, 4); n = 0 where they would show nothing larger than the whole frame does."""
    side = matrix_side(width, height, side, overlap, max_windows)
    if side >= max(width, height):
        return np.zeros((0, 4), np.int32)
    return squares(width, height, side, overlap)


def close_ups(boxes: Float32Array, width: int, height: int, *, zoom: float, smallest_px: int) -> IntArray:
    """A square window around each box, shifted into the frame, cut where the frame is too small for it.

    boxes: (n, 4) float32, (x_min, y_min, x_max, y_max), pixels of the frame. zoom: side of the window in box
    sides (the larger of width and height). smallest_px: no side is shorter. Returns (n, 4).
    """
    if len(boxes) == 0:
        return np.zeros((0, 4), np.int32)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2  # (n, 2)
    side = np.maximum(np.rint(zoom * (boxes[:, 2:] - boxes[:, :2]).max(axis=1)), smallest_px)
    size = np.minimum(side[:, None], np.array([[width, height]]))  # (n, 2)
    start = np.clip(np.rint(centre - size / 2), 0, np.array([[width, height]]) - size)
    return np.concatenate([start, start + size], axis=1).astype(np.int32)

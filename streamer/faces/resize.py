"""Windows of a frame -> network inputs, and boxes of the networks -> pixels of the frame.

A window is scaled to fit the square input, its proportions kept, and centred on black (letterbox). Many
windows of one frame share a pyramid of halved images: halving by area and a last bilinear step of less than
two is free of aliasing, and at 1080p ten times as fast as `cv2.INTER_AREA` straight to the odd sizes needed.
"""

from __future__ import annotations

import cv2
import numpy as np

from streamer.faces.windows import IntArray
from streamer.types import Float32Array, UInt8Array


class Pyramid:
    """A frame and its halvings, made when first needed."""

    def __init__(self, rgb: UInt8Array) -> None:
        """rgb: (height, width, 3) uint8."""
        self._levels = [rgb]

    def level(self, number: int) -> UInt8Array:
        """The frame halved `number` times; an odd last row or column is left out."""
        while len(self._levels) <= number:
            last = self._levels[-1]
            height, width = last.shape[0] // 2, last.shape[1] // 2
            even = last[: 2 * height, : 2 * width]
            half = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
            self._levels.append(np.asarray(half, np.uint8))
        return self._levels[number]

    def cut(self, windows: IntArray, out: UInt8Array) -> Float32Array:
        """Resize windows into network inputs.

        windows: (n, 4), pixels of the frame. out: (n, size, size, 3) uint8, overwritten.
        Returns (n, 4) float32: (scale_x, scale_y, shift_x, shift_y) of each, with
        input = frame * scale + shift, in pixels.
        """
        placed = np.empty((len(windows), 4), np.float32)
        for k, window in enumerate(windows.tolist()):
            placed[k] = self._letterbox(window, out[k])
        return placed

    def _letterbox(self, window: list[int], out: UInt8Array) -> tuple[float, float, float, float]:
        size = out.shape[0]
        x_min, y_min, x_max, y_max = window
        scale = size / max(x_max - x_min, y_max - y_min)
        number, shortest = 0, min(self._levels[0].shape[:2])
        while scale * 2 ** (number + 1) <= 1 and shortest >> (number + 1):
            number += 1
        factor = 2**number
        image = self.level(number)
        # The window in whole pixels of that level; what is returned is where it really lies.
        # Halving leaves an odd last row or column out, and a window may lie in just that.
        left = min(x_min // factor, image.shape[1] - 1)
        top = min(y_min // factor, image.shape[0] - 1)
        right = min(max(round(x_max / factor), left + 1), image.shape[1])
        bottom = min(max(round(y_max / factor), top + 1), image.shape[0])
        part = image[top:bottom, left:right]
        width = min(size, max(1, round((right - left) * factor * scale)))
        height = min(size, max(1, round((bottom - top) * factor * scale)))
        pad_x, pad_y = (size - width) // 2, (size - height) // 2
        if width < size or height < size:
            out[...] = 0
        inner = out[pad_y : pad_y + height, pad_x : pad_x + width]
        inner[...] = cv2.resize(part, (width, height), interpolation=cv2.INTER_LINEAR)
        scale_x = width / ((right - left) * factor)
        scale_y = height / ((bottom - top) * factor)
        return scale_x, scale_y, pad_x - left * factor * scale_x, pad_y - top * factor * scale_y


def to_frame(points: Float32Array, placed: Float32Array) -> Float32Array:
    """Points in network inputs -> points in the frame.

    points: (n, k, 2) float32, (x, y), pixels of the input. placed: (n, 4) from `Pyramid.cut`. Returns
    (n, k, 2) float32, pixels of the frame.
    """
    moved: Float32Array = (points - placed[:, None, 2:]) / placed[:, None, :2]
    return moved


def to_input(points: Float32Array, placed: Float32Array) -> Float32Array:
    """The inverse of `to_frame`."""
    moved: Float32Array = points * placed[:, None, :2] + placed[:, None, 2:]
    return moved

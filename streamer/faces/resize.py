"""Windows of a frame -> network inputs, and boxes of the networks -> pixels of the frame.

A window is scaled to fit the square input, its proportions kept, and centred on black (letterbox). Many
windows of one frame share a pyramid of halved images: halving by area and a last bilinear step of less than
two is free of aliasing, and at 1080p ten times as fast as `cv2.INTER_AREA` straight to the odd sizes needed.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import cv2
import numpy as np

from streamer.faces.crop import crop_faces
from streamer.faces.windows import IntArray
from streamer.types import Float32Array, Images, UInt8Array


class FrameImage(Protocol):
    """A frame as the detectors and classifiers look at it, in memory or on a device."""

    @property
    def width(self) -> int:
        """Pixels."""
        ...

    @property
    def height(self) -> int:
        """Pixels."""
        ...

    def rgb(self) -> UInt8Array:
        """The frame, (height, width, 3) uint8, in memory."""
        ...

    def cut(self, windows: IntArray, size: int) -> tuple[Images, Float32Array]:
        """Resize windows into network inputs.

        windows: (n, 4), pixels of the frame. Returns (n, size, size, 3) uint8, and (n, 4) float32: (scale_x,
        scale_y, shift_x, shift_y) of each, with input = frame * scale + shift, in pixels.
        """
        ...

    def crop(self, boxes: Float32Array, *, margin: float, size: int) -> Images:
        """See `streamer.faces.crop.crop_faces`."""
        ...


class Pyramid:
    """A frame in memory and its halvings, made when first needed; see `FrameImage`."""

    def __init__(self, rgb: UInt8Array) -> None:
        """rgb: (height, width, 3) uint8."""
        self._levels = [rgb]

    @property
    def width(self) -> int:
        return int(self._levels[0].shape[1])

    @property
    def height(self) -> int:
        return int(self._levels[0].shape[0])

    def rgb(self) -> UInt8Array:
        """See `FrameImage.rgb`."""
        return self._levels[0]

    def level(self, number: int) -> UInt8Array:
        """The frame halved `number` times; an odd last row or column is left out."""
        while len(self._levels) <= number:
            last = self._levels[-1]
            height, width = last.shape[0] // 2, last.shape[1] // 2
            even = last[: 2 * height, : 2 * width]
            half = cv2.resize(even, (width, height), interpolation=cv2.INTER_AREA)
            self._levels.append(np.asarray(half, np.uint8))
        return self._levels[number]

    def cut(self, windows: IntArray, size: int) -> tuple[UInt8Array, Float32Array]:
        """See `FrameImage.cut`."""
        inputs = np.zeros((len(windows), size, size, 3), np.uint8)
        placed = np.empty((len(windows), 4), np.float32)
        for k, window in enumerate(windows.tolist()):
            at = place(window, (self.width, self.height), size)
            inner = inputs[k, at.pad_y : at.pad_y + at.height, at.pad_x : at.pad_x + at.width]
            part = self.level(at.level)[at.top : at.bottom, at.left : at.right]
            inner[...] = cv2.resize(part, (at.width, at.height), interpolation=cv2.INTER_LINEAR)
            placed[k] = at.affine
        return inputs, placed

    def crop(self, boxes: Float32Array, *, margin: float, size: int) -> UInt8Array:
        """See `FrameImage.crop`."""
        return crop_faces(self.rgb(), boxes, margin=margin, size=size)


class Placement(NamedTuple):
    """Where a window lies in a level of the pyramid, and where in the network's input."""

    level: int
    left: int
    """Pixels of the level, half-open [left, right)."""
    top: int
    right: int
    bottom: int
    width: int
    """Of the window in the input, pixels; what is beside it is black."""
    height: int
    pad_x: int
    """Its start there."""
    pad_y: int

    @property
    def affine(self) -> tuple[float, float, float, float]:
        """(scale_x, scale_y, shift_x, shift_y): input = frame * scale + shift, pixels."""
        factor = 2**self.level
        scale_x = self.width / ((self.right - self.left) * factor)
        scale_y = self.height / ((self.bottom - self.top) * factor)
        return (
            scale_x,
            scale_y,
            self.pad_x - self.left * factor * scale_x,
            self.pad_y - self.top * factor * scale_y,
        )


def place(window: list[int], frame: tuple[int, int], size: int) -> Placement:
    """Fit a window into a square input, proportions kept, centred.

    window: (x_min, y_min, x_max, y_max), pixels of the frame. frame: (width, height). The level is the
    smallest that still has as many pixels as the input wants.
    """
    x_min, y_min, x_max, y_max = window
    scale = size / max(x_max - x_min, y_max - y_min)
    number = 0
    while scale * 2 ** (number + 1) <= 1 and min(frame) >> (number + 1):
        number += 1
    factor = 2**number
    # The window in whole pixels of that level; `affine` tells where it really lies.
    # Halving leaves an odd last row or column out, and a window may lie in just that.
    left = min(x_min // factor, (frame[0] >> number) - 1)
    top = min(y_min // factor, (frame[1] >> number) - 1)
    right = min(max(round(x_max / factor), left + 1), frame[0] >> number)
    bottom = min(max(round(y_max / factor), top + 1), frame[1] >> number)
    width = min(size, max(1, round((right - left) * factor * scale)))
    height = min(size, max(1, round((bottom - top) * factor * scale)))
    pad_x, pad_y = (size - width) // 2, (size - height) // 2
    return Placement(number, left, top, right, bottom, width, height, pad_x, pad_y)


def to_frame(points: Float32Array, placed: Float32Array) -> Float32Array:
    """Points in network inputs -> points in the frame.

    points: (n, k, 2) float32, (x, y), pixels of the input. placed: (n, 4) from `Pyramid.cut`. Returns
    (n, k, 2) float32, pixels of the frame.
    """
    moved: Float32Array = (points - placed[:, None, 2:]) / placed[:, None, :2]
    return moved

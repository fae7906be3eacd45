"""Changes of pictures that blending and augmentation share. Pictures are (height, width, 3) uint8 RGB."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import cv2
import numpy as np

from streamer.types import Float32Array, UInt8Array

Interpolation = Literal["nearest", "linear", "cubic", "lanczos", "area"]

Window: TypeAlias = tuple[int, int, int, int]
"""x, y, width, height, pixels; all inside the picture."""

INTERPOLATIONS = {
    "nearest": cv2.INTER_NEAREST,
    "linear": cv2.INTER_LINEAR,
    "cubic": cv2.INTER_CUBIC,
    "lanczos": cv2.INTER_LANCZOS4,
    "area": cv2.INTER_AREA,
}
SHRINKING: tuple[Interpolation, ...] = ("area", "linear", "cubic")
ENLARGING: tuple[Interpolation, ...] = ("linear", "cubic", "lanczos")

GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""Luma of BT.601."""


def adjust_tones(
    rgb: UInt8Array,
    *,
    brightness: float = 0.0,
    contrast: float = 0.0,
    gamma: float = 1.0,
    shift: Sequence[float] = (0.0, 0.0, 0.0),
) -> UInt8Array:
    """Level by level, through one table a channel.

    brightness, contrast: added share of the full range, and of the distance from its middle. gamma: exponent
    of the level in [0, 1]. shift: added to red, green, blue, levels.
    """
    levels = np.arange(256, dtype=np.float32)
    base = 255 * (levels / 255) ** gamma
    base = (base - 127.5) * (1 + contrast) + 127.5 + 255 * brightness
    table = np.rint(np.clip(base[:, None] + np.asarray(shift, np.float32), 0, 255))  # (256, 3)
    return np.asarray(cv2.LUT(rgb, table.astype(np.uint8)[None]), np.uint8)


def dim(rgb: UInt8Array, light: float, gamma: float = 1.0) -> UInt8Array:
    """Levels times `light` in (0, 1], their dark tones darker still by an exponent gamma > 1."""
    # `adjust_tones` stretches around the middle of the range; this brings black back to black
    return adjust_tones(rgb, brightness=(light - 1) / 2, contrast=light - 1, gamma=gamma)


def adjust_colour(rgb: UInt8Array, *, hue_degrees: float = 0.0, saturation: float = 0.0) -> UInt8Array:
    """Turn and stretch the colours about grey, at constant luma.

    saturation: added share; -1 gives grey. As feColorMatrix of SVG (hueRotate, saturate), but with the luma
    of BT.601.
    """
    to_yiq = np.array([GREY, [0.596, -0.274, -0.322], [0.211, -0.523, 0.312]], np.float32)
    angle = np.deg2rad(hue_degrees)
    turn = (1 + saturation) * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    change = np.eye(3)
    change[1:, 1:] = turn
    matrix = (np.linalg.inv(to_yiq) @ change @ to_yiq).astype(np.float32)
    return np.asarray(cv2.transform(rgb, matrix), np.uint8)


def resize(image: UInt8Array, width: int, height: int, interpolation: Interpolation) -> UInt8Array:
    """To (height, width), each at least 1."""
    size = (max(1, width), max(1, height))
    return np.asarray(cv2.resize(image, size, interpolation=INTERPOLATIONS[interpolation]), np.uint8)


def draw_interpolations(rng: np.random.Generator) -> tuple[Interpolation, Interpolation]:
    """A way to shrink and one to enlarge."""
    return SHRINKING[int(rng.integers(len(SHRINKING)))], ENLARGING[int(rng.integers(len(ENLARGING)))]


def reduce_resolution(
    rgb: UInt8Array, factor: float, shrinking: Interpolation, enlarging: Interpolation
) -> UInt8Array:
    """Shrunk to `factor` in (0, 1] of its sides, and back."""
    height, width = rgb.shape[:2]
    small = resize(rgb, round(width * factor), round(height * factor), shrinking)
    return resize(small, width, height, enlarging)


def sharpen(rgb: UInt8Array, amount: float) -> UInt8Array:
    """Unsharp masking: adds `amount` of what a Gaussian blur (sigma: 1 px) takes away."""
    soft = blur(rgb, 1.0)
    return np.asarray(cv2.addWeighted(rgb, 1 + amount, soft, -amount, 0), np.uint8)


def blur(rgb: UInt8Array, sigma_px: float) -> UInt8Array:
    """Gaussian blur."""
    return np.asarray(cv2.GaussianBlur(rgb, (0, 0), sigma_px), np.uint8)


def median(rgb: UInt8Array, side: int) -> UInt8Array:
    """Of each channel, over squares of an odd side, pixels."""
    return np.asarray(cv2.medianBlur(rgb, side), np.uint8)


def smooth(rgb: UInt8Array, radius_px: float, levels: float) -> UInt8Array:
    """Bilateral filter, which keeps edges: standard deviations by distance, and by difference in level."""
    return np.asarray(
        cv2.bilateralFilter(rgb, 2 * max(1, round(2 * radius_px)) + 1, levels, radius_px), np.uint8
    )


def motion_blur(rgb: UInt8Array, length_px: float, angle_degrees: float) -> UInt8Array:
    """Mean along a straight line through each pixel."""
    half = max(1, round(length_px / 2))
    side = 2 * half + 1
    kernel = np.zeros((side, side), np.float32)
    angle = np.deg2rad(angle_degrees)
    x, y = (round(16 * length_px / 2 * float(part)) for part in (np.cos(angle), np.sin(angle)))
    middle = 16 * half
    start, end = (middle - x, middle - y), (middle + x, middle + y)  # in sixteenths of a pixel
    cv2.line(kernel, start, end, 1.0, lineType=cv2.LINE_AA, shift=4)
    return np.asarray(cv2.filter2D(rgb, -1, kernel / kernel.sum(), borderType=cv2.BORDER_REPLICATE), np.uint8)


def draw_noise(
    shape: tuple[int, int], sigma: float, grain_px: float, rng: np.random.Generator
) -> Float32Array:
    """Gaussian noise of a standard deviation in levels, (height, width, 3) float32.

    grain_px: standard deviation of the blur that makes it coarser, 0 for none; demosaicing and denoising
    leave such grain.
    """
    noise = rng.standard_normal((*shape, 3), dtype=np.float32)
    if grain_px > 0:
        noise = np.asarray(cv2.GaussianBlur(noise, (0, 0), grain_px), np.float32)
        noise /= max(float(noise.std()), 1e-6)
    return np.asarray(sigma * noise, np.float32)


def add_levels(rgb: UInt8Array, levels: Float32Array) -> UInt8Array:
    """rgb + levels, both (height, width, 3), rounded and clipped."""
    return np.asarray(cv2.add(rgb, levels, dtype=cv2.CV_8U), np.uint8)


@dataclass(frozen=True, slots=True)
class Placement:
    """Where each pixel of a result is taken from: pixel p of it from matrix @ (p, 1) + displacement(p)."""

    matrix: Float32Array
    """(2, 3) float32."""
    displacement: Float32Array | None
    """(rows, columns, 2) float32, pixels (x, y) of the image, on a grid of evenly spread cells over the
    result, interpolated between their centres; None: none."""
    shape: tuple[int, int]
    """(height, width) of the result."""
    interpolation: Interpolation


def warp(image: UInt8Array, placement: Placement, window: Window) -> UInt8Array:
    """Part of the result of a placement, (height, width, 3) uint8 of the window. Edges are mirrored."""
    left, top, width, height = window
    x = np.arange(left, left + width, dtype=np.float32)
    y = np.arange(top, top + height, dtype=np.float32)[:, None]
    from_x, from_y = (row[0] * x + (row[1] * y + row[2]) for row in placement.matrix)  # (height, width) each
    if placement.displacement is not None:
        whole = cv2.resize(placement.displacement, placement.shape[::-1], interpolation=cv2.INTER_CUBIC)
        moved = whole[top : top + height, left : left + width]
        from_x, from_y = from_x + moved[:, :, 0], from_y + moved[:, :, 1]
    flags = INTERPOLATIONS[placement.interpolation]
    return np.asarray(cv2.remap(image, from_x, from_y, flags, borderMode=cv2.BORDER_REFLECT_101), np.uint8)

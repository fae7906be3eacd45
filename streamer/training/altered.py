"""Which pixels of a fake were altered, told by the same frame of its original."""

from __future__ import annotations

import cv2
import numpy as np

from streamer.types import Float32Array, UInt8Array

Square = tuple[float, float, float]
"""Where a crop lies in its frame: x_min, y_min, side, pixels of the frame."""

BLUR = 1 / 32
"""Standard deviation of what the difference is blurred by, share of the crop's side."""
NOISE = 2.0
"""A pixel counts from so many times the median difference on, which is what compression does: most of a crop,
2.2 times as wide as the face, was not altered."""
LEAST_LEVELS = 4.0
"""And from so many levels of 255 on, where compression does next to nothing."""
MOST_LEVELS = 10.0
"""Median difference from which on the two do not lie on each other, as where the fake's frames have another
size. Of frames of eight face swaps and their originals it was 0.8 to 3.0, of frames shrunk by a tenth or more
14.8 and above."""
LEAST_SHARE = 0.01
"""Of the crop: below it nothing can be told apart from what compression does at edges."""


def altered_pixels(
    fake: UInt8Array, fake_square: Square, real: UInt8Array, real_square: Square
) -> Float32Array | None:
    """(side, side) float32 in [0, 1], how far each pixel of the fake was altered; None: it cannot be told.

    fake, real: (side, side, 3) uint8 RGB crops of the same frame, each with a side of its own.
    """
    side = fake.shape[0]
    scale = fake_square[2] / side * real.shape[0] / real_square[2]
    # a pixel's centre is at +0.5
    shift = [
        ((start + 0.5 * fake_square[2] / side) - first) * real.shape[0] / real_square[2] - 0.5
        for start, first in zip(fake_square[:2], real_square[:2], strict=True)
    ]
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    same = cv2.warpAffine(real, matrix, (side, side), flags=flags, borderMode=cv2.BORDER_REPLICATE)
    seen = cv2.warpAffine(np.ones(real.shape[:2], np.uint8), matrix, (side, side), flags=cv2.WARP_INVERSE_MAP)
    if not seen.any():
        return None
    levels = np.abs(fake.astype(np.float32) - same).mean(axis=2) * seen
    levels = cv2.GaussianBlur(levels, (0, 0), max(1.0, BLUR * side))
    median = float(np.median(levels[seen > 0]))
    if median > MOST_LEVELS:
        return None
    least = max(LEAST_LEVELS, NOISE * median)
    altered = np.clip(levels / least - 1, 0, 1).astype(np.float32)
    return altered if altered.mean() >= LEAST_SHARE else None

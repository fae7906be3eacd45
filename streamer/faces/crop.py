"""Faces -> square crops for the classifiers. Boxes are (x_min, y_min, x_max, y_max) in frame pixels."""

from __future__ import annotations

import cv2
import numpy as np

from streamer.types import Float32Array, UInt8Array


def crop_squares(boxes: Float32Array, margin: float) -> Float32Array:
    """Square around each box, `margin` of the longer side wider on every side, (n, 4) float32."""
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2
    half = (0.5 + margin) * (boxes[:, 2:] - boxes[:, :2]).max(axis=1, keepdims=True, initial=0)
    return np.concatenate([centre - half, centre + half], axis=1)


def crop_faces(rgb: UInt8Array, boxes: Float32Array, *, margin: float, size: int) -> UInt8Array:
    """Cut faces out of a frame.

    rgb: (height, width, 3) uint8. boxes: (n, 4). margin: share of the box's longer side added on each side;
    DFDC's best entries took 0.3. What lies beyond the frame repeats its edge pixels. Returns
    (n, size, size, 3) uint8.
    """
    crops = np.empty((len(boxes), size, size, 3), np.uint8)
    for crop, (x_min, y_min, x_max, y_max) in zip(
        crops, np.rint(crop_squares(boxes, margin)).astype(int).tolist(), strict=True
    ):
        side = max(1, x_max - x_min, y_max - y_min)
        inside = rgb[max(0, y_min) : max(0, y_min + side), max(0, x_min) : max(0, x_min + side)]
        if inside.shape[:2] != (side, side):
            rows = np.clip(np.arange(y_min, y_min + side), 0, rgb.shape[0] - 1)
            columns = np.clip(np.arange(x_min, x_min + side), 0, rgb.shape[1] - 1)
            inside = rgb[rows[:, None], columns]
        shrink = side > size
        cv2.resize(
            inside, (size, size), dst=crop, interpolation=cv2.INTER_AREA if shrink else cv2.INTER_LINEAR
        )
    return crops

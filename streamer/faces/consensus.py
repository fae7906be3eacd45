"""A second opinion: a face counts only if dlib's HOG detector sees it too (extra `consensus`).

BlazeFace and a histogram of oriented gradients (HOG) err on different things, so what both see is hardly ever
a false alarm. The price: HOG sees frontal faces only, and few of the very small or blurred ones.
"""

from __future__ import annotations

import threading
from typing import Any

import cv2
import numpy as np

from streamer.errors import BackendError, missing_extra
from streamer.faces.nms import overlaps
from streamer.faces.windows import close_ups
from streamer.types import Faces, Float32Array, UInt8Array

FACE_PX = 100
"""Height to which faces are scaled for dlib, whose detector was trained on faces of 80 px and more."""

ZOOM = 2.4
"""Side of the crop shown to dlib in box sides; HOG needs the outline of the head."""

MIN_IOU = 0.3
"""From which two boxes are one face: dlib's starts at the brow as BlazeFace's does, but is set lower and
narrower on some faces."""


class Consensus:
    """dlib's frontal face detector; may be used from several threads at once."""

    def __init__(self) -> None:
        """Raises BackendError if dlib is not installed."""
        try:
            import dlib
        except ImportError as error:
            raise BackendError(
                f"faces.consensus needs dlib, which is not installed: {missing_extra('consensus')}"
            ) from error
        self._make = dlib.get_frontal_face_detector
        self._detectors = threading.local()  # dlib's detector scans into buffers of its own

    def confirm(self, rgb: UInt8Array, faces: Faces) -> Faces:
        """The faces that dlib sees too, their boxes and scores unchanged.

        rgb: (height, width, 3) uint8. faces: of that frame.
        """
        return faces.take(np.array([self._agrees(rgb, box) for box in faces.boxes], np.bool_))

    def _agrees(self, rgb: UInt8Array, box: Float32Array) -> bool:
        height, width = rgb.shape[:2]
        window = close_ups(box[None], width, height, zoom=ZOOM, smallest_px=2)[0]
        x_min, y_min, x_max, y_max = window.tolist()
        scale = FACE_PX / float(max(box[3] - box[1], box[2] - box[0]))
        size = (max(1, round((x_max - x_min) * scale)), max(1, round((y_max - y_min) * scale)))
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        crop = cv2.resize(rgb[y_min:y_max, x_min:x_max], size, interpolation=way)
        seen = [(r.left(), r.top(), r.right(), r.bottom()) for r in self._detector()(crop, 0)]
        if not seen:
            return False
        expected = (box - np.array([x_min, y_min, x_min, y_min], np.float32)) * np.float32(scale)
        over_union, _ = overlaps(expected[None], np.array(seen, np.float32))
        return bool((over_union >= MIN_IOU).any())

    def _detector(self) -> Any:
        if not hasattr(self._detectors, "one"):
            self._detectors.one = self._make()
        return self._detectors.one

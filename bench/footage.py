"""1080p material for the benchmarks: one face that wanders over a face-free picture, H.264."""

from __future__ import annotations

import io
import math
from fractions import Fraction

import av
import cv2
import numpy as np
import skimage.data

FACE_BOX = (150, 0, 310, 220)
"""Head in scikit-image's astronaut(), (x_min, y_min, x_max, y_max) pixels; the face is about 95 px high."""
FACE_SCALE = 2.0
"""At 1080 px; in proportion at other heights."""


def wandering_face(seconds: float, *, width: int = 1920, height: int = 1080, fps: int = 30) -> bytes:
    """An MPEG-TS segment, H.264 with a keyframe a second, in every frame a face of 0.18 of its height."""
    x_min, y_min, x_max, y_max = FACE_BOX
    head = skimage.data.astronaut()[y_min:y_max, x_min:x_max]
    scale = FACE_SCALE * height / 1080
    head = cv2.resize(head, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
    head_height, head_width = head.shape[:2]
    background = cv2.resize(skimage.data.coffee(), (width, height), interpolation=cv2.INTER_CUBIC)
    noise = np.random.default_rng(0).normal(0, 4, (height, width, 1))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as container:
        stream = container.add_stream("libx264", rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "veryfast", "crf": "23", "g": str(fps)}
        stream.time_base = Fraction(1, fps)
        for index in range(round(seconds * fps)):
            angle = 2 * math.pi * index / (6 * fps)
            x = round((width - head_width) * (0.5 + 0.4 * math.sin(angle)))
            y = round((height - head_height) * (0.5 + 0.4 * math.cos(1.3 * angle)))
            image = background.copy()
            image[y : y + head_height, x : x + head_width] = head
            image = np.clip(image + np.roll(noise, 7 * index, axis=1), 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, "rgb24")))
        container.mux(stream.encode())
    return buffer.getvalue()

"""Raw outputs of a BlazeFace network -> boxes, scores and keypoints in pixels of its input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamer.types import Float32Array

LOGIT_LIMIT = 80.0
"""Beyond it float32's exp overflows; MediaPipe clips at 100, in double precision."""


@dataclass(frozen=True, slots=True)
class RawFaces:
    """Faces of many network inputs, before any suppression."""

    image: NDArray[np.intp]
    """(n,) which input of the batch."""
    points: Float32Array
    """(n, 8, 2) float32, (x, y), pixels of the input: both corners of the box, then six keypoints."""
    scores: Float32Array
    """(n,) float32 in [0, 1]."""


def decode_boxes(
    regressors: Float32Array, logits: Float32Array, anchors: Float32Array, size: int, min_score: float
) -> RawFaces:
    """Faces that score at least `min_score`.

    regressors: (batch, anchors, 16) float32: centre x, y, width, height and six (x, y), in pixels of the
    input, all but width and height relative to the anchor. logits: (batch, anchors, 1) float32. anchors:
    (anchors, 2) float32, fractions of the input. size: side of the input, pixels. Boxes without area are left
    out.
    """
    clipped = np.clip(logits[:, :, 0], -LOGIT_LIMIT, LOGIT_LIMIT)  # (batch, anchors)
    scores = 1 / (1 + np.exp(-clipped))
    image, anchor = np.nonzero(scores >= min_score)  # (n,), (n,)
    values = regressors[image, anchor].reshape(-1, 8, 2)  # (n, 8, 2)
    at = anchors[anchor] * np.float32(size)  # (n, 2)
    points = values + at[:, None]
    half = values[:, 1] / 2
    points[:, 1] = points[:, 0] + half
    points[:, 0] -= half
    good = (half > 0).all(axis=1)
    return RawFaces(image[good], points[good], scores[image, anchor][good].astype(np.float32))

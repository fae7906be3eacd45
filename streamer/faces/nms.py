"""Many boxes for one face -> one. Boxes are (x_min, y_min, x_max, y_max)."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamer.types import Faces, Float32Array

NESTED = 0.7
"""Share of the smaller box inside the larger from which both are taken for one face: faces do not nest, but
an eye or a mouth seen in a small window can pass for a face inside the face."""

CUT_WEIGHT = 0.5
"""By how much the score of a face that a window's edge cuts counts less when faces are ranked."""

BLEND_FROM = 0.5
"""Share of the best box's score from which a box enters its average (MediaPipe: all above a fixed 0.5)."""


def overlaps(a: Float32Array, b: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Intersection of each box of `a` with each of `b`, relative to their union and to the smaller of them.

    a: (n, 4), b: (m, 4). Returns two (n, m) float32 in [0, 1]; boxes without area overlap nothing.
    """
    low = np.maximum(a[:, None, :2], b[None, :, :2])
    high = np.minimum(a[:, None, 2:], b[None, :, 2:])
    inside = np.prod(np.maximum(high - low, 0), axis=2)  # (n, m)
    area_a = np.prod(np.maximum(a[:, 2:] - a[:, :2], 0), axis=1)[:, None]
    area_b = np.prod(np.maximum(b[:, 2:] - b[:, :2], 0), axis=1)[None, :]
    union, smaller = area_a + area_b - inside, np.minimum(area_a, area_b)
    iou = np.divide(inside, union, out=np.zeros_like(inside), where=union > 0)
    ios = np.divide(inside, smaller, out=np.zeros_like(inside), where=smaller > 0)
    return iou.astype(np.float32), ios.astype(np.float32)


def repeats(a: Float32Array, b: Float32Array, iou: float) -> NDArray[np.bool_]:
    """Which boxes of `a` show a face that a box of `b` shows: they overlap by more than `iou`, or are nested.

    a: (n, 4), b: (m, 4). Returns (n,) bool.
    """
    over_union, over_smaller = overlaps(a, b)
    return np.asarray(((over_union > iou) | (over_smaller > NESTED)).any(axis=1), np.bool_)


def blend_overlapping(
    faces: Faces, cut: NDArray[np.bool_], scales: Float32Array, iou: float
) -> tuple[Faces, NDArray[np.intp], Float32Array]:
    """Weighted non-maximum suppression, as of BlazeFace: overlapping boxes are averaged.

    The weight of a box is its score, as there, times the square of the scale at which it was seen, which is
    the inverse of its variance: a pixel of the network's input is eight of the frame in one window, one in
    another.

    faces: of one frame, any order. cut: (n,) bool, true where the edge of a window cuts the face, so that its
    box is not to be trusted: it stands back behind whole ones and never enters the average of one. scales:
    (n,) float32 > 0, pixels of the network's input per pixel of the frame. iou: boxes that overlap more are
    one face. Returns the faces, best first, each with the score of its best box; (m,) the index of that box
    in `faces`; and (m,) float32 the largest scale that entered.
    """
    if len(faces) == 0:
        return Faces.empty(), np.zeros(0, np.intp), np.zeros(0, np.float32)
    order = np.argsort(-np.where(cut, CUT_WEIGHT, 1.0) * faces.scores, kind="stable")
    over_union, over_smaller = overlaps(faces.boxes, faces.boxes)
    same = over_union > iou
    free = np.ones(len(faces), np.bool_)
    best, boxes, keypoints, finest = [], [], [], []
    for leader in order:
        if not free[leader]:
            continue
        members = same[leader] & free
        members[leader] = True
        free &= ~(members | (over_smaller[leader] > NESTED))
        members &= faces.scores >= BLEND_FROM * faces.scores[leader]
        if not cut[leader]:
            members &= ~cut
        weights = faces.scores[members] * scales[members] ** 2
        weights = weights / weights.sum()
        boxes.append(weights @ faces.boxes[members])
        keypoints.append(np.tensordot(weights, faces.keypoints[members], axes=1))
        finest.append(scales[members].max())
        best.append(leader)
    index = np.array(best, np.intp)
    blended = Faces(np.stack(boxes), faces.scores[index], np.stack(keypoints))
    return blended, index, np.array(finest, np.float32)

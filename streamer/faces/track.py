"""Which face continues which track. Pure. Boxes are (x_min, y_min, x_max, y_max) in frame pixels."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from streamer.faces.nms import overlaps
from streamer.types import Float32Array


def assign_tracks(
    tails: Float32Array, expected: Float32Array, boxes: Float32Array, min_iou: float
) -> NDArray[np.intp]:
    """Match boxes of a frame with tracks, one to one, best intersection over union first.

    tails: (k, 4) last boxes of the tracks; expected: (k, 4) where they should be by now if they went on
    moving. Of the two overlaps the larger counts: who walks has left the former, who stops is not in the
    latter. boxes: (n, 4). Returns (n,) index into `tails`, -1 for a face that continues none.
    """
    assigned = np.full(len(boxes), -1, np.intp)
    if len(tails) == 0 or len(boxes) == 0:
        return assigned
    iou = np.maximum(overlaps(tails, boxes)[0], overlaps(expected, boxes)[0])  # (k, n)
    for flat in np.argsort(-iou, axis=None, kind="stable"):
        tail, box = np.unravel_index(flat, iou.shape)
        if iou[tail, box] < min_iou or iou[tail, box] == 0:
            break
        if assigned[box] < 0 and tail not in assigned:
            assigned[box] = tail
    return assigned

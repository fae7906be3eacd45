"""Which face continues which track: by where it is, and by what it looks like. Pure.

Boxes are (x_min, y_min, x_max, y_max) in frame pixels. What a face looks like is its crop in few pixels
(`streamer.backends.images.thumbnails`): enough to tell a cut to another person from a movement, and to know
again who comes back, as long as neither the person nor what is behind has changed much.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamer.faces.nms import overlaps
from streamer.types import Float32Array

SAME = 0.15
"""Difference of two looks up to which a face is known again wherever it is. On 22 clips of talking people,
consecutive samples (250 ms) of one differed by less in 97 %, faces of two people in 0.3 %."""

CHANGE = 0.4
"""Difference within which a face goes on from one frame to the next in the same place, ..."""

CHANGE_PER_SECOND = 0.2
"""... and how much more it may be for each second between them: within both were all but 1 of 506
consecutive samples of one, and 14 % of the faces of two people."""

CHANGE_WEIGHT = 3.0
"""What a difference of 1 counts against an overlap of 1, where there is a choice: who looks exactly like a
face elsewhere, and hardly like the one that was here, comes from there."""

ELSEWHERE = 0.2
"""Handicap of a face that is only known again by its look, as an overlap."""


@dataclass(frozen=True, slots=True)
class Tails:
    """Where k tracks ended."""

    boxes: Float32Array
    """(k, 4) last boxes."""
    expected: Float32Array
    """(k, 4) where they should be by now if they went on moving as they did."""
    unseen_seconds: NDArray[np.float64]
    """(k,) for how long each was not seen, >= 0."""
    looks: Float32Array
    """(k, m) last thumbnails, grey levels; a row of NaN: not known."""


def assign_tracks(
    tails: Tails, boxes: Float32Array, looks: Float32Array, *, min_iou: float, max_gap_seconds: float
) -> NDArray[np.intp]:
    """Match faces of a frame with tracks, one to one.

    boxes: (n, 4); looks: (n, m), as in `Tails`. A face may continue a track that was seen within
    `max_gap_seconds`, whose box it overlaps by `min_iou` or more (intersection over union) and whose look has
    not changed too much; or one that looks the same, wherever and whenever it was seen. Of two boxes the
    larger overlap counts: who walks has left the last one, who stops is not in the expected one. The best
    fits are taken first. Returns (n,) index of the track, -1 for a face that continues none.
    """
    assigned = np.full(len(boxes), -1, np.intp)
    if len(tails.boxes) == 0 or len(boxes) == 0:
        return assigned
    iou = np.maximum(overlaps(tails.boxes, boxes)[0], overlaps(tails.expected, boxes)[0])  # (k, n)
    change = differences(tails.looks, looks)
    unseen = tails.unseen_seconds[:, None]
    changed = change > CHANGE + CHANGE_PER_SECOND * unseen  # false where a look is not known
    goes_on = (unseen <= max_gap_seconds) & (iou >= min_iou) & (iou > 0) & ~changed
    fit = np.where(goes_on, iou, -ELSEWHERE) - CHANGE_WEIGHT * np.nan_to_num(change)
    preference = np.where(goes_on | (change <= SAME), fit, -np.inf)
    for flat in np.argsort(-preference, axis=None, kind="stable"):
        tail, box = np.unravel_index(flat, preference.shape)
        if preference[tail, box] == -np.inf:
            break
        if assigned[box] < 0 and tail not in assigned:
            assigned[box] = tail
    return assigned


def differences(a: Float32Array, b: Float32Array) -> Float32Array:
    """1 - correlation of thumbnails, each of `a` with each of `b`: brightness and contrast do not count.

    a: (k, m), b: (n, m) grey levels. Returns (k, n) float32 in [0, 2]; NaN where one is not known or is of
    one shade.
    """
    return 1 - _normalised(a) @ _normalised(b).T


def _normalised(looks: Float32Array) -> Float32Array:
    """Rows of mean 0 and norm 1; NaN for one whose spread is below a grey level: noise has no look."""
    looks = looks - looks.mean(axis=1, keepdims=True)
    spread = looks.std(axis=1, keepdims=True)
    norm = np.where(spread >= 1, spread * np.sqrt(looks.shape[1]), np.nan)
    return (looks / norm).astype(np.float32)

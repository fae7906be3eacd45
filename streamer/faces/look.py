"""One look: windows of many frames through one network, in one batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from streamer.backends.base import Network
from streamer.backends.images import stack
from streamer.errors import InferenceError
from streamer.faces.anchors import make_anchors
from streamer.faces.decode_boxes import decode_boxes
from streamer.faces.nms import blend_overlapping
from streamer.faces.resize import FrameImage, to_frame
from streamer.faces.windows import IntArray
from streamer.types import Faces, Float32Array, Images


@dataclass(frozen=True, slots=True)
class Seen:
    """What one frame showed; n may be 0."""

    faces: Faces
    cut: NDArray[np.bool_]
    """(n,) true where an edge of a window inside the frame cuts the face."""
    scales: Float32Array
    """(n,) float32 > 0, pixels of the network's input per pixel of the frame."""

    def __len__(self) -> int:
        return len(self.faces)

    @property
    def heights_px(self) -> Float32Array:
        """(n,) float32, heights of the boxes in the network's input."""
        return np.asarray((self.faces.boxes[:, 3] - self.faces.boxes[:, 1]) * self.scales, np.float32)

    @classmethod
    def nothing(cls) -> Seen:
        """No face."""
        return cls(Faces.empty(), np.zeros(0, np.bool_), np.zeros(0, np.float32))

    def blend(self, iou: float) -> Seen:
        """One box for each face, best first; see `blend_overlapping`."""
        faces, leader, scales = blend_overlapping(self.faces, self.cut, self.scales, iou)
        return Seen(faces, self.cut[leader], scales)

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Seen:
        """Those selected by an index or mask array."""
        return Seen(self.faces.take(index), self.cut[index], self.scales[index])


def join(parts: Sequence[Seen]) -> Seen:
    """All of one frame together."""
    parts = parts or [Seen.nothing()]
    return Seen(
        Faces(
            np.concatenate([part.faces.boxes for part in parts]),
            np.concatenate([part.faces.scores for part in parts]),
            np.concatenate([part.faces.keypoints for part in parts]),
        ),
        np.concatenate([part.cut for part in parts]),
        np.concatenate([part.scales for part in parts]),
    )


def look(
    network: Network, frames: Sequence[FrameImage], windows: list[IntArray], min_score: float
) -> list[Seen]:
    """What a network sees in windows of frames, every face of every window on its own.

    windows: for each frame (n, 4), pixels of the frame. Returns, for each frame, what scores at least
    `min_score`. Raises InferenceError.
    """
    edges = np.concatenate([*windows, np.zeros((0, 4), np.int32)])  # (total, 4)
    if len(edges) == 0:
        return [Seen.nothing() for _ in frames]
    counts, size = [len(each) for each in windows], network.manifest.input.width
    owner = np.repeat(np.arange(len(frames)), counts)  # (total,)
    cuts = [frame.cut(each, size) for frame, each in zip(frames, windows, strict=True) if len(each)]
    inputs = stack([images for images, _ in cuts])
    placed = np.concatenate([where for _, where in cuts])  # (total, 4)
    regressors, logits = run_detector(network, inputs)
    raw = decode_boxes(regressors, logits, make_anchors(size), size, min_score)
    points = to_frame(raw.points, placed[raw.image])  # (n, 8, 2)
    owner = owner[raw.image]  # (n,)
    shapes = np.array([(frame.width, frame.height) for frame in frames], np.float32)
    cut = cut_by_window(points, edges[raw.image], shapes[owner])
    everything = Seen(
        Faces(points[:, :2].reshape(-1, 4), raw.scores, points[:, 2:]), cut, placed[raw.image, 0]
    )
    return [everything.take(np.flatnonzero(owner == k)) for k in range(len(frames))]


def run_detector(network: Network, images: Images) -> tuple[Float32Array, Float32Array]:
    """Regressors and logits, see `decode_boxes`. Raises InferenceError, also for NaN or infinity in them:
    below any score, they would look as if there were no face."""
    regressors, logits = network.run(images)
    if not (np.isfinite(logits).all() and np.isfinite(regressors).all()):
        raise InferenceError(f"{network.manifest.name}: NaN or infinity for some of {len(images)} images")
    return regressors, logits


def cut_by_window(points: Float32Array, windows: IntArray, frames: Float32Array) -> NDArray[np.bool_]:
    """Which boxes reach beyond an edge of their window that is not also an edge of the frame.

    points: (n, 8, 2), pixels of the frame; the first two are corners of the box. windows: (n, 4). frames:
    (n, 2), width and height. Returns (n,) bool.
    """
    low = (points[:, 0] < windows[:, :2]) & (windows[:, :2] > 0)
    high = (points[:, 1] > windows[:, 2:]) & (windows[:, 2:] < frames)
    return np.asarray((low | high).any(axis=1), np.bool_)

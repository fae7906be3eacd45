"""Frames -> faces, in three looks, each one batch over all windows of all frames.

1. The detector sees coarse windows of every frame: the whole, and squares of its full height or width. In
   one of `scan_every` frames of a sequence the scanner sees the matrix windows, small enough for the smallest
   faces wanted. At the few pixels that a small face has there its score says little: half of such faces score
   below 0.3, where much background does too. So what reaches `candidate_score` is only a candidate,
2. until the verifier, shown a close-up, gives it `min_score`.
3. In frames that were not scanned, close-ups follow the faces of the scans before and after.

By default the three are BlazeFace short range (fastest, surest of large faces), back camera (finds most of
the small ones, at many false alarms) and full range (hardly a false alarm): see the table in the README.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from streamer.backends.base import Network
from streamer.config import FacesConfig
from streamer.errors import ManifestError
from streamer.faces.anchors import make_anchors
from streamer.faces.consensus import Consensus
from streamer.faces.decode_boxes import decode_boxes
from streamer.faces.nms import blend_overlapping, overlaps
from streamer.faces.resize import Pyramid, to_frame
from streamer.faces.windows import IntArray, close_ups, coarse_windows, matrix_windows
from streamer.types import Faces, Float32Array, UInt8Array

CANDIDATE_HEIGHT_PX = MappingProxyType({128: 12.0, 192: 9.0, 256: 8.0})
"""Height in the network's input from which more than half of all faces become candidates, by input size;
measured with bench/faces.py."""

CLOSE_UP_ZOOM = 3.2
"""Side of a close-up in box sides: the detectors are surest of faces that fill a third of their input."""

MAX_CLOSE_UPS = 8
"""Of one frame in one look; the best candidates first."""


@dataclass(frozen=True, slots=True)
class _Look:
    """What one frame showed in one look."""

    faces: Faces
    cut: NDArray[np.bool_]
    """(n,) true where an edge of a window inside the frame cuts the face."""


class FaceDetector:
    """Finds faces in frames. `detect` and `detect_sequences` may be called from several threads at once."""

    def __init__(
        self,
        detector: Network,
        config: FacesConfig,
        *,
        scanner: Network | None = None,
        verifier: Network | None = None,
    ) -> None:
        """Put networks together; they stay the caller's to close.

        scanner, verifier: the detector itself if None. Raises ManifestError if one is no BlazeFace,
        BackendError if `config.consensus` is wanted and dlib is not installed.
        """
        self._detector, self._config = detector, config
        self._scanner, self._verifier = scanner or detector, verifier or detector
        for each in (self._detector, self._scanner, self._verifier):
            size = each.manifest.input.width
            if each.manifest.kind != "detector" or each.manifest.input.height != size:
                raise ManifestError(f"{each.manifest.name}: not a face detector with a square input")
            make_anchors(size)
        self._consensus = Consensus() if config.consensus else None
        self._side_px = math.ceil(
            config.min_height_px * self._scan_size / CANDIDATE_HEIGHT_PX[self._scan_size]
        )

    @property
    def _scan_size(self) -> int:
        return self._scanner.manifest.input.width

    def detect(self, frames: Sequence[UInt8Array]) -> list[Faces]:
        """Faces of frames that have nothing to do with each other: every one is scanned.

        frames: each (height, width, 3) uint8 RGB. Returns the faces of each, best first. Blocks. Raises
        InferenceError.
        """
        return [faces for (faces,) in self.detect_sequences([[frame] for frame in frames])]

    def detect_sequences(self, sequences: Sequence[Sequence[UInt8Array]]) -> list[list[Faces]]:
        """Faces of sequences of frames; a sequence is consecutive sampled frames of one video, by time.

        Frames: as in `detect`. Returns the faces of each frame of each sequence. Blocks. Raises
        InferenceError.
        """
        frames = [Pyramid(frame) for sequence in sequences for frame in sequence]
        scans = [k % self._config.scan_every == 0 for sequence in sequences for k in range(len(sequence))]
        # 1. every frame from afar, some in detail
        sure, unsure = self._first_look(frames, scans)
        # 2. a close-up of what may be a face
        sure = self._close_look(frames, sure, [faces.boxes for faces in unsure])
        # 3. a close-up of where a face was just before or will be soon
        ends = np.cumsum([len(sequence) for sequence in sequences]).tolist()
        starts = [end - len(sequence) for end, sequence in zip(ends, sequences, strict=True)]
        if not all(scans):
            followed = [np.zeros((0, 4), np.float32)] * len(frames)
            for start, end in zip(starts, ends, strict=True):
                followed[start:end] = _boxes_to_follow(
                    sure[start:end], scans[start:end], self._config.nms_iou
                )
            sure = self._close_look(frames, sure, followed)
        faces = [self._select(frame, found) for frame, found in zip(frames, sure, strict=True)]
        return [faces[start:end] for start, end in zip(starts, ends, strict=True)]

    def _first_look(self, frames: list[Pyramid], scans: list[bool]) -> tuple[list[Faces], list[Faces]]:
        """Faces beyond doubt, and candidates, of each frame."""
        config = self._config
        coarse, matrix = [], []
        for frame, scan in zip(frames, scans, strict=True):
            height, width = frame.level(0).shape[:2]
            coarse.append(coarse_windows(width, height, config.windows, config.overlap))
            wanted = scan and "matrix" in config.windows
            matrix.append(
                matrix_windows(width, height, self._side_px, config.overlap, config.max_matrix_windows)
                if wanted
                else np.zeros((0, 4), np.int32)
            )
        looks = zip(
            self._look(self._detector, frames, coarse, config.candidate_score),
            self._look(self._scanner, frames, matrix, config.candidate_score),
            strict=True,
        )
        sure, unsure = [], []
        for looked in looks:
            both = _join(looked)
            faces, leader = blend_overlapping(both.faces, both.cut, config.nms_iou)
            good = (faces.scores >= config.sure_score) & ~both.cut[leader]
            sure.append(faces.take(good))
            unsure.append(faces.take(~good))
        return sure, unsure

    def _close_look(
        self, frames: list[Pyramid], known: list[Faces], boxes: list[Float32Array]
    ) -> list[Faces]:
        """The known faces of each frame, and what close-ups of the boxes show beside them."""
        windows = []
        for frame, wanted in zip(frames, boxes, strict=True):
            height, width = frame.level(0).shape[:2]
            windows.append(
                close_ups(
                    wanted[:MAX_CLOSE_UPS],
                    width,
                    height,
                    zoom=CLOSE_UP_ZOOM,
                    smallest_px=self._verifier.manifest.input.width // 4,
                )
            )
        found = []
        looks = self._look(self._verifier, frames, windows, self._config.min_score)
        for before, look in zip(known, looks, strict=True):
            both = _join((_Look(before, np.zeros(len(before), np.bool_)), look))
            faces, leader = blend_overlapping(both.faces, both.cut, self._config.nms_iou)
            found.append(faces.take(~both.cut[leader]))
        return found

    def _look(
        self, network: Network, frames: list[Pyramid], windows: list[IntArray], min_score: float
    ) -> list[_Look]:
        """One batch: the windows of each frame through the network."""
        counts = [len(each) for each in windows]
        total, size = sum(counts), network.manifest.input.width
        owner = np.repeat(np.arange(len(frames)), counts)  # (total,)
        inputs = np.empty((total, size, size, 3), np.uint8)
        placed = np.empty((total, 4), np.float32)
        position = 0
        for frame, each in zip(frames, windows, strict=True):
            end = position + len(each)
            placed[position:end] = frame.cut(each, inputs[position:end])
            position = end
        edges = np.concatenate(windows) if windows else np.zeros((0, 4), np.int32)
        points, scores, source = self._run(network, inputs, min_score)
        points = to_frame(points, placed[source])
        shapes = np.array([frame.level(0).shape[1::-1] for frame in frames], np.float32).reshape(-1, 2)
        cut = _cut_by_window(points, edges[source], shapes[owner[source]])
        looks = []
        for k in range(len(frames)):
            mine = owner[source] == k
            faces = Faces(points[mine, :2].reshape(-1, 4), scores[mine], points[mine, 2:])
            looks.append(_Look(faces, cut[mine]))
        return looks

    @staticmethod
    def _run(
        network: Network, inputs: UInt8Array, min_score: float
    ) -> tuple[Float32Array, Float32Array, NDArray[np.intp]]:
        """Points (n, 8, 2) in pixels of the input, scores (n,), and which input each came from (n,)."""
        size = network.manifest.input.width
        if not len(inputs):
            return np.zeros((0, 8, 2), np.float32), np.zeros(0, np.float32), np.zeros(0, np.intp)
        regressors, logits = network.run(inputs)
        raw = decode_boxes(regressors, logits, make_anchors(size), size, min_score)
        return raw.points, raw.scores, raw.image

    def _select(self, frame: Pyramid, faces: Faces) -> Faces:
        """Those that are tall enough and agreed upon, the best `max_faces_per_frame` of them, best first."""
        tall = faces.boxes[:, 3] - faces.boxes[:, 1] >= self._config.min_height_px
        good = faces.take(tall & (faces.scores >= self._config.min_score))
        best = np.argsort(-good.scores, kind="stable")
        good = good.take(best[: self._config.max_faces_per_frame])
        return self._consensus.confirm(frame.level(0), good) if self._consensus else good


def _join(looks: Sequence[_Look]) -> _Look:
    faces = [look.faces for look in looks]
    return _Look(
        Faces(
            np.concatenate([each.boxes for each in faces]),
            np.concatenate([each.scores for each in faces]),
            np.concatenate([each.keypoints for each in faces]),
        ),
        np.concatenate([look.cut for look in looks]),
    )


def _cut_by_window(points: Float32Array, windows: IntArray, frames: Float32Array) -> NDArray[np.bool_]:
    """Which boxes reach beyond an edge of their window that is not also an edge of the frame.

    points: (n, 8, 2), pixels of the frame. windows: (n, 4). frames: (n, 2), width and height. Returns
    (n,) bool.
    """
    low = (points[:, 0] < windows[:, :2]) & (windows[:, :2] > 0)
    high = (points[:, 1] > windows[:, 2:]) & (windows[:, 2:] < frames)
    return np.asarray((low | high).any(axis=1), np.bool_)


def _boxes_to_follow(found: Sequence[Faces], scans: Sequence[bool], iou: float) -> list[Float32Array]:
    """For each frame that was not scanned, boxes of the scans next to it where it has no face itself."""
    scanned = np.flatnonzero(scans)
    boxes = []
    for k, faces in enumerate(found):
        wanted = Faces.empty()
        if not scans[k]:
            before = scanned[scanned < k][-1:]
            after = scanned[scanned > k][:1]
            near = _join([_Look(found[j], np.zeros(len(found[j]), np.bool_)) for j in (*before, *after)])
            wanted, _ = blend_overlapping(near.faces, near.cut, iou)
            over_union, _ = overlaps(wanted.boxes, faces.boxes)
            wanted = wanted.take(np.asarray((over_union <= iou).all(axis=1), np.bool_))
        boxes.append(wanted.boxes)
    return boxes

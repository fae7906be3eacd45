"""Frames -> faces, in three looks, each one batch over all windows of all frames.

1. The detector sees coarse windows of every frame: the whole, and squares of its full height or width. In
   one of `scan_every` frames of a sequence the scanner sees the matrix windows, small enough for the smallest
   faces wanted. At the few pixels that a small face has there its score says little: half of such faces score
   below 0.3, where much background does too. So what reaches `candidate_score` is only a candidate,
2. until the verifier, shown a close-up, gives it `min_score`.
3. In frames that were not scanned, close-ups follow the faces of the scans before and after.

By default the three are BlazeFace short range (fastest, surest of large faces), back camera (finds most of
the small ones, at many false alarms) and full range (hardly a false alarm): see docs/faces.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType

import numpy as np

from streamer.backends.base import Network
from streamer.backends.images import known_image
from streamer.config import FacesConfig
from streamer.errors import ManifestError
from streamer.faces.anchors import make_anchors
from streamer.faces.consensus import Consensus
from streamer.faces.look import Seen, join, look, run_detector
from streamer.faces.nms import overlaps, repeats
from streamer.faces.resize import FrameImage, Pyramid
from streamer.faces.windows import close_ups, coarse_windows, matrix_windows
from streamer.types import Faces, Float32Array, UInt8Array

CANDIDATE_HEIGHT_PX = MappingProxyType({128: 12.0, 192: 9.0, 256: 8.0})
"""Height in the network's input from which more than half of all faces become candidates, by input size;
measured on 250 photographs of faces, scaled down."""

LARGE = 0.42
"""Share of the detector's input from which a face is large: the full range network misses more and more of
those (11 % at half its input, 37 % at two thirds), and no close-up is larger than the frame."""

SHARP_HEIGHT_PX = 20.0
"""Height in the network's input below which the box is rough: the short range network draws it up to
half too large. A close-up is then worth its price even where the face is certain."""

CLOSE_UP_ZOOM = 3.2
"""Side of a close-up in box sides: the detectors are surest of faces that fill a third of their input."""

FOLLOW_ZOOM = 5.0
"""The same between scans: leaves a face two widths to move."""


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
        scan_size = self._scanner.manifest.input.width
        self._matrix_side_px = math.ceil(config.min_height_px * scan_size / CANDIDATE_HEIGHT_PX[scan_size])

    def detect(self, frames: Sequence[UInt8Array]) -> list[Faces]:
        """Faces of frames that have nothing to do with each other: every one is scanned.

        frames: each (height, width, 3) uint8 RGB. Returns the faces of each, best first. Blocks. Raises
        InferenceError.
        """
        return [faces for (faces,) in self.detect_sequences([[Pyramid(frame)] for frame in frames])]

    def detect_sequences(self, sequences: Sequence[Sequence[FrameImage]]) -> list[list[Faces]]:
        """Faces of sequences of frames; a sequence is consecutive sampled frames of one video, by time.

        Returns the faces of each frame of each sequence, best first. Blocks. Raises InferenceError.
        """
        frames = [frame for sequence in sequences for frame in sequence]
        scans = [scan for sequence in sequences for scan in self._choose_scans(len(sequence))]
        ends = np.cumsum([len(sequence) for sequence in sequences]).tolist()
        spans = [slice(end - len(sequence), end) for end, sequence in zip(ends, sequences, strict=True)]
        # 1. every frame from afar, some in detail
        sure, unclear = self._first_look(frames, scans)
        # 2. a close-up of what is unclear
        sure = self._close_look(frames, sure, unclear, CLOSE_UP_ZOOM)
        # 3. a close-up of where a face was just before or will be soon
        if not all(scans):
            missing = [boxes for span in spans for boxes in self._boxes_to_follow(sure[span], scans[span])]
            sure = self._close_look(frames, sure, missing, FOLLOW_ZOOM)
        faces = [self._select(frame, seen) for frame, seen in zip(frames, sure, strict=True)]
        return [faces[span] for span in spans]

    def check(self) -> None:
        """Run every network on an image that it is known to take. Blocks. Raises InferenceError."""
        for network in (self._detector, self._scanner, self._verifier):
            run_detector(network, known_image(network.manifest.input))

    def _choose_scans(self, count: int) -> list[bool]:
        """Which frames of a sequence are scanned: the middle one of each group of `scan_every` at most."""
        groups = math.ceil(count / self._config.scan_every)
        middles = {int((group + 0.5) * count / groups) for group in range(groups)}
        return [k in middles for k in range(count)]

    def _first_look(
        self, frames: list[FrameImage], scans: list[bool]
    ) -> tuple[list[Seen], list[Float32Array]]:
        """What is certainly a face, and boxes of what may be one or is seen too roughly, of each frame."""
        config = self._config
        coarse, matrix = [], []
        for frame, scan in zip(frames, scans, strict=True):
            width, height = frame.width, frame.height
            coarse.append(coarse_windows(width, height, config.windows, config.overlap))
            side = self._matrix_side_px if scan and "matrix" in config.windows else max(width, height)
            matrix.append(matrix_windows(width, height, side, config.overlap, config.max_matrix_windows))
        from_afar = look(self._detector, frames, coarse, config.candidate_score)
        in_detail = look(self._scanner, frames, matrix, config.candidate_score)
        judged = list(map(self._judge, from_afar, in_detail, scans))
        return [sure for sure, _ in judged], [unclear for _, unclear in judged]

    def _judge(self, afar: Seen, detail: Seen, scan: bool) -> tuple[Seen, Float32Array]:
        """Faces of one frame, and boxes that want a close-up."""
        config = self._config
        seen = afar.blend(config.nms_iou)
        # The scanner's own certainty counts for nothing, background scores 0.8 there now and then; but where
        # it sees a certain face too, it sees it sharper.
        certain = seen.take((seen.faces.scores >= config.sure_score) & ~seen.cut)
        same = (overlaps(detail.faces.boxes, certain.faces.boxes)[0] > config.nms_iou).any(axis=1)
        certain = join([certain, detail.take(same & ~detail.cut)]).blend(config.nms_iou)
        rough = certain.heights_px < SHARP_HEIGHT_PX
        # A close-up could show no more of a large face, so that it stays unless a better one is found there:
        # the short range network draws a large box around a small face at times.
        large = seen.heights_px >= LARGE * self._detector.manifest.input.height
        large &= (seen.faces.scores >= config.min_score) & (seen.faces.scores < config.sure_score)
        maybe = join([afar, detail]).blend(config.nms_iou).faces
        # Between scans, the scans have decided about what is doubtful, and what they found is followed.
        worthy = scan | (maybe.scores >= config.min_score)
        worthy &= ~repeats(maybe.boxes, certain.faces.boxes, config.nms_iou)
        unclear = np.concatenate([certain.faces.boxes[rough], maybe.boxes[worthy]])
        return join([certain, seen.take(large & ~seen.cut)]), unclear

    def _close_look(
        self, frames: list[FrameImage], known: list[Seen], boxes: list[Float32Array], zoom: float
    ) -> list[Seen]:
        """The known faces of each frame, and what close-ups of the boxes show."""
        windows = []
        for frame, wanted in zip(frames, boxes, strict=True):
            width, height = frame.width, frame.height
            smallest_px = self._verifier.manifest.input.width // 4
            windows.append(
                close_ups(
                    wanted[: self._config.max_faces_per_frame],
                    width,
                    height,
                    zoom=zoom,
                    smallest_px=smallest_px,
                )
            )
        found = []
        shown = look(self._verifier, frames, windows, self._config.min_score)
        for before, now in zip(known, shown, strict=True):
            seen = join([before, now]).blend(self._config.nms_iou)
            found.append(seen.take(~seen.cut))
        return found

    def _boxes_to_follow(self, found: Sequence[Seen], scans: Sequence[bool]) -> list[Float32Array]:
        """For each frame of a sequence that was not scanned, boxes of the scans next to it that it lacks."""
        scanned = np.flatnonzero(scans)
        iou = self._config.nms_iou
        boxes = []
        for k, seen in enumerate(found):
            wanted = np.zeros((0, 4), np.float32)
            if not scans[k]:
                near = [found[j] for j in (*scanned[scanned < k][-1:], *scanned[scanned > k][:1])]
                wanted = join(near).blend(iou).faces.boxes
                wanted = wanted[(overlaps(wanted, seen.faces.boxes)[0] <= iou).all(axis=1)]
            boxes.append(wanted)
        return boxes

    def _select(self, frame: FrameImage, seen: Seen) -> Faces:
        """Those that are tall enough and agreed upon, the best `max_faces_per_frame` of them, best first."""
        boxes, scores = seen.faces.boxes, seen.faces.scores
        tall = boxes[:, 3] - boxes[:, 1] >= self._config.min_height_px
        good = seen.faces.take(tall & (scores >= self._config.min_score))
        best = np.argsort(-good.scores, kind="stable")
        kept = good.take(best[: self._config.max_faces_per_frame])
        if self._consensus:
            kept = self._consensus.confirm(frame.rgb(), kept)
        return replace(kept, left_out=max(0, len(good) - self._config.max_faces_per_frame))

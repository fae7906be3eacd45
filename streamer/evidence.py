"""What a video's score rests on, face by face: gathered while it is scored, for a table and a page."""

from __future__ import annotations

import csv
import heapq
import io
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from streamer.types import FacePrediction, UInt8Array
from streamer.watch import PERSON_FACES

CROPS_PER_TRACK = 8
"""Crops of a person that are kept and shown: those that look most like a fake."""


@dataclass(frozen=True, slots=True)
class SeenFace:
    """One face in one frame."""

    track: int
    at_seconds: float
    """In the video."""
    box: tuple[float, float, float, float]
    """(x_min, y_min, x_max, y_max), pixels of the frame."""
    probabilities: tuple[float, ...]
    """Of `fake`, by each member."""

    @property
    def score(self) -> float:
        """Mean over the members."""
        return float(np.mean(self.probabilities))


class Evidence:
    """Every face of a video, and the most suspicious crops of each track. `add` is a `types.OnFace`."""

    def __init__(self) -> None:
        self.faces: list[SeenFace] = []
        self._crops: dict[int, list[tuple[float, int, SeenFace, UInt8Array]]] = defaultdict(list)
        self._number = count()

    def add(self, track: int, at_seconds: float, face: FacePrediction) -> None:
        """Remember a face; its crop only while it is among the most suspicious of its track."""
        seen = SeenFace(track, at_seconds, face.box, face.probabilities)
        self.faces.append(seen)
        if face.crop is None:
            return
        # The number decides between equal scores: the earlier face is kept. A copy, not a view of its batch.
        entry = (seen.score, -next(self._number), seen, face.crop.copy())
        best = self._crops[track]
        if len(best) < CROPS_PER_TRACK:
            heapq.heappush(best, entry)
        else:
            heapq.heappushpop(best, entry)

    def crops_of(self, track: int) -> list[tuple[SeenFace, UInt8Array]]:
        """The most suspicious faces of a track with their crops, (size, size, 3) uint8 RGB, worst first."""
        return [(seen, crop) for *_, seen, crop in sorted(self._crops[track], reverse=True)]


def faces_csv(evidence: Evidence, names: Sequence[str]) -> str:
    """A line per face in order of time. names: of the members."""
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["time_seconds", "track", "x_min", "y_min", "x_max", "y_max", "fake_score", *names])
    for face in sorted(evidence.faces, key=lambda seen: (seen.at_seconds, seen.track)):
        values = [f"{p:.6f}" for p in (face.score, *face.probabilities)]
        writer.writerow(
            [f"{face.at_seconds:.3f}", face.track, *(f"{side:.1f}" for side in face.box), *values]
        )
    return text.getvalue()


def tracks_to_show(evidence: Evidence) -> list[int]:
    """Tracks that are a person's, in the order of their numbers; all of them if none is."""
    counts: dict[int, int] = defaultdict(int)
    for face in evidence.faces:
        counts[face.track] += 1
    return sorted(track for track, n in counts.items() if n >= PERSON_FACES) or sorted(counts)

"""What is remembered of one video, and its form in the state changelog. Pure.

All sums are integers (probabilities in units of 2**-30), so they are exact, and a state that was written and
read again goes on to exactly the scores it would have given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import msgpack

from streamer.errors import StateError
from streamer.sequence import SequenceSet

VERSION = 1

UNIT = 1 << 30
"""A probability of 1 as an integer; the step of 1e-9 is far below any network's accuracy."""

NORMAL_QUANTILE = 1.96
"""Two-sided 95 % of the normal distribution."""

MIN_CLUSTERS = 3
"""Seconds of video below which no interval is stated."""


@dataclass(slots=True)
class MeanScore:
    """Sum of ensemble scores and their number; exact."""

    total: int = 0
    """Sum over faces and members, in 1 / UNIT."""
    faces: int = 0

    def add(self, total: int, faces: int) -> None:
        self.total += total
        self.faces += faces

    def value(self, members: int) -> float | None:
        """Mean in [0, 1], or None without a face."""
        return self.total / (self.faces * members * UNIT) if self.faces else None


@dataclass(slots=True)
class SpreadOverTime:
    """Sums for the variance of a ratio estimator with seconds of video as clusters.

    Neighbouring frames are alike, so the unit of evidence is a second, not a frame. Cochran, Sampling
    Techniques (1977), section 6.3: for R = sum(s) / sum(n) over k clusters of total s and size n,
    var(R) = k / (k - 1) * sum((s - R n)**2) / sum(n)**2.
    """

    clusters: int = 0
    ss: int = 0
    sn: int = 0
    nn: int = 0

    def add(self, total: int, faces: int) -> None:
        self.clusters += 1
        self.ss += total * total
        self.sn += total * faces
        self.nn += faces * faces

    def interval(self, score: MeanScore, members: int) -> tuple[float, float] | None:
        """95 % interval of the mean, cut to [0, 1]."""
        k = self.clusters
        if k < MIN_CLUSTERS:
            return None
        # Numerator in integers: sum((s - R n)**2) * faces**2, exact where floats would cancel.
        n, t = score.faces, score.total
        residuals = self.ss * n * n - 2 * self.sn * t * n + self.nn * t * t
        variance = k / (k - 1) * (residuals / n**4) / (members * UNIT) ** 2
        mean, half = t / (n * members * UNIT), NORMAL_QUANTILE * math.sqrt(variance)
        return max(0.0, mean - half), min(1.0, mean + half)


@dataclass(slots=True)
class Track:
    """One face followed through the video."""

    track: int
    box: tuple[float, float, float, float]
    seen_seconds: float
    score: MeanScore = field(default_factory=MeanScore)


@dataclass(slots=True)
class Shadow:
    """Sums of another ensemble over the same faces."""

    model_set: str = ""
    score: MeanScore = field(default_factory=MeanScore)
    bins: dict[int, MeanScore] = field(default_factory=dict)
    """As `VideoState.bins`."""


@dataclass(slots=True)
class VideoState:
    """All that is remembered of one video; bounded, however long the video."""

    touched_seconds: float
    """Clock of the process, which is not written: after a restart the time of idleness begins anew."""
    next_offset: int = 0
    """After the newest record of the input partition that is counted here."""
    seqs: SequenceSet = field(default_factory=SequenceSet)
    latest_seq: int = 0
    chunks: int = 0
    undecodable_chunks: int = 0
    frames: int = 0
    score: MeanScore = field(default_factory=MeanScore)
    by_member: list[int] = field(default_factory=list)
    spread: SpreadOverTime = field(default_factory=SpreadOverTime)
    bins: dict[int, MeanScore] = field(default_factory=dict)
    """Of the last seconds, by time // BIN_SECONDS."""
    newest_bin: int = 0
    end_seconds: float = 0.0
    tracks: list[Track] = field(default_factory=list)
    next_track: int = 0
    alert_since_seq: int | None = None
    ended: bool = False
    shadow: Shadow = field(default_factory=Shadow)


def pack_state(state: VideoState, model_set: str) -> bytes:
    """msgpack of a state; model_set: of the ensemble whose predictions it sums."""
    spread = state.spread
    fields = {
        "v": VERSION,
        "model_set": model_set,
        "next_offset": state.next_offset,
        "seqs": state.seqs.pack(),
        "latest_seq": state.latest_seq,
        "chunks": state.chunks,
        "undecodable_chunks": state.undecodable_chunks,
        "frames": state.frames,
        "score": _pack_score(state.score),
        "by_member": [_integer(total) for total in state.by_member],
        "spread": [spread.clusters, *map(_integer, (spread.ss, spread.sn, spread.nn))],
        "bins": _pack_bins(state.bins),
        "newest_bin": state.newest_bin,
        "end_seconds": state.end_seconds,
        "tracks": [
            [t.track, *t.box, t.seen_seconds, _integer(t.score.total), t.score.faces] for t in state.tracks
        ],
        "next_track": state.next_track,
        "alert_since_seq": state.alert_since_seq,
        "ended": state.ended,
    }
    if (shadow := state.shadow).score.faces:
        fields["shadow"] = [shadow.model_set, _pack_score(shadow.score), _pack_bins(shadow.bins)]
    packed: bytes = msgpack.packb(fields)
    return packed


def unpack_state(value: bytes, *, touched_seconds: float) -> tuple[VideoState, str]:
    """A state and its `model_set`. Raises StateError if it is damaged or of another version."""
    try:
        fields: dict[str, Any] = msgpack.unpackb(value)
        if fields["v"] != VERSION:
            raise StateError(f"a state of version {fields['v']}, this program reads version {VERSION}")
        state = VideoState(
            touched_seconds,
            next_offset=fields["next_offset"],
            seqs=SequenceSet.unpack(fields["seqs"]),
            latest_seq=fields["latest_seq"],
            chunks=fields["chunks"],
            undecodable_chunks=fields["undecodable_chunks"],
            frames=fields["frames"],
            score=_mean_score(*fields["score"]),
            by_member=[int(total) for total in fields["by_member"]],
            spread=SpreadOverTime(*map(int, fields["spread"])),
            bins=_unpack_bins(fields["bins"]),
            newest_bin=fields["newest_bin"],
            end_seconds=fields["end_seconds"],
            tracks=[
                Track(track, (x0, y0, x1, y1), seen, _mean_score(total, faces))
                for track, x0, y0, x1, y1, seen, total, faces in fields["tracks"]
            ],
            next_track=fields["next_track"],
            alert_since_seq=fields["alert_since_seq"],
            ended=fields["ended"],
        )
        if "shadow" in fields:
            model_set, score, bins = fields["shadow"]
            state.shadow = Shadow(str(model_set), _mean_score(*score), _unpack_bins(bins))
        return state, str(fields["model_set"])
    except StateError:
        raise
    except Exception as error:
        raise StateError(f"not the state of a video: {error!r:.300}") from error


def _pack_score(score: MeanScore) -> list[int | str]:
    return [_integer(score.total), score.faces]


def _pack_bins(bins: dict[int, MeanScore]) -> list[list[int | str]]:
    return [[index, *_pack_score(score)] for index, score in bins.items()]


def _unpack_bins(rows: list[Any]) -> dict[int, MeanScore]:
    return {index: _mean_score(total, faces) for index, total, faces in rows}


def _integer(number: int) -> int | str:
    """msgpack has no integers beyond 64 bits, and sums of squares are larger."""
    return number if number < 1 << 63 else str(number)


def _mean_score(total: int | str, faces: int) -> MeanScore:
    return MeanScore(int(total), faces)

"""What is remembered of one video, and its form in the state changelog. Pure.

All sums are integers (probabilities in units of 2**-30), so they are exact, and a state that was written and
read again goes on to exactly the scores it would have given.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import msgpack

from streamer.errors import StateError
from streamer.sequence import SequenceSet
from streamer.types import THUMBNAIL_SIDE

VERSION = 2

BIN_SECONDS = 0.5
"""Step by which the scores of the last seconds forget."""

UNIT = 1 << 30
"""A probability of 1 as an integer; the step of 1e-9 is far below any network's accuracy."""

NORMAL_QUANTILE = 1.96
"""Two-sided 95 % of the normal distribution."""

MIN_CLUSTERS = 3
"""Seconds of video below which no interval is stated."""

FORESIGHT_SECONDS = 1.0
"""For so long a face that is not seen is expected to go on moving as it did."""

JITTER_SECONDS = 0.1
"""Between frames closer than this, a box moves more by the detector's jitter than by its face."""

MAX_REFUSED = 1024
"""Refused chunks of a video that may come again and then count; of more, the newest."""

Box: TypeAlias = tuple[float, float, float, float]
"""(x_min, y_min, x_max, y_max), pixels of the frame."""


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
class WindowScore:
    """Scores of the last seconds only, in bins of BIN_SECONDS by time in the video."""

    bins: dict[int, MeanScore] = field(default_factory=dict)

    def add(self, index: int, total: int, faces: int) -> None:
        self.bins.setdefault(index, MeanScore()).add(total, faces)

    def forget(self, oldest: int) -> None:
        """Drop the bins before `oldest`."""
        self.bins = {index: score for index, score in self.bins.items() if index >= oldest}

    def mean(self) -> MeanScore:
        mean = MeanScore()
        for score in self.bins.values():
            mean.add(score.total, score.faces)
        return mean


@dataclass(slots=True)
class Track:
    """One face followed through the video."""

    track: int
    box: Box
    seen_seconds: float
    score: MeanScore = field(default_factory=MeanScore)
    window: WindowScore = field(default_factory=WindowScore)
    velocity: tuple[float, float] = (0.0, 0.0)
    """(x, y) of the box's centre, pixels per second, smoothed."""
    thumbnail: bytes | None = None
    """What its face looked like; see `FacePrediction.thumbnail`."""

    def expected_box(self, at_seconds: float) -> Box:
        """Where its face is at a time if it goes on moving as it did."""
        ahead = min(max(at_seconds - self.seen_seconds, -FORESIGHT_SECONDS), FORESIGHT_SECONDS)
        return _moved(self.box, self.velocity[0] * ahead, self.velocity[1] * ahead)

    def move_to(self, box: Box, at_seconds: float, thumbnail: bytes | None) -> None:
        """Note where its face is now, and what it looks like."""
        if 0 < (elapsed := at_seconds - self.seen_seconds) < math.inf:
            missed_x = (box[0] + box[2] - self.box[0] - self.box[2]) / 2 - self.velocity[0] * elapsed
            missed_y = (box[1] + box[3] - self.box[1] - self.box[3]) / 2 - self.velocity[1] * elapsed
            weight = 1 / (elapsed + JITTER_SECONDS)
            self.velocity = (self.velocity[0] + weight * missed_x, self.velocity[1] + weight * missed_y)
        self.box, self.seen_seconds, self.thumbnail = box, at_seconds, thumbnail


def _moved(box: Box, across: float, down: float) -> Box:
    return (box[0] + across, box[1] + down, box[2] + across, box[3] + down)


@dataclass(slots=True)
class Shadow:
    """Sums of another ensemble over the same faces."""

    model_set: str = ""
    score: MeanScore = field(default_factory=MeanScore)
    window: WindowScore = field(default_factory=WindowScore)


@dataclass(slots=True)
class VideoState:
    """All that is remembered of one video; bounded, however long the video."""

    touched_seconds: float
    """Clock of the process, which is not written: after a restart the time of idleness begins anew."""
    next_offset: int = 0
    """After the newest record of the input partition that is counted here."""
    seqs: SequenceSet = field(default_factory=SequenceSet)
    latest_seq: int = 0
    numbered: bool = True
    """Whether every seq was the producer's own: else gaps in them mean nothing."""
    chunks: int = 0
    undecodable_chunks: int = 0
    refused: list[int] = field(default_factory=list)
    """seqs in `seqs` whose chunk became a dead letter: it may be mended and published again."""
    frames: int = 0
    unscored_faces: int = 0
    score: MeanScore = field(default_factory=MeanScore)
    by_member: list[int] = field(default_factory=list)
    spread: SpreadOverTime = field(default_factory=SpreadOverTime)
    window: WindowScore = field(default_factory=WindowScore)
    newest_bin: int = 0
    """Of all windows of the video: no frame so far was later."""
    end_seconds: float = 0.0
    tracks: list[Track] = field(default_factory=list)
    frame_size: tuple[int, int] | None = None
    """Width and height, in whose pixels the boxes of all tracks are; None: not known."""
    next_track: int = 0
    alert_since_seq: int | None = None
    ended: bool = False
    shadow: Shadow = field(default_factory=Shadow)

    def admit(self, seq: int) -> bool:
        """Note the seq of a chunk that is to be counted; False if it was counted before."""
        if self.seqs.add(seq):
            return True
        if seq not in self.refused:
            return False
        self.refused.remove(seq)
        self.undecodable_chunks -= 1
        return True

    def refuse(self, seq: int) -> bool:
        """Note the seq of a chunk that became a dead letter; False if it was noted before."""
        if not self.seqs.add(seq):
            return False
        self.refused = [*self.refused, seq][-MAX_REFUSED:]
        self.undecodable_chunks += 1
        return True

    def begin_timeline_anew(self) -> None:
        """For a clock that was set back, as when an encoder restarts: the last seconds are now others."""
        self.newest_bin = 0
        self.end_seconds = 0.0
        for window in (self.window, self.shadow.window, *(track.window for track in self.tracks)):
            window.bins.clear()
        for track in self.tracks:
            track.seen_seconds = -math.inf

    def resize_frames(self, width: int, height: int) -> None:
        """Boxes as they are in frames of this size: a call changes its resolution as its network does."""
        if self.frame_size is not None and self.frame_size != (width, height):
            across, down = width / self.frame_size[0], height / self.frame_size[1]
            for track in self.tracks:
                x_min, y_min, x_max, y_max = track.box
                track.box = (x_min * across, y_min * down, x_max * across, y_max * down)
                track.velocity = (track.velocity[0] * across, track.velocity[1] * down)
        self.frame_size = (width, height)


def pack_state(state: VideoState, model_set: str) -> bytes:
    """msgpack of a state; model_set: of the ensemble whose predictions it sums."""
    spread = state.spread
    fields = {
        "v": VERSION,
        "model_set": model_set,
        "next_offset": state.next_offset,
        "seqs": state.seqs.pack(),
        "latest_seq": state.latest_seq,
        "numbered": state.numbered,
        "chunks": state.chunks,
        "undecodable_chunks": state.undecodable_chunks,
        "refused": state.refused,
        "frames": state.frames,
        "unscored_faces": state.unscored_faces,
        "score": _pack_score(state.score),
        "by_member": [_integer(total) for total in state.by_member],
        "spread": [spread.clusters, *map(_integer, (spread.ss, spread.sn, spread.nn))],
        "window": _pack_window(state.window),
        "newest_bin": state.newest_bin,
        "end_seconds": state.end_seconds,
        "tracks": [
            [t.track, *t.box, t.seen_seconds, _pack_score(t.score), _pack_window(t.window)]
            for t in state.tracks
        ],
        "velocities": [t.velocity for t in state.tracks],
        "thumbnails": [t.thumbnail for t in state.tracks],
        "frame_size": state.frame_size,
        "next_track": state.next_track,
        "alert_since_seq": state.alert_since_seq,
        "ended": state.ended,
    }
    if (shadow := state.shadow).score.faces:
        fields["shadow"] = [shadow.model_set, _pack_score(shadow.score), _pack_window(shadow.window)]
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
            numbered=fields["numbered"],
            chunks=fields["chunks"],
            undecodable_chunks=fields["undecodable_chunks"],
            refused=fields.get("refused", []),
            frames=fields["frames"],
            unscored_faces=fields.get("unscored_faces", 0),
            score=_mean_score(*fields["score"]),
            by_member=[int(total) for total in fields["by_member"]],
            spread=SpreadOverTime(*map(int, fields["spread"])),
            window=_unpack_window(fields["window"]),
            newest_bin=fields["newest_bin"],
            end_seconds=fields["end_seconds"],
            tracks=[
                Track(track, (x0, y0, x1, y1), seen, _mean_score(*score), _unpack_window(window))
                for track, x0, y0, x1, y1, seen, score, window in fields["tracks"]
            ],
            frame_size=_size(fields.get("frame_size")),
            next_track=fields["next_track"],
            alert_since_seq=fields["alert_since_seq"],
            ended=fields["ended"],
        )
        for t, (across, down) in zip(state.tracks, fields.get("velocities", ()), strict=False):
            t.velocity = (across, down)
        for t, thumbnail in zip(state.tracks, fields.get("thumbnails", ()), strict=False):
            if thumbnail is not None and len(thumbnail) == THUMBNAIL_SIDE**2:
                t.thumbnail = bytes(thumbnail)
        if "shadow" in fields:
            model_set, score, window = fields["shadow"]
            state.shadow = Shadow(str(model_set), _mean_score(*score), _unpack_window(window))
        return state, str(fields["model_set"])
    except StateError:
        raise
    except Exception as error:
        raise StateError(f"not the state of a video: {error!r:.300}") from error


def _size(pair: list[int] | None) -> tuple[int, int] | None:
    return None if pair is None else (pair[0], pair[1])


def _pack_score(score: MeanScore) -> list[int | str]:
    return [_integer(score.total), score.faces]


def _pack_window(window: WindowScore) -> list[list[int | str]]:
    return [[index, *_pack_score(score)] for index, score in window.bins.items()]


def _unpack_window(rows: list[Any]) -> WindowScore:
    return WindowScore({index: _mean_score(total, faces) for index, total, faces in rows})


def _integer(number: int) -> int | str:
    """msgpack has no integers beyond 64 bits, and sums of squares are larger."""
    return number if number < 1 << 63 else str(number)


def _mean_score(total: int | str, faces: int) -> MeanScore:
    return MeanScore(int(total), faces)

"""Rolling scores of the videos of one partition: predictions in, `ScoreUpdate`s out. Pure: no clock, no I/O.

What is remembered of a video is in `streamer.video_state`: exact integer sums, so that the order in which
chunks arrive cannot change a video's score by even one bit; a seq that was counted is not counted again.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from streamer.alerts import judge, suspect_of
from streamer.config import AlertConfig, FacesConfig, RollingConfig
from streamer.errors import StateError
from streamer.faces.track import Tails, assign_tracks
from streamer.messages import ScoreUpdate, ShadowScore, TrackScore
from streamer.types import (
    THUMBNAIL_SIDE,
    ChunkPrediction,
    EnsembleInfo,
    FacePrediction,
    Float32Array,
    FramePrediction,
    OnFace,
)
from streamer.video_state import (
    BIN_SECONDS,
    UNIT,
    Box,
    MeanScore,
    Shadow,
    Track,
    VideoState,
    pack_state,
    unpack_state,
)


@dataclass(frozen=True, slots=True)
class Arrival:
    """When a chunk was finished, as told by the caller's clocks, and where it came from."""

    monotonic_seconds: float
    unix_ms: int
    offset: int = 0
    """Of the chunk's record in its partition."""
    latency_ms: dict[str, float] = field(default_factory=dict)


class RollingScores:
    """State of every video of one partition."""

    def __init__(
        self,
        config: RollingConfig,
        alert: AlertConfig,
        faces: FacesConfig,
        ensemble: EnsembleInfo,
    ) -> None:
        self.ensemble = ensemble
        self._config = config
        self._alert = alert
        self._faces = faces
        self._members = len(ensemble.names)
        self._window_bins = max(1, round(config.window_seconds / BIN_SECONDS))
        self._videos: OrderedDict[str, VideoState] = OrderedDict()
        """Idle longest first."""
        self._dormant: OrderedDict[str, bytes] = OrderedDict()
        """Restored and not come again yet; all were touched before those in `_videos`."""
        self._restored_seconds = 0.0
        self._changed: set[str] = set()
        self._begun_anew: set[str] = set()
        self.why_unusable: str | None = None
        """Of a state from the changelog, the last that was."""

    def __len__(self) -> int:
        return len(self._videos) + len(self._dormant)

    @property
    def unusable_states(self) -> int:
        """Videos that have begun anew: their state was of another ensemble or version, or damaged."""
        return len(self._begun_anew)

    def is_replay(self, video_id: str, seq: int, offset: int) -> bool:
        """Whether the very record was counted, not just its seq: it is read again after a crash."""
        state = self._find(video_id)
        return state is not None and offset < state.next_offset and seq in state.seqs

    def restore(self, states: Mapping[str, bytes], *, now_seconds: float) -> None:
        """Go on from the changelog, states idle longest first; each is unpacked when its video comes again.

        now_seconds: when all of them count as touched. To be called before anything else.
        """
        self._dormant = OrderedDict(states)
        self._restored_seconds = now_seconds

    def take_changed(self) -> dict[str, bytes | None]:
        """States that have changed since the last call, for the changelog; None: the video is forgotten."""
        changed = {
            video_id: pack_state(state, self.ensemble.model_set) if state else None
            for video_id in sorted(self._changed)
            for state in [self._videos.get(video_id)]
        }
        self._changed.clear()
        return changed

    def apply(
        self,
        prediction: ChunkPrediction,
        *,
        last: bool,
        arrival: Arrival,
        numbered: bool = True,
        on_face: OnFace | None = None,
    ) -> ScoreUpdate:
        """Count a chunk, once, and say what is known of its video now.

        numbered: its seq is the producer's, so that gaps say that chunks are missing. on_face: told of each
        face counted.
        """
        state = self._touch(prediction.video_id, arrival)
        if not state.admit(prediction.seq):
            return self._update(prediction.video_id, state, prediction.seq, "duplicate", arrival)
        state.numbered &= numbered
        start = state.end_seconds if prediction.start_seconds is None else prediction.start_seconds
        end = start + prediction.duration_seconds
        if prediction.seq > state.latest_seq and self._is_before_window(state, end):
            state.begin_timeline_anew()
        self._count(state, prediction, start, on_face, last=last)
        state.end_seconds = max(state.end_seconds, end)
        found = any(frame.faces for frame in prediction.frames)
        status = "final" if state.ended else "scored" if found else "no_face"
        return self._update(
            *(prediction.video_id, state, prediction.seq, status, arrival),
            span=(start, end),
            sampling_rate=prediction.sampling_rate,
        )

    def apply_undecodable(
        self, video_id: str, seq: int, reason: str, *, arrival: Arrival, numbered: bool = True
    ) -> ScoreUpdate:
        """Count a chunk that became a dead letter; the scores stay as they are.

        Even if it was the video's last: then the video ends by idleness, and the `final` update comes then.
        If it comes again and can be decoded, it is counted as any other.
        """
        state = self._touch(video_id, arrival)
        if not state.refuse(seq):
            return self._update(video_id, state, seq, "duplicate", arrival)
        state.numbered &= numbered
        state.latest_seq = max(state.latest_seq, seq)
        return self._update(video_id, state, seq, "undecodable", arrival, error=reason)

    def expire(self, arrival: Arrival, *, at_most: int, keep: Collection[str] = ()) -> Iterator[ScoreUpdate]:
        """Forget videos that are idle too long or too many; yields the `final` update of each.

        A video that had its `final` update already is forgotten without another. at_most: videos to forget,
        those idle longest first; thousands may be due at once, as after a restart. keep: videos that count as
        touched just now, and are forgotten in no case.
        """
        for video_id in keep:
            if (state := self._find(video_id)) is not None:
                state.touched_seconds = arrival.monotonic_seconds
                self._videos.move_to_end(video_id)
        deadline = arrival.monotonic_seconds - self._config.idle_seconds
        for _ in range(min(at_most, len(self))):
            video_id = next(iter(self._dormant or self._videos))
            touched = self._restored_seconds if self._dormant else self._videos[video_id].touched_seconds
            if (touched > deadline and len(self) <= self._config.max_videos) or video_id in keep:
                return
            state = self._find(video_id)
            self._videos.pop(video_id, None)
            self._begun_anew.discard(video_id)
            self._changed.add(video_id)
            if state is not None and not state.ended:
                state.ended = True
                yield self._update(video_id, state, state.latest_seq, "final", arrival)

    def _find(self, video_id: str) -> VideoState | None:
        """The state of a video, unpacked if it was not yet; None if there is none to go on from."""
        if (packed := self._dormant.pop(video_id, None)) is not None:
            try:
                state, model_set = unpack_state(packed, touched_seconds=self._restored_seconds)
                if model_set != self.ensemble.model_set:
                    raise StateError(
                        f"a state of ensemble {model_set}, this one is {self.ensemble.model_set}"
                    )
            except StateError as error:
                self._begun_anew.add(video_id)
                self.why_unusable = str(error)
            else:
                self._videos[video_id] = state
                self._videos.move_to_end(video_id, last=False)
        return self._videos.get(video_id)

    def _touch(self, video_id: str, arrival: Arrival) -> VideoState:
        state = self._find(video_id)
        if state is None:
            state = self._videos[video_id] = VideoState(
                arrival.monotonic_seconds, by_member=[0] * self._members
            )
        state.touched_seconds = arrival.monotonic_seconds
        state.next_offset = max(state.next_offset, arrival.offset + 1)
        self._changed.add(video_id)
        self._videos.move_to_end(video_id)
        return state

    def _count(
        self,
        state: VideoState,
        prediction: ChunkPrediction,
        start: float,
        on_face: OnFace | None,
        *,
        last: bool,
    ) -> None:
        state.latest_seq = max(state.latest_seq, prediction.seq)
        state.chunks += 1
        state.ended |= last
        state.frames += len(prediction.frames)
        state.unscored_faces += sum(frame.unscored for frame in prediction.frames)
        clusters: dict[int, MeanScore] = {}
        for frame in prediction.frames:
            total = sum(self._count_face(state, face) for face in frame.faces)
            faces = len(frame.faces)
            at = start + frame.time_seconds
            index = self._bin(state, at)
            if faces:
                state.score.add(total, faces)
                clusters.setdefault(int(frame.time_seconds), MeanScore()).add(total, faces)
                if index is not None:
                    state.window.add(index, total, faces)
            self._count_shadow(state, frame, index)
            self._follow(state, frame, at, index, on_face)
        for cluster in clusters.values():
            state.spread.add(cluster.total, cluster.faces)

    def _count_face(self, state: VideoState, face: FacePrediction) -> int:
        units = _units(face)
        for member, unit in enumerate(units):
            state.by_member[member] += unit
        return sum(units)

    def _bin(self, state: VideoState, at_seconds: float) -> int | None:
        """The bin of a time, None if it lies before the window; forgets what leaves it."""
        index = int(at_seconds / BIN_SECONDS)
        if index > state.newest_bin:
            state.newest_bin = index
            for window in (state.window, state.shadow.window, *(track.window for track in state.tracks)):
                window.forget(index - self._window_bins + 1)
        return index if index > state.newest_bin - self._window_bins else None

    def _is_before_window(self, state: VideoState, at_seconds: float) -> bool:
        return int(at_seconds / BIN_SECONDS) <= state.newest_bin - self._window_bins

    def _count_shadow(self, state: VideoState, frame: FramePrediction, index: int | None) -> None:
        """Count what the other ensemble says; begin anew if it is another one than before."""
        units = [round(face.shadow * UNIT) for face in frame.faces if face.shadow is not None]
        if not units or self.ensemble.shadow_set is None:
            return
        if state.shadow.model_set != self.ensemble.shadow_set:
            state.shadow = Shadow(self.ensemble.shadow_set)
        state.shadow.score.add(sum(units), len(units))
        if index is not None:
            state.shadow.window.add(index, sum(units), len(units))

    def _follow(
        self,
        state: VideoState,
        frame: FramePrediction,
        at: float,
        index: int | None,
        on_face: OnFace | None,
    ) -> None:
        """Give each face of a frame to the track it continues, or to a new one. index: see `_bin`."""
        if frame.size is not None:
            state.resize_frames(*frame.size)
        tails = Tails(
            _boxes(t.box for t in state.tracks),
            _boxes(t.expected_box(at) for t in state.tracks),
            np.array([abs(at - t.seen_seconds) for t in state.tracks]),
            _looks(t.thumbnail for t in state.tracks),
        )
        assigned = assign_tracks(
            tails,
            _boxes(face.box for face in frame.faces),
            _looks(face.thumbnail for face in frame.faces),
            min_iou=self._faces.track_iou,
            max_gap_seconds=self._faces.track_gap_seconds,
        )
        for face, tail in zip(frame.faces, assigned, strict=True):
            if tail >= 0:
                track = state.tracks[tail]
                track.move_to(face.box, at, face.thumbnail)
            else:
                track = Track(state.next_track, face.box, at, thumbnail=face.thumbnail)
                state.next_track += 1
                state.tracks.append(track)
            total = sum(_units(face))
            track.score.add(total, 1)
            if index is not None:
                track.window.add(index, total, 1)
            if on_face is not None:
                on_face(track.track, at, face)
        while len(state.tracks) > self._config.max_tracks:
            # Of those seen last the newest, so that the people of a crowd do not push each other out.
            state.tracks.remove(min(state.tracks, key=lambda t: (t.seen_seconds, -t.track)))

    def _update(
        self,
        video_id: str,
        state: VideoState,
        seq: int,
        status: str,
        arrival: Arrival,
        *,
        span: tuple[float, float] | None = None,
        error: str | None = None,
        sampling_rate: float | None = None,
    ) -> ScoreUpdate:
        suspect = suspect_of(state, self._alert)
        may_change = self.ensemble.trained and status != "duplicate"
        alert = judge(state, self._alert, members=self._members, seq=seq, may_change=may_change)
        return ScoreUpdate(
            video_id=video_id,
            seq=seq,
            status=status,
            fake_score=state.score.value(self._members),
            window_score=state.window.mean().value(self._members),
            interval=state.spread.interval(state.score, self._members),
            frames=state.frames,
            faces=state.score.faces,
            unscored_faces=state.unscored_faces,
            models={
                name: total / (state.score.faces * UNIT)
                for name, total in zip(self.ensemble.names, state.by_member, strict=True)
                if state.score.faces
            },
            frame_size=state.frame_size,
            tracks=[
                TrackScore(
                    track=t.track,
                    box=t.box,
                    fake_score=score,
                    window_score=t.window.mean().value(self._members),
                    faces=t.score.faces,
                )
                for t in state.tracks
                if (score := t.score.value(self._members)) is not None
            ],
            suspect_track=suspect.track if suspect else None,
            alert=alert,
            chunks=state.chunks,
            missing_chunks=state.seqs.missing if state.numbered else 0,
            undecodable_chunks=state.undecodable_chunks,
            start_seconds=span[0] if span else None,
            end_seconds=span[1] if span else None,
            latency_ms=arrival.latency_ms,
            model_set=self.ensemble.model_set,
            trained=self.ensemble.trained,
            processed_at_ms=arrival.unix_ms,
            last=state.ended,
            error=error,
            sampling_rate=sampling_rate,
            shadow=self._shadow_of(state.shadow),
        )

    def _shadow_of(self, shadow: Shadow) -> ShadowScore | None:
        score = shadow.score.value(1)
        if score is None or shadow.model_set != self.ensemble.shadow_set:
            return None
        return ShadowScore(
            model_set=shadow.model_set,
            trained=self.ensemble.shadow_trained,
            fake_score=score,
            window_score=shadow.window.mean().value(1),
            faces=shadow.score.faces,
        )


def _boxes(boxes: Iterable[Box]) -> Float32Array:
    return np.array(list(boxes), np.float32).reshape(-1, 4)


def _looks(thumbnails: Iterable[bytes | None]) -> Float32Array:
    """(n, THUMBNAIL_SIDE squared) grey levels; NaN where a thumbnail is not known."""
    unknown = np.full(THUMBNAIL_SIDE**2, np.nan, np.float32)
    rows = [unknown if t is None else np.frombuffer(t, np.uint8) for t in thumbnails]
    return np.array(rows, np.float32).reshape(-1, THUMBNAIL_SIDE**2)


def _units(face: FacePrediction) -> list[int]:
    return [round(p * UNIT) for p in face.probabilities]

"""What the page knows: the videos' latest updates, a short history of each, dead letters. Bounded; no I/O.

Every change gets a higher `version`; whoever knows the store as of a version asks for what changed since.
Scores of untrained members are random: they are withheld here, so that no page can show them.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass, field
from typing import Any

from streamer.dashboard.gallery import Gallery
from streamer.dashboard.history import (
    HISTORY_MODELS,
    HISTORY_TRACKS,
    MAX_TEXT,
    pack,
    rounded,
    shadow_window_score,
    unpack,
    withheld,
)
from streamer.messages import DeadLetter, ScoreUpdate
from streamer.watch import people_in

TREND_UPDATES = 60
"""Of a video's sparkline."""

HISTORY_UPDATES = 240
"""Kept of a video for its own page: 8 minutes of two-second chunks, 100 to 200 bytes each."""

MAX_LETTERS = 500
MAX_UNREADABLE = 20
MAX_REASONS = 50
"""Distinct reasons that are counted; what comes beyond is counted as `other`."""

MAX_GONE = 10_000
"""Forgotten videos that are remembered as such; who is further behind gets everything anew."""

FORGET_SECONDS = 1800.0
"""Without an update."""

STEP = 0.05
"""Scores within one step rank equal, so that rows do not swap places with every update."""


@dataclass(slots=True)
class VideoRow:
    """What is known of one video."""

    video_id: str
    update: ScoreUpdate
    version: int
    seen_ms: int
    """Unix time at which its last update arrived here."""
    changed_ms: int
    """Unix time of arrival of the last update that moved its rank: alert, step of the score, end."""
    step: int = -1
    """Score in steps of STEP, with hysteresis; -1 while there is none."""
    at_seconds: float | None = None
    trend: deque[tuple[int, float | None]] = field(default_factory=lambda: deque(maxlen=TREND_UPDATES))
    """(version, window score)."""
    history: deque[tuple[int, bytes]] = field(default_factory=lambda: deque(maxlen=HISTORY_UPDATES))
    """(version, `history.pack`)."""
    models: dict[str, int] = field(default_factory=dict)
    """Number of a model in `history` by name."""

    @property
    def raised(self) -> bool:
        """Whether its alert stands."""
        return self.update.trained and self.update.alert.state == "raised"

    def rank(self) -> tuple[bool, int, int, str]:
        """Sorts rows by how much they matter: alert, score, change of rank; last by name, for stability."""
        return not self.raised, -self.step, -self.changed_ms, self.video_id


@dataclass(frozen=True, slots=True)
class Unreadable:
    """A record that is no message of ours."""

    topic: str
    partition: int
    offset: int
    error: str
    seen_ms: int


class Store:
    """Everything that the pages show. Not thread-safe: it lives in the event loop."""

    def __init__(self, *, max_videos: int) -> None:
        self._max_videos = max_videos
        self.gallery = Gallery()
        self._rows: dict[str, VideoRow] = {}  # heard of last: last
        self._gone: deque[tuple[int, str]] = deque(maxlen=MAX_GONE)
        self._letters: deque[tuple[int, dict[str, Any]]] = deque(maxlen=MAX_LETTERS)
        self._unreadable: deque[Unreadable] = deque(maxlen=MAX_UNREADABLE)
        self.version = 0
        self.letters_version = 0
        self.updates = 0
        self.letters = 0
        self.unreadable: Counter[str] = Counter()
        """By topic."""
        self.reasons: Counter[str] = Counter()
        """Of dead letters."""
        self.forgotten = 0
        """Videos that had to go for newer ones."""
        self.behind: dict[str, int] = {}
        """Records published and not read here yet, by topic."""
        self.trouble: dict[str, str] = {}
        """Why a topic is not being read now, by topic."""

    def __len__(self) -> int:
        return len(self._rows)

    # -------------------------------------------------------------- taking in

    def apply(self, update: ScoreUpdate, now_ms: int) -> None:
        """Take in a score update that arrived now (Unix time).

        Raises ValueError or OverflowError, with nothing changed, for values that no service publishes.
        """
        _check(update)
        row = self._rows.get(update.video_id)
        was = None if row is None else (row.raised, row.step, row.update.last)
        models = {} if row is None else row.models
        packed = pack(update, models, now_ms)
        self.version += 1
        self.updates += 1
        if row is None:
            row = VideoRow(update.video_id, update, self.version, now_ms, now_ms, models=models)
        else:
            del self._rows[update.video_id]
        self._rows[update.video_id] = row
        row.update, row.seen_ms, row.version = update, now_ms, self.version
        score = _score_of(update)
        row.step = _step(score, row.step)
        if was != (row.raised, row.step, update.last):
            row.changed_ms = now_ms
        if update.end_seconds is not None:
            row.at_seconds = max(update.end_seconds, row.at_seconds or 0.0)
        by_chunk = update.status != "final" or update.end_seconds is not None  # else it ended by idleness
        if by_chunk and update.status != "duplicate":
            shown = withheld(update, update.now) if update.status != "undecodable" else None
            row.trend.append((self.version, rounded(shown)))
        row.history.append((self.version, packed))
        if len(self._rows) > self._max_videos:
            self._forget(self._least_needed())
            self.forgotten += 1

    def add_letter(self, letter: DeadLetter, size: int, now_ms: int) -> None:
        """Take in a dead letter; its bytes are not kept. size: of the chunk, bytes."""
        self.letters += 1
        self.letters_version += 1
        known = letter.reason in self.reasons or len(self.reasons) < MAX_REASONS
        self.reasons[letter.reason[:MAX_TEXT] if known else "other"] += 1
        shown = {
            "number": self.letters,
            "video": None if letter.video_id is None else letter.video_id[:MAX_TEXT],
            "seq": letter.seq,
            "reason": letter.reason[:MAX_TEXT],
            "stage": letter.stage[:MAX_TEXT],
            "error": letter.error[:MAX_TEXT],
            "where": f"{letter.topic[:MAX_TEXT]}/{letter.partition}@{letter.offset}",
            "bytes": size,
            "failed_ms": letter.failed_at_ms,
            "seen_ms": now_ms,
        }
        self._letters.append((self.letters_version, shown))

    def add_unreadable(self, record: Unreadable) -> None:
        """Count a record that could not be read."""
        self.letters_version += 1
        self.unreadable[record.topic] += 1
        self._unreadable.append(record)

    def expire(self, now_ms: int) -> None:
        """Forget videos that have been silent for long."""
        self.gallery.expire(round(now_ms - 1000 * FORGET_SECONDS), keep=self._rows)
        while self._rows:
            oldest = next(iter(self._rows.values()))
            if now_ms - oldest.seen_ms < 1000 * FORGET_SECONDS:
                return
            self._forget(oldest.video_id)

    def _least_needed(self) -> str:
        """The video silent longest; one whose alert stands only if there is no other."""
        calm = (video_id for video_id, row in self._rows.items() if not row.raised)
        return next(calm, next(iter(self._rows)))

    def _forget(self, video_id: str) -> None:
        del self._rows[video_id]
        self.gallery.forget(video_id)
        self.version += 1
        self._gone.append((self.version, video_id))

    # -------------------------------------------------------------- giving out

    def rows(self) -> list[VideoRow]:
        """Those that matter most first."""
        return sorted(self._rows.values(), key=VideoRow.rank)

    def changes(self, since: int) -> dict[str, Any]:
        """What changed after version `since`; everything, marked `reset`, where that is no longer known.

        The caller then knows the store as of `version`. Rows come with the points that their sparkline grew.
        What is `gone` goes first: a video may have been forgotten and come back.
        """
        reset = not 0 < since <= self.version
        if not reset and len(self._gone) == MAX_GONE and since < self._gone[0][0]:
            reset = True
        if reset:
            since, changed = 0, self.rows()
        else:
            changed = []
            for row in reversed(self._rows.values()):
                if row.version <= since:
                    break
                changed.append(row)
        return {
            "reset": reset,
            "videos": [_summary(row, since) for row in changed],
            "gone": [] if reset else self._gone_since(since),
            "status": self.status(),
        }

    def _gone_since(self, since: int) -> list[str]:
        gone = []
        for version, video_id in reversed(self._gone):
            if version <= since:
                break
            gone.append(video_id)
        return gone

    def status(self) -> dict[str, Any]:
        """Counts, and what is wrong."""
        return {
            "updates": self.updates,
            "letters": self.letters,
            "unreadable": sum(self.unreadable.values()),
            "forgotten": self.forgotten,
            "behind": sum(self.behind.values()),
            "trouble": [f"{topic}: {why}" for topic, why in self.trouble.items()],
        }

    def version_of(self, video_id: str) -> int:
        """Version of a video's last update; 0 if it is not known."""
        row = self._rows.get(video_id)
        return row.version if row else 0

    def video(self, video_id: str, since: int) -> dict[str, Any]:
        """A video's own page: the latest update as it was published, and what came after version `since`."""
        row = self._rows.get(video_id)
        if row is None:
            return {"reset": True, "video": None, "updates": [], "evidence": []}
        update = row.update
        latest = update.model_dump(exclude={"video_id", "tracks", "models", "shadow"})
        if not update.trained:
            latest |= {"fake_score": None, "window_score": None, "interval": None, "alert": None}
        names = list(row.models)
        return {
            "reset": since <= 0,
            "video": _summary(row, since),
            "latest": latest,
            "shadow": _shadow(update),
            "models": [
                {"name": name[:MAX_TEXT], "score": withheld(update, score)}
                for name, score in list(update.models.items())[:HISTORY_MODELS]
            ],
            "tracks": [
                {
                    "track": track.track,
                    "now": withheld(update, track.window_score),
                    "score": withheld(update, track.fake_score),
                    "faces": track.faces,
                    "box": track.box,
                }
                for track in update.tracks[:HISTORY_TRACKS]
            ],
            "updates": [unpack(packed, names) for version, packed in row.history if version > since],
            "evidence": self.gallery.of(video_id),
        }

    def letters_since(self, since: int) -> dict[str, Any]:
        """Dead letters and unreadable records after version `since`, newest last, and their counts."""
        return {
            "reset": since <= 0,
            "letters": [shown for version, shown in self._letters if version > since],
            "reasons": self.reasons.most_common(),
            "total": self.letters,
            "unreadable": [
                {
                    "where": f"{record.topic}/{record.partition}@{record.offset}",
                    "error": record.error[:MAX_TEXT],
                    "seen_ms": record.seen_ms,
                }
                for record in self._unreadable
            ],
            "unreadable_total": sum(self.unreadable.values()),
        }


def _check(update: ScoreUpdate) -> None:
    """Raises ValueError for numbers that JSON or this store could not bear."""
    numbers = (
        *(update.seq, update.frames, update.faces, update.chunks, update.missing_chunks),
        *(update.undecodable_chunks, update.processed_at_ms, update.suspect_track or 0),
        update.unscored_faces,
        *(update.alert.since_seq or 0, *(n for track in update.tracks for n in (track.track, track.faces))),
    )
    if max(map(abs, numbers)) >= 2**63:
        raise ValueError("a count or time is beyond 64 bits")


def _score_of(update: ScoreUpdate) -> float | None:
    """What a video is ranked by: its score now, else that of all of it."""
    return withheld(update, update.now if update.now is not None else update.fake_score)


def _step(score: float | None, was: int) -> int:
    """Step of a score; it stays what it was until the score is half a step beyond its edges."""
    if score is None:
        return -1
    if was >= 0 and (was - 0.5) * STEP <= score < (was + 1.5) * STEP:
        return was
    return math.floor(score / STEP)


def _shadow(update: ScoreUpdate) -> dict[str, Any] | None:
    """What the ensemble in shadow says, its scores withheld if it is untrained; None if there is none."""
    if (shadow := update.shadow) is None:
        return None
    return {
        "model_set": shadow.model_set,
        "trained": shadow.trained,
        "score": shadow_window_score(update),
        "overall": shadow.fake_score if shadow.trained else None,
        "faces": shadow.faces,
    }


def _summary(row: VideoRow, since: int) -> dict[str, Any]:
    """A row of the table."""
    update = row.update
    interval = update.interval if update.trained else None
    return {
        "id": row.video_id,
        "alert": row.raised,
        "step": row.step,
        "changed": row.changed_ms,
        "seen": row.seen_ms,
        "status": update.status,
        "error": update.error[:MAX_TEXT] if update.error else None,
        "trained": update.trained,
        "last": update.last,
        "seq": update.seq,
        "score": rounded(withheld(update, update.now)),
        "overall": rounded(withheld(update, update.fake_score)),
        "interval": [rounded(bound) for bound in interval] if interval else None,
        "threshold": update.alert.threshold,
        "since_seq": update.alert.since_seq,
        "faces": update.faces,
        "tracks": len(update.tracks),
        "people": people_in(update),
        "chunks": update.chunks,
        "missing": update.missing_chunks,
        "undecodable": update.undecodable_chunks,
        "unscored": update.unscored_faces,
        "at": row.at_seconds,
        "latency": update.latency_ms.get("total"),
        "lag": row.seen_ms - update.processed_at_ms,
        "points": _points_since(row.trend, since),
    }


def _points_since(trend: deque[tuple[int, float | None]], since: int) -> list[float | None]:
    points = []
    for version, score in reversed(trend):
        if version <= since:
            break
        points.append(score)
    return points[::-1]

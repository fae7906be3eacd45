"""An update of a video's history as a few bytes: a tenth of what its objects would take."""

from __future__ import annotations

from typing import Any

import msgpack

from streamer.messages import ScoreUpdate

HISTORY_TRACKS = 32
HISTORY_MODELS = 32
"""Kept of an update; an ensemble and `rolling.max_tracks` stay below."""

MAX_TEXT = 500
"""Characters kept of an error's text."""


def withheld(update: ScoreUpdate, score: float | None) -> float | None:
    """The score, unless untrained members made it."""
    return score if update.trained else None


def shadow_window_score(update: ScoreUpdate) -> float | None:
    """Of the ensemble in shadow, unless it is untrained or none."""
    return update.shadow.window_score if update.shadow and update.shadow.trained else None


def rounded(score: float | None) -> float | None:
    """To what a chart can show."""
    return None if score is None else round(score, 3)


def pack(update: ScoreUpdate, numbers: dict[str, int], now_ms: int) -> bytes:
    """What the page of a video draws of an update. numbers: of models by name, new ones are added.

    Raises OverflowError for what is beyond 64 bits.
    """
    trained = update.trained
    models: list[Any] = []
    for name, score in update.models.items() if trained else ():
        if name not in numbers and len(numbers) >= HISTORY_MODELS:
            continue
        models += (numbers.setdefault(name, len(numbers)), score)
    tracks: list[Any] = []
    for track in update.tracks[:HISTORY_TRACKS] if trained else ():
        tracks += (track.track, track.window_score)
    interval = update.interval if trained else None
    packed: bytes = msgpack.packb(
        (
            update.seq,
            update.status,
            now_ms,
            _ms(update.start_seconds),
            _ms(update.end_seconds),
            withheld(update, update.now),
            withheld(update, update.fake_score),
            shadow_window_score(update),
            interval,
            update.faces,
            update.latency_ms.get("total"),
            trained and update.alert.state == "raised",
            trained and update.alert.changed,
            update.error[:MAX_TEXT] if update.error else None,
            models,
            tracks,
        )
    )
    return packed


_FIELDS = (
    *("seq", "status", "seen", "start", "end", "score", "overall", "shadow", "interval"),
    *("faces", "latency", "alert", "alert_changed", "error"),
)


def unpack(packed: bytes, names: list[str]) -> dict[str, Any]:
    """What `pack` packed, by name. names: of the models, in the order of their numbers."""
    *values, models, tracks = msgpack.unpackb(packed)
    entry = dict(zip(_FIELDS, values, strict=True))
    for name in ("score", "overall", "shadow"):
        entry[name] = rounded(entry[name])
    entry["models"] = [
        (names[number][:MAX_TEXT], rounded(score))
        for number, score in zip(models[::2], models[1::2], strict=True)
    ]
    entry["tracks"] = [
        (track, rounded(score)) for track, score in zip(tracks[::2], tracks[1::2], strict=True)
    ]
    return entry


def _ms(seconds: float | None) -> int | None:
    return None if seconds is None else round(1000 * seconds)

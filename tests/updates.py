"""A score update as tests need it."""

from __future__ import annotations

from typing import Any

from streamer.messages import Alert, ScoreUpdate, TrackScore


def update(video_id: str = "cam", seq: int = 0, score: float | None = 0.5, **changes: Any) -> ScoreUpdate:
    """A score update after chunk `seq` of two seconds."""
    alert = changes.pop("alert", "none")
    fields: dict[str, Any] = {
        "video_id": video_id,
        "seq": seq,
        "status": "scored",
        "fake_score": score,
        "window_score": score,
        "interval": None if score is None else (max(0.0, score - 0.05), min(1.0, score + 0.05)),
        "frames": 8,
        "faces": 7,
        "models": {},
        "tracks": [TrackScore(track=0, box=(0, 0, 1, 1), fake_score=score, window_score=score, faces=7)]
        if score
        else [],
        "suspect_track": None,
        "alert": Alert(
            state=alert,
            changed=changes.pop("changed", False),
            since_seq=None,
            threshold=0.6 if alert == "raised" else 0.8,
        ),
        "chunks": seq + 1,
        "missing_chunks": 0,
        "undecodable_chunks": 0,
        "start_seconds": 2.0 * seq,
        "end_seconds": 2.0 * seq + 2,
        "latency_ms": {"total": 340.0},
        "model_set": "test",
        "trained": True,
        "processed_at_ms": 0,
        "last": False,
    }
    return ScoreUpdate(**fields | changes)

"""When a video is reported as fake: the score that is watched, and the alert's hysteresis. Pure."""

from __future__ import annotations

from streamer.config import AlertConfig
from streamer.messages import Alert
from streamer.video_state import Track, VideoState


def suspect_of(state: VideoState, config: AlertConfig) -> Track | None:
    """Track with the highest score among those that rest on enough faces."""
    enough = [t for t in state.tracks if t.score.faces >= config.min_faces]
    return max(enough, key=lambda t: t.score.total / t.score.faces, default=None)


def judge(state: VideoState, config: AlertConfig, *, members: int, seq: int, may_change: bool) -> Alert:
    """Raise or clear the alert; without enough evidence, or if it may not change, it stays as it is."""
    score = _watched(state, config, members)
    was = state.alert_since_seq
    if score is not None and may_change:
        if was is None and score >= config.raise_at:
            state.alert_since_seq = seq
        elif was is not None and score < config.clear_at:
            state.alert_since_seq = None
    raised = state.alert_since_seq is not None
    return Alert(
        state="raised" if raised else "none",
        changed=(was is not None) != raised,
        since_seq=state.alert_since_seq,
        threshold=config.clear_at if raised else config.raise_at,
        score=score,
    )


def _watched(state: VideoState, config: AlertConfig, members: int) -> float | None:
    """The score that decides on the alert; None while it rests on too few faces."""
    window = state.window.mean()
    candidates = {
        "track": [window, *(track.window.mean() for track in state.tracks)],
        "window": [window],
        "video": [state.score],
    }[config.score]
    enough = (score for score in candidates if score.faces >= config.min_faces)
    return max((s for score in enough if (s := score.value(members)) is not None), default=None)

"""Figures as plain sentences: for the head of a report, for manifests and model cards."""

from __future__ import annotations

from streamer.terminal import count
from streamer.training.figures import ENSEMBLE, CurveFigures, Evaluation, Figures, SetFigures

TOLD = ("H.264", "H.264 at half resolution", "resolution")
"""Degradations that are told in words: what every video on the web has gone through."""


def percent(share: float | None) -> str:
    """`50 %`, `98.7 %`, `99.96 %`: as many digits as tell it from none and from all; `–` for None."""
    if share is None:
        return "–"
    value = 100 * share
    digits = 0
    if not 10 <= value <= 90 and value not in (0, 100):
        digits = 1 if 0.1 <= value <= 99.9 else 2
    return f"{value:.{digits}f} %"


def number(value: float | None, digits: int = 3) -> str:
    """Fixed digits; `–` for None."""
    return "–" if value is None else f"{value:.{digits}f}"


def interval(figures: Figures) -> str:
    """`0.91–0.97`, or `–`."""
    if figures.auc_interval is None:
        return "–"
    low, high = figures.auc_interval
    return f"{low:.3f}–{high:.3f}"


def size_of(found: SetFigures) -> str:
    """`500 real and 400 fake videos of 700 people (900 frames)`."""
    people = count(found.people, "group of people", "groups of people")
    kinds = f"{found.real_videos:,} real and {count(found.fake_videos, 'fake video')}"
    return f"{kinds}, {people}, {count(found.frames, 'frame')}"


def set_in_words(found: SetFigures) -> str:
    """What the best scorer reached on a set, one or two sentences."""
    figures = found.scorer(found.best_name)
    at_half = figures.video.rates["0.5"]
    parts = []
    if figures.video.auc is not None:
        sure = f", 95 % interval {interval(figures.video)}" if figures.video.auc_interval else ""
        per_frame = f", per frame {number(figures.frame.auc)}" if found.frames > videos_of(found) else ""
        parts.append(f"AUC {number(figures.video.auc)} per video{sure}{per_frame}")
    called = [
        f"{percent(share)} of the {kind} ones"
        for kind, share in (("fake", at_half.found), ("real", at_half.false_alarms))
        if share is not None
    ]
    parts.append(f"{' and '.join(called)} score 0.5 or more")
    if found.pairs:
        parts.append(
            f"the swapped video is above its original in {found.pairs_above} of {len(found.pairs)} pairs"
        )
    return f"{found.name} ({size_of(found)}): {'; '.join(parts)}."


def videos_of(found: SetFigures) -> int:
    """Real and fake ones together."""
    return found.real_videos + found.fake_videos


def curve_in_words(curve: CurveFigures, name: str) -> str:
    """`H.264 (CRF): 0.991 undegraded, 0.985 at 23, 0.934 at 35, ... `"""
    points = ", ".join(f"{number(point.aucs[name])} at {point.level:g}" for point in curve.points)
    return f"{curve.degradation} ({curve.axis}): {number(curve.undegraded[name])} undegraded, {points}"


def summary(evaluation: Evaluation) -> list[str]:
    """What was measured on what, sentence by sentence."""
    members = evaluation.members
    if len(members) > 1:
        who = f"The mean of {len(members)} networks ({', '.join(m.name for m in members)})"
    else:
        who = f"One network ({members[0].name})"
    lines = [f"{who}, as the service averages: over networks, then over the faces of a video."]
    lines += [set_in_words(found) for found in evaluation.sets]
    lines += [
        f"{curve.on}, degraded, AUC per video: {curve_in_words(curve, best_name(evaluation))}."
        for curve in evaluation.curves
        if curve.degradation in TOLD
    ]
    return lines


def best_name(evaluation: Evaluation) -> str:
    """`ensemble`, or the only member."""
    return ENSEMBLE if len(evaluation.members) > 1 else evaluation.members[0].name

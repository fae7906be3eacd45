"""Members and their ensemble, measured on sets of labelled faces."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from streamer.terminal import count
from streamer.training import metrics
from streamer.training.figures import (
    CONSTANT,
    ENSEMBLE,
    RANDOM,
    Evaluation,
    Figures,
    MemberFacts,
    PairFigures,
    ScorerFigures,
    SetFigures,
)
from streamer.training.metrics import GainPoint, Labels, Scores, VideoScores
from streamer.training.robustness import DEGRADATIONS, Degradation, measure_curves
from streamer.training.scoring import (
    BATCH,
    MARGIN,
    NEUTRAL,
    FaceSet,
    Scorer,
    probabilities_of,
    score_faces,
)
from streamer.training.types import FAKE, REAL, CropRecord, FrameScores

FRAME_COUNTS = (1, 2, 3, 5, 10, 20, 50, 100)
"""Where the gain from more frames is measured; the service samples up to 100."""

ROC_POINTS = 200
"""Corners of a ROC curve that are kept; it is drawn, not computed with."""

_QUICK_LEVELS: Mapping[str, tuple[float, ...]] = {
    "H.264": (23, 35, 40),
    "resolution": (0.5,),
    "blur": (1.0,),
    "noise": (5.0,),
}

QUICK_DEGRADATIONS = tuple(
    replace(degradation, levels=_QUICK_LEVELS[degradation.name])
    for degradation in DEGRADATIONS
    if degradation.name in _QUICK_LEVELS
)
"""What a video site does to uploads, in a quarter of the time that all levels take."""


@dataclass(frozen=True, slots=True)
class EvaluationSet:
    """Faces to be measured on."""

    name: str
    description: str
    """In words."""
    seen_in_training: str
    """Whether, and how far, training has seen these people or generators, in words."""
    faces: FaceSet
    originals: Mapping[str, str] = field(default_factory=dict)
    """Video of a fake -> its pristine video, where both are in the set."""
    curves: bool = False
    """Whether to measure every degradation on it too."""


@dataclass(frozen=True, slots=True)
class Options:
    """How to measure."""

    title: str
    made_with: str
    """Command, in words."""
    margin: float = MARGIN
    batch: int = BATCH
    workers: int = 1
    """Threads that prepare crops."""
    seed: int = 1
    """Of bootstrap draws, subsets of frames and the random baseline."""
    raise_at: float = 0.8
    """`alert.raise_at` of the service."""
    choose_on: EvaluationSet | None = None
    """On which a threshold is chosen (Youden, over videos, by the ensemble): one of the sets measured, or one
    that is scored for this alone. Of both real and fake faces."""
    bootstrap: int = 1000
    repeats: int = 20
    """Draws for each number of frames."""
    degradations: tuple[Degradation, ...] = DEGRADATIONS


@dataclass(frozen=True, slots=True)
class _Scored:
    """One set with what every member says of it."""

    source: EvaluationSet
    members: list[FrameScores]
    probabilities: dict[str, Scores]
    """Name -> (n,) of every crop: members, then the ensemble if there are several."""
    uncalibrated: Scores
    """(n,) of the ensemble, or only member, with neutral calibrations."""

    @property
    def best(self) -> Scores:
        """Of the ensemble, or only member."""
        return list(self.probabilities.values())[-1]

    @property
    def labels(self) -> Labels:
        return self.members[0].labels

    def videos(self, frame_probabilities: Scores) -> VideoScores:
        return metrics.by_video(self.members[0], frame_probabilities)


def evaluate(
    scorers: Sequence[Scorer],
    facts: Sequence[MemberFacts],
    sets: Sequence[EvaluationSet],
    options: Options,
    *,
    notes: Sequence[str] = (),
    report: Callable[[str], None] = lambda _: None,
) -> Evaluation:
    """Measure members and their ensemble on every set. facts: of each scorer. Raises TrainingError."""
    # 1. Every member on every set.
    scored = []
    for part in sets:
        report(f"{part.name}: scoring {count(len(part.faces), 'face')} by {count(len(scorers), 'member')}")
        scored.append(_score(scorers, part, options))
    # 2. Thresholds.
    thresholds = {"0.5": 0.5, f"alert.raise_at, {options.raise_at:g}": options.raise_at}
    if chooser := options.choose_on:
        found = next((one for one in scored if one.source is chooser), None)
        if found is None:
            report(f"{chooser.name}: scoring {len(chooser.faces)} faces to choose a threshold")
            found = _score(scorers, chooser, options)
        videos = found.videos(found.best)
        chosen = metrics.youden_threshold(videos.labels, videos.probabilities)
        thresholds[f"chosen on {chooser.name}"] = chosen
    # 3. Figures.
    figures = [set_figures(one, thresholds, options) for one in scored]
    # 4. Robustness.
    curves = [
        curve
        for one in scored
        if one.source.curves
        for curve in measure_curves(
            scorers,
            one.source.faces,
            on=one.source.name,
            undegraded=one.members,
            degradations=options.degradations,
            margin=options.margin,
            batch=options.batch,
            workers=options.workers,
            report=report,
        )
    ]
    return Evaluation(
        title=options.title,
        made_with=options.made_with,
        margin=options.margin,
        members=tuple(facts),
        sets=tuple(figures),
        curves=tuple(curves),
        notes=tuple(notes),
    )


def originals_of(records: Sequence[CropRecord]) -> dict[str, str]:
    """Video of a fake -> its pristine video, for those that are both among the records."""
    present = {record.item for record in records}
    return {
        record.item: record.original
        for record in records
        if record.original is not None and record.original in present
    }


def set_figures(scored: _Scored, thresholds: Mapping[str, float], options: Options) -> SetFigures:
    """Everything about one set."""
    videos = scored.videos(scored.best)
    people = scored.source.faces.people()
    both = len(set(videos.labels.tolist())) == 2
    several = len(scored.members) > 1
    rng = np.random.default_rng(options.seed)
    baselines = {}
    if both:
        baselines = {
            RANDOM: metrics.random_baseline(scored.labels, rng),
            CONSTANT: metrics.constant_baseline(scored.labels),
        }
    frames_gain = metrics.gain_by_frames(
        scored.members[0], scored.best, FRAME_COUNTS, repeats=options.repeats, rng=rng
    )
    return SetFigures(
        name=scored.source.name,
        description=scored.source.description,
        seen_in_training=scored.source.seen_in_training,
        real_videos=int(np.sum(videos.labels == REAL)),
        fake_videos=int(np.sum(videos.labels == FAKE)),
        people=len({people[video] for video in videos.videos}),
        frames=len(scored.labels),
        scorers=tuple(
            _scorer_figures(scored, name, values, thresholds, people, options)
            for name, values in (scored.probabilities | baselines).items()
        ),
        generators=tuple(metrics.by_generator(videos, 0.5)),
        generators_threshold=0.5,
        reliability=tuple(metrics.reliability(scored.labels, scored.best)),
        reliability_uncalibrated=tuple(metrics.reliability(scored.labels, scored.uncalibrated)),
        roc={name: _roc(scored.videos(values)) for name, values in scored.probabilities.items() if both},
        frames_gain=tuple(frames_gain),
        members_gain=tuple(_members_gain(scored)) if both and several else (),
        pairs=_pairs(videos, scored.source.originals),
    )


def figures_of(
    labels: Labels,
    probabilities: Scores,
    thresholds: Mapping[str, float],
    interval: tuple[float, float] | None,
) -> Figures:
    """Figures over (n,) frames or videos."""
    both = len(set(labels.tolist())) == 2
    bins = metrics.reliability(labels, probabilities)
    return Figures(
        auc=metrics.auc(labels, probabilities) if both else None,
        auc_interval=interval,
        average_precision=metrics.average_precision(labels, probabilities) if both else None,
        equal_error_rate=metrics.equal_error_rate(labels, probabilities) if both else None,
        log_loss=metrics.log_loss(labels, probabilities),
        calibration_error=metrics.expected_calibration_error(bins),
        rates={
            name: metrics.rates_at(labels, probabilities, threshold) for name, threshold in thresholds.items()
        },
    )


def _score(scorers: Sequence[Scorer], part: EvaluationSet, options: Options) -> _Scored:
    members = score_faces(
        scorers, part.faces, margin=options.margin, batch=options.batch, workers=options.workers
    )
    neutral = [metrics.probabilities(scores, NEUTRAL) for scores in members]
    return _Scored(part, members, probabilities_of(scorers, members), np.mean(neutral, axis=0))


def _scorer_figures(
    scored: _Scored,
    name: str,
    values: Scores,
    thresholds: Mapping[str, float],
    people: Mapping[str, str],
    options: Options,
) -> ScorerFigures:
    videos = scored.videos(values)

    def interval(labels: Labels, scores: Scores, names: Sequence[str]) -> tuple[float, float] | None:
        if name in (RANDOM, CONSTANT) or not options.bootstrap or len(set(labels.tolist())) < 2:
            return None
        return metrics.bootstrap_interval(
            labels,
            scores,
            [people[video] for video in names],
            metrics.auc,
            repeats=options.bootstrap,
            rng=np.random.default_rng(options.seed),
        )

    frame_interval = interval(scored.labels, values, scored.members[0].videos)
    video_interval = interval(videos.labels, videos.probabilities, videos.videos)
    return ScorerFigures(
        name=name,
        frame=figures_of(scored.labels, values, thresholds, frame_interval),
        video=figures_of(videos.labels, videos.probabilities, thresholds, video_interval),
    )


def _roc(videos: VideoScores) -> tuple[tuple[float, float], ...]:
    """Corners of the curve, at most ROC_POINTS of them, first and last among them."""
    x, y = metrics.roc_points(videos.labels, videos.probabilities)
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), ROC_POINTS)).round().astype(int))
    return tuple((float(x[i]), float(y[i])) for i in kept)


def _members_gain(scored: _Scored) -> list[GainPoint]:
    """Video-level AUC and log-loss of the mean over every choice of 1, 2, ... members."""
    members = [values for name, values in scored.probabilities.items() if name != ENSEMBLE]
    points = []
    for number in range(1, len(members) + 1):
        aucs, losses = [], []
        for chosen in combinations(members, number):
            videos = scored.videos(np.mean(chosen, axis=0))
            aucs.append(metrics.auc(videos.labels, videos.probabilities))
            losses.append(metrics.log_loss(videos.labels, videos.probabilities))
        points.append(GainPoint(number, float(np.mean(aucs)), float(np.std(aucs)), float(np.mean(losses))))
    return points


def _pairs(videos: VideoScores, originals: Mapping[str, str]) -> tuple[PairFigures, ...]:
    by_name = dict(zip(videos.videos, videos.probabilities.tolist(), strict=True))
    return tuple(
        PairFigures(
            original=original,
            swapped=swapped,
            original_probability=by_name[original],
            swapped_probability=by_name[swapped],
        )
        for swapped, original in sorted(originals.items())
        if swapped in by_name and original in by_name
    )

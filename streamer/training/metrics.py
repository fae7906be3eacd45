"""How well scores tell fakes from real videos: plain functions over labels and scores.

Labels: (n,) integers, REAL or FAKE. Scores: (n,) floats, higher = more likely fake. Where a figure does not
exist (one class alone, nothing at all) a TrainingError says so; none is made up. Video-level scores are means
of the probabilities over a video's faces, as the service averages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from streamer.classify import probability
from streamer.errors import TrainingError
from streamer.manifest import Calibration
from streamer.training.types import FAKE, REAL, FrameScores

Labels = NDArray[np.int64]
Scores = NDArray[np.float64]
Metric = Callable[[Labels, Scores], float]

RELIABILITY_BINS = 10
"""Guo et al. (2017) take 15 for 10,000 images and more; validation sets here are smaller."""

SMALLEST_PROBABILITY = 1e-6
"""Probabilities are kept this far from 0 and 1 in the log-loss: float32 sigmoids reach both."""


@dataclass(frozen=True, slots=True)
class VideoScores:
    """Mean probability of `fake` of m videos, sorted by name."""

    videos: tuple[str, ...]
    """(m)"""
    labels: Labels
    """(m,) int64, REAL or FAKE."""
    generators: tuple[str, ...]
    """(m)"""
    probabilities: Scores
    """(m,) float64 in [0, 1]."""
    faces: NDArray[np.int64]
    """(m,) int64, number of crops that each mean is over, >= 1."""

    def __len__(self) -> int:
        return len(self.videos)


@dataclass(frozen=True, slots=True)
class Bin:
    """Predictions of about the same probability; `low` <= probability < `high` (the last bin: <=)."""

    low: float
    high: float
    count: int
    mean_probability: float | None
    """Mean of what was predicted, None without predictions."""
    fake_share: float | None
    """Share of FAKE among them."""


@dataclass(frozen=True, slots=True)
class Rates:
    """What happens at one threshold: a score >= threshold counts as fake."""

    threshold: float
    accuracy: float
    """Share judged right."""
    found: float | None
    """Share of the fakes that count as fake (true positive rate); None without fakes."""
    false_alarms: float | None
    """Share of the real ones that count as fake (false positive rate); None without real ones."""


@dataclass(frozen=True, slots=True)
class GeneratorRates:
    """One generator's videos at one threshold; AUC is against all real ones."""

    generator: str
    count: int
    called_fake: int
    called_real: int
    mean_probability: float
    auc: float | None
    """None for real ones."""


@dataclass(frozen=True, slots=True)
class GainPoint:
    """What an average over `count` frames (or members) reaches."""

    count: int
    auc: float
    """Mean over the draws."""
    auc_spread: float
    """Standard deviation over the draws; 0 where all of them are the same."""
    log_loss: float


def probabilities(scores: FrameScores, calibration: Calibration) -> Scores:
    """(n,) float64 probabilities of every crop, as `streamer.classify` computes them."""
    return probability(scores.logits, calibration).astype(np.float64)


def by_video(scores: FrameScores, frame_probabilities: Scores) -> VideoScores:
    """Mean over the crops of each video. Raises TrainingError if a video has two labels."""
    names, first, inverse, counts = np.unique(
        np.asarray(scores.videos, dtype=np.str_), return_index=True, return_inverse=True, return_counts=True
    )
    labels = np.asarray(scores.labels, np.int64)
    if mixed := np.flatnonzero(labels != labels[first][inverse]).tolist():
        raise TrainingError(f"{scores.videos[mixed[0]]}: labelled both real and fake")
    means = np.bincount(inverse, frame_probabilities, minlength=len(names)) / np.maximum(counts, 1)
    return VideoScores(
        tuple(names.tolist()),
        labels[first],
        tuple(scores.generators[i] for i in first),
        means,
        counts.astype(np.int64),
    )


def auc(labels: Labels, scores: Scores) -> float:
    """Area under the ROC curve: chance that a fake scores above a real one, ties count half."""
    _check(labels, scores)
    return float(roc_auc_score(labels, scores))


def average_precision(labels: Labels, scores: Scores) -> float:
    """Mean precision over the fakes in order of score, not interpolated; depends on their share."""
    _check(labels, scores)
    return float(average_precision_score(labels, scores))


def equal_error_rate(labels: Labels, scores: Scores) -> float:
    """Error rate where as large a share of fakes is missed as of real ones alarms, on the straight lines
    between the points of the ROC curve."""
    _check(labels, scores)
    false_alarms, found, _ = roc_curve(labels, scores, drop_intermediate=False)
    above = false_alarms - (1 - found)  # rises from -1 to 1
    return float(np.interp(0.0, above, false_alarms))


def roc_points(labels: Labels, scores: Scores) -> tuple[Scores, Scores]:
    """Corners of the ROC curve: (false alarms, found), each (k,) float64 rising from 0 to 1."""
    _check(labels, scores)
    false_alarms, found, _ = roc_curve(labels, scores)
    return false_alarms, found


def log_loss(labels: Labels, probabilities: Scores) -> float:
    """Mean of -log of the probability given to what is true, natural logarithm; DFDC's measure."""
    _check(labels, probabilities, both=False)
    p = np.clip(probabilities, SMALLEST_PROBABILITY, 1 - SMALLEST_PROBABILITY)
    return float(-np.mean(np.where(labels == FAKE, np.log(p), np.log1p(-p))))


def rates_at(labels: Labels, scores: Scores, threshold: float) -> Rates:
    """Accuracy, found and false alarms when scores >= threshold count as fake."""
    _check(labels, scores, both=False)
    called = scores >= threshold
    fake, real = called[labels == FAKE], called[labels == REAL]
    return Rates(
        threshold,
        accuracy=float(np.mean(called == (labels == FAKE))),
        found=float(fake.mean()) if len(fake) else None,
        false_alarms=float(real.mean()) if len(real) else None,
    )


def youden_threshold(labels: Labels, scores: Scores) -> float:
    """Threshold with the largest found - false alarms (Youden, 1950).

    Midway between the lowest score that then counts as fake and the highest that does not, so that it carries
    over to other data.
    """
    _check(labels, scores)
    false_alarms, found, thresholds = roc_curve(labels, scores, drop_intermediate=False)
    best = float(thresholds[np.argmax(found - false_alarms)])
    if not np.isfinite(best):  # nothing is called fake: no threshold beats that
        return float(np.nextafter(scores.max(), np.inf))
    below = scores[scores < best]
    return float((best + below.max()) / 2) if len(below) else best


def reliability(labels: Labels, probabilities: Scores, bins: int = RELIABILITY_BINS) -> list[Bin]:
    """Predicted probability against what came true, in `bins` equal steps of [0, 1]."""
    _check(labels, probabilities, both=False)
    edges = np.linspace(0, 1, bins + 1)
    which = np.clip(np.searchsorted(edges, probabilities, side="right") - 1, 0, bins - 1)
    result = []
    for index in range(bins):
        inside = which == index
        some = bool(inside.any())
        result.append(
            Bin(
                float(edges[index]),
                float(edges[index + 1]),
                int(inside.sum()),
                float(probabilities[inside].mean()) if some else None,
                float(np.mean(labels[inside] == FAKE)) if some else None,
            )
        )
    return result


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean distance between predicted probability and share of fakes over the bins, weighted by their counts
    (ECE; Naeini et al., 2015)."""
    total = sum(b.count for b in bins)
    if not total:
        raise TrainingError("calibration error of no predictions")
    return (
        sum(
            b.count * abs(b.mean_probability - b.fake_share)
            for b in bins
            if b.mean_probability is not None and b.fake_share is not None
        )
        / total
    )


def by_generator(videos: VideoScores, threshold: float) -> list[GeneratorRates]:
    """Confusion by generator, real ones first, then by name."""
    real = videos.labels == REAL
    generators = np.asarray(videos.generators, dtype=np.str_)
    result = []
    for label, name in sorted({(int(x), g) for x, g in zip(videos.labels, videos.generators, strict=True)}):
        own = (generators == name) & (videos.labels == label)
        both = own | real
        against_real = label == FAKE and bool(real.any())
        called = int(np.sum(videos.probabilities[own] >= threshold))
        result.append(
            GeneratorRates(
                name,
                int(own.sum()),
                called,
                int(own.sum()) - called,
                float(videos.probabilities[own].mean()),
                auc(videos.labels[both], videos.probabilities[both]) if against_real else None,
            )
        )
    return result


def gain_by_frames(
    scores: FrameScores,
    frame_probabilities: Scores,
    counts: Sequence[int],
    *,
    repeats: int,
    rng: np.random.Generator,
) -> list[GainPoint]:
    """Video-level AUC and log-loss when only so many crops of every video are averaged.

    Every point is over the same videos, and takes as many crops of each real as of each fake one: counts go
    as far as at least half of the videos of either label do, and videos with fewer crops than that are left
    out, as pictures and other videos with one crop are to begin with. For each count, `repeats` draws without
    replacement. Empty where either label has no video with two crops.
    """
    videos = by_video(scores, frame_probabilities)
    faces = [np.sort(videos.faces[(videos.faces > 1) & (videos.labels == label)]) for label in (REAL, FAKE)]
    if not all(map(len, faces)):
        return []
    most = min(int(own[len(own) // 2]) for own in faces)
    order = np.argsort(np.asarray(scores.videos, dtype=np.str_), kind="stable")
    parts = np.split(frame_probabilities[order], np.cumsum(videos.faces)[:-1])
    values = [part for part in parts if len(part) >= most]
    labels = videos.labels[videos.faces >= most]
    points = []
    for count in sorted({min(count, most) for count in counts}):
        draws = repeats if count < max(map(len, values)) else 1
        aucs, losses = np.empty(draws), np.empty(draws)
        for draw in range(draws):
            means = np.array([_mean_of_some(v, count, rng) for v in values])
            aucs[draw], losses[draw] = auc(labels, means), log_loss(labels, means)
        points.append(GainPoint(count, float(aucs.mean()), float(aucs.std()), float(losses.mean())))
    return points


def bootstrap_interval(
    labels: Labels,
    scores: Scores,
    units: Sequence[str],
    metric: Metric,
    *,
    repeats: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """95 % percentile interval of a metric (Efron, 1979), drawing whole units with replacement.

    units: (n) names of what is independent, videos or people, never single frames: those of one video are
    alike. Units with fakes alone, with real ones alone and with both are drawn apart, so that every draw has
    both classes.
    """
    _check(labels, scores)
    _, inverse = np.unique(np.asarray(units, dtype=np.str_), return_inverse=True)
    rows = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1])
    share = np.bincount(inverse, labels == FAKE) / np.bincount(inverse)
    strata = [np.flatnonzero(kind) for kind in (share == 0, share == 1, (share > 0) & (share < 1))]
    values = np.empty(repeats)
    for draw in range(repeats):
        chosen = np.concatenate([rng.choice(s, len(s)) for s in strata if len(s)])
        index = np.concatenate([rows[unit] for unit in chosen])
        values[draw] = metric(labels[index], scores[index])
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def random_baseline(labels: Labels, rng: np.random.Generator) -> Scores:
    """(n,) probabilities drawn uniformly: what knowing nothing gives."""
    return rng.uniform(size=len(labels))


def constant_baseline(labels: Labels) -> Scores:
    """(n,) probabilities, all the share of fakes: the lowest log-loss without looking at the pictures."""
    return np.full(len(labels), float(np.mean(labels == FAKE)))


def _mean_of_some(values: Scores, count: int, rng: np.random.Generator) -> float:
    return float(values.mean() if count >= len(values) else rng.choice(values, count, replace=False).mean())


def _check(labels: Labels, scores: Scores, *, both: bool = True) -> None:
    """Raise TrainingError unless a figure over them exists."""
    if labels.shape != scores.shape or labels.ndim != 1:
        raise TrainingError(f"labels and scores must be (n,), got {labels.shape} and {scores.shape}")
    if not len(labels):
        raise TrainingError("no scores to measure")
    if not np.isfinite(scores).all():
        raise TrainingError(
            f"{int(np.sum(~np.isfinite(scores)))} of {len(scores)} scores are NaN or infinite"
        )
    if both and len(set(np.unique(labels).tolist()) & {REAL, FAKE}) < 2:
        only = "real" if labels[0] == REAL else "fake"
        raise TrainingError(f"all {len(labels)} are {only}: telling fakes from real ones needs some of both")

"""Figures by hand, by scikit-learn where it is independent of what is tested, and by their definitions."""

from __future__ import annotations

import numpy as np
import pytest
import sklearn.metrics

from streamer.errors import TrainingError
from streamer.manifest import Calibration
from streamer.training import metrics
from streamer.training.metrics import Labels, Scores
from streamer.training.types import FAKE, REAL, FrameScores


def scores_of(
    videos: dict[str, tuple[int, list[float]]], generators: dict[str, str] | None = None
) -> FrameScores:
    """name -> (label, logits)."""
    names = [name for name, (_, logits) in videos.items() for _ in logits]
    return FrameScores(
        tuple(names),
        np.array([label for label, logits in videos.values() for _ in logits], np.int64),
        tuple((generators or {}).get(name, "real" if videos[name][0] == REAL else "swap") for name in names),
        np.array([logit for _, logits in videos.values() for logit in logits], np.float32),
    )


def random_labels(seed: int, n: int = 80) -> tuple[Labels, Scores]:
    """Fakes higher on average, with many ties."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)
    return labels, np.round(np.clip(rng.normal(0.4 + 0.2 * labels, 0.2), 0, 1), 1)


def pairwise_auc(labels: Labels, scores: Scores) -> float:
    fake, real = scores[labels == FAKE][:, None], scores[labels == REAL][None]
    return float(np.mean((fake > real) + 0.5 * (fake == real)))


@pytest.mark.parametrize("seed", range(5))
def test_auc_is_the_chance_that_a_fake_scores_higher(seed: int) -> None:
    labels, scores = random_labels(seed)
    assert metrics.auc(labels, scores) == pytest.approx(pairwise_auc(labels, scores))


@pytest.mark.parametrize(
    ("fake", "real", "rate"),
    [
        ([0.9, 0.8], [0.1, 0.2], 0.0),
        ([0.1, 0.2], [0.8, 0.9], 1.0),
        ([0.5], [0.5], 0.5),
        # one fake in four below one real in four
        ([0.9, 0.8, 0.7, 0.3], [0.1, 0.2, 0.25, 0.4], 0.25),
        # at 0.6 nothing alarms and half is missed; at 0.4 half alarms and nothing is missed: halfway between
        ([0.6, 0.4], [0.4, 0.1], 0.25),
    ],
)
def test_equal_error_rate(fake: list[float], real: list[float], rate: float) -> None:
    labels = np.array([FAKE] * len(fake) + [REAL] * len(real))
    assert metrics.equal_error_rate(labels, np.array(fake + real)) == pytest.approx(rate)


def test_roc_points_enclose_the_auc() -> None:
    labels, scores = random_labels(3)
    x, y = metrics.roc_points(labels, scores)
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    assert np.trapezoid(y, x) == pytest.approx(pairwise_auc(labels, scores))


def test_average_precision_and_log_loss_by_hand() -> None:
    labels = np.array([FAKE, REAL, FAKE, REAL])
    scores = np.array([0.9, 0.8, 0.6, 0.1])
    assert metrics.average_precision(labels, scores) == pytest.approx((1 / 1 + 2 / 3) / 2)
    expected = -np.log([0.9, 0.2, 0.6, 0.9]).mean()
    assert metrics.log_loss(labels, scores) == pytest.approx(expected)
    assert metrics.log_loss(labels, scores) == pytest.approx(sklearn.metrics.log_loss(labels, scores))


def test_log_loss_of_certain_and_wrong_is_large_and_finite() -> None:
    assert metrics.log_loss(np.array([FAKE]), np.array([0.0])) == pytest.approx(-np.log(1e-6))
    assert metrics.log_loss(np.array([REAL]), np.array([0.0])) == pytest.approx(0, abs=2e-6)


def test_rates_at_a_threshold() -> None:
    labels = np.array([FAKE, FAKE, FAKE, FAKE, REAL, REAL])
    scores = np.array([0.9, 0.5, 0.4, 0.1, 0.5, 0.2])
    rates = metrics.rates_at(labels, scores, 0.5)
    assert (rates.accuracy, rates.found, rates.false_alarms) == (0.5, 0.5, 0.5)
    assert metrics.rates_at(labels, scores, 0.51).false_alarms == 0
    laxer = metrics.rates_at(labels, scores, 0.3)
    assert (laxer.accuracy, laxer.found, laxer.false_alarms) == (4 / 6, 0.75, 0.5)
    assert metrics.rates_at(labels[4:], scores[4:], 0.5) == metrics.Rates(0.5, 0.5, None, 0.5)
    assert metrics.rates_at(labels[:4], scores[:4], 0.5) == metrics.Rates(0.5, 0.5, 0.5, None)


def test_youden_threshold_lies_between_the_classes_and_is_the_best() -> None:
    labels = np.array([REAL, REAL, FAKE, FAKE])
    assert metrics.youden_threshold(labels, np.array([0.1, 0.3, 0.7, 0.9])) == pytest.approx(0.5)
    for seed in range(5):
        noisy, scores = random_labels(seed)

        def gained(threshold: float, noisy: Labels = noisy, scores: Scores = scores) -> float:
            rates = metrics.rates_at(noisy, scores, threshold)
            assert rates.found is not None
            assert rates.false_alarms is not None
            return rates.found - rates.false_alarms

        best = max(gained(threshold) for threshold in np.linspace(-0.05, 1.05, 23).tolist())
        assert gained(metrics.youden_threshold(noisy, scores)) == pytest.approx(best)


def test_youden_threshold_of_useless_scores_calls_nothing_fake() -> None:
    labels, scores = np.array([REAL, FAKE]), np.array([0.9, 0.1])
    assert metrics.rates_at(labels, scores, metrics.youden_threshold(labels, scores)).false_alarms == 0


def test_reliability_and_calibration_error_by_hand() -> None:
    labels = np.array([REAL, FAKE, FAKE, FAKE, REAL])
    bins = metrics.reliability(labels, np.array([0.1, 0.2, 0.9, 1.0, 0.0]), bins=2)
    assert [b.count for b in bins] == [3, 2]
    assert (bins[0].low, bins[0].high, bins[1].high) == (0, 0.5, 1)
    assert bins[0].mean_probability == pytest.approx(0.1)
    assert bins[0].fake_share == pytest.approx(1 / 3)
    assert metrics.expected_calibration_error(bins) == pytest.approx((3 * (1 / 3 - 0.1) + 2 * 0.05) / 5)


def test_a_bin_without_predictions_says_so() -> None:
    bins = metrics.reliability(np.array([FAKE]), np.array([0.95]))
    assert [b.mean_probability for b in bins[:9]] == [None] * 9
    assert metrics.expected_calibration_error(bins) == pytest.approx(0.05)


def test_perfectly_calibrated_probabilities_have_hardly_any_error() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(size=20_000)
    labels = (rng.uniform(size=len(p)) < p).astype(np.int64)
    assert metrics.expected_calibration_error(metrics.reliability(labels, p)) < 0.02
    assert metrics.expected_calibration_error(metrics.reliability(labels, p**3)) > 0.1


def test_a_video_scores_the_mean_probability_of_its_crops() -> None:
    frames = scores_of({"b": (FAKE, [0.0, 2.0]), "a": (REAL, [-1.0])})
    p = metrics.probabilities(frames, Calibration(temperature=2.0, bias=0.5))
    by_hand = 1 / (1 + np.exp(-(np.array([0.0, 2.0, -1.0]) / 2 + 0.5)))
    np.testing.assert_allclose(p, by_hand, atol=1e-6)
    videos = metrics.by_video(frames, p)
    assert (videos.videos, videos.generators, videos.faces.tolist()) == (("a", "b"), ("real", "swap"), [1, 2])
    assert videos.labels.tolist() == [REAL, FAKE]
    np.testing.assert_allclose(videos.probabilities, [by_hand[2], by_hand[:2].mean()], atol=1e-6)


def test_a_video_with_two_labels_is_refused() -> None:
    frames = FrameScores(("a", "a"), np.array([0, 1]), ("real", "swap"), np.zeros(2, np.float32))
    with pytest.raises(TrainingError, match="a: labelled both real and fake"):
        metrics.by_video(frames, np.zeros(2))


def test_confusion_by_generator() -> None:
    frames = scores_of(
        {"r1": (REAL, [-2]), "r2": (REAL, [2]), "f1": (FAKE, [3]), "f2": (FAKE, [-3]), "g": (FAKE, [0.5])},
        {"f1": "swap", "f2": "swap", "g": "mouth"},
    )
    found = metrics.by_generator(metrics.by_video(frames, metrics.probabilities(frames, Calibration())), 0.5)
    assert [(g.generator, g.count, g.called_fake, g.called_real) for g in found] == [
        ("real", 2, 1, 1),
        ("mouth", 1, 1, 0),
        ("swap", 2, 1, 1),
    ]
    assert [g.auc for g in found] == [None, 0.5, 0.5]


def test_more_frames_help_and_all_of_them_is_the_plain_figure() -> None:
    rng = np.random.default_rng(0)
    noisy = {
        f"{label}{i}": (label, rng.normal(0.5 * label, 1.5, 40).tolist())
        for label in (0, 1)
        for i in range(30)
    }
    frames = scores_of(noisy)
    p = metrics.probabilities(frames, Calibration())
    points = metrics.gain_by_frames(frames, p, (1, 4, 16, 100), repeats=10, rng=np.random.default_rng(1))
    assert [point.count for point in points] == [1, 4, 16, 40]
    assert points[0].auc < points[1].auc < points[2].auc
    videos = metrics.by_video(frames, p)
    assert points[-1].auc == pytest.approx(metrics.auc(videos.labels, videos.probabilities))
    assert points[-1].auc_spread == 0 < points[0].auc_spread
    again = metrics.gain_by_frames(frames, p, (1, 4, 16, 100), repeats=10, rng=np.random.default_rng(1))
    assert again == points


def test_every_point_of_the_gain_takes_as_many_crops_of_real_as_of_fake_videos() -> None:
    """Where fakes have two crops no point is of real videos with ten; pictures have no part in it."""
    videos = {f"r{i}": (REAL, [0.0, 1.0] * 5) for i in range(4)}
    videos |= {f"f{i}": (FAKE, [0.5 + i, 0.5 + i]) for i in range(3)}

    def gain(more: dict[str, tuple[int, list[float]]]) -> list[metrics.GainPoint]:
        frames = scores_of(videos | more)
        p = metrics.probabilities(frames, Calibration())
        return metrics.gain_by_frames(frames, p, (1, 2, 5, 10), repeats=5, rng=np.random.default_rng(1))

    assert [point.count for point in gain({})] == [1, 2]
    assert gain({"picture": (REAL, [9.0]), "swapped": (FAKE, [-9.0])}) == gain({})
    assert [point.count for point in gain({"long": (FAKE, [2.0] * 10)})] == [1, 2]
    assert gain({})[-1].auc_spread > 0, "which two of ten is drawn"


def test_videos_too_short_for_half_of_their_kind_are_left_out_of_the_gain() -> None:
    videos = {f"{label}{i}": (label, [3.0 * label + 0.1 * i] * 6) for label in (REAL, FAKE) for i in range(3)}
    short = {"short": (FAKE, [-9.0] * 3)}
    frames = scores_of(videos | short)
    p = metrics.probabilities(frames, Calibration())
    points = metrics.gain_by_frames(frames, p, (1, 5, 50), repeats=2, rng=np.random.default_rng(1))
    assert [(point.count, point.auc) for point in points] == [(1, 1.0), (5, 1.0), (6, 1.0)]


@pytest.mark.parametrize("fakes", [{}, {"f": (FAKE, [1.0]), "g": (FAKE, [2.0])}])
def test_without_several_crops_of_both_kinds_there_is_no_gain_to_tell(
    fakes: dict[str, tuple[int, list[float]]],
) -> None:
    frames = scores_of({"r": (REAL, [1.0, 2.0])} | fakes)
    p = metrics.probabilities(frames, Calibration())
    assert metrics.gain_by_frames(frames, p, (1, 2), repeats=2, rng=np.random.default_rng(1)) == []


def test_bootstrap_draws_videos_not_frames() -> None:
    """The same frame a hundred times is no more evidence than once."""
    labels, scores = random_labels(0, n=40)
    units = [f"v{i}" for i in range(40)]

    def interval(times: int) -> tuple[float, float]:
        return metrics.bootstrap_interval(
            np.repeat(labels, times),
            np.repeat(scores, times),
            [u for u in units for _ in range(times)],
            metrics.auc,
            repeats=400,
            rng=np.random.default_rng(0),
        )

    once, hundred = interval(1), interval(100)
    assert once[0] < metrics.auc(labels, scores) < once[1]
    assert once[1] - once[0] > 0.1
    np.testing.assert_allclose(once, hundred, atol=1e-9)


def test_bootstrap_with_people_in_both_classes() -> None:
    labels = np.array([REAL, FAKE] * 4 + [REAL])
    scores = np.array([0.2, 0.4, 0.3, 0.9, 0.6, 0.5, 0.1, 0.7, 0.45])
    people = [f"p{i // 2}" for i in range(8)] + ["alone"]
    low, high = metrics.bootstrap_interval(
        labels, scores, people, metrics.auc, repeats=200, rng=np.random.default_rng(0)
    )
    assert 0 <= low < metrics.auc(labels, scores) <= high <= 1


def test_baselines() -> None:
    labels = np.array([FAKE, FAKE, FAKE, REAL] * 500)
    constant = metrics.constant_baseline(labels)
    assert metrics.auc(labels, constant) == 0.5
    assert metrics.log_loss(labels, constant) == pytest.approx(-0.75 * np.log(0.75) - 0.25 * np.log(0.25))
    assert metrics.log_loss(labels, constant + 0.01) > metrics.log_loss(labels, constant)
    rng = np.random.default_rng(0)
    assert metrics.auc(labels, metrics.random_baseline(labels, rng)) == pytest.approx(0.5, abs=0.05)


@pytest.mark.parametrize(
    ("labels", "scores", "text"),
    [
        ([], [], "no scores"),
        ([FAKE, FAKE], [0.1, 0.2], "all 2 are fake"),
        ([REAL], [0.1], "all 1 are real"),
        ([REAL, FAKE], [0.1, np.nan], "1 of 2 scores are NaN"),
        ([REAL, FAKE], [0.1], r"must be \(n,\)"),
    ],
)
def test_what_has_no_figure_is_an_error(labels: list[int], scores: list[float], text: str) -> None:
    with pytest.raises(TrainingError, match=text):
        metrics.auc(np.array(labels), np.array(scores))
    with pytest.raises(TrainingError, match=text):
        metrics.youden_threshold(np.array(labels), np.array(scores))

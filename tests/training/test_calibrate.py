"""Temperature and bias: recovered where they are known, refused where there are none."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from streamer.errors import TrainingError
from streamer.manifest import Calibration
from streamer.training import metrics
from streamer.training.calibrate import fit_calibration
from streamer.training.types import FAKE, REAL, FrameScores


def single_frames(labels: np.ndarray, logits: np.ndarray) -> FrameScores:
    """Every crop a video of its own."""
    return FrameScores(
        tuple(f"v{i:05}" for i in range(len(labels))),
        labels.astype(np.int64),
        tuple("swap" if label else "real" for label in labels),
        logits.astype(np.float32),
    )


def drawn(n: int, temperature: float, bias: float) -> FrameScores:
    """Logits for which Calibration(temperature, bias) is the truth."""
    rng = np.random.default_rng(0)
    logits = rng.normal(0, 4, n)
    p = 1 / (1 + np.exp(-(logits / temperature + bias)))
    return single_frames((rng.uniform(size=n) < p).astype(int), logits)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 3.0])
def test_a_known_temperature_is_found(temperature: float) -> None:
    fitted = fit_calibration(drawn(20_000, temperature, 0.0))
    assert fitted.temperature == pytest.approx(temperature, rel=0.06)
    assert fitted.bias == pytest.approx(0, abs=0.1)


def test_maximum_likelihood_agrees_with_logistic_regression() -> None:
    scores = drawn(4_000, 2.0, 0.8)
    fitted = fit_calibration(scores)
    oracle = LogisticRegression(C=1e9, class_weight="balanced", tol=1e-10, max_iter=1000)
    oracle.fit(scores.logits[:, None].astype(np.float64), scores.labels)
    assert 1 / fitted.temperature == pytest.approx(float(oracle.coef_[0, 0]), rel=0.02)
    assert fitted.bias == pytest.approx(float(oracle.intercept_[0]), abs=0.02)


def test_calibration_lowers_log_loss_and_error_on_other_data() -> None:
    scores = drawn(4_000, 3.0, 0.0)
    half = slice(None, None, 2), slice(1, None, 2)
    fit_on, measured_on = (single_frames(scores.labels[part], scores.logits[part]) for part in half)
    losses, errors = [], []
    for calibration in (Calibration(), fit_calibration(fit_on)):
        p = metrics.probabilities(measured_on, calibration)
        losses.append(metrics.log_loss(measured_on.labels, p))
        errors.append(metrics.expected_calibration_error(metrics.reliability(measured_on.labels, p)))
    assert losses[1] < losses[0] - 0.1
    assert errors[1] < 0.03 < errors[0]


def test_shares_of_the_classes_and_crops_per_video_do_not_matter() -> None:
    rng = np.random.default_rng(1)
    labels = np.repeat([REAL, FAKE], 500)
    logits = rng.normal(3.0 * labels - 1.5, 2)
    plain = fit_calibration(single_frames(labels, logits))
    repeated = np.where(labels == FAKE, 5, 1)
    scores = single_frames(labels, logits)
    many = FrameScores(
        tuple(np.repeat(scores.videos, repeated).tolist()),
        np.repeat(scores.labels, repeated),
        tuple(np.repeat(scores.generators, repeated).tolist()),
        np.repeat(scores.logits, repeated),
    )
    same = fit_calibration(many)
    assert same.temperature == pytest.approx(plain.temperature, rel=1e-4)
    assert same.bias == pytest.approx(plain.bias, abs=1e-4)
    twice = fit_calibration(single_frames(np.r_[labels, np.ones(500)], np.r_[logits, logits[500:]]))
    assert twice.temperature == pytest.approx(plain.temperature, rel=0.01)


@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0])
def test_logits_without_a_single_error_give_a_finite_fit(scale: float) -> None:
    labels = np.repeat([REAL, FAKE], 8)
    fitted = fit_calibration(single_frames(labels, scale * (labels - 0.5)))
    p = 1 / (1 + np.exp(-(scale * 0.5 / fitted.temperature + fitted.bias)))
    assert p == pytest.approx(9 / 10, abs=0.01)


def test_what_cannot_be_fitted_is_refused() -> None:
    labels = np.repeat([REAL, FAKE], 50)
    upside_down = single_frames(labels, np.random.default_rng(0).normal(-2.0 * labels, 1))
    with pytest.raises(TrainingError, match="do not rank fakes above"):
        fit_calibration(upside_down)
    with pytest.raises(TrainingError, match="do not rank fakes above"):
        fit_calibration(single_frames(labels, np.ones(100)))
    with pytest.raises(TrainingError, match="no fake videos"):
        fit_calibration(single_frames(np.zeros(3), np.arange(3)))
    with pytest.raises(TrainingError, match="NaN"):
        fit_calibration(single_frames(labels, np.full(100, np.nan)))

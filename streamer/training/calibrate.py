"""Fitting a member's calibration: sigmoid(logit / temperature + bias), by maximum likelihood."""

from __future__ import annotations

import numpy as np
from scipy.optimize import minimize

from streamer.errors import TrainingError
from streamer.manifest import Calibration
from streamer.training.types import FAKE, REAL, FrameScores

LOWEST_SLOPE, HIGHEST_SLOPE = 1e-3, 1e3
"""Bounds on 1 / temperature. A fit that ends on one of them is refused."""


def fit_calibration(scores: FrameScores) -> Calibration:
    """Temperature and bias that make the crops' probabilities most likely (Platt, 1999).

    Every video weighs the same, however many crops it has, and real and fake ones weigh the same together, so
    that 0.5 is where both are equally likely whatever their shares in the data. As Platt proposes, targets
    are (k + 1) / (k + 2) and 1 / (k + 2) for k videos of a class instead of 1 and 0: logits that part the
    classes without a single error still give a finite slope. Raises TrainingError if a class is missing or
    the logits do not rank fakes above real ones.
    """
    logits = np.asarray(scores.logits, np.float64)
    if not np.isfinite(logits).all():
        raise TrainingError("calibration: some logits are NaN or infinite")
    target, weight = np.empty(len(logits)), np.empty(len(logits))
    names = np.asarray(scores.videos, dtype=np.str_)
    for label in (REAL, FAKE):
        own = scores.labels == label
        _, inverse, counts = np.unique(names[own], return_inverse=True, return_counts=True)
        if not len(counts):
            raise TrainingError(f"calibration: no {'fake' if label == FAKE else 'real'} videos to fit it on")
        weight[own] = 0.5 / len(counts) / counts[inverse]
        smoothed = (len(counts) + 1) / (len(counts) + 2)
        target[own] = smoothed if label == FAKE else 1 - smoothed
    spread = float(
        logits.std()
    )  # a unit for the logits, so that the optimiser's steps do not depend on theirs
    if spread == 0:
        raise TrainingError("calibration: all logits are the same, they do not rank fakes above real videos")

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        z = parameters[0] * logits / spread + parameters[1]
        error = 0.5 * (1 + np.tanh(z / 2)) - target
        value = np.sum(weight * (np.logaddexp(0, z) - target * z))
        return float(value), np.array([np.sum(weight * error * logits / spread), np.sum(weight * error)])

    bounds = [(LOWEST_SLOPE * spread, HIGHEST_SLOPE * spread), (None, None)]
    # Convex in slope and bias, so where it ends does not depend on where it starts.
    found = minimize(
        loss, np.array([1.0, 0.0]), jac=True, bounds=bounds, method="L-BFGS-B", options={"ftol": 1e-14}
    )
    slope = float(found.x[0]) / spread
    if not LOWEST_SLOPE * 1.01 < slope < HIGHEST_SLOPE / 1.01:
        raise TrainingError(
            f"calibration: no fit (slope {slope:.3g}): the logits do not rank fakes above real videos, or "
            "their scale is beyond reason; train longer, or look at the validation data"
        )
    return Calibration(temperature=1 / slope, bias=float(found.x[1]))

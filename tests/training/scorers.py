"""Scorers that look for the green square of the toy cache's fakes; no network, no torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamer.manifest import Calibration
from streamer.training.scoring import RecordFaces, Scorer, score_faces
from streamer.training.types import CropRecord, FrameScores
from streamer.types import Float32Array, UInt8Array


def greenness(images: UInt8Array) -> Float32Array:
    """(n, s, s, 3) -> (n,): how much the greenest hundredth of the pixels is greener than red and blue."""
    x = images.astype(np.float32)
    green = (x[..., 1] - np.maximum(x[..., 0], x[..., 2])).reshape(len(x), -1)
    return np.quantile(green, 0.99, axis=1).astype(np.float32)


def green_scorer(name: str = "green", *, size: int = 48, noise: float = 0.0, seed: int = 0) -> Scorer:
    """noise: standard deviation of what is added to its logits; the same for the same picture."""

    def predict(images: UInt8Array) -> Float32Array:
        shift = [
            np.random.default_rng((seed, int(i.astype(np.int64).sum()))).normal(0, noise) for i in images
        ]
        return ((greenness(images) - 100) / 20 + np.array(shift)).astype(np.float32)

    return Scorer(name, size, predict, Calibration(temperature=2.0, bias=0.1))


def score_records(
    scorer: Scorer, records: Sequence[CropRecord], *, cache: Path, **options: Any
) -> FrameScores:
    """Logits of one network on the faces of a crop cache; options: of `score_faces`."""
    (scores,) = score_faces([scorer], RecordFaces(records, cache), **options)
    return scores

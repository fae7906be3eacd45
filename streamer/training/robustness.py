"""What is done to pictures to see how long fakes are still told from real ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from streamer.training.compress import h264, jpeg
from streamer.training.figures import CurveFigures, CurvePoint
from streamer.training.image_ops import add_levels, blur, dim, draw_noise, resize, smooth
from streamer.training.metrics import auc, by_video
from streamer.training.scoring import Degrade, FaceSet, Scorer, probabilities_of, score_faces
from streamer.training.types import FrameScores
from streamer.types import UInt8Array


@dataclass(frozen=True, slots=True)
class Degradation:
    """One way to spoil a picture, at several strengths."""

    name: str
    axis: str
    """What the levels are, with their unit."""
    levels: tuple[float, ...]
    """From the mildest to the worst."""
    apply: Callable[[UInt8Array, float, np.random.Generator], UInt8Array]
    """(picture, level, rng) -> picture."""

    def at(self, level: float) -> Degrade:
        """This degradation at one level."""
        return lambda rgb, rng: self.apply(rgb, level, rng)


def _h264(rgb: UInt8Array, crf: float, rng: np.random.Generator) -> UInt8Array:
    return h264([rgb], crf=crf, rng=rng)[0]


def _jpeg(rgb: UInt8Array, quality: float, rng: np.random.Generator) -> UInt8Array:
    return jpeg(rgb, round(quality))


def _smaller(rgb: UInt8Array, share: float, rng: np.random.Generator) -> UInt8Array:
    """It stays small: the classifier's input is enlarged from it, as serving does with a distant face."""
    height, width = rgb.shape[:2]
    return resize(rgb, round(share * width), round(share * height), "area")


def _smaller_h264(rgb: UInt8Array, crf: float, rng: np.random.Generator) -> UInt8Array:
    return _h264(_smaller(rgb, 0.5, rng), crf, rng)


def _blur(rgb: UInt8Array, sigma: float, rng: np.random.Generator) -> UInt8Array:
    return blur(rgb, sigma)


def _noise(rgb: UInt8Array, sigma: float, rng: np.random.Generator) -> UInt8Array:
    return add_levels(rgb, draw_noise((rgb.shape[0], rgb.shape[1]), sigma, 0.0, rng))


def _dark(rgb: UInt8Array, light: float, rng: np.random.Generator) -> UInt8Array:
    """Dim, with the sensor's noise, and compressed as it then is."""
    return _h264(_noise(dim(rgb, light), 2.0, rng), 23, rng)


def _smooth(rgb: UInt8Array, radius_px: float, rng: np.random.Generator) -> UInt8Array:
    return smooth(rgb, radius_px, 35.0)


DEGRADATIONS = (
    # FaceForensics++ calls 23 "high quality" and 40 "low quality"; x264's own default is 23.
    Degradation("H.264", "CRF", (18, 23, 28, 32, 35, 40), _h264),
    Degradation("H.264 at half resolution", "CRF", (23, 28, 32, 35, 40), _smaller_h264),
    Degradation("JPEG", "quality", (90, 70, 50, 30, 15), _jpeg),
    Degradation("resolution", "share of the original sides", (0.75, 0.5, 0.35, 0.25), _smaller),
    Degradation("blur", "sigma, pixels", (0.5, 1.0, 2.0, 3.0), _blur),
    Degradation("noise", "sigma, levels of 255", (2.0, 5.0, 10.0, 20.0), _noise),
    Degradation("low light, noise, H.264", "share of the light", (0.75, 0.5, 0.35, 0.25), _dark),
    Degradation("smoothed skin", "radius of a bilateral filter, pixels", (1.0, 2.0, 3.0), _smooth),
)


def measure_curves(
    scorers: Sequence[Scorer],
    faces: FaceSet,
    *,
    on: str,
    undegraded: Sequence[FrameScores],
    degradations: Sequence[Degradation],
    margin: float,
    batch: int,
    workers: int,
    report: Callable[[str], None],
) -> list[CurveFigures]:
    """AUC over videos of every member and of their ensemble, at every level of every degradation.

    on: what `faces` are, in words. undegraded: the scorers' scores of the same faces as they are. Raises
    TrainingError.
    """
    clean = _aucs(scorers, undegraded)
    curves = []
    for degradation in degradations:
        points = []
        for level in degradation.levels:
            report(f"{on}: {degradation.name}, {degradation.axis} {level:g}")
            scores = score_faces(
                scorers, faces, margin=margin, batch=batch, degrade=degradation.at(level), workers=workers
            )
            points.append(CurvePoint(level, _aucs(scorers, scores)))
        curves.append(
            CurveFigures(
                degradation=degradation.name,
                axis=degradation.axis,
                on=on,
                undegraded=clean,
                points=tuple(points),
            )
        )
    return curves


def _aucs(scorers: Sequence[Scorer], scores: Sequence[FrameScores]) -> dict[str, float]:
    """AUC over videos; see `probabilities_of`."""
    aucs = {}
    for name, frame_probabilities in probabilities_of(scorers, scores).items():
        videos = by_video(scores[0], frame_probabilities)
        aucs[name] = auc(videos.labels, videos.probabilities)
    return aucs

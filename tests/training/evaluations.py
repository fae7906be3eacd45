"""A small evaluation made by hand, for what shows evaluations."""

from __future__ import annotations

from typing import Any

from streamer.manifest import Calibration
from streamer.training.figures import (
    CurveFigures,
    CurvePoint,
    Evaluation,
    Figures,
    MemberFacts,
    PairFigures,
    ScorerFigures,
    SetFigures,
)
from streamer.training.metrics import Bin, GainPoint, GeneratorRates, Rates


def figures(auc: float | None, *, interval: bool = True, found: float | None = 0.875) -> Figures:
    return Figures(
        auc=auc,
        auc_interval=None if auc is None or not interval else (auc - 0.05, min(1.0, auc + 0.02)),
        average_precision=auc,
        equal_error_rate=None if auc is None else 1 - auc,
        log_loss=0.412,
        calibration_error=0.034,
        rates={
            "0.5": Rates(0.5, 0.9, found, 0.064),
            "alert.raise_at, 0.8": Rates(0.8, 0.8, found, 0.0),
        },
    )


def scorer(
    name: str, auc: float | None, *, interval: bool = True, found: float | None = 0.875
) -> ScorerFigures:
    frame = None if auc is None else auc - 0.03
    return ScorerFigures(
        name=name,
        frame=figures(frame, interval=interval, found=found),
        video=figures(auc, interval=interval, found=found),
    )


BINS = (Bin(0, 0.5, 30, 0.2, 0.1), Bin(0.5, 1, 0, None, None), Bin(0.9, 1, 20, 0.95, 0.9))
ROC = ((0.0, 0.0), (0.1, 0.9), (1.0, 1.0))


def both_classes(name: str = "swaps", **changes: Any) -> SetFigures:
    values: dict[str, Any] = {
        "name": name,
        "description": "Swaps & <b>originals</b> of eight people.",
        "seen_in_training": "nobody of them",
        "real_videos": 4,
        "fake_videos": 4,
        "people": 4,
        "frames": 80,
        "scorers": (
            scorer("first", 0.91),
            scorer("second", 0.93),
            scorer("ensemble", 0.96),
            scorer("random", 0.48, interval=False),
            scorer("constant", 0.5, interval=False),
        ),
        "generators": (
            GeneratorRates("real", 4, 0, 4, 0.2, None),
            GeneratorRates("DeepFaceLab", 4, 3, 1, 0.7, 0.96),
        ),
        "generators_threshold": 0.5,
        "reliability": BINS,
        "reliability_uncalibrated": BINS,
        "roc": {"first": ROC, "second": ROC, "ensemble": ROC},
        "frames_gain": (GainPoint(1, 0.8, 0.05, 0.6), GainPoint(10, 0.96, 0.0, 0.4)),
        "members_gain": (GainPoint(1, 0.92, 0.01, 0.5), GainPoint(2, 0.96, 0.0, 0.4)),
        "pairs": (
            PairFigures(original="o/1", swapped="s/1", original_probability=0.2, swapped_probability=0.8),
            PairFigures(original="o/2", swapped="s/2", original_probability=0.4, swapped_probability=0.3),
        ),
    }
    return SetFigures(**values | changes)


def real_alone() -> SetFigures:
    """As `evaluate` leaves it where there are no fakes."""
    return both_classes(
        "real clips",
        fake_videos=0,
        scorers=tuple(scorer(name, None, found=None) for name in ("first", "second", "ensemble")),
        generators=(GeneratorRates("real", 4, 0, 4, 0.2, None),),
        roc={},
        frames_gain=(),
        members_gain=(),
        pairs=(),
    )


def evaluation(**changes: Any) -> Evaluation:
    """Two members on a set of both classes and on real clips, one curve."""
    members = tuple(
        MemberFacts(
            name=name,
            architecture="DenseNet-121",
            size=224,
            calibration=Calibration(temperature=1.25, bias=-0.5),
            origin="by hand",
        )
        for name in ("first", "second")
    )
    aucs = {"first": 0.91, "second": 0.93, "ensemble": 0.96}
    worse = {name: auc - 0.2 for name, auc in aucs.items()}
    curve = CurveFigures(
        degradation="H.264",
        axis="CRF",
        on="swaps",
        undegraded=aucs,
        points=(CurvePoint(23, aucs), CurvePoint(40, worse)),
    )
    values: dict[str, Any] = {
        "title": "Measured <by hand>",
        "made_with": "a test",
        "margin": 0.3,
        "members": members,
        "sets": (both_classes(), real_alone()),
        "curves": (curve, curve.model_copy(update={"degradation": "blur", "axis": "sigma, pixels"})),
        "notes": ("Nothing here was measured.",),
    }
    return Evaluation(**values | changes)

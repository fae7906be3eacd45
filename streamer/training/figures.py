"""All that an evaluation found: what report.json holds, and what reports and model cards are made from."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from streamer.errors import TrainingError
from streamer.manifest import Calibration
from streamer.training.metrics import Bin, GainPoint, GeneratorRates, Rates

ENSEMBLE = "ensemble"
RANDOM, CONSTANT = "random", "constant"


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Figures(_Part):
    """One scorer's figures over frames or over videos. None: needs both real and fake ones."""

    auc: float | None
    auc_interval: tuple[float, float] | None
    """95 %, by bootstrap over groups of people; None also where it was not asked for."""
    average_precision: float | None
    equal_error_rate: float | None
    log_loss: float
    calibration_error: float
    """ECE."""
    rates: dict[str, Rates]
    """Where the threshold comes from, in words -> what happens there."""


class ScorerFigures(_Part):
    """One member, the ensemble or a baseline on one set."""

    name: str
    frame: Figures
    video: Figures


class PairFigures(_Part):
    """One original and what was made of it, by the ensemble's mean probability."""

    original: str
    swapped: str
    original_probability: float
    swapped_probability: float


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """AUC over videos at one level, by name of the member or `ensemble`."""

    level: float
    aucs: dict[str, float]


class CurveFigures(_Part):
    """How the AUC over videos falls with one degradation."""

    degradation: str
    axis: str
    on: str
    """Name of the set."""
    undegraded: dict[str, float]
    points: tuple[CurvePoint, ...]
    """From the mildest to the worst."""


class SetFigures(_Part):
    """All figures on one set of videos."""

    name: str
    description: str
    """What it is and where it comes from, in words."""
    seen_in_training: str
    """Whether, and how far, training has seen these people or generators, in words."""
    real_videos: int
    fake_videos: int
    people: int
    """Groups of people that are told apart."""
    frames: int
    scorers: tuple[ScorerFigures, ...]
    """Members, then the ensemble if there are several, then, on sets of both classes, the baselines."""
    generators: tuple[GeneratorRates, ...]
    """Of the ensemble (or only member), over videos."""
    generators_threshold: float
    reliability: tuple[Bin, ...]
    """Of the ensemble, over frames."""
    reliability_uncalibrated: tuple[Bin, ...]
    """The same with neutral calibrations."""
    roc: dict[str, tuple[tuple[float, float], ...]]
    """Name -> corners (false alarms, found), over videos; empty with one class alone."""
    frames_gain: tuple[GainPoint, ...]
    """Of the ensemble; see `gain_by_frames`. Empty without videos of both classes that have two crops."""
    members_gain: tuple[GainPoint, ...]
    """Over all choices of so many members; empty with one member or one class alone."""
    pairs: tuple[PairFigures, ...] = ()

    def scorer(self, name: str) -> ScorerFigures:
        """Figures of one member, of the ensemble or of a baseline. Raises TrainingError."""
        for figures in self.scorers:
            if figures.name == name:
                return figures
        raise TrainingError(f"{self.name}: no figures of {name!r}")

    @property
    def best_name(self) -> str:
        """`ensemble`, or the only member."""
        names = [figures.name for figures in self.scorers]
        return ENSEMBLE if ENSEMBLE in names else names[0]

    @property
    def pairs_above(self) -> int:
        """Pairs whose swapped video scores above its original."""
        return sum(pair.swapped_probability > pair.original_probability for pair in self.pairs)


class MemberFacts(_Part):
    """What was measured."""

    name: str
    architecture: str
    size: int
    """Of the input, pixels."""
    calibration: Calibration
    origin: str


class Evaluation(_Part):
    """A whole evaluation: the content of report.json."""

    version: int = 1
    title: str
    made_with: str
    """Command or versions, in words."""
    margin: float
    members: tuple[MemberFacts, ...]
    sets: tuple[SetFigures, ...]
    curves: tuple[CurveFigures, ...]
    notes: tuple[str, ...] = ()
    """Plain sentences that a reader must know."""


def read_evaluation(path: Path) -> Evaluation:
    """Read a report.json. Raises TrainingError."""
    try:
        return Evaluation.model_validate_json(path.read_text())
    except OSError as error:
        raise TrainingError(f"{path}: cannot read the evaluation: {error.strerror}") from error
    except ValidationError as error:
        raise TrainingError(f"{path}: not an evaluation of this version of streamer: {error}") from error

"""Members and checkpoints measured on a crop cache: opens them, says on what, calls `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from streamer.backends.load import load_network
from streamer.config import Config
from streamer.errors import TrainingError
from streamer.terminal import count
from streamer.training.blend import PUBLISHED, BlendConfig
from streamer.training.crops import read_index, read_split
from streamer.training.evaluate import (
    QUICK_DEGRADATIONS,
    EvaluationSet,
    Options,
    originals_of,
)
from streamer.training.evaluate import evaluate as evaluate_members
from streamer.training.figures import CONSTANT, ENSEMBLE, RANDOM, Evaluation, MemberFacts
from streamer.training.robustness import DEGRADATIONS
from streamer.training.scoring import (
    Blends,
    RecordFaces,
    Scorer,
    checkpoint_scorer,
    network_scorer,
)
from streamer.training.subset import subset
from streamer.training.types import FAKE, REAL, CropRecord, Split

CHECKPOINT_SUFFIX = ".pt"
"""Tells a checkpoint from the name of a member."""

QUICK = {"crops_per_video": 8, "videos": 300, "pictures": 300}
"""What is left of a cache for a look on a slow machine; see `subset`."""

BLENDS = "self-blends"
"""Name of the set in which every real face meets a self-blend of the whole face; see `blend.PUBLISHED`."""

HARD_BLENDS = "hard self-blends"
"""The same with blends as training makes them by default."""

CROSS_BLENDS = "cross-blends"
"""That in which every real face meets itself with another person's whole face; see `blend.cross_blend`."""

CHOSEN_ON_VALIDATION = (
    "Validation data chose the checkpoints and what threshold is said to be chosen on it; calibrations are "
    "fitted on it unless another split was named: on other data, expect less."
)


def measure(
    members: Sequence[str],
    *,
    cache: Path,
    split: Split,
    config: Config,
    curves: bool,
    quick: bool,
    workers: int,
    report: Callable[[str], None],
) -> Evaluation:
    """Evaluate members (names below `classify.engines`, or .pt files) on a split of a cache, and on
    blends of its real faces. quick: on a part of it. A threshold is chosen on the validation split, whatever
    is measured, if it holds both real and fake faces. Raises TrainingError, ModelError."""
    records, everything = read_split(cache, split), read_index(cache)
    validation = [record for record in everything if record.split == "validation"]
    if quick:
        records, validation = (subset(part, **QUICK, seed=1) for part in (records, validation))
    sets = _sets(records, everything, cache, split, curves=curves)
    choose_on = None
    if {record.label for record in validation} == {REAL, FAKE}:
        apart = EvaluationSet("validation", "", "", RecordFaces(validation, cache))
        choose_on = sets[0] if split == "validation" else apart
    with _opened(members, config) as (scorers, facts):
        return evaluate_members(
            scorers,
            facts,
            sets,
            Options(
                title=f"{', '.join(scorer.name for scorer in scorers)} on {split}",
                made_with=f"streamer train evaluate {' '.join(members)} --cache {cache} --split {split}"
                + " --quick" * quick,
                margin=config.faces.margin,
                workers=workers,
                raise_at=config.alert.raise_at,
                choose_on=choose_on,
                degradations=QUICK_DEGRADATIONS if quick else DEGRADATIONS,
            ),
            notes=(CHOSEN_ON_VALIDATION,) if split == "validation" else (),
            report=report,
        )


def in_lines(evaluation: Evaluation) -> Iterator[str]:
    """The main figures, a line for each set and scorer."""
    for part in evaluation.sets:
        yield (
            f"{part.name}: {count(part.real_videos, 'real video')}, {count(part.fake_videos, 'fake one')}, "
            f"{count(part.frames, 'face')}"
        )
        for scorer in part.scorers:
            video, frame = scorer.video, scorer.frame
            aucs = "no AUC" if video.auc is None else f"AUC {video.auc:.3f} (faces {frame.auc:.3f})"
            yield f"  {scorer.name}: {aucs}, log-loss {video.log_loss:.3f}, ECE {frame.calibration_error:.3f}"


def _sets(
    records: Sequence[CropRecord],
    everything: Sequence[CropRecord],
    cache: Path,
    split: Split,
    *,
    curves: bool,
) -> list[EvaluationSet]:
    labels = {record.label for record in records}
    known = {record.generator for record in everything if record.split == "train" and record.label == FAKE}
    shared = sorted(known & {record.generator for record in records})
    people = "people yes" if split == "train" else "people no"
    generators = f"generators yes, where data-set fakes are trained on: {', '.join(shared)}"
    sets = [
        EvaluationSet(
            name=split,
            description=f"The {split} part of the crop cache: {data_sources(records)}.",
            seen_in_training=f"{people}, {generators if shared else 'generators no'}",
            faces=RecordFaces(records, cache),
            originals=originals_of(records),
            curves=curves and len(labels) == 2,
        )
    ]
    if REAL in labels:
        sets.append(
            EvaluationSet(
                name=BLENDS,
                description=f"Real faces of the {split} part, and of each a self-blend of the whole face, "
                "near the paper's.",
                seen_in_training=f"{people}, the kind of fake yes, where self-blends are trained on",
                faces=Blends(records, cache, config=PUBLISHED),
                curves=curves,
            )
        )
        sets.append(
            EvaluationSet(
                name=HARD_BLENDS,
                description="The same with self-blends as training makes them: fainter, often of a part of "
                "the face alone.",
                seen_in_training=f"{people}, the kind of fake yes, where self-blends are trained on",
                faces=Blends(records, cache),
            )
        )
    if len({record.group for record in records if record.label == REAL}) > 1:
        whole = BlendConfig(regions=PUBLISHED.regions, cross_ratios=(1,), poisson=0)
        sets.append(
            EvaluationSet(
                name=CROSS_BLENDS,
                description=f"Real faces of the {split} part, and each with the whole face of another person "
                "blended in.",
                seen_in_training=f"{people}, the kind of fake yes, where cross-blends are trained on",
                faces=Blends(records, cache, "cross-blend", config=whole),
                curves=curves,
            )
        )
    return sets


def data_sources(records: Sequence[CropRecord]) -> str:
    """Names of the data sets and generators among the records."""
    return ", ".join(sorted({f"{record.source} {record.generator}" for record in records}))


@contextmanager
def _opened(members: Sequence[str], config: Config) -> Iterator[tuple[list[Scorer], list[MemberFacts]]]:
    """Scorers and facts of members and checkpoints; their networks are freed at the end."""
    scorers: list[Scorer] = []
    facts: list[MemberFacts] = []
    networks = []
    try:
        for member in members:
            if member.endswith(CHECKPOINT_SUFFIX):
                scorer, about = _of_checkpoint(Path(member))
            else:
                classify = config.classify
                network = load_network(
                    classify.engines / f"{member}.json",
                    backend=classify.backend,
                    precision=classify.precision,
                    threads=classify.threads,
                )
                networks.append(network)
                scorer, manifest = network_scorer(network), network.manifest
                about = MemberFacts(
                    name=manifest.name,
                    architecture=manifest.architecture,
                    size=manifest.input.height,
                    calibration=manifest.calibration,
                    origin=manifest.origin,
                )
            if scorer.name in (ENSEMBLE, RANDOM, CONSTANT) or scorer.name in (
                known.name for known in scorers
            ):
                raise TrainingError(f"{member}: another scorer is called {scorer.name} already")
            scorers.append(scorer)
            facts.append(about)
        yield scorers, facts
    finally:
        for network in networks:
            network.close()


def _of_checkpoint(path: Path) -> tuple[Scorer, MemberFacts]:
    """Called after its run's folder."""
    from streamer.models.classifiers import ARCHITECTURES
    from streamer.training.checkpoint import load_checkpoint

    checkpoint = load_checkpoint(path)
    size = checkpoint.config.input.size
    scorer = checkpoint_scorer(path.resolve().parent.name, path, size=size)
    return scorer, MemberFacts(
        name=scorer.name,
        architecture=ARCHITECTURES[checkpoint.config.model.architecture].title,
        size=size,
        calibration=scorer.calibration,
        origin=f"{path} after {checkpoint.step:,} steps, not calibrated",
    )

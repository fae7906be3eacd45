"""What `streamer train` does beside calling one function: reads data sets, opens members, tells of runs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.backends.load import load_network
from streamer.config import Config
from streamer.errors import TrainingError
from streamer.terminal import count, duration
from streamer.training.augment import plain_view
from streamer.training.augment_config import AugmentConfig
from streamer.training.blend import PUBLISHED, BlendConfig
from streamer.training.calibrate import fit_calibration
from streamer.training.config import TrainConfig, load_recipe
from streamer.training.contact_sheet import Decode, read_sheet_faces, write_contact_sheet
from streamer.training.crops import read_crop, read_index
from streamer.training.evaluate import (
    QUICK_DEGRADATIONS,
    EvaluationSet,
    Options,
    originals_of,
    thinned,
)
from streamer.training.evaluate import evaluate as evaluate_members
from streamer.training.figures import ENSEMBLE, RANDOM, Evaluation, MemberFacts
from streamer.training.metrics import auc, by_video, probabilities
from streamer.training.robustness import DEGRADATIONS
from streamer.training.scoring import (
    Blends,
    FaceSet,
    RecordFaces,
    Scorer,
    network_scorer,
    score_faces,
    torch_scorer,
)
from streamer.training.sources import read_dfdc, read_faceforensics, read_folder
from streamer.training.types import FAKE, REAL, CropRecord, FrameScores, Item, Split
from streamer.types import UInt8Array

if TYPE_CHECKING:
    from streamer.training.checkpoint import Checkpoint
    from streamer.training.export import Exported

CHECKPOINT_SUFFIX = ".pt"
"""Tells a checkpoint from the name of a member."""

EXPORT_CROPS = 32
"""On which an exported network is compared with torch."""

QUICK = {"crops_per_video": 8, "pictures": 300}
"""What is left of a cache for a look on a slow machine; see `thinned`."""

BLENDS = "self-blends"
"""Name of the set in which every real face meets a self-blend of the whole face; see `blend.PUBLISHED`."""

HARD_BLENDS = "hard self-blends"
"""The same with blends as training makes them by default."""

CROSS_BLENDS = "cross-blends"
"""That in which every real face meets itself with another person's whole face; see `blend.cross_blend`."""

CHOSEN_ON_VALIDATION = (
    "Validation data chose the checkpoints, calibrations are fitted on it unless another split was named: "
    "on other data, expect less."
)


def read_data(
    folders: Sequence[Path], layouts: Sequence[str], *, group_by: str
) -> tuple[list[Item], dict[str, Path]]:
    """Items of several data sets, and the folder of each by its name: the layout's, or a plain folder's own.

    layouts: `dfdc`, `faceforensics` or `folder`, of each folder. Raises TrainingError.
    """
    items: list[Item] = []
    roots: dict[str, Path] = {}
    for folder, layout in zip(folders, layouts, strict=True):
        name = folder.resolve().name if layout == "folder" else layout
        if name in roots:
            raise TrainingError(f"{roots[name]} and {folder} would both be called {name}: rename one")
        roots[name] = folder
        if layout == "dfdc":
            items += read_dfdc(folder)
        elif layout == "faceforensics":
            items += read_faceforensics(folder)
        else:
            items += read_folder(folder, group_by="file" if group_by == "file" else "stem", name=name)
    return items, roots


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
    blends of its real faces. quick: on a part of it. Raises TrainingError, ModelError."""
    records = _records_of(cache, split)
    if quick:
        records = thinned(records, **QUICK, seed=1)
    sets = _sets(records, read_index(cache), cache, split, curves=curves)
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


def export_calibrated(
    checkpoint: Path,
    *,
    name: str,
    cache: Path,
    split: Split,
    config: Config,
    data: str | None,
    licence: str,
    storage: Any,
    heat_map: bool,
) -> Exported:
    """Calibrate a checkpoint on a split, and make a member of it. Raises TrainingError, ModelError."""
    from streamer.training.checkpoint import load_checkpoint, load_model
    from streamer.training.export import export_checkpoint

    records = read_index(cache)
    held_out = _records_of(cache, split)
    loaded = load_checkpoint(checkpoint)
    size = loaded.config.input.size
    scores, on = _scores_to_calibrate(
        torch_scorer(name, load_model(checkpoint), size=size), held_out, cache, loaded.config
    )
    calibration = fit_calibration(scores)
    videos = by_video(scores, probabilities(scores, calibration))
    return export_checkpoint(
        checkpoint,
        config.classify.engines,
        name=name,
        crops=_views(held_out, cache, loaded.config),
        origin=origin_of(loaded, data or data_in_words(records)),
        measured=f"AUC {auc(videos.labels, videos.probabilities):.3f} over {on}, calibrated on them",
        calibration=calibration,
        licence=licence,
        storage=storage,
        heat_map=heat_map and loaded.config.model.mask_head,
    )


def _run_of(path: Path) -> str:
    """A checkpoint's run and name: what of its path says something elsewhere."""
    return f"{path.parent.name}/{path.name}"


def origin_of(checkpoint: Checkpoint, data: str) -> str:
    """Where weights come from, in words; for a manifest."""
    from streamer.models.classifiers import ARCHITECTURES

    config = checkpoint.config
    model, mixture = config.model, config.mixture
    package = ARCHITECTURES[model.architecture].package
    if model.start:
        start = " and ".join(
            f"the member {path.stem}" if path.suffix == ".json" else f"the checkpoint {_run_of(path)}"
            for path in model.start
        )
        start = f"the mean of {start}" if len(model.start) > 1 else start
    elif model.pretrained:
        start = f"ImageNet weights ({package.distribution if package else 'torchvision'})"
    else:
        start = "random weights"
    if kept := config.optimiser.start_share:
        start += f" ({100 * kept:g} % kept)"
    teacher = config.distillation.teacher
    taught = f", taught by the checkpoint {_run_of(teacher)}" if teacher else ""
    return (
        f"streamer train fit: {ARCHITECTURES[model.architecture].title} from {start}{taught}; seed "
        f"{config.seed}; {checkpoint.step:,} steps of {config.batch} images ({config.input.size} px) in "
        f"{duration(checkpoint.seconds)}; pairs self-blended : cross-blended : of data sets : decoded = "
        f"{mixture.self_blended:g} : {mixture.cross_blended:g} : {mixture.dataset_fake:g} : "
        f"{mixture.decoded:g}; learning rate {config.optimiser.learning_rate:g}, weight decay "
        f"{config.optimiser.weight_decay:g}, dropout {model.dropout:g}, average of weights "
        f"{config.optimiser.ema_decay:g}; data: {data} "
        f"(fingerprint {checkpoint.data[:12]})"
    )


def data_in_words(records: Sequence[CropRecord]) -> str:
    """What a cache holds for training: `dfdc: 400 real, 800 DFDC crops`."""
    parts = []
    training = [record for record in records if record.split == "train"]
    for source in sorted({record.source for record in training}):
        counts = Counter(record.generator for record in training if record.source == source)
        parts.append(f"{source}: {', '.join(f'{n:,} {name}' for name, n in sorted(counts.items()))} crops")
    return "; ".join(parts) or "nothing"


def write_sheet(path: Path, *, cache: Path, recipe: Path | None, faces: int, seed: int) -> None:
    """Write a contact sheet of real faces for training, each of another video. Raises TrainingError."""
    real = [record for record in _records_of(cache, "train") if record.label == REAL]
    by_item = {record.item: record for record in real}
    records = sorted(by_item.values(), key=lambda record: record.item)
    rng = np.random.default_rng(seed)
    chosen = [records[k] for k in rng.permutation(len(records))[:faces]]
    config = None if recipe is None else load_recipe(recipe)
    write_contact_sheet(
        path,
        read_sheet_faces(cache, chosen),
        margin=0.3 if config is None else config.input.margin,
        size=160,
        augment=AugmentConfig() if config is None else config.augment,
        blend=BlendConfig() if config is None else config.blend,
        decode=_decoder(config.mixture.autoencoder) if config and config.mixture.autoencoder else None,
        seed=seed,
    )


def _decoder(path: Path) -> Decode:
    from streamer.training.autoencoder import decode_face, load_autoencoder

    network = load_autoencoder(path)
    return lambda face, rng: decode_face(face.picture.rgb, face.picture.keypoints, face.box, network, rng)


def _records_of(cache: Path, split: Split) -> list[CropRecord]:
    records = [record for record in read_index(cache) if record.split == split]
    if not records:
        raise TrainingError(f"{cache}: no crops of the split {split}")
    return records


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
            if scorer.name in (ENSEMBLE, RANDOM) or scorer.name in (known.name for known in scorers):
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
    from streamer.training.checkpoint import load_checkpoint, load_model

    checkpoint = load_checkpoint(path)
    size = checkpoint.config.input.size
    scorer = torch_scorer(path.resolve().parent.name, load_model(path), size=size)
    return scorer, MemberFacts(
        name=scorer.name,
        architecture=ARCHITECTURES[checkpoint.config.model.architecture].title,
        size=size,
        calibration=scorer.calibration,
        origin=f"{path} after {checkpoint.step:,} steps, not calibrated",
    )


def _scores_to_calibrate(
    scorer: Scorer, records: Sequence[CropRecord], cache: Path, config: TrainConfig
) -> tuple[FrameScores, str]:
    """Logits on real and fake faces; on real ones and self-blends of them where there are no fakes."""
    labels = {record.label for record in records}
    if REAL not in labels:
        raise TrainingError(f"{cache}: a member is calibrated on held-out real faces, and there are none")
    faces: FaceSet = RecordFaces(records, cache) if FAKE in labels else Blends(records, cache)
    (scores,) = score_faces([scorer], faces, margin=config.input.margin)
    fakes = len({v for v, label in zip(scores.videos, scores.labels, strict=True) if label == FAKE})
    kind = "fake" if FAKE in labels else "self-blended"
    real = len({record.item for record in records if record.label == REAL})
    return scores, f"{real} real and {fakes} {kind} held-out videos or pictures"


def _views(records: Sequence[CropRecord], cache: Path, config: TrainConfig) -> UInt8Array:
    """(n, size, size, 3) uint8: about EXPORT_CROPS faces as serving sees them, from all over the records."""
    chosen = records[:: max(1, len(records) // EXPORT_CROPS)]
    size = config.input.size
    views = [
        plain_view(read_crop(cache, record), record.box, margin=config.input.margin, size=size)
        for record in chosen
    ]
    return np.stack(views)

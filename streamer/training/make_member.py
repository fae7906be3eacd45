"""A checkpoint -> a member: calibrated on held-out faces, exported, with words on where it comes from."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from streamer.config import Config
from streamer.errors import TrainingError
from streamer.terminal import duration
from streamer.training.augment import plain_view
from streamer.training.calibrate import fit_calibration
from streamer.training.config import TrainConfig
from streamer.training.crops import read_crop, read_index, read_split
from streamer.training.metrics import auc, by_video, probabilities
from streamer.training.scoring import (
    Blends,
    FaceSet,
    RecordFaces,
    Scorer,
    checkpoint_scorer,
    score_faces,
)
from streamer.training.types import FAKE, REAL, CropRecord, FrameScores, Split
from streamer.types import UInt8Array

if TYPE_CHECKING:
    from streamer.training.checkpoint import Checkpoint
    from streamer.training.export import Exported

EXPORT_CROPS = 32
"""On which an exported network is compared with torch."""


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
    from streamer.training.export import MemberTexts, export_member

    check_name(name)
    records = read_index(cache)
    held_out = read_split(cache, split)
    loaded = load_checkpoint(checkpoint)
    size, margin = loaded.config.input.size, loaded.config.input.margin
    if margin != config.faces.margin:
        raise TrainingError(
            f"{checkpoint}: trained on faces with margin {margin:g}, but faces.margin, with which the "
            f"service cuts them for all members, is {config.faces.margin:g}"
        )
    scores, on = _scores_to_calibrate(
        checkpoint_scorer(name, checkpoint, size=size), held_out, cache, loaded.config
    )
    calibration = fit_calibration(scores)
    videos = by_video(scores, probabilities(scores, calibration))
    return export_member(
        load_model(checkpoint),
        config.classify.engines,
        MemberTexts(
            name=name,
            origin=origin_of(loaded, data or data_in_words(records)),
            measured=f"AUC {auc(videos.labels, videos.probabilities):.3f} over {on}, calibrated on them",
            licence=licence,
        ),
        size=size,
        crops=_views(held_out, cache, loaded.config),
        calibration=calibration,
        storage=storage,
        heat_map=heat_map and loaded.config.model.mask_head,
    )


def check_name(name: str) -> None:
    """Raise TrainingError for a name that would put a member's files elsewhere, or nowhere."""
    if not name or name.startswith(".") or Path(name).name != name:
        raise TrainingError(f"{name!r}: a member's name is that of its files, without a folder")


def origin_of(checkpoint: Checkpoint, data: str) -> str:
    """Where weights come from, in words; for a manifest."""
    from streamer.models.classifiers import ARCHITECTURES

    config = checkpoint.config
    model, mixture = config.model, config.mixture
    package = ARCHITECTURES[model.architecture].package
    if model.start:
        start = " and ".join(map(_network_of, model.start))
        start = f"the mean of {start}" if len(model.start) > 1 else start
    elif model.pretrained:
        start = f"ImageNet weights ({package.distribution if package else 'torchvision'})"
    else:
        start = "random weights"
    if kept := config.optimiser.start_share:
        start += f" ({100 * kept:g} % kept)"
    teacher = config.distillation.teacher
    taught = f", taught by {_network_of(teacher)}" if teacher else ""
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


def _network_of(path: Path) -> str:
    """A member's name, or a checkpoint's and its run's: what of the path says something elsewhere."""
    if path.suffix == ".json":
        return f"the member {path.stem}"
    return f"the checkpoint {path.parent.name}/{path.name}"


def _scores_to_calibrate(
    scorer: Scorer, records: Sequence[CropRecord], cache: Path, config: TrainConfig
) -> tuple[FrameScores, str]:
    """Logits on real and fake faces; on real ones and self-blends of them where there are no fakes."""
    labels = {record.label for record in records}
    if REAL not in labels:
        raise TrainingError(f"{cache}: a member is calibrated on real faces too, and the split has none")
    faces: FaceSet = RecordFaces(records, cache) if FAKE in labels else Blends(records, cache)
    (scores,) = score_faces([scorer], faces, margin=config.input.margin)
    fakes = len({v for v, label in zip(scores.videos, scores.labels, strict=True) if label == FAKE})
    kind = "fake" if FAKE in labels else "self-blended"
    real = len({record.item for record in records if record.label == REAL})
    seen = "trained-on" if records[0].split == "train" else "held-out"
    return scores, f"{real} real and {fakes} {kind} {seen} videos or pictures"


def _views(records: Sequence[CropRecord], cache: Path, config: TrainConfig) -> UInt8Array:
    """(n, size, size, 3) uint8: about EXPORT_CROPS faces as serving sees them, from all over the records."""
    chosen = records[:: max(1, len(records) // EXPORT_CROPS)]
    size = config.input.size
    views = [
        plain_view(read_crop(cache, record), record.box, margin=config.input.margin, size=size)
        for record in chosen
    ]
    return np.stack(views)

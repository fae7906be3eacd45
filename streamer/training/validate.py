"""The number by which the best checkpoint is chosen: AUC over validation videos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import Dataset

from streamer.errors import TrainingError
from streamer.models.classifiers import Classifier, normalised
from streamer.training.augment import AugmentConfig, make_views, plain_view
from streamer.training.blend import BlendConfig, self_blend
from streamer.training.config import TrainConfig
from streamer.training.crops import read_crop
from streamer.training.dataset import face_picture, loader
from streamer.training.loss import autocast
from streamer.training.types import FAKE, REAL, CropRecord
from streamer.types import Float32Array, UInt8Array

SEED = 20_220_618
"""Of the validation's blends and augmentations: the same for all runs, so that their metrics compare."""


@dataclass(frozen=True)
class Views:
    """Validation images, ready for the network."""

    images: UInt8Array
    """(n, s, s, 3) uint8 RGB."""
    labels: np.ndarray
    """(n,) int64, REAL or FAKE."""
    videos: tuple[str, ...]
    """(n) name of each one's video; a self-blend's is a video of its own."""


class _PlainViews(Dataset[list[UInt8Array]]):
    """[the crop as serving sees it]."""

    def __init__(self, records: Sequence[CropRecord], cache: Path, config: TrainConfig) -> None:
        self._records, self._cache, self._input = records, cache, config.input

    def __getitem__(self, index: int) -> list[UInt8Array]:
        record = self._records[index]
        crop = read_crop(self._cache, record)
        return [plain_view(crop, record.box, margin=self._input.margin, size=self._input.size)]


class _BlendViews(Dataset[list[UInt8Array]]):
    """[self-blend, untouched face], both under the same random changes; [] if it cannot be blended."""

    def __init__(self, records: Sequence[CropRecord], cache: Path, config: TrainConfig) -> None:
        self._records, self._cache, self._input = records, cache, config.input

    def __getitem__(self, index: int) -> list[UInt8Array]:
        record = self._records[index]
        face = face_picture(self._cache, record)
        rng = np.random.default_rng((SEED, index))
        try:
            blended = self_blend(face.rgb, face.landmarks, face.keypoints, rng, BlendConfig())
        except TrainingError:  # part of the face lies outside its picture
            return []
        views = make_views(
            [blended.fake, blended.real],
            [None, None],
            record.box,
            margin=self._input.margin,
            size=self._input.size,
            rng=rng,
            config=AugmentConfig(),
        )
        return [view for view, _ in views]


class Validation:
    """Validation images, cut out and degraded once, and the metric over them."""

    def __init__(self, records: Sequence[CropRecord], cache: Path, config: TrainConfig) -> None:
        """records: held out. Raises TrainingError if they do not make a metric."""
        self._config = config
        self._plain = _plain_views(spread(records, config.validation.crops), cache, config)
        real = [record for record in records if record.label == REAL]
        self._blends = _blend_views(spread(real, config.validation.blends), cache, config)
        if self._blends is None and (self._plain is None or len(set(self._plain.labels.tolist())) < 2):
            raise TrainingError(
                "the validation crops do not make a metric: that takes both real and fake ones, or real ones "
                "and validation.blends above 0"
            )

    def measure(self, model: Classifier, device: torch.device) -> dict[str, float]:
        """AUC over videos: `videos`, of the validation data as serving sees it; `blends`, of self-blends
        against untouched faces; `metric`, the mean of those that there are."""
        found: dict[str, float] = {}
        for name, views in (("videos", self._plain), ("blends", self._blends)):
            if views is not None:
                logits = predict(model, views.images, self._config, device)
                if (auc := video_auc(views, logits)) is not None:
                    found[name] = auc
        return {"metric": float(np.mean(list(found.values())))} | found


def _plain_views(records: Sequence[CropRecord], cache: Path, config: TrainConfig) -> Views | None:
    dataset = _PlainViews(records, cache, config)
    images = [view for (view,) in loader(dataset, range(len(records)), workers=config.workers)]
    if not images:
        return None
    labels = np.array([record.label for record in records])
    return Views(np.stack(images), labels, tuple(record.item for record in records))


def _blend_views(records: Sequence[CropRecord], cache: Path, config: TrainConfig) -> Views | None:
    images, labels, videos = [], [], []
    dataset = _BlendViews(records, cache, config)
    for record, pair in zip(
        records, loader(dataset, range(len(records)), workers=config.workers), strict=True
    ):
        for view, label in zip(pair, (FAKE, REAL), strict=False):  # none, if it could not be blended
            images.append(view)
            labels.append(label)
            videos.append(f"{record.item}#blend" if label == FAKE else record.item)
    return Views(np.stack(images), np.array(labels), tuple(videos)) if images else None


def spread(records: Sequence[CropRecord], most: int) -> list[CropRecord]:
    """`most` of the records at most, each video giving its first before any gives its second."""
    order = np.random.default_rng(SEED).permutation(len(records))
    taken: dict[str, int] = defaultdict(int)
    turns = []
    for index in order:
        turns.append(taken[records[index].item])
        taken[records[index].item] += 1
    return [records[order[place]] for place in np.argsort(turns, kind="stable")[:most]]


def predict(model: Classifier, images: UInt8Array, config: TrainConfig, device: torch.device) -> Float32Array:
    """(n, s, s, 3) uint8 RGB -> (n,) float32 logits, in the precision of training. model: evaluating."""
    logits = []
    with torch.inference_mode(), autocast(config, device):
        for start in range(0, len(images), config.batch):
            part = torch.from_numpy(images[start : start + config.batch]).to(device)
            logits.append(model(normalised(part))[0][:, 0].float().cpu())
    return np.asarray(torch.cat(logits).numpy(), np.float32)


def video_auc(views: Views, logits: Float32Array) -> float | None:
    """AUC over videos, each by the mean logit of its crops; None without both real and fake ones."""
    _, first, inverse = np.unique(views.videos, return_index=True, return_inverse=True)
    means = np.bincount(inverse, logits) / np.bincount(inverse)
    labels = views.labels[first]
    return float(roc_auc_score(labels, means)) if len(set(labels.tolist())) == 2 else None

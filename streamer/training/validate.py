"""The number by which the best checkpoint is chosen: AUC over validation videos."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from streamer.errors import TrainingError
from streamer.manifest import Calibration
from streamer.models.classifiers import Classifier, normalised
from streamer.training.augment import make_views, plain_view
from streamer.training.augment_config import AugmentConfig
from streamer.training.blend import BlendConfig, self_blend
from streamer.training.config import TrainConfig
from streamer.training.crops import face_picture, read_crop
from streamer.training.dataset import loader
from streamer.training.metrics import auc, by_video, probabilities
from streamer.training.precision import autocast
from streamer.training.types import FAKE, REAL, CropRecord, FrameScores
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
    generators: tuple[str, ...]
    """(n) as in `CropRecord`; of self-blends `blend`."""


class _Cutter(Dataset[list[UInt8Array]]):
    """Views by index: of the plain records [the crop as serving sees it]; after them, of those to be blended,
    [self-blend, untouched face] under the same random changes, or [] if it cannot be blended."""

    def __init__(
        self, plain: Sequence[CropRecord], blended: Sequence[CropRecord], cache: Path, config: TrainConfig
    ) -> None:
        self._plain, self._blended, self._cache, self._input = plain, blended, cache, config.input

    def __getitem__(self, index: int) -> list[UInt8Array]:
        if index < len(self._plain):
            record = self._plain[index]
            crop = read_crop(self._cache, record)
            return [plain_view(crop, record.box, margin=self._input.margin, size=self._input.size)]
        number = index - len(self._plain)
        return self._blend(self._blended[number], np.random.default_rng((SEED, number)))

    def _blend(self, record: CropRecord, rng: np.random.Generator) -> list[UInt8Array]:
        face = face_picture(self._cache, record)
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
        plain = spread(records, config.validation.crops)
        real = [record for record in records if record.label == REAL]
        blended = spread(real, config.validation.blends)
        cutter = _Cutter(plain, blended, cache, config)
        cut: list[list[UInt8Array]] = list(
            loader(cutter, range(len(plain) + len(blended)), workers=config.workers)
        )
        self._plain = _gather(
            (r.item, r.label, r.generator, view) for r, (view,) in zip(plain, cut, strict=False)
        )
        self._blends = _gather(
            (*what, view)
            for r, views in zip(blended, cut[len(plain) :], strict=True)
            for *what, view in zip(
                (f"{r.item}#blend", r.item), (FAKE, REAL), ("blend", r.generator), views, strict=False
            )
        )
        if self._blends is None and (self._plain is None or len(set(self._plain.labels.tolist())) < 2):
            raise TrainingError(
                "the validation crops do not make a metric: that takes both real and fake ones, or real ones "
                "and validation.blends above 0"
            )

    def measure(self, model: Classifier, device: torch.device) -> dict[str, float]:
        """AUC over videos: `videos`, of the validation data as serving sees it; `blends`, of self-blends
        against untouched faces; `metric`, the mean of those that there are. For a look, `videos/GENERATOR`:
        the fakes of one generator against all real ones."""
        found: dict[str, float] = {}
        parts: dict[str, float] = {}
        for name, views in (("videos", self._plain), ("blends", self._blends)):
            if views is None:
                continue
            logits = predict(model, views.images, self._config, device)
            aucs = video_aucs(FrameScores(views.videos, views.labels, views.generators, logits))
            if aucs:
                found[name] = aucs.pop("")
            if len(aucs) > 1:
                parts |= {f"{name}/{generator}": value for generator, value in aucs.items()}
        return {"metric": float(np.mean(list(found.values())))} | found | parts


def _gather(images: Iterable[tuple[Any, ...]]) -> Views | None:
    """(video, label, generator, view) of each; None if there are none."""
    rows = list(images)
    if not rows:
        return None
    videos, labels, generators, views = zip(*rows, strict=True)
    return Views(np.stack(views), np.array(labels), videos, generators)


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


def video_aucs(scores: FrameScores) -> dict[str, float]:
    """AUC over videos, each by the mean probability of its crops, as serving sees it: by generator of the
    fakes, against all real ones; under "" of all fakes together. Empty without both real and fake ones."""
    videos = by_video(scores, probabilities(scores, Calibration()))
    fake = videos.labels == FAKE
    if fake.all() or not fake.any():
        return {}
    aucs = {"": auc(videos.labels, videos.probabilities)}
    generators = np.array(videos.generators)
    for generator in sorted(set(generators[fake].tolist())):
        chosen = ~fake | (generators == generator)
        aucs[generator] = auc(videos.labels[chosen], videos.probabilities[chosen])
    return aucs

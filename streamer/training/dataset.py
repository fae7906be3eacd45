"""Crop records -> batches.

What a batch holds follows from the seed, its step and the process's rank alone, so neither the number of
workers nor an interruption changes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeVar, get_args

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from streamer.errors import TrainingError
from streamer.training.alignment import find_partner
from streamer.training.altered import altered_pixels
from streamer.training.augment import View, make_views
from streamer.training.autoencoder import FaceAutoencoder, decode_face, load_autoencoder
from streamer.training.blend import Blended, cross_blend, decoded_blend, self_blend
from streamer.training.config import TrainConfig
from streamer.training.crops import face_picture, parse_record, read_crop, to_lines
from streamer.training.types import FAKE, REAL, CropRecord, Sample
from streamer.training.workers import begin_worker, without_interrupts
from streamer.types import Float32Array, UInt8Array

SAME_FRAME_SECONDS = 0.005
"""Containers round times, at worst to milliseconds; frames are further apart up to 100 a second."""

T = TypeVar("T")
Kind = Literal["self_blended", "cross_blended", "dataset_fake", "decoded"]
KINDS: tuple[Kind, ...] = get_args(Kind)

MASK_STRIDE = 16
"""Pixels of the input to one cell of the mask head, which works from stage `classifiers.MAP_STAGE`."""

ATTEMPTS = 10
"""Draws of another face when one cannot be blended, before something must be wrong with all of them."""


class Batch(NamedTuple):
    """n images; the fake and the real one of a pair follow each other."""

    images: torch.Tensor
    """(n, s, s, 3) uint8 RGB."""
    labels: torch.Tensor
    """(n, 1) float32, REAL or FAKE."""
    masks: torch.Tensor
    """(n, 1, s/16, s/16) float32 in [0, 1], share of each cell that was altered; zeros where not known."""
    known: torch.Tensor
    """(n, 1) float32, 1 where the mask is known, else 0."""

    def to(self, device: torch.device) -> Batch:
        """The same on a device."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


class PackedRecords:
    """Crop records as lines of the index: a fraction of the objects' memory, which every worker process has
    to hold, and handed to it in a moment. DFDC has over a million."""

    def __init__(self, records: Sequence[CropRecord]) -> None:
        self._lines = to_lines(records).splitlines()

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> CropRecord:
        return parse_record(self._lines[index])


class Balance:
    """Draws records of one label: a generator, one of its groups, a video of it, a crop of that."""

    def __init__(self, records: Sequence[CropRecord], label: int, evenness: float) -> None:
        """evenness: see `MixtureConfig`."""
        found: dict[tuple[str, str], dict[str, dict[str, list[int]]]] = {}
        for index, record in enumerate(records):
            if record.label == label:
                groups = found.setdefault((record.source, record.generator), {})
                groups.setdefault(record.group, {}).setdefault(record.item, []).append(index)
        self._indices = [
            [list(videos.values()) for videos in groups.values()] for _, groups in sorted(found.items())
        ]
        weights = np.array([len(groups) for groups in self._indices], np.float64) ** (1 - evenness)
        self.shares = weights / weights.sum()
        """(generators,) float64, in the order of their names."""

    def __bool__(self) -> bool:
        return bool(self._indices)

    def draw(self, rng: np.random.Generator) -> int:
        """Index of a record."""
        drawn: Any = self._indices[int(rng.choice(len(self._indices), p=self.shares))]
        while isinstance(drawn, list):
            drawn = drawn[int(rng.integers(len(drawn)))]
        return int(drawn)


class TrainBatches(Dataset[Batch]):
    """Batches by step, [0, steps): the share of them that one process of `world` trains on."""

    def __init__(
        self,
        records: Sequence[CropRecord],
        cache: Path,
        config: TrainConfig,
        *,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """records: to train on. Raises TrainingError if they cannot give a kind of pair that is wanted."""
        self._records, self._cache, self._config, self._rank = PackedRecords(records), cache, config, rank
        if config.batch % (2 * world):
            raise TrainingError(f"batch {config.batch} cannot be shared by {world} processes in pairs")
        self._pairs = config.batch // (2 * world)
        self._real = Balance(records, REAL, config.mixture.evenness)
        self._fake = Balance(records, FAKE, config.mixture.evenness)
        self._real_videos: dict[str, list[int]] = {}
        for index, record in enumerate(records):
            if record.label == REAL:
                self._real_videos.setdefault(record.item, []).append(index)
        weights = np.array([getattr(config.mixture, kind) for kind in KINDS], np.float64)
        self._weights = weights / weights.sum()
        people = {record.group for record in records if record.label == REAL}
        if not people:
            raise TrainingError("no real faces among the training crops")
        if config.mixture.decoded:
            _autoencoder(config)  # here, lest it be missed after minutes
        if config.mixture.dataset_fake and not self._fake:
            raise TrainingError("mixture.dataset_fake is above 0, but no training crop is fake")
        if config.mixture.cross_blended and len(people) < 2:
            raise TrainingError(
                "mixture.cross_blended is above 0, but all real training crops are of one group"
            )

    def __len__(self) -> int:
        return self._config.steps

    def __getitem__(self, step: int) -> Batch:
        """Raises TrainingError where a crop cannot be read, or nothing can be blended."""
        samples: list[Sample] = []
        for pair in range(self._pairs):
            samples += self.pair(np.random.default_rng((self._config.seed, step, self._rank, pair)))
        return collate(samples)

    def pair(self, rng: np.random.Generator) -> tuple[Sample, Sample]:
        """A fake and a real picture under the same random changes."""
        kind = KINDS[int(rng.choice(len(KINDS), p=self._weights))]
        if kind == "dataset_fake":
            return self._dataset_pair(rng)
        record, blended = self._blend(kind, rng)
        (fake, mask), (real, _) = self._views([blended.fake, blended.real], [blended.mask, None], record, rng)
        return Sample(fake, FAKE, mask), Sample(real, REAL, np.zeros(real.shape[:2], np.float32))

    def _dataset_pair(self, rng: np.random.Generator) -> tuple[Sample, Sample]:
        """The two are cut out separately, each by its own box, with generators of one state."""
        fake = self._records[self._fake.draw(rng)]
        real = self._original(fake) or self._records[self._real.draw(rng)]
        seed = int(rng.integers(2**63))
        fake_crop, real_crop = (read_crop(self._cache, record) for record in (fake, real))
        altered = None
        if is_same_frame(fake, real) and fake.square and real.square:
            altered = altered_pixels(fake_crop, fake.square, real_crop, real.square)
        ((fake_view, mask),) = self._views([fake_crop], [altered], fake, np.random.default_rng(seed))
        ((real_view, _),) = self._views([real_crop], [None], real, np.random.default_rng(seed))
        nothing = np.zeros(real_view.shape[:2], np.float32)
        return Sample(fake_view, FAKE, mask), Sample(real_view, REAL, nothing)

    def _original(self, fake: CropRecord) -> CropRecord | None:
        """The crop of a fake's original that is nearest in time; None: the original is not there."""
        crops = [self._records[index] for index in self._real_videos.get(fake.original or "", ())]
        return min(crops, key=lambda crop: abs(crop.time_seconds - fake.time_seconds), default=None)

    def _blend(self, kind: Kind, rng: np.random.Generator) -> tuple[CropRecord, Blended]:
        """Of a face that can be blended: one that lies outside its crop is passed over."""
        for attempt in range(1, ATTEMPTS + 1):
            record = self._records[self._real.draw(rng)]
            blend = self._blender(kind, record, rng)
            try:
                return record, blend()
            except TrainingError as error:
                if attempt == ATTEMPTS:
                    raise TrainingError(f"{record.file}, the last of {ATTEMPTS} tried: {error}") from error
        raise AssertionError("unreachable")

    def _blender(self, kind: Kind, record: CropRecord, rng: np.random.Generator) -> Callable[[], Blended]:
        """What blends the face of a record; all that it needs has been read."""
        face, config = face_picture(self._cache, record), self._config.blend
        if kind == "cross_blended":
            partner = find_partner(record, lambda: self._records[self._real.draw(rng)])
            return partial(cross_blend, face, face_picture(self._cache, partner), rng, config)
        if kind == "decoded":
            network = _autoencoder(self._config)
            decoded, where = decode_face(face.rgb, face.keypoints, record.box, network, rng)
            return partial(decoded_blend, face, decoded, where, rng, config)
        return partial(self_blend, face.rgb, face.landmarks, face.keypoints, rng, config)

    def _views(
        self,
        images: Sequence[UInt8Array],
        masks: Sequence[Float32Array | None],
        record: CropRecord,
        rng: np.random.Generator,
    ) -> list[View]:
        shape = self._config.input
        return make_views(
            images,
            masks,
            record.box,
            margin=shape.margin,
            size=shape.size,
            rng=rng,
            config=self._config.augment,
        )


def _autoencoder(config: TrainConfig) -> FaceAutoencoder:
    assert config.mixture.autoencoder, "checked by the configuration"
    return load_autoencoder(config.mixture.autoencoder)


def is_same_frame(fake: CropRecord, real: CropRecord) -> bool:
    """Whether a crop is of the very frame that a fake was made of."""
    return fake.original == real.item and abs(fake.time_seconds - real.time_seconds) < SAME_FRAME_SECONDS


def collate(samples: Sequence[Sample]) -> Batch:
    """Samples of one size -> batch; masks are averaged over the cells of the mask head."""
    cells = samples[0].rgb.shape[0] // MASK_STRIDE
    masks = np.zeros((len(samples), 1, cells, cells), np.float32)
    for target, sample in zip(masks, samples, strict=True):
        if sample.mask is not None:
            target[0] = cv2.resize(sample.mask, (cells, cells), interpolation=cv2.INTER_AREA)
    return Batch(
        torch.from_numpy(np.stack([sample.rgb for sample in samples])),
        torch.tensor([[sample.label] for sample in samples], dtype=torch.float32),
        torch.from_numpy(masks),
        torch.tensor([[sample.mask is not None] for sample in samples], dtype=torch.float32),
    )


def loader(dataset: Dataset[T], steps: Sequence[int], *, workers: int, pin: bool = False) -> Iterator[T]:
    """Items `steps` of a dataset, in that order, each prepared by one of `workers` processes (0: by this).

    pin: put them into page-locked memory, for CUDA. Raises TrainingError.
    """
    items: DataLoader[T] = DataLoader(
        dataset,
        batch_size=None,
        sampler=steps,
        num_workers=workers,
        pin_memory=pin,
        collate_fn=_as_it_is,
        worker_init_fn=_begin,
        # Not forked: this process has threads.
        multiprocessing_context="spawn" if workers else None,
    )
    with without_interrupts():
        batches = iter(items)
    try:
        yield from batches
    except TrainingError as error:
        # Torch puts the worker's traceback, which ends with the message, into that of its own.
        raise TrainingError(str(error).rpartition(f"{TrainingError.__name__}: ")[2].strip()) from error


def _as_it_is(item: T) -> T:
    return item


def _begin(worker: int) -> None:
    begin_worker()  # torch's own watch misses a parent that died before the worker came up
    torch.set_num_threads(1)

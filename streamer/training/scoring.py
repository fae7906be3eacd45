"""Faces of labelled videos -> logits of one or more networks, each face seen as the service would see it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias
from zlib import crc32

import numpy as np

from streamer.backends.base import Network
from streamer.backends.images import normalise
from streamer.engines import IMAGENET
from streamer.errors import TrainingError
from streamer.manifest import Calibration
from streamer.training.alignment import FacePicture, find_partner
from streamer.training.augment import plain_view
from streamer.training.blend import BlendConfig, Blended, cross_blend, self_blend
from streamer.training.crops import face_picture, read_crop
from streamer.training.figures import ENSEMBLE
from streamer.training.metrics import Scores, probabilities
from streamer.training.types import FAKE, REAL, CropRecord, FrameScores
from streamer.types import Float32Array, UInt8Array

if TYPE_CHECKING:
    from torch import nn

MARGIN = 0.3
"""As `faces.margin` of the default configuration."""

BATCH = 32

BLEND_SEED = 20_220_619
"""First day of CVPR 2022, where self-blended images were presented. The blends of an evaluation are the same
every time."""

BlendKind = Literal["self-blend", "cross-blend"]

NEUTRAL = Calibration()
"""Leaves the logit as it is."""

Degrade = Callable[[UInt8Array, np.random.Generator], UInt8Array]
"""(height, width, 3) uint8 RGB -> the same picture degraded, of any size with the same aspect ratio."""


Views: TypeAlias = Mapping[int, UInt8Array]
"""Size in pixels -> crop of a face, (size, size, 3) uint8."""


@dataclass(frozen=True, slots=True)
class Face:
    """One face of a labelled video, in its picture."""

    video: str
    label: int
    generator: str
    rgb: UInt8Array
    """(height, width, 3) uint8 RGB, wider around the face than what serving cuts out."""
    box: tuple[float, float, float, float]
    """x_min, y_min, x_max, y_max, pixels."""


class FaceSet(Protocol):
    """Faces that can be asked for one by one, from several threads."""

    def __len__(self) -> int: ...

    def faces(self, index: int) -> list[Face]:
        """Faces that belong together: they are degraded in the same way. Raises TrainingError."""
        ...

    def people(self) -> dict[str, str]:
        """Video -> group of the people in it."""
        ...


class RecordFaces:
    """Faces of a crop cache as they are."""

    def __init__(self, records: Sequence[CropRecord], cache: Path) -> None:
        self._records, self._cache = records, cache

    def __len__(self) -> int:
        return len(self._records)

    def faces(self, index: int) -> list[Face]:
        """One face."""
        record = self._records[index]
        rgb = read_crop(self._cache, record)
        return [Face(record.item, record.label, record.generator, rgb, record.box)]

    def people(self) -> dict[str, str]:
        """See `FaceSet`."""
        return {record.item: record.group for record in self._records}


class Blends:
    """Untouched faces, and of each a blend; a self-blend is the same in every set that it is part of.

    Blends and untouched faces differ as in training, except that the untouched face is always the picture as
    it is: never the changed copy that a blend may have for a background.
    """

    def __init__(
        self,
        records: Sequence[CropRecord],
        cache: Path,
        kind: BlendKind = "self-blend",
        *,
        config: BlendConfig | None = None,
        seed: int = BLEND_SEED,
    ) -> None:
        """records: real ones are taken, the others left out. Raises TrainingError if there is no other
        person to blend in."""
        self._records = [record for record in records if record.label == REAL]
        self._cache, self._kind, self._config, self._seed = cache, kind, config or BlendConfig(), seed
        if kind == "cross-blend" and len({record.group for record in self._records}) == 1:
            raise TrainingError(f"{cache}: all real faces are of one group, none can be blended into another")

    def __len__(self) -> int:
        return len(self._records)

    def faces(self, index: int) -> list[Face]:
        """The untouched face and its blend; nothing if it cannot be blended, as part of it is cut off."""
        record = self._records[index]
        face = face_picture(self._cache, record)
        rng = np.random.default_rng((self._seed, crc32(record.file.encode())))
        blend = self._blender(record, face, rng)
        try:
            blended = blend()
        except TrainingError:
            return []
        return [
            Face(record.item, REAL, record.generator, face.rgb, record.box),
            Face(self._blend_of(record.item), FAKE, self._kind, blended.fake, record.box),
        ]

    def people(self) -> dict[str, str]:
        """See `FaceSet`."""
        groups = {record.item: record.group for record in self._records}
        return groups | {self._blend_of(item): group for item, group in groups.items()}

    def _blender(
        self, record: CropRecord, face: FacePicture, rng: np.random.Generator
    ) -> Callable[[], Blended]:
        """What blends a face; all that it needs has been read."""
        if self._kind == "self-blend":
            return partial(self_blend, face.rgb, face.landmarks, face.keypoints, rng, self._config)
        other = find_partner(record, lambda: self._records[int(rng.integers(len(self._records)))])
        return partial(cross_blend, face, face_picture(self._cache, other), rng, self._config)

    def _blend_of(self, item: str) -> str:
        return f"{item}#{self._kind}"


@dataclass(frozen=True, slots=True)
class Scorer:
    """A network to be measured."""

    name: str
    size: int
    """Of its input, pixels."""
    predict: Callable[[UInt8Array], Float32Array]
    """(n, size, size, 3) uint8 RGB -> (n,) float32 logits."""
    calibration: Calibration = NEUTRAL


def network_scorer(network: Network) -> Scorer:
    """A member as the service runs it, with the calibration of its manifest."""

    def predict(images: UInt8Array) -> Float32Array:
        logits, *_ = network.run(images)
        return logits[:, 0]

    manifest = network.manifest
    return Scorer(manifest.name, manifest.input.height, predict, manifest.calibration)


def torch_scorer(name: str, model: nn.Module, *, size: int) -> Scorer:
    """A classifier in torch, f32, where its weights are, not calibrated; it is put into evaluation mode."""
    import torch

    model.eval()
    device = next(model.parameters()).device

    def predict(images: UInt8Array) -> Float32Array:
        with torch.inference_mode():
            logit, _ = model(torch.from_numpy(normalise(images, IMAGENET)).to(device))
        return np.asarray(logit[:, 0].float().cpu().numpy(), np.float32)

    return Scorer(name, size, predict)


def checkpoint_scorer(name: str, checkpoint: Path, *, size: int) -> Scorer:
    """A checkpoint's network in torch, on a GPU if there is one, not calibrated. Raises TrainingError."""
    import torch

    from streamer.training.checkpoint import load_model

    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch_scorer(name, load_model(checkpoint).to(device), size=size)


def score_faces(
    scorers: Sequence[Scorer],
    faces: FaceSet,
    *,
    margin: float = MARGIN,
    batch: int = BATCH,
    degrade: Degrade | None = None,
    seed: int = 0,
    workers: int = 1,
) -> list[FrameScores]:
    """Logits of every face by each network, in the order of the scorers.

    margin: see `crop_faces`. degrade: done to the whole picture first, with a generator seeded by (seed,
    index), so that the faces of one index suffer the same. workers: threads that prepare crops. Raises
    TrainingError.
    """
    sizes = {scorer.size for scorer in scorers}

    def prepare(index: int) -> list[tuple[Face, Views]]:
        return [
            (face, _views(face, margin, sizes, degrade, np.random.default_rng((seed, index))))
            for face in faces.faces(index)
        ]

    seen: list[tuple[str, int, str]] = []
    logits: list[list[Float32Array]] = [[] for _ in scorers]
    for part in _in_batches(prepare, len(faces), batch, workers):
        seen += [(face.video, face.label, face.generator) for face, _ in part]
        for scorer, column in zip(scorers, logits, strict=True):
            column.append(_predict(scorer, np.stack([views[scorer.size] for _, views in part])))
    if not seen:
        raise TrainingError("no faces to score")
    videos, labels, generators = zip(*seen, strict=True)
    return [
        FrameScores(videos, np.array(labels, np.int64), generators, np.concatenate(column))
        for column in logits
    ]


def probabilities_of(scorers: Sequence[Scorer], scores: Sequence[FrameScores]) -> dict[str, Scores]:
    """Name -> (n,) of every crop: members, then the ensemble if there are several."""
    found = {
        scorer.name: probabilities(own, scorer.calibration)
        for scorer, own in zip(scorers, scores, strict=True)
    }
    if len(scorers) > 1:
        found[ENSEMBLE] = np.mean(list(found.values()), axis=0)
    return found


def _views(
    face: Face, margin: float, sizes: Collection[int], degrade: Degrade | None, rng: np.random.Generator
) -> Views:
    """The crops that serving would cut out of the degraded picture."""
    rgb = face.rgb if degrade is None else degrade(face.rgb, rng)
    scale = rgb.shape[1] / face.rgb.shape[1]
    box = [scale * side for side in face.box]
    return {size: plain_view(rgb, box, margin=margin, size=size) for size in sizes}


def _in_batches(
    prepare: Callable[[int], list[tuple[Face, Views]]], count: int, batch: int, workers: int
) -> Iterator[list[tuple[Face, Views]]]:
    """What `prepare` gives, in order, in lists of about `batch`; one list is prepared ahead."""
    parts = [range(start, min(start + batch, count)) for start in range(0, count, batch)]
    with ThreadPoolExecutor(workers) as pool:
        ahead = [pool.submit(prepare, index) for index in parts[0]] if parts else []
        for number in range(len(parts)):
            current = ahead
            ahead = [pool.submit(prepare, index) for part in parts[number + 1 : number + 2] for index in part]
            try:
                found = [face for future in current for face in future.result()]
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
            if found:
                yield found


def _predict(scorer: Scorer, views: UInt8Array) -> Float32Array:
    """(n,) float32 logits, or TrainingError."""
    logits = scorer.predict(views)
    if logits.shape != (len(views),) or not np.isfinite(logits).all():
        raise TrainingError(
            f"{scorer.name}: {len(views)} finite logits expected, got shape {logits.shape} with "
            f"{int(np.sum(~np.isfinite(logits)))} NaN or infinite"
        )
    return logits

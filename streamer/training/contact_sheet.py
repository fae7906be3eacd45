"""A picture of everything that augmentation and blending do to some faces, for people to judge."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from streamer.errors import TrainingError
from streamer.training.alignment import FacePicture, misfit
from streamer.training.augment import AUGMENTATIONS, AugmentConfig, Box, make_views, plain_view
from streamer.training.blend import (
    BlendConfig,
    Blended,
    RegionWeights,
    cross_blend,
    decoded_blend,
    self_blend,
)
from streamer.training.config import load_recipe
from streamer.training.crops import face_picture, read_split
from streamer.training.face_regions import REGIONS, Region
from streamer.training.types import REAL
from streamer.types import Float32Array, UInt8Array

CRFS = (18.0, 23.0, 32.0, 40.0)
"""Rows of their own, with what FaceForensics++ calls c23 and c40 among them."""
SIZE_PX = 160
"""Of a face, in a sheet that is written."""
LABEL_PX = 150
GAP_PX = 4
MASK_COLOUR = np.array([255, 0, 80], np.float32)


@dataclass(frozen=True, slots=True)
class SheetFace:
    """A cached crop and where the face is in it."""

    picture: FacePicture
    box: Box


Decode = Callable[[SheetFace, np.random.Generator], tuple[UInt8Array, Float32Array]]
"""Gives what `autoencoder.decode_face` gives."""


@dataclass(frozen=True, slots=True)
class _Style:
    margin: float
    size: int

    def plain(self, rgb: UInt8Array, face: SheetFace) -> UInt8Array:
        return plain_view(rgb, face.box, margin=self.margin, size=self.size)

    def augmented(self, face: SheetFace, config: AugmentConfig, rng: np.random.Generator) -> UInt8Array:
        ((view, _),) = make_views(
            [face.picture.rgb],
            [None],
            face.box,
            margin=self.margin,
            size=self.size,
            rng=rng,
            config=config,
        )
        return view


def write_contact_sheet(path: Path, *, cache: Path, recipe: Path | None, faces: int, seed: int) -> None:
    """Write `contact_sheet` of real training faces, each of another video, as PNG. Raises TrainingError."""
    real = [record for record in read_split(cache, "train") if record.label == REAL]
    by_item = {record.item: record for record in real}
    records = sorted(by_item.values(), key=lambda record: record.item)
    rng = np.random.default_rng(seed)
    chosen = [records[k] for k in rng.permutation(len(records))[:faces]]
    config = None if recipe is None else load_recipe(recipe)
    sheet = contact_sheet(
        [SheetFace(face_picture(cache, record), record.box) for record in chosen],
        margin=0.3 if config is None else config.input.margin,
        size=SIZE_PX,
        augment=AugmentConfig() if config is None else config.augment,
        blend=BlendConfig() if config is None else config.blend,
        decode=_decoder(config.mixture.autoencoder) if config and config.mixture.autoencoder else None,
        seed=seed,
    )
    done, png = cv2.imencode(".png", cv2.cvtColor(sheet, cv2.COLOR_RGB2BGR))
    assert done
    try:
        path.write_bytes(png.tobytes())
    except OSError as error:
        raise TrainingError(f"{path}: cannot write the contact sheet: {error.strerror}") from error


def _decoder(path: Path) -> Decode:
    from streamer.training.autoencoder import decode_face, load_autoencoder

    network = load_autoencoder(path)
    return lambda face, rng: decode_face(face.picture.rgb, face.picture.keypoints, face.box, network, rng)


def contact_sheet(
    faces: Sequence[SheetFace],
    *,
    margin: float,
    size: int,
    augment: AugmentConfig,
    blend: BlendConfig,
    decode: Decode | None = None,
    seed: int,
) -> UInt8Array:
    """Sheet, (height, width, 3) uint8 RGB: a labelled row for each augmentation and each kind of blend.

    A face has three columns. Augmentations: untouched, then two draws; those switched off are shown too.
    Blends: the real picture, the fake, the fake with its mask in colour; a cross-blend takes the one of the
    other faces that fits best. faces: at least two. margin, size: as of `plain_view`. decode: None leaves the
    decoded blend out. Raises TrainingError.
    """
    if len(faces) < 2:
        raise TrainingError(f"a contact sheet needs two faces or more, got {len(faces)}")
    style = _Style(margin, size)
    rng = np.random.default_rng(seed)
    rows = [_row(label, tiles, size) for label, tiles in _augmentation_rows(faces, style, augment, rng)]
    rows += [_row(label, tiles, size) for label, tiles in _blend_rows(faces, style, blend, decode, rng)]
    return np.concatenate(rows)


def _augmentation_rows(
    faces: Sequence[SheetFace], style: _Style, config: AugmentConfig, rng: np.random.Generator
) -> Iterator[tuple[str, list[UInt8Array]]]:
    shown = [(name, config.only(name)) for name in AUGMENTATIONS]
    for crf in CRFS:
        fixed = config.h264.model_copy(update={"crf": (crf, crf)})
        shown.append((f"h264 CRF {crf:g}", config.model_copy(update={"h264": fixed}).only("h264")))
    shown.append(("all as configured", config))
    for label, one in shown:
        yield (
            label,
            [
                tile
                for face in faces
                for tile in (
                    style.plain(face.picture.rgb, face),
                    *(style.augmented(face, one, rng) for _ in range(2)),
                )
            ],
        )


def _blend_rows(
    faces: Sequence[SheetFace],
    style: _Style,
    config: BlendConfig,
    decode: Decode | None,
    rng: np.random.Generator,
) -> Iterator[tuple[str, list[UInt8Array]]]:
    def by_itself(face: SheetFace, one: BlendConfig) -> Blended:
        return self_blend(face.picture.rgb, face.picture.landmarks, face.picture.keypoints, rng, one)

    def by_keypoints(face: SheetFace, one: BlendConfig) -> Blended:
        return self_blend(face.picture.rgb, None, face.picture.keypoints, rng, one)

    def by_another(face: SheetFace, one: BlendConfig) -> Blended:
        others = [other.picture for other in faces if other is not face]
        return cross_blend(face.picture, min(others, key=lambda other: misfit(other, face.picture)), rng, one)

    def by_decoder(face: SheetFace, one: BlendConfig) -> Blended:
        assert decode, "the row is there with it only"
        return decoded_blend(face.picture, *decode(face, rng), rng, one)

    shown: list[tuple[str, Callable[[SheetFace, BlendConfig], Blended], BlendConfig]] = [
        (f"self {region}", by_itself, config.model_copy(update={"regions": _only(region)}))
        for region in REGIONS
    ]
    shown += [
        ("self by keypoints", by_keypoints, config),
        ("self Poisson", by_itself, config.model_copy(update={"poisson": 1.0})),
        ("cross", by_another, config),
        ("cross face", by_another, config.model_copy(update={"regions": _only("face")})),
    ]
    if decode:
        shown.append(("decoded", by_decoder, config))
    for label, make, one in shown:
        tiles = []
        for face in faces:
            made = make(face, one)
            tiles += [
                style.plain(rgb, face) for rgb in (made.real, made.fake, _coloured(made.fake, made.mask))
            ]
        yield label, tiles


def _only(region: Region) -> RegionWeights:
    return RegionWeights(**{each: float(each == region) for each in REGIONS})


def _coloured(rgb: UInt8Array, mask: Float32Array) -> UInt8Array:
    """The picture with its mask laid over it in one colour."""
    mixed = rgb + 0.6 * mask[:, :, None] * (MASK_COLOUR - rgb)
    return np.asarray(np.rint(mixed), np.uint8)


def _row(label: str, tiles: list[UInt8Array], size: int) -> UInt8Array:
    row = np.full((size + GAP_PX, LABEL_PX + len(tiles) * (size + GAP_PX), 3), 255, np.uint8)
    cv2.putText(
        row, label, (4, size // 2), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (0, 0, 0), 1, lineType=cv2.LINE_AA
    )
    for index, tile in enumerate(tiles):
        left = LABEL_PX + index * (size + GAP_PX)
        row[:size, left : left + size] = tile
    return row

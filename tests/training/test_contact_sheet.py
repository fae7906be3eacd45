"""The contact sheet: every augmentation and blend has its row."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from portraits import astronaut, moved
from records import record_of

from streamer.errors import TrainingError
from streamer.training.augment import AUGMENTATIONS, AugmentConfig
from streamer.training.blend import BlendConfig
from streamer.training.contact_sheet import (
    CRFS,
    GAP_PX,
    LABEL_PX,
    SIZE_PX,
    SheetFace,
    contact_sheet,
    write_contact_sheet,
)
from streamer.training.crops import INDEX, Crop, to_lines, write_crop
from streamer.training.face_regions import REGIONS
from streamer.types import Float32Array, UInt8Array

SIZE = 48
BLEND_ROWS = len(REGIONS) + 4


def faces() -> list[SheetFace]:
    face = astronaut()
    turned = moved(face.picture, np.array([[-1, 0, 207], [0, 1, 0]], np.float32), 208)
    return [face, SheetFace(turned, (207 - face.box[2], face.box[1], 207 - face.box[0], face.box[3]))]


def sheet(seed: int = 0) -> UInt8Array:
    return contact_sheet(
        faces(), margin=0.3, size=SIZE, augment=AugmentConfig(), blend=BlendConfig(), seed=seed
    )


def test_every_augmentation_and_blend_is_on_it() -> None:
    picture = sheet()
    rows = len(AUGMENTATIONS) + len(CRFS) + 1 + BLEND_ROWS
    assert picture.shape == (rows * (SIZE + GAP_PX), LABEL_PX + 6 * (SIZE + GAP_PX), 3)
    tiles = [
        [
            picture[top : top + SIZE, left : left + SIZE]
            for left in range(LABEL_PX, picture.shape[1], SIZE + GAP_PX)
        ]
        for top in range(0, picture.shape[0], SIZE + GAP_PX)
    ]
    for top, row in zip(range(0, picture.shape[0], SIZE + GAP_PX), tiles, strict=True):
        assert picture[top : top + SIZE, :LABEL_PX].min() < 100, "a label"
        for first, second, third in (row[:3], row[3:]):
            assert not np.array_equal(first, second)
            assert not np.array_equal(first, third)
    plain = {tiles[row][0].tobytes() for row in range(rows - BLEND_ROWS)}
    assert len(plain) == 1
    np.testing.assert_array_equal(picture, sheet())
    assert not np.array_equal(picture, sheet(seed=1))


def test_decoded_blends_have_a_row_if_there_is_a_decoder() -> None:
    def decode(face: SheetFace, _: np.random.Generator) -> tuple[UInt8Array, Float32Array]:
        rgb = face.picture.rgb
        return np.asarray(255 - rgb, np.uint8), np.ones(rgb.shape[:2], np.float32)

    picture = contact_sheet(
        faces(), margin=0.3, size=SIZE, augment=AugmentConfig(), blend=BlendConfig(), decode=decode, seed=0
    )
    row = SIZE + GAP_PX
    np.testing.assert_array_equal(picture[:-row], sheet())
    real, fake = (
        picture[-row:-GAP_PX, left : left + SIZE].astype(int) for left in (LABEL_PX, LABEL_PX + row)
    )
    assert np.abs(fake - real).max() > 50


def test_from_a_cache_to_a_file(tmp_path: Path) -> None:
    records = []
    for number, face in enumerate(faces()):
        file = f"crops/{number}.png"
        keypoints = tuple((float(x), float(y)) for x, y in face.picture.keypoints)
        box = tuple(map(float, face.box))
        assert len(box) == 4
        landmarks = face.picture.landmarks if number else None
        crop = Crop(face.picture.rgb, 0.0, box, keypoints, landmarks)
        write_crop(tmp_path, file, crop)
        records.append(
            record_of(str(number), file=file, box=box, keypoints=keypoints, landmarks=landmarks is not None)
        )
    (tmp_path / INDEX).write_text(to_lines(records))
    path = tmp_path / "sheet.png"
    write_contact_sheet(path, cache=tmp_path, recipe=None, faces=2, seed=0)
    written = cv2.imread(str(path))
    assert written is not None
    rows = sheet().shape[0] // (SIZE + GAP_PX)
    assert written.shape == (rows * (SIZE_PX + GAP_PX), LABEL_PX + 6 * (SIZE_PX + GAP_PX), 3)
    with pytest.raises(TrainingError, match="cannot write the contact sheet"):
        write_contact_sheet(tmp_path / "no" / "x.png", cache=tmp_path, recipe=None, faces=2, seed=0)


def test_one_face_is_not_enough() -> None:
    with pytest.raises(TrainingError, match="two faces or more, got 1"):
        contact_sheet(
            faces()[:1], margin=0.3, size=SIZE, augment=AugmentConfig(), blend=BlendConfig(), seed=0
        )

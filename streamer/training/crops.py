"""The cache of face crops: what lies in it, how a crop gets in, how it is read.

    CACHE/cache.json     what it was made with
    CACHE/index.jsonl    a `CropRecord` a line
    CACHE/items.jsonl    a `Finished` a line, one for each item that was looked at
    CACHE/crops/...      PNG files and landmarks

A crop is wider than what serving cuts out, so that training can shift and turn what it takes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from streamer.errors import TrainingError
from streamer.faces.crop import crop_faces, crop_squares
from streamer.faces.detect import FaceDetector
from streamer.training.alignment import FacePicture
from streamer.training.face_regions import face_size_px
from streamer.training.landmarks import POINTS, LandmarkFinder
from streamer.training.types import CropRecord, Split
from streamer.types import Faces, Float32Array, Frame, UInt8Array
from streamer.whole_file import write_whole

MARGIN = 0.6
"""Of a cached crop, in longer sides of the box on each side: twice that of serving."""

MAX_SIDE = 384
"""Pixels of a cached crop's side; larger ones are shrunk. Serving shrinks the half of it to 224 or less."""

LONGEST_NAME = 220
"""Bytes of an item's name without its folders that its crops are called after; file systems allow 255."""

INDEX, ITEMS, SETTINGS = "index.jsonl", "items.jsonl", "cache.json"
UNLISTED = "unlisted-"
"""Before the names of index and items: what earlier calls of `prepare` made and the last did not ask for."""


@dataclass(frozen=True, slots=True)
class Crop:
    """A crop on its way into the cache; fields as in `CropRecord`."""

    rgb: UInt8Array
    """(side, side, 3) uint8."""
    time_seconds: float
    box: tuple[float, float, float, float]
    keypoints: tuple[tuple[float, float], ...]
    landmarks: Float32Array | None
    """(468, 2) float32, pixels of the crop; None: not found."""
    square: tuple[float, float, float] | None = None


@dataclass(frozen=True, slots=True)
class Finished:
    """What came of one item."""

    item: str
    """Name as in `CropRecord`."""
    frames: int
    """That were looked at."""
    crops: int
    """Of these, so many showed a face."""
    reason: str = ""
    """Why there is no crop, a short word: `no_face`, `missing`, `unreadable` or that of a DecodeError."""
    text: str = ""
    """The same for people."""

    @property
    def may_change(self) -> bool:
        """Whether it is worth trying again: the file could not even be opened."""
        return self.reason in ("missing", "unreadable")


class FaceCutter:
    """Frames -> the largest face of each."""

    def __init__(self, detector: FaceDetector, finder: LandmarkFinder) -> None:
        self._detector, self._finder = detector, finder

    def cut(self, frame: Frame) -> Crop | None:
        """The largest face, None if there is none, or what was found has no face's keypoints. Blocks. Raises
        InferenceError."""
        (faces,) = self._detector.detect([frame.rgb])
        if len(faces) == 0:
            return None
        rgb, box, keypoints, square = cut_crop(frame.rgb, faces.take(largest(faces)))
        try:
            face_size_px(keypoints)
        except TrainingError:
            return None
        return Crop(
            rgb,
            frame.time_seconds,
            tuple(box.tolist()),
            tuple((x, y) for x, y in keypoints.tolist()),
            self._finder.find(rgb, box, keypoints),
            square,
        )


def largest(faces: Faces) -> NDArray[np.intp]:
    """Index of the face whose box has the largest area, (1,); `faces` must not be empty."""
    areas = np.prod(faces.boxes[:, 2:] - faces.boxes[:, :2], axis=1)
    return np.array([areas.argmax()])


def cut_crop(
    rgb: UInt8Array, face: Faces
) -> tuple[UInt8Array, Float32Array, Float32Array, tuple[float, float, float]]:
    """Cut one face out of a frame as the cache keeps it.

    rgb: (height, width, 3) uint8. face: of length 1, pixels of the frame. Returns the crop, (side, side, 3)
    with side <= MAX_SIDE, in its pixels box (4,) and keypoints (6, 2), and where it lies in the frame.
    """
    # As crop_faces rounds it.
    square = np.rint(crop_squares(face.boxes, MARGIN))[0]
    side = int(max(1, *(square[2:] - square[:2])))
    size = min(side, MAX_SIDE)
    crop = crop_faces(rgb, face.boxes, margin=MARGIN, size=size)[0]
    scale = np.float32(size / side)
    box = (face.boxes[0] - np.tile(square[:2], 2)) * scale
    x_min, y_min = square[:2].tolist()
    return crop, box, (face.keypoints[0] - square[:2]) * scale, (x_min, y_min, float(side))


def file_of(item: str, frame: int) -> str:
    """Of a crop: its PNG, relative to the cache's folder, called after the item as far as its name's length
    leaves room for what `write_crop` adds to it."""
    *folders, name = item.split("/")
    encoded = name.encode()
    if len(encoded) > LONGEST_NAME:
        digest = hashlib.sha256(encoded).hexdigest()[:16]
        name = f"{encoded[: LONGEST_NAME - 17].decode('utf-8', 'ignore')}-{digest}"
    return "/".join(("crops", *folders, f"{name}.{frame:03d}.png"))


def write_crop(cache: Path, file: str, crop: Crop) -> None:
    """Write a crop's PNG and, if there are any, its landmarks, each whole or not at all.

    Raises TrainingError.
    """
    path = cache / file
    done, png = cv2.imencode(".png", cv2.cvtColor(crop.rgb, cv2.COLOR_RGB2BGR))
    assert done, file
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if crop.landmarks is not None:
            buffer = io.BytesIO()
            np.save(buffer, crop.landmarks)
            write_whole(path.with_suffix(".npy"), buffer.getvalue())
        write_whole(path, png.tobytes())
    except OSError as error:
        raise TrainingError(f"{path}: cannot write to the cache: {error.strerror}") from error


def read_crop(cache: Path, record: CropRecord) -> UInt8Array:
    """A crop, (side, side, 3) uint8 RGB. Raises TrainingError."""
    path = cache / record.file
    try:
        encoded = np.frombuffer(path.read_bytes(), np.uint8)
    except OSError as error:
        raise TrainingError(f"{path}: cannot read the crop: {error.strerror}; prepare again") from error
    image = cv2.imdecode(encoded, cv2.IMREAD_COLOR) if len(encoded) else None
    if image is None:
        raise TrainingError(f"{path}: damaged; delete it and prepare again")
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), np.uint8)


def read_landmarks(cache: Path, record: CropRecord) -> Float32Array:
    """A crop's landmarks, (468, 2) float32, pixels of the crop. Raises TrainingError."""
    path = (cache / record.file).with_suffix(".npy")
    if not record.landmarks:
        raise TrainingError(f"{path}: this crop has no landmarks, as its record says")
    try:
        landmarks = np.load(path, allow_pickle=False)
    except OSError as error:
        raise TrainingError(f"{path}: cannot read the landmarks: {error.strerror}; prepare again") from error
    except (ValueError, EOFError) as error:
        raise TrainingError(f"{path}: damaged; delete it and prepare again") from error
    if landmarks.shape != (POINTS, 2) or landmarks.dtype != np.float32:
        raise TrainingError(f"{path}: {landmarks.shape} {landmarks.dtype} instead of (468, 2) float32")
    return np.asarray(landmarks, np.float32)


def face_picture(cache: Path, record: CropRecord) -> FacePicture:
    """A crop with what is known of the face in it. Raises TrainingError."""
    landmarks = read_landmarks(cache, record) if record.landmarks else None
    return FacePicture(read_crop(cache, record), landmarks, np.array(record.keypoints, np.float32))


def read_index(cache: Path) -> list[CropRecord]:
    """All records of a cache. Raises TrainingError."""
    path = cache / INDEX
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise TrainingError(f"{path}: cannot read the index: {error.strerror}; prepare first") from error
    try:
        return [parse_record(line) for line in lines]
    except (ValueError, TypeError, KeyError) as error:
        raise TrainingError(
            f"{path}: damaged: {error!r}; prepare again, crops that are there stay"
        ) from error


def read_split(cache: Path, split: Split) -> list[CropRecord]:
    """The records of one part of a cache. Raises TrainingError, if there are none, too."""
    records = [record for record in read_index(cache) if record.split == split]
    if not records:
        raise TrainingError(f"{cache}: no crops of the split {split}")
    return records


def parse_record(line: str) -> CropRecord:
    """A line of the index. Raises ValueError, TypeError or KeyError."""
    fields: dict[str, Any] = json.loads(line)
    x_min, y_min, x_max, y_max = fields["box"]
    square = fields.get("square")
    return CropRecord(
        **fields
        | {
            "box": (x_min, y_min, x_max, y_max),
            "keypoints": tuple((x, y) for x, y in fields["keypoints"]),
            "square": tuple(square) if square else None,
        }
    )


def to_lines(rows: Sequence[CropRecord] | Sequence[Finished]) -> str:
    """As they stand in the index, each line ended."""
    names = [field.name for field in dataclasses.fields(rows[0])] if rows else []
    return "".join(json.dumps({name: getattr(row, name) for name in names}) + "\n" for row in rows)

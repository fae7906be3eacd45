"""Values that the steps of training hand to each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from streamer.types import Float32Array, UInt8Array

Split = Literal["train", "validation", "test"]
SPLITS: tuple[Split, ...] = ("train", "validation", "test")

REAL, FAKE = 0, 1
"""Labels; the networks' logit is that of FAKE."""


@dataclass(frozen=True, slots=True)
class Item:
    """One video or picture of a data set."""

    path: Path
    media: Literal["video", "image"]
    label: int
    """REAL or FAKE."""
    generator: str
    """`real`, or what made the fake: `Deepfakes`, `Face2Face`, `DFDC`, a folder's name, ..."""
    source: str
    """Data set: `dfdc`, `faceforensics`, or the name of a plain folder."""
    groups: tuple[str, ...]
    """People or originals that the item shows, at least one. Items that share one go to the same split; a
    fake names its original's, a face swap those of both people."""
    original: Path | None = None
    """Pristine video or picture of the same frames, if the data set names it."""
    split: Split | None = None
    """Fixed by the data set, or None."""

    def __post_init__(self) -> None:
        if self.label not in (REAL, FAKE) or not self.groups:
            raise ValueError(f"{self.path}: label must be 0 or 1 and groups not empty, got {self}")


@dataclass(frozen=True, slots=True)
class CropRecord:
    """One face crop of the cache, a line of its index. Coordinates: pixels of the crop, (x, y)."""

    file: str
    """PNG, relative to the cache folder: square, RGB, at the frame's resolution or shrunk to the cache's
    largest side. `FILE.npy` beside it (suffix replaced): (468, 2) float32 landmarks, if they were found."""
    item: str
    """Path of the item, relative to its data set's folder: names the video."""
    frame: int
    """Number among the item's sampled frames, >= 0."""
    time_seconds: float
    label: int
    generator: str
    source: str
    group: str
    """Connected groups of the item under one name; never in two splits."""
    split: Split
    box: tuple[float, float, float, float]
    """Of the face: x_min, y_min, x_max, y_max. `streamer.faces.crop.crop_faces(crop, box, margin=...)` gives
    what serving would have cut out of the frame."""
    keypoints: tuple[tuple[float, float], ...]
    """The detector's six: right eye, left eye, nose tip, mouth, right ear, left ear."""
    landmarks: bool
    """Whether the landmarks' file is there."""
    square: tuple[float, float, float] | None = None
    """Where the crop lies in its frame: x_min, y_min, side, pixels of the frame; None: cut before this was
    noted."""
    original: str | None = None
    """`item` of the pristine video, if it is known."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One training image before it becomes a tensor."""

    rgb: UInt8Array
    """(size, size, 3) uint8 RGB."""
    label: int
    mask: Float32Array | None
    """(size, size) float32 in [0, 1], share of each pixel altered; zeros where REAL; None: unknown."""


@dataclass(frozen=True, slots=True)
class FrameScores:
    """Logits of one network (or of an ensemble's mean) on the crops of labelled videos; n crops."""

    videos: tuple[str, ...]
    """(n) name of each crop's video."""
    labels: np.ndarray
    """(n,) int64, REAL or FAKE; equal for all crops of a video."""
    generators: tuple[str, ...]
    """(n)"""
    logits: Float32Array
    """(n,) float32, before calibration."""

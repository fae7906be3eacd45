"""Values that the stages hand to each other. Boxes: (x_min, y_min, x_max, y_max) in frame pixels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

UInt8Array: TypeAlias = NDArray[np.uint8]
Float32Array: TypeAlias = NDArray[np.float32]
Images: TypeAlias = "UInt8Array | Tensor"
"""(n, height, width, 3) uint8 RGB, in memory or on a device."""

Crops: TypeAlias = "tuple[Images, ...]"
"""The same faces at each input size of an ensemble, largest first: each (n, size, size, 3) uint8 RGB."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One decoded frame."""

    rgb: UInt8Array
    """(height, width, 3) uint8, RGB, [0, 255], upright (rotation metadata applied)."""
    time_seconds: float
    """Presentation time within its chunk, >= 0, first frame of the chunk at 0."""

    def __post_init__(self) -> None:
        if self.rgb.ndim != 3 or self.rgb.shape[2] != 3 or self.rgb.dtype != np.uint8:
            raise ValueError(f"rgb must be (height, width, 3) uint8, got {self.rgb.shape} {self.rgb.dtype}")

    def __repr__(self) -> str:
        return f"Frame({self.rgb.shape[1]}x{self.rgb.shape[0]} at {self.time_seconds:.3f} s)"


MATRICES = {
    1: (0.2126, 0.0722),  # BT.709
    4: (0.30, 0.11),  # FCC
    5: (0.299, 0.114),  # BT.470BG
    6: (0.299, 0.114),  # SMPTE 170M
    7: (0.212, 0.087),  # SMPTE 240M
    9: (0.2627, 0.0593),  # BT.2020, constant luminance not
}
"""Number of a colour matrix (ITU-T H.273, table 4) -> (Kr, Kb)."""


class YuvLayout(NamedTuple):
    """How a 4:2:0 picture of 8 bits lies in memory, and what it means."""

    height: int
    """Pixels, before it is turned upright."""
    width: int
    interleaved: bool
    """Chroma is UVUV... (NV12); false: all U, then all V (YUV 4:2:0 planar)."""
    matrix: int
    """Colour matrix, a key of `MATRICES`."""
    full_range: bool
    """Luma is [0, 255]; false: [16, 235]."""
    quarter_turns: int
    """Counterclockwise quarter turns, 0 to 3, that make it upright, after mirroring."""
    mirrored: bool
    """Left and right must be swapped."""

    @property
    def bytes(self) -> int:
        """Size of luma and chroma together."""
        return self.height * self.width + 2 * ((self.height + 1) // 2) * ((self.width + 1) // 2)


@dataclass(frozen=True, slots=True)
class YuvFrame:
    """One decoded frame as the decoder left it, for the GPU to convert; see `streamer.gpu`."""

    planes: UInt8Array
    """(layout.bytes,) uint8: luma, then chroma at half the resolution, row by row."""
    layout: YuvLayout
    time_seconds: float
    """As in `Frame`."""

    def __post_init__(self) -> None:
        layout = self.layout
        if layout.height < 1 or layout.width < 1 or self.planes.shape != (layout.bytes,):
            raise ValueError(f"{self.planes.shape} bytes are no picture of {layout.width}x{layout.height}")
        if layout.matrix not in MATRICES or layout.quarter_turns not in range(4):
            raise ValueError(f"no matrix {layout.matrix} or {layout.quarter_turns} quarter turns")


def as_rgb(frame: Frame | YuvFrame) -> Frame:
    """A frame of a decode pool that was not asked for YUV. Raises TypeError for another."""
    if isinstance(frame, YuvFrame):
        raise TypeError(f"a frame in RGB is expected, this is {frame.layout}")
    return frame


@dataclass(frozen=True, slots=True)
class Faces:
    """All faces found in one frame, best first; n may be 0."""

    boxes: Float32Array
    """(n, 4) float32, (x_min, y_min, x_max, y_max), pixels of the frame, may reach beyond its edges."""
    scores: Float32Array
    """(n,) float32, detector's confidence in [0, 1]."""
    keypoints: Float32Array
    """(n, 6, 2) float32, (x, y) pixels: right eye, left eye, nose tip, mouth, right ear, left ear."""
    left_out: int = 0
    """Faces found beside these, and left out: more than `faces.max_faces_per_frame`."""

    def __post_init__(self) -> None:
        n = len(self.boxes)
        if self.boxes.shape != (n, 4) or self.scores.shape != (n,) or self.keypoints.shape != (n, 6, 2):
            raise ValueError(
                f"boxes, scores, keypoints must be (n, 4), (n,), (n, 6, 2), "
                f"got {self.boxes.shape}, {self.scores.shape}, {self.keypoints.shape}"
            )

    def __len__(self) -> int:
        return len(self.boxes)

    def __repr__(self) -> str:
        return f"Faces({len(self)})"

    @classmethod
    def empty(cls) -> Faces:
        """No face."""
        return cls(np.zeros((0, 4), np.float32), np.zeros((0,), np.float32), np.zeros((0, 6, 2), np.float32))

    def take(self, index: NDArray[np.intp] | NDArray[np.bool_]) -> Faces:
        """Faces selected by an index or mask array, in its order."""
        return Faces(self.boxes[index], self.scores[index], self.keypoints[index])


@dataclass(frozen=True, slots=True)
class Picture:
    """A face as it is shown to people."""

    jpeg: bytes
    """The crop, what the members saw."""
    heat_map: bytes | None
    """Where they see alteration: greyscale PNG of the crop, brighter is likelier; None: they cannot tell."""

    def __repr__(self) -> str:
        heat = "no heat map" if self.heat_map is None else f"heat map of {len(self.heat_map)} bytes"
        return f"Picture({len(self.jpeg)} bytes, {heat})"


THUMBNAIL_SIDE = 8
"""Pixels; 16 tell people apart no better, and every track keeps a thumbnail."""


@dataclass(frozen=True, slots=True)
class FacePrediction:
    """What the ensemble says of one face in one frame."""

    box: tuple[float, float, float, float]
    """(x_min, y_min, x_max, y_max), pixels of the frame."""
    probabilities: tuple[float, ...]
    """Probability of `fake` in [0, 1] by each member, in the order of the ensemble's members."""
    crop: UInt8Array | None = field(default=None, compare=False, repr=False)
    """(size, size, 3) uint8 RGB, what the members saw; None unless `Pipeline.predict` was told to keep it."""
    picture: Picture | None = field(default=None, compare=False)
    """Of the chunk's most suspicious faces, if `Pipeline.predict` was told to make pictures."""
    thumbnail: bytes | None = None
    """The crop in THUMBNAIL_SIDE * THUMBNAIL_SIDE grey levels, row by row, by which tracks know a face again;
    None: not known."""
    shadow: float | None = None
    """Mean probability by the members of `classify.shadow`; None: there are none, or they failed."""


@dataclass(frozen=True, slots=True)
class FramePrediction:
    """What was found in one sampled frame."""

    time_seconds: float
    """Time within the chunk, seconds since its first frame."""
    faces: tuple[FacePrediction, ...]
    unscored: int = 0
    """Faces found beside these; see `Faces.left_out`."""
    size: tuple[int, int] | None = None
    """Width and height of the frame, pixels; None: not known."""


@dataclass(frozen=True, slots=True)
class ChunkPrediction:
    """What was found in one chunk; depends on it and the sampling rate alone, so a replay gives the same."""

    video_id: str
    seq: int
    start_seconds: float | None
    """Position of the chunk's first frame in the video, seconds; None: follows what came before."""
    duration_seconds: float
    """From the first frame to where the last one stops being shown, seconds."""
    frames: tuple[FramePrediction, ...]
    """Sampled frames in order of time."""
    latency_ms: dict[str, float] = field(default_factory=dict)
    """Time spent by stage (`decode`, `detect`, `classify`), waiting included, milliseconds."""
    sampling_rate: float | None = None
    """Samples per second of video that were asked for, > 0; None: not stated."""


OnFace: TypeAlias = Callable[[int, float, FacePrediction], None]
"""Called with the number of a face's track, its time in the video in seconds, and the face."""


@dataclass(frozen=True, slots=True)
class EnsembleInfo:
    """What a score update says of the ensemble."""

    names: tuple[str, ...]
    model_set: str
    trained: bool
    shadow_set: str | None = None
    """`model_set` of the ensemble in `classify.shadow`; None: there is none."""
    shadow_trained: bool = True

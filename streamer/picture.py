"""Decoded frames as a player would show them.

Upright, with square pixels, in the colours that they are tagged with, and without the combs of interlaced
video, of which one field is kept. HDR of PQ is shown as on an ordinary screen (`hdr`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.sidedata.sidedata import Type as SideDataType
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter
from numpy.typing import NDArray

from streamer.errors import DecodeError
from streamer.hdr import PQ, tone_mapped
from streamer.types import MATRICES, UInt8Array, YuvLayout

_HD_HEIGHT = 720  # untagged video is BT.709 from here on and BT.601 below, as players assume
_NO_MATRIX = frozenset({0, 2, 3})
"""RGB, unspecified, reserved (ITU-T H.273, table 4): of YCbCr each says nothing."""
_AVCOL_RANGE_JPEG = 2
_SAME_SHAPE = Fraction(1, 50)
"""Pixels that are less than this from square are taken as square: encoders round aspect ratios."""
_LARGEST_ASPECT = 4
"""Pixels further from square than this are taken as square: no camera makes them."""
_YUV_420 = frozenset({"yuv420p", "yuvj420p", "nv12"})

_reformatter, _separator = VideoReformatter(), VideoReformatter()
"""They keep a conversion's tables from frame to frame: to RGB, and of NV12 to planes."""


@dataclass(frozen=True, slots=True)
class SampledFrame:
    """A frame that sampling kept, not yet converted."""

    picture: Any
    """av.VideoFrame as it was decoded."""
    time_seconds: float
    """Seconds since the chunk's first frame."""
    size: tuple[int, int]
    """Height and width that make its pixels square, before it is turned upright."""

    def shape(self) -> tuple[int, int, int]:
        """(height, width, 3) of the upright frame."""
        height, width = self.size
        swaps = _orientation(self.picture)[0] % 2 == 1
        return (width, height, 3) if swaps else (height, width, 3)

    def yuv_layout(self) -> YuvLayout | None:
        """What `write_yuv` gives; None if the frame is not 4:2:0 of 8 bits with a matrix of `MATRICES`.

        Nor if it is interlaced, of PQ, or its pixels are not square: only `write_rgb` undoes that.
        """
        if self.picture.interlaced_frame or self._is_stretched() or _is_pq(self.picture):
            return None
        matrix, full_range = _colours(self.picture)
        kind = self.picture.format.name
        if kind not in _YUV_420 or matrix not in MATRICES:
            return None
        return YuvLayout(
            self.picture.height,
            self.picture.width,
            kind == "nv12",
            matrix,
            full_range,
            *_orientation(self.picture),
        )

    def write_yuv(self, out: UInt8Array) -> None:
        """Copy luma and chroma as they are into `out`, (yuv_layout().bytes,) uint8."""
        start = 0
        for plane in self.picture.planes:
            samples = 2 if self.picture.format.name == "nv12" and start else 1
            rows, columns = plane.height, samples * plane.width
            stored = np.frombuffer(plane, np.uint8)[: rows * plane.line_size].reshape(rows, plane.line_size)
            out[start : start + rows * columns].reshape(rows, columns)[...] = stored[:, :columns]
            start += rows * columns

    def write_rgb(self, out: UInt8Array) -> None:
        """Convert into `out`: `shape()` uint8, RGB, [0, 255], upright."""
        quarter_turns, mirrored = _orientation(self.picture)
        rgb = _to_rgb(self.picture, *self.size)
        if mirrored:
            rgb = rgb[:, ::-1]
        np.copyto(out, np.rot90(rgb, quarter_turns) if quarter_turns else rgb)

    def _is_stretched(self) -> bool:
        return self.size != (self.picture.height, self.picture.width)


def square_size(picture: Any, aspect: Fraction | None, max_pixels: int) -> tuple[int, int]:
    """Height and width of a decoded frame, one of them stretched so that its pixels become square.

    aspect: a pixel's width by its height; None: not stated. Both are smaller where that would be more than
    `max_pixels`.
    """
    height, width = picture.height, picture.width
    aspect = aspect or Fraction(1)
    if abs(aspect - 1) < _SAME_SHAPE or not Fraction(1, _LARGEST_ASPECT) <= aspect <= _LARGEST_ASPECT:
        return height, width
    if aspect > 1:
        width = round(width * aspect)
    else:
        height = round(height / aspect)
    if height * width > max_pixels:
        shrink = math.sqrt(max_pixels / (height * width))
        height, width = max(1, int(height * shrink)), max(1, int(width * shrink))
    return height, width


def _to_rgb(picture: Any, height: int, width: int) -> UInt8Array:
    """(height, width, 3) uint8 RGB of a decoded frame by its own matrix and range, not yet upright."""
    matrix, full_range = _colours(picture)
    if matrix not in MATRICES:  # YCgCo, ICtCp and the like: by another matrix, the colours would be made up
        raise DecodeError("unsupported_format", f"colours of matrix {matrix} (ITU-T H.273) are not accepted")
    shown = _top_field(picture) if picture.interlaced_frame else picture
    if picture.format.name == "nv12":
        shown = _planar(shown, matrix, full_range)
    converted = _reformatter.reformat(
        shown,
        width=width,
        height=height,
        format="rgb48le" if _is_pq(picture) else "rgb24",
        src_colorspace=matrix,
        src_color_range=ColorRange.JPEG if full_range else ColorRange.MPEG,
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    if _is_pq(picture):
        return tone_mapped(cast(NDArray[np.uint16], converted.to_ndarray()))
    return cast(UInt8Array, converted.to_ndarray())


def _planar(picture: Any, matrix: int, full_range: bool) -> Any:
    """NV12, as NVDEC gives it, as decoders on the CPU give it: of NV12, swscale would blur the chroma."""
    colour_range = ColorRange.JPEG if full_range else ColorRange.MPEG
    return _separator.reformat(
        picture,
        format="yuv420p",
        src_colorspace=matrix,
        dst_colorspace=matrix,
        src_color_range=colour_range,
        dst_color_range=colour_range,
        threads=1,
    )


def _is_pq(picture: Any) -> bool:
    return int(picture.color_trc) == PQ


def _top_field(picture: Any) -> Any:
    """Every second line of a frame, chroma included: what was seen at one moment."""
    field: Any = av.VideoFrame(picture.width, (picture.height + 1) // 2, picture.format.name)
    field.colorspace, field.color_range = picture.colorspace, picture.color_range
    for kept, plane in zip(field.planes, picture.planes, strict=True):
        lines = np.frombuffer(plane, np.uint8)[: plane.height * plane.line_size]
        lines = lines.reshape(plane.height, plane.line_size)[::2]
        out = np.frombuffer(kept, np.uint8)[: kept.height * kept.line_size]
        columns = min(plane.line_size, kept.line_size)
        out.reshape(kept.height, kept.line_size)[:, :columns] = lines[:, :columns]
    return field


def _colours(picture: Any) -> tuple[int, bool]:
    """Matrix (ITU-T H.273) of a decoded frame, and whether its values span the full range."""
    matrix = int(picture.colorspace)
    if matrix in _NO_MATRIX:
        matrix = int(Colorspace.ITU709 if picture.height >= _HD_HEIGHT else Colorspace.ITU601)
    kind = picture.format
    full_range = picture.color_range == _AVCOL_RANGE_JPEG or kind.is_rgb or kind.name.startswith("yuvj")
    return matrix, full_range


def _orientation(picture: Any) -> tuple[int, bool]:
    """How to turn a frame upright: counterclockwise quarter turns (0 to 3), after mirroring left and right.

    Angles in between, which no camera writes, are rounded.
    """
    try:
        matrix = np.frombuffer(bytes(picture.side_data[SideDataType.DISPLAYMATRIX]), np.int32)
    except KeyError:
        return 0, False
    except ValueError:  # side data of a kind that PyAV does not know; `rotation` never looks at those
        return round(picture.rotation / 90) % 4, False
    # Row vectors: (x, y) becomes (a x + c y, b x + d y), 16.16 fixed point; y points down.
    a, b, c, d = (float(matrix[i]) for i in (0, 1, 3, 4))
    mirrored = a * d - b * c < 0
    if mirrored:  # undo it: what remains is a rotation of the mirrored frame
        a, b = -a, -b
    return round(np.arctan2(-b, a) / (np.pi / 2)) % 4, mirrored

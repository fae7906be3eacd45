"""A frame on a GPU, as the detectors and classifiers look at it: the counterpart of `streamer.faces.resize`.

The arithmetic is that of the CPU path, of swscale and OpenCV, to the last bit for colours and windows, so
that a score does not depend on where it was computed. It runs on any PyTorch device, on a CPU too.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from streamer.faces.crop import crop_squares
from streamer.faces.resize import place
from streamer.faces.windows import IntArray
from streamer.types import MATRICES, Float32Array, UInt8Array, YuvLayout


class TorchImage:
    """A frame and its halvings on a device; see `streamer.faces.resize.FrameImage`."""

    def __init__(self, rgb: Tensor) -> None:
        """rgb: (3, height, width) uint8, upright."""
        self._levels = [rgb]

    @property
    def width(self) -> int:
        return int(self._levels[0].shape[2])

    @property
    def height(self) -> int:
        return int(self._levels[0].shape[1])

    def rgb(self) -> UInt8Array:
        """See `FrameImage.rgb`. Waits for the device."""
        return np.ascontiguousarray(self._levels[0].permute(1, 2, 0).cpu().numpy())

    def cut(self, windows: IntArray, size: int) -> tuple[Tensor, Float32Array]:
        """See `FrameImage.cut`; inputs are uint8 on the device. Does not wait for it."""
        placements = [place(window, (self.width, self.height), size) for window in windows.tolist()]
        placed = np.array([placement.affine for placement in placements], np.float32).reshape(-1, 4)
        levels = np.array([placement.level for placement in placements], np.int64)
        device = self._levels[0].device
        inputs = torch.empty((len(windows), size, size, 3), dtype=torch.uint8, device=device)
        for number in np.unique(levels).tolist():
            here = [placement for placement in placements if placement.level == number]
            columns = [(p.left, p.right, p.width, p.pad_x) for p in here]
            rows = [(p.top, p.bottom, p.height, p.pad_y) for p in here]
            cuts = _bilinear(
                self._level(number),
                np.stack([_taps(*row, size=size, is_row=True) for row in rows]),
                np.stack([_taps(*column, size=size, is_row=False) for column in columns]),
            )
            if len(here) == len(placements):
                return cuts, placed
            inputs.index_copy_(0, _staged(np.flatnonzero(levels == number), device), cuts)
        return inputs, placed

    def crop(self, boxes: Float32Array, *, margin: float, size: int) -> Tensor:
        """See `FrameImage.crop`; crops are uint8 on the device. Does not wait for it."""
        image = self._levels[0]
        crops = torch.empty((len(boxes), size, size, 3), dtype=torch.uint8, device=image.device)
        squares = np.rint(crop_squares(boxes, margin)).astype(int)
        for crop, (x_min, y_min, x_max, y_max) in zip(crops, squares.tolist(), strict=True):
            side = max(1, x_max - x_min, y_max - y_min)
            if side > size:
                weights = area_weights(side, size, image.device)
                offsets = torch.arange(side, device=image.device)
                rows = (y_min + offsets).clamp(0, self.height - 1)
                columns = (x_min + offsets).clamp(0, self.width - 1)
                inside = image[:, rows[:, None], columns].float()  # (3, side, side)
                crop.copy_(_to_uint8(weights @ inside @ weights.T))
            else:
                taps = (
                    _taps(y_min, y_min + side, size, 0, size=size, is_row=True),
                    _taps(x_min, x_min + side, size, 0, size=size, is_row=False),
                )
                for axis, length in zip(taps, (self.height, self.width), strict=True):
                    axis[:2] = axis[:2].clip(0, length - 1)
                crop.copy_(_bilinear(image, taps[0][None], taps[1][None])[0])
        return crops

    def _level(self, number: int) -> Tensor:
        """(3, h, w): the frame halved `number` times; an odd last row or column is left out."""
        while len(self._levels) <= number:
            last = self._levels[-1]
            height, width = last.shape[1] // 2, last.shape[2] // 2
            quads = last[:, : 2 * height, : 2 * width].reshape(3, height, 2, width, 2)
            half = (quads.sum((2, 4), dtype=torch.int16) + 2) >> 2
            self._levels.append(half.to(torch.uint8))
        return self._levels[number]


def _taps(start: int, end: int, extent: int, pad: int, *, size: int, is_row: bool) -> NDArray[np.int32]:
    """From where, and with what weights, each pixel of an axis of the input comes, as in `cv2.INTER_LINEAR`.

    start, end: in the source, pixels. extent, pad: length and start in the input. is_row: OpenCV treats the
    ends of the two axes differently. Returns (4, size): two positions in the source, and their weights in
    1/2048, which are 0 beside the extent.
    """
    length = end - start
    scale = 1 / (extent / length)
    centre = ((np.arange(size) - pad + 0.5) * scale - 0.5).astype(np.float32)
    first = np.floor(centre).astype(np.int32)
    part = centre - first
    if not is_row:
        part[(first < 0) | (first >= length - 1)] = 0
        first = first.clip(0, length - 1)
    taps = np.empty((4, size), np.int32)
    taps[:2] = start + np.stack([first, first + 1]).clip(0, length - 1)
    taps[2:] = np.rint(np.stack([1 - part, part]) * np.float32(2048))
    taps[2:, :pad] = taps[2:, pad + extent :] = 0
    return taps


def _bilinear(image: Tensor, rows: NDArray[np.int32], columns: NDArray[np.int32]) -> Tensor:
    """Resize n windows of one image as OpenCV does 8-bit images, in fixed point of 11 bits.

    image: (3, h, w) uint8. rows, columns: (n, 4, size), see `_taps`. Returns (n, size, size, 3) uint8.
    """
    taps = _staged(np.stack([rows, columns]).transpose(0, 2, 1, 3), image.device)  # (2, 4, n, size)
    top, bottom, weight_top, weight_bottom = taps[0][:, :, :, None].unbind()  # each (n, size, 1)
    left, right, weight_left, weight_right = taps[1][:, :, None].unbind()  # each (n, 1, size)

    def row(y: Tensor, weight: Tensor) -> Tensor:
        mixed = image[:, y, left].int() * weight_left + image[:, y, right].int() * weight_right
        return (weight * (mixed >> 4)) >> 16  # (3, n, size, size)

    mixed = (row(top, weight_top) + row(bottom, weight_bottom) + 2) >> 2
    return mixed.to(torch.uint8).permute(1, 2, 3, 0)


def area_weights(length: int, size: int, device: torch.device) -> Tensor:
    """Matrix that shrinks one axis by area, (size, length) float32, rows sum to 1; as `cv2.INTER_AREA`."""
    out = torch.arange(size, device=device, dtype=torch.float32)[:, None]
    source = torch.arange(length, device=device, dtype=torch.float32)[None]
    scale = length / size
    overlap = torch.minimum(source + 1, (out + 1) * scale) - torch.maximum(source, out * scale)
    return overlap.clamp(min=0) / scale


def yuv_to_rgb(planes: Tensor, layout: YuvLayout) -> Tensor:
    """(layout.bytes,) uint8 -> (3, height, width) uint8, upright.

    As swscale converts without scaling: every 2 x 2 pixels share their chroma, each term is rounded down.
    """
    height, width = layout.height, layout.width
    half_height, half_width = (height + 1) // 2, (width + 1) // 2
    luma = planes[: height * width].view(height, width).float()
    chroma = planes[height * width :]
    if layout.interleaved:
        chroma = chroma.view(half_height, half_width, 2).permute(2, 0, 1)
    else:
        chroma = chroma.view(2, half_height, half_width)
    chroma = chroma.float() - 128
    if not layout.full_range:
        luma, chroma = (luma - 16) * (255 / 219), chroma * (255 / 224)
    kr, kb = MATRICES[layout.matrix]
    kg = 1 - kr - kb
    u, v = chroma.repeat_interleave(2, 1).repeat_interleave(2, 2)[:, :height, :width]
    luma = luma.floor()
    red = luma + (2 * (1 - kr) * v).floor()
    green = luma + (-2 * kb * (1 - kb) / kg * u).floor() + (-2 * kr * (1 - kr) / kg * v).floor()
    blue = luma + (2 * (1 - kb) * u).floor()
    rgb = torch.stack([red, green, blue]).clamp_(0, 255).to(torch.uint8)
    if layout.mirrored:
        rgb = rgb.flip(2)
    return rgb.rot90(layout.quarter_turns, (1, 2)).contiguous() if layout.quarter_turns else rgb


def _to_uint8(images: Tensor) -> Tensor:
    """(..., 3, h, w) float32 -> (..., h, w, 3) uint8, rounded."""
    return images.round().clamp(0, 255).to(torch.uint8).movedim(-3, -1)


def _staged(values: NDArray[Any], device: torch.device) -> Tensor:
    """Array to device. Does not wait for a GPU: it is copied from page-locked memory, which PyTorch keeps."""
    tensor = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)

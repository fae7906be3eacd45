"""Decoding in this process, of what is known not to crash it."""

from __future__ import annotations

import numpy as np

from streamer.decode import DecodeLimits, sampled_frames
from streamer.nvdec import Nvdec
from streamer.sample import Sampler
from streamer.types import UInt8Array

LIMITS = DecodeLimits(max_pixels=1920 * 1080, max_seconds=60, max_frames=2000, skip_nonreference=False)


def decode(
    data: bytes,
    init: bytes | None = None,
    *,
    rate: float = 1000,
    seed: int = 1,
    limits: DecodeLimits = LIMITS,
    nvdec: Nvdec | None = None,
) -> tuple[list[float], list[UInt8Array], float]:
    """Times and pixels of the sampled frames (by default, of all), and the end."""
    times, images = [], []
    frames = sampled_frames(data, init, Sampler(rate, seed), limits, nvdec)
    while True:
        try:
            frame = next(frames)
        except StopIteration as stop:
            return times, images, stop.value
        out = np.empty(frame.shape(), np.uint8)
        frame.write_rgb(out)
        times.append(frame.time_seconds)
        images.append(out)

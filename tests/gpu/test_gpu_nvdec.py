"""The GPU's decoder, in a decode worker: it is used, and its frames are those of the CPU's decoders."""

from __future__ import annotations

from typing import Any

import media
import numpy as np
import pytest

from streamer.config import DecodeConfig, SampleConfig
from streamer.decode_pool import DecodePool
from streamer.gpu import DRIVER
from streamer.messages import VideoChunk
from streamer.nvdec import NvdecSettings
from streamer.types import UInt8Array, as_rgb

Frames = list[tuple[float, UInt8Array]]

CHUNKS = 2
"""Decoded one after the other by a worker, each with a decoder of its own."""


async def decoded(data: bytes, nvdec: NvdecSettings | None) -> tuple[list[Frames], dict[str, int]]:
    """Times and pixels of all frames of each chunk, and what decoded them."""
    pool = DecodePool(DecodeConfig(workers=1), nvdec=nvdec)
    await pool.start()
    chunks: list[Frames] = []
    try:
        for seq in range(CHUNKS):
            chunk = VideoChunk(video_id="clip", seq=seq, data=data)
            chunks.append([])
            async for batch in pool.decode(chunk, SampleConfig(frames_per_second=media.FPS)):
                chunks[-1] += [(frame.time_seconds, as_rgb(frame).rgb.copy()) for frame in batch.frames]
    finally:
        await pool.close()
    return chunks, dict(pool.decoders)


@pytest.mark.needs_cuda
@pytest.mark.skipif(not DRIVER.exists(), reason="no NVIDIA driver")
@pytest.mark.parametrize(
    ("container", "codec", "options"),
    [
        ("mpegts", "h264", {}),
        ("mp4", "h264", {"rotation": 90, "mirrored": True}),
        ("mpegts", "h264", {"interlaced": True}),
        ("mp4", "hevc", {}),
        ("mp4", "hevc", {"pix_fmt": "yuv420p10le"}),
        ("matroska", "vp8", {}),
        ("mp4", "vp9", {}),
    ],
)
async def test_frames_are_those_of_the_cpu(container: str, codec: str, options: dict[str, Any]) -> None:
    data = media.encode(container, codec, width=256, height=192, **options)
    expected, _ = await decoded(data, None)
    got, decoders = await decoded(data, NvdecSettings("0", 0))
    assert decoders == {"nvdec": CHUNKS}
    for frames, wanted in zip(got, expected, strict=True):
        assert [seconds for seconds, _ in frames] == [seconds for seconds, _ in wanted]
        for (_, shown), (_, pixels) in zip(frames, wanted, strict=True):
            np.testing.assert_array_equal(shown, pixels)

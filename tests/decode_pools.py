"""Chunks through real worker processes."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import media
import pytest

from streamer.config import DecodeConfig, SampleConfig
from streamer.decode_pool import DecodePool
from streamer.errors import DecodeError
from streamer.messages import VideoChunk

ALL = SampleConfig(frames_per_second=1000)
encode = functools.cache(media.encode)


@asynccontextmanager
async def running(**settings: Any) -> AsyncIterator[DecodePool]:
    pool = DecodePool(DecodeConfig(**({"workers": 1} | settings)))
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


def chunk(data: bytes, init: bytes | None = None, seq: int = 1) -> VideoChunk:
    return VideoChunk(video_id="camera-1", seq=seq, data=data, init=init)


async def indices(pool: DecodePool, data: bytes, init: bytes | None = None) -> list[int]:
    """What all frames of a chunk show."""
    seen: list[int] = []
    async for batch in pool.decode(chunk(data, init), ALL):
        seen += [media.index_of(frame.rgb) for frame in batch.frames]
    return seen


async def refused(pool: DecodePool, data: bytes) -> str:
    with pytest.raises(DecodeError) as caught:
        await indices(pool, data)
    return caught.value.reason


@functools.cache
def long_clip() -> bytes:
    """3000 frames of 1080p, some seconds of CPU time to decode."""
    clip = encode("mpegts", frames=30, width=1920, height=1080)
    return media.mpegts_joined(*[clip] * 100)

"""What becomes of a record: a chunk that was scored, or one refused, which becomes a dead letter."""

from __future__ import annotations

import time
from collections.abc import Awaitable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

from streamer.errors import ChunkError, LimitError, MessageError
from streamer.kafka.consume import Record
from streamer.messages import MAX_VIDEO_ID_BYTES, DeadLetter, VideoChunk, decode_chunk
from streamer.types import ChunkPrediction


@dataclass(frozen=True, slots=True)
class Scored:
    """A chunk that could be processed."""

    chunk: VideoChunk
    prediction: ChunkPrediction


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that becomes a dead letter; `chunk` is None if not even its message could be read."""

    chunk: VideoChunk | None
    error: ChunkError


Outcome: TypeAlias = Scored | Refused


class Predict(Protocol):
    """What is needed of `streamer.pipeline.Pipeline.predict`."""

    def __call__(self, chunk: VideoChunk, *, sampling_share: float) -> Awaitable[ChunkPrediction]: ...


async def process(record: Record, predict: Predict, max_bytes: int, sampling_share: float = 1.0) -> Outcome:
    """Record -> outcome. Only a ChunkError is one; anything else that is raised means that we are broken."""
    chunk: VideoChunk | None = None
    try:
        chunk = _read(record, max_bytes)
        return Scored(chunk, await predict(chunk, sampling_share=sampling_share))
    except ChunkError as error:
        return Refused(chunk, error)


def refuse(record: Record, refusal: LimitError, max_bytes: int) -> Refused:
    """A record that is not to be looked at -> its outcome; it is read, so that its video can tell of it."""
    try:
        return Refused(_read(record, max_bytes), refusal)
    except MessageError as error:
        return Refused(None, error)


def dead_letter(record: Record, refused: Refused) -> DeadLetter:
    """The refused record, with why and where it was."""
    chunk, error = refused.chunk, refused.error
    return DeadLetter(
        value=record.value or b"",
        key=record.key,
        headers=[(name, content or b"") for name, content in record.headers],
        error=str(error),
        reason=error.reason,
        stage=error.stage,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        video_id=chunk.video_id if chunk else _text(record.key),
        seq=chunk.seq if chunk else None,
        failed_at_ms=round(1000 * time.time()),
    )


def _read(record: Record, max_bytes: int) -> VideoChunk:
    if record.unreadable is not None:
        raise MessageError("unreadable_record", f"the record cannot be read: {record.unreadable}")
    return decode_chunk(record.value, record.key, record.headers, offset=record.offset, max_bytes=max_bytes)


def _text(key: bytes | None) -> str | None:
    """The key as a video_id, if it can be one."""
    try:
        return key.decode() if key and len(key) <= MAX_VIDEO_ID_BYTES else None
    except UnicodeDecodeError:
        return None

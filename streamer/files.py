"""Video files on disk -> chunks, as a camera's packager would have cut them."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import structlog

from streamer.errors import ChunkError, StreamerError
from streamer.messages import MAX_SECONDS, MAX_VIDEO_ID_BYTES, VideoChunk
from streamer.segment import Segment, segments_of

CHUNK_SECONDS = 2.0
"""Least length of a chunk, if nothing else is asked for."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class SourceError(StreamerError):
    """A source of video cannot be read; the text says why, without the source's name.

    reason: short word for machines, that of a ChunkError, or `unreadable`.
    """

    def __init__(self, reason: str, text: str) -> None:
        super().__init__(text)
        self.reason = reason


class FileError(SourceError):
    """A file cannot be read as video."""

    def __init__(self, path: Path, reason: str, text: str) -> None:
        super().__init__(reason, text)
        self.path = path


def unicode_of(name: str) -> str:
    """A file's name as text; bytes that are no UTF-8 as U+FFFD, since a video_id is text."""
    return name.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def video_id_of(path: Path) -> str:
    """A file's name without extension, as far as a video_id may hold it: U+FFFD for a byte takes three."""
    return unicode_of(path.stem).encode()[:MAX_VIDEO_ID_BYTES].decode("utf-8", "ignore")


@dataclass(frozen=True, slots=True)
class Piece:
    """A chunk and its place in its video."""

    chunk: VideoChunk
    end_seconds: float
    """Where its last frame stops being shown, seconds from the start of the video."""
    lost: int = 0
    """Chunks of a file before it that were damaged, and left out: their seq is missing."""


async def pieces_of(path: Path, video_id: str, chunk_seconds: float) -> AsyncGenerator[Piece, None]:
    """Cut a file at keyframes, at the first one after each `chunk_seconds`; nothing is re-encoded.

    Close it with `contextlib.aclosing`. Raises FileError, after the chunks before the fault.
    """
    readers: list[subprocess.Popen[bytes]] = []
    with closing(_segments(path, chunk_seconds, readers.append)) as segments:
        seq = 0
        while (segment := await _next(segments, readers)) is not None:
            if segment.start_seconds > MAX_SECONDS:
                raise FileError(path, "damaged", f"timestamps jump to {segment.start_seconds:.3g} s")
            if seq == 0 and segment.videos > 1:
                log.warning(
                    "only the first video stream of a file is looked at",
                    file=str(path),
                    streams=segment.videos,
                )
            seq += segment.lost
            length = segment.video_seconds or 0.0  # as stated: it may be no length at all
            chunk = VideoChunk(
                video_id=video_id,
                seq=seq,
                data=segment.data,
                format=segment.format,
                start_seconds=segment.start_seconds,
                duration_seconds=length if 0 < length <= MAX_SECONDS else None,
                last=segment.is_last,
            )
            yield Piece(chunk, segment.start_seconds + segment.duration_seconds, segment.lost)
            seq += 1


async def _next(
    segments: Generator[Segment, None, None], readers: list[subprocess.Popen[bytes]]
) -> Segment | None:
    """The next one. Cancelled, it ends the reader, else the thread waits for as long as a pipe is silent."""
    reading = asyncio.ensure_future(asyncio.to_thread(next, segments, None))
    try:
        return await asyncio.shield(reading)
    except asyncio.CancelledError:
        for reader in readers:
            reader.kill()
        if readers:
            await asyncio.gather(reading, return_exceptions=True)
        raise


def _segments(
    path: Path, chunk_seconds: float, on_start: Callable[[subprocess.Popen[bytes]], None]
) -> Generator[Segment, None, None]:
    try:
        yield from segments_of(path, chunk_seconds, on_start=on_start)
    except OSError as error:
        raise FileError(path, "unreadable", error.strerror or str(error)) from error
    except ChunkError as error:
        raise FileError(path, error.reason, str(error)) from error

"""Files -> chunks -> Kafka, with progress bars."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from rich import filesize
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from streamer.config import Config
from streamer.errors import BrokerError, ConfigError
from streamer.files import FileError, pieces_of, unicode_of
from streamer.kafka.publish import ChunkPublisher, TooLargeError
from streamer.kafka.topics import require_topics
from streamer.log import printable
from streamer.messages import MAX_VIDEO_ID_BYTES, VideoChunk
from streamer.tasks import gather_or_cancel
from streamer.terminal import CONNECT_SECONDS, clock, count, duration
from streamer.tracing import Tracing


class Sender(Protocol):
    """Where chunks go; returns when they are safe there."""

    async def send_chunk(self, chunk: VideoChunk) -> None: ...


@dataclass(frozen=True, slots=True)
class Clip:
    """A file and the name it is published under."""

    path: Path
    video_id: str


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a file."""

    chunks: int
    bytes: int
    seconds: float
    """Of video published."""
    video_seconds: float | None
    """Length of the whole video, if the file says it."""


async def publish_files(
    config: Config,
    files: Sequence[Path],
    video_id: str | None,
    chunk_seconds: float,
    *,
    realtime: bool,
    tracing: Tracing | None = None,
) -> int:
    """Publish files and print what was published; returns the exit status, 1 if a file failed.

    realtime: all files at once, each chunk when a camera would have it complete; else one file after the
    other, as fast as the broker takes them. Raises ConfigError if two files share a video_id, BrokerError.
    """
    clips = name_clips(files, video_id)
    await require_topics(config.kafka, connect_seconds=CONNECT_SECONDS)
    with _bars() as bars:
        async with ChunkPublisher(config.kafka, tracing=tracing) as publisher:

            async def one(clip: Clip) -> bool:
                return await _publish_and_say(publisher, clip, chunk_seconds, bars, realtime=realtime)

            if realtime:
                done = await gather_or_cancel(one(clip) for clip in clips)
            else:
                done = [await one(clip) for clip in clips]
    return 0 if all(done) else 1


def name_clips(files: Sequence[Path], video_id: str | None) -> list[Clip]:
    """A video_id for each file: its name without extension. Raises ConfigError if that is ambiguous."""
    if video_id is not None:
        if len(files) > 1:
            raise ConfigError("--video-id names one video, but there are several files")
        clips = [Clip(files[0], unicode_of(video_id))]
    else:
        clips = [Clip(path, unicode_of(path.stem)) for path in files]
    seen: dict[str, Path] = {}
    for clip in clips:
        if not 0 < len(clip.video_id.encode()) <= MAX_VIDEO_ID_BYTES:
            raise ConfigError(
                f"a video_id has 1 to {MAX_VIDEO_ID_BYTES} bytes, {clip.video_id!r:.60} has not"
            )
        if clip.video_id in seen:
            raise ConfigError(
                f"{seen[clip.video_id]} and {clip.path} would both be video {clip.video_id!r}; "
                f"publish them one by one, with --video-id"
            )
        seen[clip.video_id] = clip.path
    return clips


async def publish_clip(
    sender: Sender,
    clip: Clip,
    chunk_seconds: float,
    *,
    realtime: bool,
    on_chunk: Callable[[Published], None] = lambda _: None,
) -> Published:
    """Publish one file. Raises FileError, BrokerError."""
    started = time.monotonic()
    done = Published(0, 0, 0.0, None)
    async with aclosing(pieces_of(clip.path, clip.video_id, chunk_seconds)) as pieces:
        async for piece in pieces:
            chunk = piece.chunk
            if realtime:
                # a camera hands a chunk over when its last frame has been shot
                await asyncio.sleep(started + piece.end_seconds - time.monotonic())
                chunk = chunk.model_copy(update={"captured_at_ms": round(1000 * time.time())})
            await sender.send_chunk(chunk)
            done = Published(
                done.chunks + 1, done.bytes + len(chunk.data), piece.end_seconds, chunk.duration_seconds
            )
            on_chunk(done)
    return done


async def _publish_and_say(
    sender: Sender, clip: Clip, chunk_seconds: float, bars: Progress, *, realtime: bool
) -> bool:
    """Publish one file with a bar; print a line about it; whether it went well."""
    name = printable(str(clip.path))
    bar = bars.add_task(escape(name), total=None, at="")

    def show(done: Published) -> None:
        total = done.video_seconds
        bars.update(bar, completed=done.seconds, total=total, at=f"{clock(done.seconds)} / {clock(total)}")

    try:
        done = await publish_clip(sender, clip, chunk_seconds, realtime=realtime, on_chunk=show)
    except FileError as error:
        print(f"error  {name}: {printable(str(error))}", file=sys.stderr)  # noqa: T201
        return False
    except TooLargeError as error:
        raise BrokerError(f"{name}: {error}; cut shorter chunks (--chunk-seconds)") from error
    finally:
        bars.remove_task(bar)
    about = f"{count(done.chunks, 'chunk')}, {duration(done.seconds)}, {filesize.decimal(done.bytes)}"
    print(f"{name}: video {printable(clip.video_id)}, {about}", flush=True)  # noqa: T201
    return True


def _bars() -> Progress:
    """On standard error and only on a terminal; standard output is for the results."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.fields[at]}"),
        TimeElapsedColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )

"""Files, playlists, streams -> chunks -> Kafka, with progress bars."""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Protocol

from rich import filesize
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from streamer.config import Config
from streamer.files import SourceError
from streamer.kafka.publish import ChunkPublisher, TooLargeError
from streamer.kafka.topics import require_chunks_topic
from streamer.log import printable
from streamer.messages import VideoChunk
from streamer.sources import Clip, Source
from streamer.tasks import gather_or_cancel
from streamer.terminal import CONNECT_SECONDS, clock, count, duration
from streamer.tracing import Tracing


class Sender(Protocol):
    """Where chunks go; returns when they are safe there."""

    async def send_chunk(self, chunk: VideoChunk) -> None: ...


@dataclass(frozen=True, slots=True)
class Published:
    """What became of a source."""

    chunks: int
    bytes: int
    seconds: float
    """Of video published."""
    video_seconds: float | None
    """Length of the whole video, if the source says it."""
    lost: int = 0
    """Chunks of a file that were damaged, and left out."""


async def publish_sources(
    config: Config,
    sources: Sequence[Source],
    chunk_seconds: float,
    *,
    realtime: bool,
    tracing: Tracing | None = None,
) -> int:
    """Publish sources and print what was published; returns the exit status, 1 if one of them failed.

    realtime: all at once, each chunk when a camera would have it complete. Else files one after the other, as
    fast as the broker takes them; playlists and streams, which may not end, all at once. Raises BrokerError.
    """
    await require_chunks_topic(config.kafka, connect_seconds=CONNECT_SECONDS)
    with _bars() as bars:

        async def one(source: Source) -> bool:
            # A producer of its own: one of which a record was refused is of no more use, and that ends one
            # source, not all.
            async with ChunkPublisher(config.kafka, tracing=tracing) as publisher:
                return await _publish_and_say(publisher, source, chunk_seconds, bars, realtime=realtime)

        if realtime or not all(isinstance(source, Clip) for source in sources):
            done = await gather_or_cancel(one(source) for source in sources)
        else:
            done = [await one(source) for source in sources]
    return 0 if all(done) else 1


async def publish_source(
    sender: Sender,
    source: Source,
    chunk_seconds: float,
    *,
    realtime: bool,
    on_chunk: Callable[[Published], None] = lambda _: None,
) -> Published:
    """Publish one. Raises SourceError, BrokerError."""
    started = time.monotonic()
    done = Published(0, 0, 0.0, None)
    async with aclosing(source.pieces(chunk_seconds)) as pieces:
        async for piece in pieces:
            chunk = piece.chunk
            if realtime:
                # a camera hands a chunk over when its last frame has been shot
                await asyncio.sleep(started + piece.end_seconds - time.monotonic())
                if chunk.captured_at_ms is None:
                    chunk = chunk.model_copy(update={"captured_at_ms": round(1000 * time.time())})
            await sender.send_chunk(chunk)
            done = Published(
                done.chunks + 1,
                done.bytes + len(chunk.data),
                piece.end_seconds,
                chunk.duration_seconds,
                done.lost + piece.lost,
            )
            on_chunk(done)
    return done


async def _publish_and_say(
    sender: Sender, source: Source, chunk_seconds: float, bars: Progress, *, realtime: bool
) -> bool:
    """Publish one with a bar; print a line about it; whether it went well."""
    name = printable(source.name)
    bar = bars.add_task(escape(name), total=None, at="")

    def show(done: Published) -> None:
        total = done.video_seconds
        bars.update(bar, completed=done.seconds, total=total, at=f"{clock(done.seconds)} / {clock(total)}")

    try:
        done = await publish_source(sender, source, chunk_seconds, realtime=realtime, on_chunk=show)
    except (SourceError, TooLargeError) as error:
        advice = ""
        if isinstance(error, TooLargeError):
            advice = (
                "; cut shorter chunks (--chunk-seconds; of HLS and DASH, in the packager), or let "
                "kafka.max_message_bytes and the topic's max.message.bytes be larger"
            )
        print(f"error  {name}: {printable(str(error))}{advice}", file=sys.stderr)  # noqa: T201
        return False
    finally:
        bars.remove_task(bar)
    about = f"{count(done.chunks, 'chunk')}, {duration(done.seconds)}, {filesize.decimal(done.bytes)}"
    print(f"{name}: video {printable(source.video_id)}, {about}", flush=True)  # noqa: T201
    if done.lost:
        lost = count(done.lost, "damaged chunk")
        print(f"error  {name}: {lost} left out", file=sys.stderr)  # noqa: T201
    return not done.lost


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

"""A broker and the service as a user runs them, for benchmarks that go through Kafka."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field

import psutil

from streamer.config import Config, LogConfig
from streamer.kafka.embedded import EmbeddedBroker
from streamer.kafka.publish import ChunkPublisher
from streamer.kafka.scores import read_scores
from streamer.kafka.topics import create_topics
from streamer.log import set_up_logging
from streamer.messages import ScoreUpdate, VideoChunk

VIDEOS = 8
TIMEOUT_SECONDS = 600.0
"""For updates that are waited for."""

FULL_SIZE = ["untrained/resnext50_32x4d", "untrained/densenet121"]
"""What benches measure: members of the size that the method asks for. Random weights cost the same time."""


@dataclass(frozen=True)
class FullLoad:
    """What the service does when there is always a chunk waiting."""

    frames_per_second: float
    """Sampled frames whose score was published."""
    chunks_per_second: float


@dataclass
class Bench:
    """What a benchmark works with."""

    config: Config
    publisher: ChunkPublisher
    service: psutil.Process
    updates: list[tuple[float, ScoreUpdate]] = field(default_factory=list)
    """Score updates and when they were read, time.perf_counter()."""
    published: dict[tuple[str, int], float] = field(default_factory=dict)
    """When a chunk was handed to the producer, by (video_id, seq)."""

    async def publish(self, chunk: VideoChunk) -> None:
        """Publish a chunk and note when."""
        self.published[chunk.video_id, chunk.seq] = time.perf_counter()
        await self.publisher.send_chunk(chunk)

    async def publish_next(self, data: bytes) -> None:
        """Publish `data` as the next chunk of one of `VIDEOS` videos, taken in turn."""
        number = len(self.published)
        await self.publish(VideoChunk(video_id=f"video-{number % VIDEOS}", seq=number // VIDEOS, data=data))

    async def full_load(self, data: bytes, chunks: int) -> FullLoad:
        """Publish `chunks` chunks at once, after a burn-in, and time them until all scores are published."""
        for _ in range(VIDEOS):
            await self.publish_next(data)
        await self.wait_for(len(self.published))
        before, started = self._frames(), time.perf_counter()
        for _ in range(chunks):
            await self.publish_next(data)
        await self.wait_for(len(self.published))
        seconds = time.perf_counter() - started
        return FullLoad((self._frames() - before) / seconds, chunks / seconds)

    def _frames(self) -> int:
        """Frames counted by the newest update of each video."""
        return sum({update.video_id: update.frames for _, update in self.updates}.values())

    async def wait_for(self, count: int) -> None:
        """Wait until so many updates have come since the start. Raises TimeoutError."""
        async with asyncio.timeout(TIMEOUT_SECONDS):
            while len(self.updates) < count:
                if not self.service.is_running() or self.service.status() == psutil.STATUS_ZOMBIE:
                    raise RuntimeError("the service has ended; see its messages above")
                await asyncio.sleep(0.01)

    def resident_mib(self) -> float:
        """Resident set of the service and its decode workers; memory that they share counts once each."""
        processes = [self.service, *self.service.children(recursive=True)]
        return sum(process.memory_info().rss for process in processes) / 2**20


@asynccontextmanager
async def running_service(
    config: Config, overrides: list[str], bootstrap_servers: str | None = None
) -> AsyncIterator[Bench]:
    """A broker, `streamer run` as a process of its own, a producer and a reader.

    overrides: further `section.key=value` for the service; config: what the producer and the reader need;
    bootstrap_servers: of the broker, None for an embedded one.
    """
    set_up_logging(LogConfig(level="warning"))  # standard output is for the figures
    async with AsyncExitStack() as resources:
        if bootstrap_servers is None:
            broker = await resources.enter_async_context(EmbeddedBroker())
            # The embedded broker has no transactions.
            changes = {"bootstrap_servers": broker.bootstrap_servers, "delivery": "at_least_once"}
        else:
            changes = {"bootstrap_servers": bootstrap_servers}
        kafka = config.kafka.model_copy(update=changes)
        config = config.model_copy(update={"kafka": kafka})
        await create_topics(kafka)
        settings = [
            f"classify.members={json.dumps(config.classify.members)}",
            *(f"kafka.{key}={value}" for key, value in changes.items()),
            "service.http_port=0",
            "log.level=warning",
            *overrides,
        ]
        arguments = [part for setting in settings for part in ("--set", setting)]
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "streamer", *arguments, "run", "--allow-untrained"
        )
        try:
            async with ChunkPublisher(kafka) as publisher:
                bench = Bench(config, publisher, psutil.Process(process.pid))
                ready = asyncio.Event()
                reading = asyncio.create_task(_read(bench, ready))
                await ready.wait()
                yield bench
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        finally:
            with suppress(ProcessLookupError):
                process.send_signal(signal.SIGTERM)
            await process.wait()


async def _read(bench: Bench, ready: asyncio.Event) -> None:
    async for update in read_scores(bench.config.kafka, ready=ready):
        bench.updates.append((time.perf_counter(), update))

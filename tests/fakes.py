"""A pipeline without networks, and what the tests of the service share."""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, ClassVar, Literal, Self

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import RecordsToDelete

from streamer.config import Config, KafkaConfig, RollingConfig, ServiceConfig
from streamer.errors import DecodeError, InferenceError
from streamer.kafka.client import admin_client
from streamer.kafka.publish import ChunkPublisher
from streamer.kafka.scores import read_scores
from streamer.kafka.tail import retained
from streamer.kafka.topics import describe_broker
from streamer.messages import (
    DeadLetter,
    ScoreUpdate,
    VideoChunk,
    VideoEvidence,
    decode_dead_letter,
    decode_evidence,
)
from streamer.service import Service
from streamer.tracing import Tracing
from streamer.types import ChunkPrediction, EnsembleInfo, FacePrediction, FramePrediction, Picture

BAD, BROKEN = b"bad", b"broken"
"""Data of a chunk that cannot be decoded, and of one on which the network fails."""


class FakePipeline:
    """Predicts from a hash of the chunk's data: the same bytes, the same prediction."""

    ensemble = EnsembleInfo(("one", "two"), "fake", trained=True)
    path = "no networks"
    batchers = ()
    worker_restarts: ClassVar[dict[str, int]] = {}
    decoders: ClassVar[dict[str, int]] = {}

    def __init__(self, *, seconds: float = 0.0) -> None:
        """seconds: how long a chunk takes."""
        self.seconds = seconds
        self.gate = asyncio.Event()
        """Chunks wait for it; set unless a test clears it."""
        self.gate.set()
        self.started: list[tuple[str, int]] = []
        self.cancelled: list[tuple[str, int]] = []
        self.under_way = 0
        self.most_under_way = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: Any) -> None:
        pass

    async def predict(
        self, chunk: VideoChunk, *, sampling_share: float = 1.0, pictures: bool = False
    ) -> ChunkPrediction:
        self.started.append((chunk.video_id, chunk.seq))
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.seconds)
            await self.gate.wait()
        except asyncio.CancelledError:
            self.cancelled.append((chunk.video_id, chunk.seq))
            raise
        finally:
            self.under_way -= 1
        if chunk.data == BAD:
            raise DecodeError("not_media", "no container format recognises it")
        if chunk.data == BROKEN:
            raise InferenceError("network one failed")
        digest = hashlib.sha256(chunk.data).digest()
        picture = Picture(b"\xff\xd8\xff" + digest, None) if pictures else None
        face = FacePrediction((0.0, 0.0, 50.0, 50.0), (digest[0] / 255, digest[1] / 255), picture=picture)
        frame = FramePrediction(0.0, (face,))
        times, rate = {"decode": 2.0}, 4.0 * sampling_share
        return ChunkPrediction(chunk.video_id, chunk.seq, None, 1.0, (frame,), times, rate)


def fresh_names(
    bootstrap_servers: str, delivery: Literal["exactly_once", "at_least_once"] = "exactly_once"
) -> KafkaConfig:
    """Topics and group of one test alone."""
    name = f"t{uuid.uuid4().hex[:8]}"
    return KafkaConfig(
        bootstrap_servers=bootstrap_servers,
        delivery=delivery,
        group_id=f"{name}-group",
        chunks_topic=f"{name}-chunks",
        scores_topic=f"{name}-scores",
        dead_letters_topic=f"{name}-dlq",
        state_topic=f"{name}-state",
        evidence_topic=f"{name}-evidence",
        session_timeout_ms=6000,
        heartbeat_interval_ms=200,
    )


def service_config(kafka: KafkaConfig, **service: Any) -> Config:
    """Quick and on a free port. No video ends as idle, not even while a broker is away for a minute."""
    return Config(
        kafka=kafka,
        rolling=RollingConfig(idle_seconds=600),
        service=ServiceConfig(**{"http_port": 0, "drain_seconds": 5.0, **service}),
    )


@asynccontextmanager
async def running(
    config: Config, pipeline: FakePipeline, tracing: Tracing | None = None
) -> AsyncIterator[Service]:
    """A service that is ready; stopped at the end, when its failure is raised."""
    service = Service(config, lambda: pipeline, connect_seconds=30, tracing=tracing)
    task = asyncio.create_task(service.run())
    try:
        await until(lambda: task.done() or service.why_not_ready() is None, seconds=120)
        if task.done():
            task.result()
        yield service
    finally:
        service.stop()
        await task


async def until(condition: Callable[[], object], *, seconds: float = 60.0) -> None:
    """Return when the condition holds."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # any condition
            await asyncio.sleep(0.01)


def chunk(video_id: str, seq: int, data: bytes | None = None, *, last: bool = False) -> VideoChunk:
    """A chunk whose prediction depends on its video and seq."""
    return VideoChunk(
        video_id=video_id, seq=seq, data=f"{video_id}/{seq}".encode() if data is None else data, last=last
    )


async def publish(kafka: KafkaConfig, *chunks: VideoChunk) -> None:
    """Publish and wait for the acknowledgements."""
    async with ChunkPublisher(kafka) as publisher:
        for each in chunks:
            await publisher.send_chunk(each)


async def partition_of(kafka: KafkaConfig, *chunks: VideoChunk) -> int:
    """Publish chunks of one video to an empty topic; in which partition they are."""
    await publish(kafka, *chunks)
    [partition] = {record.partition for record in await chunks_in(kafka, len(chunks))}
    return int(partition)


async def delete_records(kafka: KafkaConfig, before: dict[int, int]) -> None:
    """What retention does: delete chunks before an offset (-1: all), by partition."""
    wanted = {
        TopicPartition(kafka.chunks_topic, partition): RecordsToDelete(offset)
        for partition, offset in before.items()
    }
    async with admin_client(kafka) as admin:
        await admin.delete_records(wanted)


@asynccontextmanager
async def producer(kafka: KafkaConfig) -> AsyncIterator[AIOKafkaProducer]:
    client = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers)
    await client.start()
    try:
        yield client
    finally:
        await client.stop()


class ScoreLog:
    """All score updates of the topic, as they come."""

    def __init__(self) -> None:
        self.updates: list[ScoreUpdate] = []

    def of(self, video_id: str) -> list[ScoreUpdate]:
        return [update for update in self.updates if update.video_id == video_id]

    def chunks(self) -> set[tuple[str, int]]:
        """Chunks that have an update."""
        return {(update.video_id, update.seq) for update in self.updates}


@asynccontextmanager
async def watching(kafka: KafkaConfig) -> AsyncIterator[ScoreLog]:
    """Reads the scores topic from its beginning."""
    scores, ready = ScoreLog(), asyncio.Event()

    async def read() -> None:
        async with aclosing(read_scores(kafka, from_beginning=True, ready=ready)) as updates:
            async for update in updates:
                scores.updates.append(update)

    task = asyncio.create_task(read())
    try:
        async with asyncio.timeout(60):
            await ready.wait()
        yield scores
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def chunks_in(kafka: KafkaConfig, count: int) -> list[Any]:
    """Records of the chunks topic, the first `count` and a little later whatever followed them."""
    return await records_in(kafka, kafka.chunks_topic, count)


async def dead_letters(kafka: KafkaConfig, count: int) -> list[DeadLetter]:
    """The first `count` dead letters, and a little later whatever followed them."""
    return [
        decode_dead_letter(record.value)
        for record in await records_in(kafka, kafka.dead_letters_topic, count)
    ]


async def evidence_of(kafka: KafkaConfig, video_id: str, count: int) -> list[VideoEvidence]:
    """What the topic of evidence holds under the key of a video, once there are `count` messages."""
    async with asyncio.timeout(60):
        while True:
            async with aclosing(retained(kafka, kafka.evidence_topic, video_id.encode())) as records:
                found = [decode_evidence(record.value or b"") async for record in records]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.1)


async def records_in(kafka: KafkaConfig, topic: str, count: int) -> list[Any]:
    """The first `count` records of a topic, and a little later whatever followed them."""
    info = await describe_broker(kafka)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers, auto_offset_reset="earliest", enable_auto_commit=False
    )
    found: list[Any] = []
    try:
        await consumer.start()
        consumer.assign([TopicPartition(topic, p) for p in range(info.topics[topic])])
        async with asyncio.timeout(20):
            while len(found) < count:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found += records
        for records in (await consumer.getmany(timeout_ms=300)).values():
            found += records
    finally:
        await consumer.stop()
    return found


async def committed(kafka: KafkaConfig) -> dict[int, int]:
    """Committed offsets of the group by partition, those that there are."""
    info = await describe_broker(kafka)
    consumer = AIOKafkaConsumer(
        bootstrap_servers=kafka.bootstrap_servers, group_id=kafka.group_id, enable_auto_commit=False
    )
    try:
        await consumer.start()
        found = {}
        for partition in range(info.topics[kafka.chunks_topic]):
            offset = await consumer.committed(TopicPartition(kafka.chunks_topic, partition))
            if offset is not None:
                found[partition] = offset
        return found
    finally:
        await consumer.stop()

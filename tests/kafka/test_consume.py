from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from aiokafka.record.default_records import _DefaultRecordBatchBuilderPy
from fakes import (
    FakePipeline,
    chunk,
    dead_letters,
    delete_records,
    fresh_names,
    partition_of,
    producer,
    publish,
    running,
    service_config,
    until,
    watching,
)
from kafka_broker import each_delivery
from structlog.testing import capture_logs

from streamer.config import KafkaConfig
from streamer.kafka.client import admin_client
from streamer.kafka.consume import ChunkConsumer, Record
from streamer.kafka.intake import Switches
from streamer.messages import encode_chunk


class NotText(str):
    """A header name that is sent as bytes which are no UTF-8."""

    __slots__ = ()

    def encode(self, *_: Any) -> bytes:
        return b"\xff\xfe"


async def send_unreadable(kafka: KafkaConfig, partition: int, *before: bytes) -> None:
    """One batch: readable records, then one whose header name is no text."""
    async with producer(kafka) as client:
        batch = client.create_batch()
        batch._builder = _DefaultRecordBatchBuilderPy(
            2, 0, is_transactional=0, producer_id=-1, producer_epoch=-1, base_sequence=0, batch_size=100_000
        )
        for value in before:
            batch.append(key=b"v", value=value, timestamp=None)
        batch._builder.append(
            len(before), timestamp=0, key=b"v", value=b"lost", headers=[(NotText("x"), b"y")]
        )
        batch._relative_offset += 1
        await (await client.send_batch(batch, kafka.chunks_topic, partition=partition))


async def test_record_that_cannot_be_read_costs_only_itself(kafka: KafkaConfig) -> None:
    """aiokafka raises UnicodeDecodeError for it, again and again, and would lose the records before it."""
    good = [chunk("v", seq) for seq in range(4)]
    await send_unreadable(kafka, 1, *map(encode_chunk, good[:2]))
    await send_unreadable(kafka, 1)
    async with producer(kafka) as client:
        for each in good[2:]:
            await client.send_and_wait(kafka.chunks_topic, encode_chunk(each), key=b"v", partition=1)
    await publish(kafka, *(chunk(f"other-{n}", 0) for n in range(8)))
    async with watching(kafka) as scores, running(service_config(kafka), FakePipeline()):
        await until(lambda: len(scores.updates) == 12)
        letters = await dead_letters(kafka, 2)
    assert [update.seq for update in scores.of("v")] == [0, 1, 2, 3]
    assert sorted((letter.reason, letter.partition, letter.offset) for letter in letters) == [
        ("unreadable_record", 1, 2),
        ("unreadable_record", 1, 3),
    ]
    assert letters[0].value == b""
    assert "UnicodeDecodeError" in letters[0].error


@pytest.fixture
async def consumer(kafka: KafkaConfig) -> AsyncIterator[ChunkConsumer]:
    """A member of a group with both partitions."""
    async with member(kafka) as consumer:
        yield consumer


@asynccontextmanager
async def member(
    kafka: KafkaConfig, lost: list[tuple[int, int, int]] | None = None
) -> AsyncIterator[ChunkConsumer]:
    """A member of a group with both partitions, which it reads from their first offset; it may lose nothing
    unless `lost` is there to hold it."""
    errors: list[BaseException] = []
    losses = [] if lost is None else lost

    async def nothing(_: frozenset[int]) -> None:
        pass

    async def from_the_first(partitions: frozenset[int]) -> None:
        for partition in partitions:
            consumer.seek(partition, 0)

    consumer = ChunkConsumer(
        kafka,
        drain_seconds=1,
        on_revoked=nothing,
        on_assigned=from_the_first,
        on_error=errors.append,
        on_lost=lambda *about: losses.append(about),
    )
    try:
        await consumer.start()
        async with asyncio.timeout(20):
            while consumer.rebalancing:
                await consumer.wait_through_rebalance()
        yield consumer
    finally:
        await consumer.stop()
    assert not errors
    assert lost is not None or not losses


async def take(consumer: ChunkConsumer, partitions: list[int], count: int) -> list[Record]:
    """At least `count` records, as soon as they are there."""
    records: list[Record] = []
    async with asyncio.timeout(10):
        while len(records) < count:
            records += await consumer.take(partitions)
            await asyncio.sleep(0.01)
    return records


async def test_takes_one_record_of_each_partition(kafka: KafkaConfig, consumer: ChunkConsumer) -> None:
    await publish(kafka, *(chunk(f"video-{n}", 0) for n in range(16)))
    records = await take(consumer, [0, 1], 16)
    assert len(records) == 16
    by_partition = {p: [r.offset for r in records if r.partition == p] for p in (0, 1)}
    assert all(offsets == list(range(len(offsets))) for offsets in by_partition.values())
    await asyncio.sleep(0.1)
    assert await consumer.take([0, 1]) == []


@each_delivery
async def test_partitions_left_out_lose_nothing(kafka: KafkaConfig, consumer: ChunkConsumer) -> None:
    """Paused after their records were fetched, and left out: aiokafka would drop what it has fetched."""
    await publish(kafka, *(chunk(f"video-{n}", 0) for n in range(16)))
    first = await take(consumer, [0], 1)
    consumer.switch(Switches(pause=frozenset({1})))
    first += await take(consumer, [0], 3)
    assert await consumer.take([]) == []
    assert {record.partition for record in first} == {0}
    consumer.switch(Switches(resume=frozenset({1})))
    rest = await take(consumer, [0, 1], 16 - len(first))
    second = [record.offset for record in rest if record.partition == 1]
    assert second == list(range(len(second)))
    assert len(second) > 0


async def test_commits_are_read_back(kafka: KafkaConfig, consumer: ChunkConsumer) -> None:
    assert await consumer.committed(0) is None
    assert await consumer.commit(dict)
    assert await consumer.commit(lambda: {0: 7, 1: 3})
    assert (await consumer.committed(0), await consumer.committed(1)) == (7, 3)


@each_delivery
async def test_commit_of_a_partition_that_is_not_ours(kafka: KafkaConfig, consumer: ChunkConsumer) -> None:
    assert not await consumer.commit(lambda: {99: 1})


async def test_end_offsets(kafka: KafkaConfig, consumer: ChunkConsumer) -> None:
    await publish(kafka, *(chunk("one-video", seq) for seq in range(5)))
    assert sorted((await consumer.end_offsets([0, 1])).values()) == [0, 5]


@pytest.mark.needs_kafka
@pytest.mark.parametrize("policy", ["earliest", "latest"])
async def test_what_retention_took_is_counted_and_what_it_left_is_read(
    real_kafka: KafkaConfig, policy: str
) -> None:
    """aiokafka alone reads on without a word, with `latest` after all that is left."""
    kafka = real_kafka.model_copy(update={"auto_offset_reset": policy})
    partition = await partition_of(kafka, *(chunk("v", seq) for seq in range(10)))
    await delete_records(kafka, {partition: 7})
    lost: list[tuple[int, int, int]] = []
    async with member(kafka, lost) as consumer:
        records = await take(consumer, [0, 1], 3)
        await asyncio.sleep(0.2)
        assert await consumer.take([0, 1]) == []
    assert [record.offset for record in records] == [7, 8, 9]
    assert lost == [(partition, 0, 7)]


@pytest.mark.needs_kafka
@pytest.mark.parametrize(("policy", "offsets"), [("earliest", [0, 1, 2]), ("latest", [2])])
async def test_offset_of_another_topic_of_this_name(
    real_kafka: KafkaConfig, policy: str, offsets: list[int]
) -> None:
    kafka = real_kafka.model_copy(update={"auto_offset_reset": policy})
    partition = await partition_of(kafka, chunk("v", 0), chunk("v", 1))
    async with member(kafka) as consumer:
        consumer.seek(partition, 100)
        with capture_logs() as lines:
            async with asyncio.timeout(10):
                while not lines:
                    assert await consumer.take([partition]) == []
                    await asyncio.sleep(0.01)
        await publish(kafka, chunk("v", 2))
        records = await take(consumer, [partition], len(offsets))
    assert [record.offset for record in records] == offsets
    assert [(line["event"].partition(";")[0], line["offset"]) for line in lines] == [("no such offset", 100)]


@pytest.mark.needs_kafka
async def test_callback_errors_are_handed_over(real_kafka: KafkaConfig) -> None:
    errors: list[BaseException] = []

    async def fail(_: frozenset[int]) -> None:
        raise ValueError("mine")

    consumer = ChunkConsumer(
        real_kafka,
        drain_seconds=1,
        on_revoked=fail,
        on_assigned=fail,
        on_error=errors.append,
        on_lost=lambda *_: None,
    )
    try:
        await consumer.start()
        await until(lambda: len(errors) == 2)
        assert consumer.rebalancing
    finally:
        await consumer.stop()
    assert [str(error) for error in errors] == ["mine", "mine"]


@pytest.mark.needs_kafka
@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
async def test_compressed_records(apache_kafka: str, compression: str) -> None:
    """In a topic that keeps what producers send, unlike those of `create_topics`."""
    kafka = fresh_names(apache_kafka)
    async with admin_client(kafka) as admin:
        names = (kafka.chunks_topic, kafka.scores_topic, kafka.dead_letters_topic, kafka.state_topic)
        await admin.create_topics([NewTopic(name, 1, 1) for name in names])
    client = AIOKafkaProducer(bootstrap_servers=apache_kafka, compression_type=compression)
    await client.start()
    try:
        await client.send_and_wait(kafka.chunks_topic, encode_chunk(chunk("v", 0, bytes(100_000))), key=b"v")
    finally:
        await client.stop()
    async with watching(kafka) as scores, running(service_config(kafka), FakePipeline()):
        await until(lambda: len(scores.updates) == 1)

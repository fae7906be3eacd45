"""Records of a topic for viewers: no group, no commit, no state.

`tail`: the newest ones and whatever follows; `retained`: all of one key. `tail` starts some records before
each partition's end and leaves out what is older than asked for. So it needs no offsets by time, which the
embedded broker does not know.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import aclosing
from dataclasses import dataclass

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import CorruptRecordException as CorruptRecordError
from aiokafka.errors import KafkaError, UnsupportedCodecError

from streamer.config import KafkaConfig
from streamer.errors import NoTopicError
from streamer.kafka.client import (
    CONNECT_SECONDS,
    READ_COMMITTED,
    client_arguments,
    describe,
    start_client,
    stop_consumer,
)
from streamer.kafka.held import held, unreadable
from streamer.kafka.presence import ANSWER_SECONDS
from streamer.kafka.topics import MISSING_TOPIC_ADVICE, describe_broker

BATCH_RECORDS = 250
"""Handed over at once: 10 ms of decoding, after which others in the process get their turn."""

POLL_MS = 200

LOOK_SECONDS = 5.0
"""Between two questions whether Kafka is there: aiokafka waits for a broker without an end or a word."""


@dataclass(frozen=True, slots=True)
class Tailed:
    """A record, or why one could not be read."""

    topic: str
    partition: int
    offset: int
    """-1 if it could not be read."""
    value: bytes | None
    unreadable: str | None = None


async def tail(
    kafka: KafkaConfig,
    topic: str,
    *,
    back_seconds: float = 0.0,
    back_records: int = 0,
    ready: asyncio.Event | None = None,
    connect_seconds: float = CONNECT_SECONDS,
    on_behind: Callable[[int], None] = lambda _: None,
    on_silent: Callable[[float], None] = lambda _: None,
) -> AsyncGenerator[list[Tailed], None]:
    """Batches of records (empty ones now and then), in the order of each partition; never ends by itself.

    It starts `back_records` before the end of each partition and leaves out what is older than
    `back_seconds` (math.inf: nothing). Partitions that are added later are read from their beginning.

    ready: set once nothing published from then on can be missed. on_behind: told how many records are
    published and not handed over yet. on_silent: told, before each batch, for how many seconds Kafka has not
    answered; it is waited for, and nothing is missed. A batch that the client cannot read (damaged, unknown
    compression) is told of and skipped with all that was published so far. Raises NoTopicError, also when the
    topic is deleted, and BrokerError. Close it with `contextlib.aclosing`.
    """
    oldest_ms = 1000 * (time.time() - back_seconds)  # from when it was asked for, however long it connects
    partitions = await _partitions(kafka, topic, connect_seconds)
    consumer = AIOKafkaConsumer(
        **client_arguments(kafka),
        auto_offset_reset="latest",
        isolation_level=READ_COMMITTED,
        max_partition_fetch_bytes=kafka.max_message_bytes,
    )
    try:
        await start_client(consumer, kafka, connect_seconds=connect_seconds)
        first, end = await consumer.beginning_offsets(partitions), await consumer.end_offsets(partitions)
        _read_at(consumer, {each: max(first[each], end[each] - back_records) for each in partitions})
        if ready is not None:
            ready.set()
        answered = looked = time.monotonic()
        while True:
            if time.monotonic() - looked >= LOOK_SECONDS:
                there = await _partitions_now(consumer, topic)
                looked = time.monotonic()
                answered = looked if there else answered
                if there > len(partitions):
                    at = {each: await consumer.position(each) for each in partitions}
                    partitions = [TopicPartition(topic, partition) for partition in range(there)]
                    _read_at(consumer, {each: at.get(each, 0) for each in partitions})
            on_silent(time.monotonic() - answered)
            try:
                got = await consumer.getmany(timeout_ms=POLL_MS, max_records=BATCH_RECORDS)
            except (CorruptRecordError, UnsupportedCodecError) as error:
                yield [Tailed(topic, -1, -1, None, describe(error))]
                await consumer.seek_to_end(*partitions)
                continue
            behind = 0
            for partition in partitions:
                behind += max(0, (consumer.highwater(partition) or 0) - await consumer.position(partition))
            on_behind(behind)
            yield [
                Tailed(topic, record.partition, record.offset, record.value)
                for records in got.values()
                for record in records
                if record.timestamp >= oldest_ms
            ]
    except KafkaError as error:
        raise unreadable(kafka, topic, error) from error
    finally:
        await stop_consumer(consumer)


def _read_at(consumer: AIOKafkaConsumer, offsets: Mapping[TopicPartition, int]) -> None:
    """Read these partitions, each from an offset."""
    consumer.assign(list(offsets))
    for partition, offset in offsets.items():
        consumer.seek(partition, offset)


async def retained(
    kafka: KafkaConfig, topic: str, key: bytes, *, connect_seconds: float = CONNECT_SECONDS
) -> AsyncGenerator[Tailed, None]:
    """Records with this key that the topic holds now, in the order of each partition; all of it is read.

    Partitions may have been added since the first of them, so none is left out. Raises NoTopicError,
    BrokerError. Close it with `contextlib.aclosing`.
    """
    partitions = await _partitions(kafka, topic, connect_seconds)
    async with aclosing(held(kafka, partitions, connect_seconds=connect_seconds)) as batches:
        async for records in batches:
            for record in records:
                if record.key == key:
                    yield Tailed(topic, record.partition, record.offset, record.value)


async def _partitions_now(consumer: AIOKafkaConsumer, topic: str) -> int:
    """How many partitions it has; 0 if Kafka does not answer. Raises NoTopicError if it is gone."""
    try:
        async with asyncio.timeout(ANSWER_SECONDS):
            cluster = await consumer._client.fetch_all_metadata()
    except (TimeoutError, KafkaError):
        return 0
    found = cluster.partitions_for_topic(topic)
    if not found:
        raise _no_topic(topic)
    return len(found)


async def _partitions(kafka: KafkaConfig, topic: str, connect_seconds: float) -> list[TopicPartition]:
    info = await describe_broker(kafka, connect_seconds=connect_seconds)
    if topic not in info.topics:
        raise _no_topic(topic)
    return [TopicPartition(topic, partition) for partition in range(info.topics[topic])]


def _no_topic(topic: str) -> NoTopicError:
    return NoTopicError(f"no topic {topic}; {MISSING_TOPIC_ADVICE}")

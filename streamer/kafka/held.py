"""All records that partitions hold now, read without a group."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError
from aiokafka.structs import ConsumerRecord

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.client import READ_COMMITTED, client_arguments, describe, start_client, stop_consumer
from streamer.kafka.presence import AWAY_SECONDS

FETCH_BYTES = 8 * 1024 * 1024
"""Of one partition at a time."""

POLL_MS = 200


async def held(
    kafka: KafkaConfig, partitions: Sequence[TopicPartition], *, connect_seconds: float
) -> AsyncGenerator[list[ConsumerRecord], None]:
    """Records of partitions of one topic from their beginning to their present end, each one's in order.

    Raises BrokerError. Close it with `contextlib.aclosing`.
    """
    consumer = AIOKafkaConsumer(
        **client_arguments(kafka),
        enable_auto_commit=False,
        auto_offset_reset="earliest",
        isolation_level=READ_COMMITTED,
        max_partition_fetch_bytes=FETCH_BYTES,
    )
    try:
        await start_client(consumer, kafka, connect_seconds=connect_seconds)
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        before: dict[TopicPartition, int] = {}
        moved = time.monotonic()
        while True:
            # The position also moves over transaction markers, which are no records.
            at = {each: await consumer.position(each) for each in partitions}
            left = [each for each in partitions if at[each] < ends[each]]
            if not left:
                return
            if at != before:
                before, moved = at, time.monotonic()
            elif time.monotonic() - moved > AWAY_SECONDS:  # aiokafka would wait without an end or a word
                raise BrokerError(
                    f"Kafka at {kafka.bootstrap_servers} has sent nothing of topic {partitions[0].topic} for "
                    f"{AWAY_SECONDS:.0f} s, though there is more"
                )
            for records in (await consumer.getmany(*left, timeout_ms=POLL_MS)).values():
                yield records
    except KafkaError as error:
        raise unreadable(kafka, partitions[0].topic, error) from error
    finally:
        await stop_consumer(consumer)


def unreadable(kafka: KafkaConfig, topic: str, error: KafkaError) -> BrokerError:
    """What to raise for an error while a topic is read."""
    return BrokerError(f"cannot read topic {topic} at {kafka.bootstrap_servers}: {describe(error)}")

from __future__ import annotations

import pytest
from aiokafka.admin import NewTopic
from conftest import fresh_names
from fakes import dead_letters

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.client import admin_client
from streamer.kafka.publish import ChunkPublisher, ScorePublisher
from streamer.messages import DeadLetter


def letter(kafka: KafkaConfig, value: bytes) -> DeadLetter:
    return DeadLetter(
        value=value,
        key=b"v",
        headers=[("a", b"\x00")],
        error="too long",
        reason="too_long",
        stage="decode",
        topic=kafka.chunks_topic,
        partition=0,
        offset=17,
        video_id="v",
        seq=3,
        failed_at_ms=1,
    )


async def test_largest_chunk_fits_its_dead_letter(kafka: KafkaConfig) -> None:
    value = bytes(kafka.max_message_bytes - 10_000)
    async with ScorePublisher(kafka) as publisher:
        await publisher.send_dead_letter(letter(kafka, value))
    (received,) = await dead_letters(kafka, 1)
    assert received == letter(kafka, value)


@pytest.mark.needs_kafka
async def test_dead_letter_too_large_for_its_topic_says_where_the_bytes_are(apache_kafka: str) -> None:
    kafka = fresh_names(apache_kafka)
    async with admin_client(kafka) as admin:
        small = {"max.message.bytes": "10000"}
        await admin.create_topics([NewTopic(kafka.dead_letters_topic, 1, 1, topic_configs=small)])
    async with ScorePublisher(kafka) as publisher:
        await publisher.send_dead_letter(letter(kafka, bytes(50_000)))
        (received,) = await dead_letters(kafka, 1)
    assert received.value == b""
    assert received.error == (
        f"too long (50000 bytes left out: too large for {kafka.dead_letters_topic}; "
        f"they are in {kafka.chunks_topic} partition 0 offset 17)"
    )


async def test_record_beyond_the_limit(kafka: KafkaConfig) -> None:
    async with ChunkPublisher(kafka) as publisher:
        with pytest.raises(BrokerError, match=rf"topic {kafka.chunks_topic}: .*bytes"):
            await publisher.send_raw(bytes(kafka.max_message_bytes + 2_000_000), b"v")


async def test_nobody_there() -> None:
    publisher = ChunkPublisher(KafkaConfig(bootstrap_servers="127.0.0.1:9"), connect_seconds=0.5)
    with pytest.raises(BrokerError, match=r"no Kafka reachable at 127\.0\.0\.1:9"):
        await publisher.__aenter__()

from __future__ import annotations

import pytest

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.publish import ChunkPublisher


async def test_record_beyond_the_limit(kafka: KafkaConfig) -> None:
    async with ChunkPublisher(kafka) as publisher:
        with pytest.raises(BrokerError, match=rf"topic {kafka.chunks_topic}: .*bytes"):
            await publisher.send_raw(bytes(kafka.max_message_bytes + 2_000_000), b"v")


async def test_nobody_there() -> None:
    publisher = ChunkPublisher(KafkaConfig(bootstrap_servers="127.0.0.1:9"), connect_seconds=0.5)
    with pytest.raises(BrokerError, match=r"no Kafka reachable at 127\.0\.0\.1:9"):
        await publisher.__aenter__()

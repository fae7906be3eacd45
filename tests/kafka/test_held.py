"""Reading all that a topic holds: it ends, also when Kafka says nothing more."""

from __future__ import annotations

from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer
from fakes import chunk, publish

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka import held
from streamer.kafka.tail import retained


async def test_a_broker_that_falls_silent_is_not_waited_for_without_end(
    kafka: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    await publish(kafka, chunk("v", 0))
    found = [record async for record in retained(kafka, kafka.chunks_topic, b"v")]
    assert len(found) == 1

    async def nothing(*_: Any, **__: Any) -> dict[Any, Any]:
        return {}

    monkeypatch.setattr(AIOKafkaConsumer, "getmany", nothing)
    monkeypatch.setattr(held, "AWAY_SECONDS", 0.5)
    with pytest.raises(BrokerError, match=f"sent nothing of topic {kafka.chunks_topic}"):
        [record async for record in retained(kafka, kafka.chunks_topic, b"v")]

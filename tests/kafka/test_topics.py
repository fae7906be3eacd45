from __future__ import annotations

from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import MessageSizeTooLargeError
from fakes import fresh_names

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.client import admin_client
from streamer.kafka.topics import (
    create_topics,
    describe_broker,
    needed_topics,
    require_chunks_topic,
    require_topics,
)


async def test_missing_ones_are_made(names: KafkaConfig) -> None:
    kafka = names
    with pytest.raises(BrokerError, match=rf"has no topic {kafka.chunks_topic}, .*`streamer topics create`"):
        await require_topics(kafka)
    made = await create_topics(kafka, partitions=3)
    assert made == dict.fromkeys(needed_topics(kafka, evidence=True), (True, 3))
    info = await require_topics(kafka, evidence=True)
    assert [info.topics[name] for name in made] == [3] * 5
    assert set((await create_topics(kafka, partitions=12)).values()) == {(False, 3)}


async def test_a_producer_needs_the_topic_of_chunks_alone(names: KafkaConfig) -> None:
    """The others it may not be allowed to see."""
    await create_topics(names, partitions=1)
    alone = names.model_copy(
        update=dict.fromkeys(("scores_topic", "dead_letters_topic", "state_topic"), "hidden")
    )
    await require_chunks_topic(alone)
    with pytest.raises(BrokerError, match=r"has no topic hidden, .* not allowed to see them"):
        await require_topics(alone)
    with pytest.raises(BrokerError, match=r"has no topic elsewhere; .*`streamer topics create`"):
        await require_chunks_topic(names.model_copy(update={"chunks_topic": "elsewhere"}))


@pytest.mark.needs_kafka
async def test_settings(real_kafka: KafkaConfig) -> None:
    names = needed_topics(real_kafka, evidence=True)
    async with admin_client(real_kafka) as admin:
        (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, n) for n in names])
    settings = {r[3]: {entry[0]: entry[1] for entry in r[4]} for r in answer.resources}
    chunks, _, letters, state, evidence = (settings[name] for name in names)
    assert chunks["max.message.bytes"] == str(16 * 1024 * 1024)
    assert chunks["compression.type"] == "uncompressed"
    assert int(letters["max.message.bytes"]) > int(chunks["max.message.bytes"])
    assert state["cleanup.policy"] == "compact"
    assert evidence["cleanup.policy"] == "delete"
    assert int(evidence["retention.ms"]) + int(evidence["segment.ms"]) == 8 * 86_400_000
    assert evidence["message.timestamp.type"] == "LogAppendTime"


async def test_the_topic_of_evidence_is_needed_by_who_publishes_any(names: KafkaConfig) -> None:
    await create_topics(names, partitions=1)
    elsewhere = names.model_copy(update={"evidence_topic": "nowhere"})
    await require_topics(elsewhere)
    with pytest.raises(BrokerError, match="has no topic nowhere;"):
        await require_topics(elsewhere, evidence=True)


@pytest.mark.needs_kafka
async def test_batch_that_unpacks_beyond_the_limit_is_refused(apache_kafka: str) -> None:
    """100 kB of gzip that would be 100 MB in the consumer: the broker unpacks it first, and refuses."""
    kafka = fresh_names(apache_kafka)
    await create_topics(kafka, partitions=1)
    producer = AIOKafkaProducer(
        bootstrap_servers=apache_kafka, compression_type="gzip", max_request_size=200_000_000
    )
    await producer.start()
    try:
        await producer.send_and_wait(kafka.chunks_topic, bytes(1_000_000))
        with pytest.raises(MessageSizeTooLargeError):
            await producer.send_and_wait(kafka.chunks_topic, bytes(100_000_000))
    finally:
        await producer.stop()


@pytest.mark.needs_kafka
async def test_impossible_wish_says_why(apache_kafka: str) -> None:
    with pytest.raises(
        BrokerError, match=r"topic \S+ could not be created: InvalidReplicationFactorError: .+"
    ):
        await create_topics(fresh_names(apache_kafka), replication=3)


@pytest.mark.needs_kafka
async def test_state_topic_with_too_few_partitions(real_kafka: KafkaConfig) -> None:
    fewer = real_kafka.model_copy(update={"state_topic": f"{real_kafka.state_topic}-small"})
    await create_topics(fewer, partitions=1)
    with pytest.raises(BrokerError, match=r"1 partitions and .* has 2: .*give the state topic as many"):
        await require_topics(fewer)


async def test_cluster_without_a_broker_in_service_is_waited_for_then_an_error(
    names: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Apache Kafka answers while its only broker is fenced, for instance for late heartbeats."""
    describe, fenced = AIOKafkaAdminClient.describe_cluster, iter([True, True, False])

    async def describe_fenced(admin: AIOKafkaAdminClient) -> dict[str, Any]:
        answer = await describe(admin)
        return answer | {"brokers": []} if next(fenced, True) else answer

    monkeypatch.setattr(AIOKafkaAdminClient, "describe_cluster", describe_fenced)
    assert (await describe_broker(names)).brokers == 1
    with pytest.raises(BrokerError, match="has no broker in service"):
        await describe_broker(names, connect_seconds=0.5)

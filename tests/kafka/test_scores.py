"""Score updates out of Kafka."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import aclosing

import pytest
from aiokafka import TopicPartition
from fakes import (
    FakePipeline,
    chunk,
    fresh_names,
    producer,
    publish,
    running,
    service_config,
    until,
    watching,
)
from updates import update

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.embedded import EmbeddedBroker
from streamer.kafka.scores import read_scores
from streamer.kafka.topics import create_topics
from streamer.messages import ScoreUpdate, encode_score


async def test_scores_are_read_from_now_on_or_from_the_beginning(kafka: KafkaConfig) -> None:
    async with running(service_config(kafka), FakePipeline()), watching(kafka) as scores:
        await publish(kafka, chunk("early", 0))
        await until(lambda: len(scores.updates) == 1)
        ready = asyncio.Event()

        async def first_new() -> str:
            async with aclosing(read_scores(kafka, ready=ready)) as updates:
                async for update in updates:
                    return update.video_id
            raise AssertionError

        reading = asyncio.create_task(first_new())
        await asyncio.wait_for(ready.wait(), 10)
        await publish(kafka, chunk("late", 0))
        assert await asyncio.wait_for(reading, 10) == "late"
        await until(lambda: len(scores.updates) == 2)


async def test_reading_steps_over_what_is_no_score(kafka: KafkaConfig) -> None:
    async with watching(kafka) as scores, running(service_config(kafka), FakePipeline()):
        async with producer(kafka) as client:
            await client.send_and_wait(kafka.scores_topic, b"not a score")
            await client.send_and_wait(kafka.scores_topic, None, key=b"tombstone")
        await publish(kafka, chunk("v", 0))
        await until(lambda: len(scores.updates) == 1)


async def test_reading_a_missing_topic(kafka: KafkaConfig) -> None:
    absent = kafka.model_copy(update={"scores_topic": "absent"})
    with pytest.raises(BrokerError, match="no topic absent; make the topics with `streamer topics create`"):
        await anext(read_scores(absent))


async def test_partitions_that_are_added_are_read_from_their_beginning(
    kafka: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.kafka.tail.LOOK_SECONDS", 0.3)

    async def one_at_first(kafka: KafkaConfig, topic: str, connect_seconds: float) -> list[TopicPartition]:
        return [TopicPartition(topic, 0)]

    monkeypatch.setattr("streamer.kafka.tail._partitions", one_at_first)
    seen: list[ScoreUpdate] = []
    async with producer(kafka) as client:
        await client.send_and_wait(kafka.scores_topic, encode_score(update("before")), partition=1)
        await client.send_and_wait(kafka.scores_topic, encode_score(update("early")), partition=0)
        ready = asyncio.Event()

        async def read() -> None:
            async with aclosing(read_scores(kafka, ready=ready)) as updates:
                async for one in updates:
                    seen.append(one)  # noqa: PERF401  # at once, not when it ends

        reading = asyncio.create_task(read())
        await asyncio.wait_for(ready.wait(), 10)
        await client.send_and_wait(kafka.scores_topic, encode_score(update("first")), partition=0)
        await until(lambda: len(seen) == 2)
        await client.send_and_wait(kafka.scores_topic, encode_score(update("second")), partition=0)
        await until(lambda: len(seen) == 3)
        reading.cancel()
        await asyncio.gather(reading, return_exceptions=True)
    assert sorted(one.video_id for one in seen) == ["before", "first", "second"]


async def test_a_silence_is_told_and_nothing_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.kafka.tail.LOOK_SECONDS", 0.3)
    monkeypatch.setattr("streamer.kafka.tail.ANSWER_SECONDS", 0.3)
    silence: list[float] = [0.0]
    async with EmbeddedBroker() as broker:
        kafka = fresh_names(broker.bootstrap_servers, "at_least_once")
        await create_topics(kafka, partitions=1)
        reading = read_scores(kafka, from_beginning=True, on_silent=silence.append)
        async with aclosing(reading) as updates:
            following = asyncio.ensure_future(anext(updates))
            assert broker.pid is not None
            await until(lambda: len(silence) > 2)
            os.kill(broker.pid, signal.SIGSTOP)
            await until(lambda: silence[-1] > 1)
            os.kill(broker.pid, signal.SIGCONT)
            await until(lambda: silence[-1] < 1)
            async with producer(kafka) as client:
                await client.send_and_wait(kafka.scores_topic, encode_score(update("after")))
            assert (await asyncio.wait_for(following, 20)).video_id == "after"

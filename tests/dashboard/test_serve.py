"""The page as a process: topics in, HTTP out, signals, brokers that are away."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any

import aiohttp
import pytest
from aiokafka import AIOKafkaProducer, TopicPartition
from command import options_of, process, streamer
from fakes import fresh_names
from fakes import until as until_within
from scenes import evidence
from updates import update

from streamer.config import Config, DashboardConfig, KafkaConfig
from streamer.dashboard.serve import MAX_SCORE_BYTES, _read, read_topics
from streamer.dashboard.store import Store
from streamer.errors import BrokerError
from streamer.kafka.embedded import EmbeddedBroker
from streamer.kafka.tail import Tailed, tail
from streamer.kafka.topics import create_topics
from streamer.messages import (
    JPEG_START,
    DeadLetter,
    encode_dead_letter,
    encode_evidence,
    encode_score,
)


async def until(condition: Callable[[], object]) -> None:
    """Wait as long as a busy machine may need to connect."""
    await until_within(condition, seconds=90)


def config_of(kafka: KafkaConfig) -> Config:
    return Config.model_construct(**{**Config().__dict__, "kafka": kafka})


async def send(
    kafka: KafkaConfig, topic: str, *values: bytes, partition: int = 0, timestamp_ms: int | None = None
) -> bool:
    """Whether the records carry the broker's time, not ours."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka.bootstrap_servers, max_request_size=2**24)
    await producer.start()
    try:
        for value in values:
            sent = await producer.send_and_wait(topic, value, partition=partition, timestamp_ms=timestamp_ms)
    finally:
        await producer.stop()
    return sent.timestamp_type == 1


@asynccontextmanager
async def reading(kafka: KafkaConfig) -> AsyncIterator[Store]:
    store = Store(max_videos=100)
    task = asyncio.create_task(read_topics(config_of(kafka), store))
    try:
        yield store
        assert not task.done()
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


LETTER = DeadLetter(
    value=b"x" * 99,
    key=None,
    headers=[],
    error="broken",
    reason="damaged",
    stage="decode",
    topic="chunks",
    partition=1,
    offset=7,
    video_id="cam",
    seq=3,
    failed_at_ms=5,
)


async def test_both_topics_are_read_from_a_little_ago_on(kafka: KafkaConfig) -> None:
    restamped = await send(kafka, kafka.scores_topic, encode_score(update("long ago")), timestamp_ms=1)
    recent = {"long ago", "before"} if restamped else {"before"}
    await send(kafka, kafka.scores_topic, encode_score(update("before")), b"rubbish")
    await send(kafka, kafka.scores_topic, encode_score(update("x", model_set="x" * MAX_SCORE_BYTES)))
    await send(kafka, kafka.dead_letters_topic, encode_dead_letter(LETTER), b"rubbish")
    async with reading(kafka) as store:
        await until(
            lambda: len(store) == len(recent) and store.letters == 1 and store.status()["unreadable"] == 3
        )
        await send(kafka, kafka.scores_topic, encode_score(update("after"), "json"))
        await until(lambda: len(store) == len(recent) + 1)
        await until(lambda: store.status()["behind"] == 0)
    assert {row.video_id for row in store.rows()} == recent | {"after"}
    assert store.unreadable == {kafka.scores_topic: 2, kafka.dead_letters_topic: 1}
    assert store.letters_since(0)["letters"][0]["bytes"] == 99
    assert store.status()["trouble"] == []


async def test_pictures_are_read_too(kafka: KafkaConfig) -> None:
    good = evidence("cam", 1, (0.9, 0.8), jpeg=JPEG_START + b"x")
    async with reading(kafka) as store:
        await send(kafka, kafka.scores_topic, encode_score(update("cam")))
        await send(kafka, kafka.evidence_topic, b"rubbish", encode_evidence(good))
        await until(lambda: len(store) == 1 and len(store.gallery.of("cam")) == 2)
        await until(lambda: store.status()["behind"] == 0)
    assert [face["score"] for face in store.video("cam", 0)["evidence"]] == [0.9, 0.8]
    assert store.unreadable == {kafka.evidence_topic: 1}


async def test_a_topic_of_evidence_may_be_lacking_and_come(
    embedded_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.dashboard.serve.LOOK_SECONDS", 0.1)
    kafka = fresh_names(embedded_broker, "at_least_once")
    await create_topics(kafka, partitions=1)
    later = kafka.model_copy(update={"evidence_topic": f"{kafka.evidence_topic}-later"})
    async with reading(later) as store:
        await send(later, later.scores_topic, encode_score(update("cam")))
        await until(lambda: len(store) == 1)
        await asyncio.sleep(0.5)
        assert store.status()["trouble"] == []
        await create_topics(later, partitions=1)
        await send(later, later.evidence_topic, encode_evidence(evidence("cam", 1, (0.9,))))
        await until(lambda: store.gallery.of("cam"))
    assert store.status()["trouble"] == []


async def test_it_starts_no_group_and_commits_nothing(kafka: KafkaConfig) -> None:
    from streamer.kafka.client import admin_client

    await send(kafka, kafka.scores_topic, encode_score(update("a")))
    async with admin_client(kafka) as admin:
        before = {group[0] for group in await admin.list_consumer_groups()}
        async with reading(kafka) as store:
            await until(lambda: len(store) == 1)
            assert {group[0] for group in await admin.list_consumer_groups()} == before


async def test_only_the_newest_records_are_read_back(kafka: KafkaConfig) -> None:
    await send(kafka, kafka.scores_topic, *(b"%d" % n for n in range(10)))
    seen: list[bytes | None] = []
    async with aclosing(tail(kafka, kafka.scores_topic, back_seconds=60, back_records=3)) as batches:
        async with asyncio.timeout(30):
            async for batch in batches:
                seen += [record.value for record in batch]
                if len(seen) >= 3:
                    break
    assert seen == [b"7", b"8", b"9"]


async def test_a_missing_scores_topic_is_an_error_and_missing_dead_letters_a_note(
    embedded_broker: str,
) -> None:
    kafka = fresh_names(embedded_broker, "at_least_once")
    with pytest.raises(BrokerError, match=f"no topic {kafka.scores_topic}"):
        await read_topics(config_of(kafka), Store(max_videos=1))
    await create_topics(kafka, partitions=1)
    elsewhere = kafka.model_copy(update={"dead_letters_topic": "nowhere"})
    async with reading(elsewhere) as store:
        await send(kafka, kafka.scores_topic, encode_score(update("a")))
        await until(lambda: len(store) == 1 and store.status()["trouble"])
    assert "no topic nowhere" in store.status()["trouble"][0]


async def test_a_broker_that_is_silent_is_spoken_of_and_nothing_is_missed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamer.kafka.tail.LOOK_SECONDS", 0.3)
    monkeypatch.setattr("streamer.kafka.tail.ANSWER_SECONDS", 0.3)
    monkeypatch.setattr("streamer.dashboard.serve.SILENT_SECONDS", 1.0)
    async with EmbeddedBroker() as broker:
        kafka = fresh_names(broker.bootstrap_servers, "at_least_once")
        await create_topics(kafka, partitions=1)
        async with reading(kafka) as store:
            await send(kafka, kafka.scores_topic, encode_score(update("before")))
            await until(lambda: len(store) == 1 and not store.status()["trouble"])
            assert broker.pid is not None
            os.kill(broker.pid, signal.SIGSTOP)
            await until(lambda: len(store.trouble) == 3)
            said = f"Kafka at {kafka.bootstrap_servers} has not answered for "
            assert store.trouble[kafka.scores_topic].startswith(said)
            os.kill(broker.pid, signal.SIGCONT)
            await until(lambda: not store.status()["trouble"])
            await send(kafka, kafka.scores_topic, encode_score(update("after")))
            await until(lambda: len(store) == 2)
            assert store.updates == 2


async def test_after_a_silence_that_ends_with_an_error_all_of_it_is_read(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[float] = []

    async def silent_tail(
        *_: Any, back_seconds: float, on_silent: Callable[[float], None], **__: Any
    ) -> AsyncGenerator[list[Tailed], None]:
        asked.append(back_seconds)
        on_silent(0.0 if len(asked) == 2 else 40.0)
        yield []
        raise BrokerError("gone")

    monkeypatch.setattr("streamer.dashboard.serve.tail", silent_tail)
    monkeypatch.setattr("streamer.dashboard.serve.RETRY_SECONDS", 0.0)
    config = config_of(KafkaConfig())
    reading_scores = asyncio.create_task(_read(config, Store(max_videos=1), "scores", lambda _: None, 1))
    await until(lambda: len(asked) >= 3)
    reading_scores.cancel()
    first, after_silence, after_none = asked[:3]
    assert first == pytest.approx(config.dashboard.back_seconds, abs=5)
    assert after_silence == pytest.approx(40, abs=5)
    assert after_none == pytest.approx(0, abs=5)


async def test_partitions_that_are_added_are_read_too(
    embedded_broker: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kafka = fresh_names(embedded_broker, "at_least_once")
    await create_topics(kafka, partitions=2)

    async def one_at_first(kafka: KafkaConfig, topic: str, connect_seconds: float) -> list[TopicPartition]:
        return [TopicPartition(topic, 0)]

    monkeypatch.setattr("streamer.kafka.tail._partitions", one_at_first)
    monkeypatch.setattr("streamer.kafka.tail.LOOK_SECONDS", 0.3)
    await send(kafka, kafka.scores_topic, encode_score(update("added")), partition=1)
    async with reading(kafka) as store:
        await send(kafka, kafka.scores_topic, encode_score(update("first")))
        await until(lambda: len(store) == 2)
        await until(lambda: not store.status()["trouble"])


async def test_a_process_serves_and_ends_on_sigterm_with_a_stream_open() -> None:
    async with EmbeddedBroker() as broker:
        kafka = fresh_names(broker.bootstrap_servers, "at_least_once")
        await create_topics(kafka, partitions=2)
        await send(kafka, kafka.scores_topic, encode_score(update("a/b", score=0.25)))
        with process("dashboard", "--port", "0", *options_of(kafka)) as running:
            assert running.stdout is not None
            address = (await asyncio.to_thread(running.stdout.readline)).split()[0]
            async with (
                asyncio.timeout(90),
                aiohttp.ClientSession() as session,
                session.get(f"{address}events") as response,
            ):
                assert response.status == 200
                while b'"a/b"' not in (line := await response.content.readuntil(b"\n")):
                    pass
                running.send_signal(signal.SIGTERM)
                await asyncio.to_thread(running.wait, 60)
            assert running.returncode == 0
            assert json.loads(line.removeprefix(b"data: "))["videos"][0]["score"] == 0.25
            assert running.stderr is not None
            assert "Traceback" not in running.stderr.read()


def test_a_broker_that_is_not_there_is_status_3() -> None:
    result = streamer("dashboard", "--port", "0", "--bootstrap", "127.0.0.1:1")
    assert result.returncode == 3
    assert "no Kafka reachable at 127.0.0.1:1" in result.stderr


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "needs auth"),
        (["--set", "dashboard.token=0123456789abcdef"], "every user of a machine can read"),
        (["--set", "dashboard.auth=token"], "belong together"),
        (["--host", "192.0.2.1", "--set", "dashboard.auth=proxy"], "cannot listen on 192.0.2.1"),
    ],
)
def test_wrong_settings_are_status_2(words: list[str], said: str) -> None:
    result = streamer("dashboard", "--bootstrap", "127.0.0.1:1", *words)
    assert result.returncode == 2, result.stderr
    assert said in result.stderr
    assert "0123456789abcdef" not in result.stderr


def test_the_token_comes_from_the_environment() -> None:
    result = streamer(
        *("dashboard", "--port", "0", "--bootstrap", "127.0.0.1:1"),
        STREAMER_DASHBOARD__AUTH="token",
        STREAMER_DASHBOARD__TOKEN="short",
    )
    assert result.returncode == 2
    assert "dashboard.token has 5 characters, at least 16" in result.stderr


def test_defaults_ask_nobody_and_listen_to_this_machine_only() -> None:
    assert (DashboardConfig().host, DashboardConfig().auth) == ("127.0.0.1", "none")

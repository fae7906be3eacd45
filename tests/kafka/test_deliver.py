"""Batches to real brokers: all of it or nothing, in which order, and who is kept out."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewTopic
from fakes import committed, dead_letters, evidence_of, fresh_names, until, watching
from updates import update

from streamer.config import KafkaConfig
from streamer.errors import BrokerError, FencedError
from streamer.kafka.changelog import (
    GROUP_HEADER,
    NO_TERM,
    POSITION_KEY,
    TERM_HEADER,
    Restored,
    Term,
    restore,
)
from streamer.kafka.client import admin_client
from streamer.kafka.deliver import AtLeastOnce, Batch, Delivery, ExactlyOnce, make_delivery
from streamer.kafka.topics import create_topics
from streamer.messages import DeadLetter, EvidenceCrop, Headers, VideoEvidence


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


def evidence(seq: int, *, size: int = 100) -> VideoEvidence:
    crop = EvidenceCrop(
        track=0,
        time_seconds=1.5,
        box=(0, 0, 9, 9),
        fake_score=0.9,
        models={"m": 0.9},
        jpeg=b"\xff\xd8\xff" + bytes(size),
        heat_map=None,
    )
    return VideoEvidence(video_id="v", seq=seq, crops=[crop], model_set="x")


@pytest.fixture
async def delivery(kafka: KafkaConfig) -> AsyncIterator[Delivery]:
    async with make_delivery(kafka) as delivery:
        await delivery.open([0, 1])
        yield delivery


async def test_batch_arrives_whole(kafka: KafkaConfig, delivery: Delivery) -> None:
    async with watching(kafka) as scores:
        await delivery.deliver(
            Batch(1, [letter(kafka, b"x")], [update("v", 0), update("v", 1)], {"v": b"one", "w": b"two"}, 7)
        )
        await delivery.deliver(Batch(1, [], [update("v", 2)], {"w": None}, None, evidence=[evidence(2)]))
        await until(lambda: len(scores.updates) == 3)
    assert scores.updates == [update("v", 0), update("v", 1), update("v", 2)]
    assert await dead_letters(kafka, 1) == [letter(kafka, b"x")]
    assert await evidence_of(kafka, "v", 1) == [evidence(2)]
    assert await committed(kafka) == ({1: 7} if delivery.commits_offsets else {})
    restored = await restore(kafka, [0, 1])
    assert (restored[0].states, restored[0].next_offset) == ({}, None)
    assert (restored[1].states, restored[1].next_offset) == ({"v": b"one"}, 7)


async def test_largest_chunk_fits_its_dead_letter(kafka: KafkaConfig, delivery: Delivery) -> None:
    largest = letter(kafka, bytes(kafka.max_message_bytes - 10_000))
    await delivery.deliver(Batch(0, letters=[largest]))
    assert await dead_letters(kafka, 1) == [largest]


@pytest.mark.needs_kafka
@pytest.mark.parametrize("mode", ["exactly_once", "at_least_once"])
async def test_dead_letter_too_large_for_its_topic_says_where_the_bytes_are(
    apache_kafka: str, mode: str
) -> None:
    kafka = fresh_names(apache_kafka, mode)  # type: ignore[arg-type]
    async with admin_client(kafka) as admin:
        small = {"max.message.bytes": "10000"}
        await admin.create_topics(
            [
                NewTopic(kafka.dead_letters_topic, 1, 1, topic_configs=small),
                *(NewTopic(name, 1, 1) for name in (kafka.scores_topic, kafka.chunks_topic)),
                NewTopic(kafka.state_topic, 1, 1),
            ]
        )
    async with make_delivery(kafka) as delivery, watching(kafka) as scores:
        await delivery.open([0])
        await delivery.deliver(Batch(0, [letter(kafka, bytes(50_000))], [update("v", 3)], {}, 18))
        (received,) = await dead_letters(kafka, 1)
        await until(lambda: scores.updates)
    assert received.value == b""
    assert received.error == (
        f"too long (50000 bytes left out: too large; they are in {kafka.chunks_topic} partition 0 offset 17)"
    )


@pytest.mark.needs_kafka
@pytest.mark.parametrize("mode", ["exactly_once", "at_least_once"])
async def test_evidence_too_large_for_its_topic_is_left_out_and_nothing_else(
    apache_kafka: str, mode: str
) -> None:
    kafka = fresh_names(apache_kafka, mode)  # type: ignore[arg-type]
    await create_topics(kafka, partitions=1)
    small = kafka.model_copy(update={"evidence_topic": f"{kafka.evidence_topic}-small"})
    async with admin_client(kafka) as admin:
        made = NewTopic(small.evidence_topic, 1, 1, topic_configs={"max.message.bytes": "10000"})
        await admin.create_topics([made])
    async with make_delivery(small) as delivery, watching(small) as scores:
        await delivery.open([0])
        batch = Batch(0, updates=[update("v", 0)], next_offset=1, evidence=[evidence(0, size=50_000)])
        await delivery.deliver(batch)
        await delivery.deliver(Batch(0, updates=[update("v", 1)], next_offset=2, evidence=[evidence(1)]))
        await until(lambda: len({each.seq for each in scores.updates}) == 2)
    assert batch.evidence == []  # so that nobody counts it
    assert await evidence_of(small, "v", 1) == [evidence(1)]


@pytest.mark.needs_kafka
@pytest.mark.parametrize("pause_seconds", [0.0, 0.3], ids=["at the end", "between two records"])
async def test_second_owner_keeps_the_first_one_out(
    real_kafka: KafkaConfig, monkeypatch: pytest.MonkeyPatch, pause_seconds: float
) -> None:
    """A process that was paused and lost its partition cannot publish for it, whenever it learns so."""
    send = AIOKafkaProducer.send

    async def send_and_pause(*args: Any, **kwargs: Any) -> Any:
        acknowledgement = await send(*args, **kwargs)
        await asyncio.sleep(pause_seconds)
        return acknowledgement

    monkeypatch.setattr(AIOKafkaProducer, "send", send_and_pause)
    async with ExactlyOnce(real_kafka) as zombie, ExactlyOnce(real_kafka) as owner:
        await zombie.open([0, 1])
        await zombie.deliver(Batch(0, updates=[update("v", 0)], next_offset=1))
        await owner.open([0])
        with pytest.raises(FencedError, match="another process has taken over"):
            await zombie.deliver(
                Batch(0, [], [update("v", 1)], {"v": b"zombie"}, next_offset=2, evidence=[evidence(8)])
            )
        await owner.deliver(
            Batch(0, [], [update("v", 1)], {"v": b"owner"}, next_offset=2, evidence=[evidence(9)])
        )
        await zombie.deliver(Batch(1, updates=[update("v", 2)]))  # of a partition that it still has
        async with watching(real_kafka) as scores:
            await until(lambda: len(scores.updates) >= 3)
    async with ExactlyOnce(real_kafka) as successor:
        await successor.open([0])  # with this all transactions of others have ended on every partition
        restored = await restore(real_kafka, [0])
    assert sorted(each.seq for each in scores.updates) == [0, 1, 2]
    assert restored[0].states == {"v": b"owner"}
    assert await evidence_of(real_kafka, "v", 1) == [evidence(9)]


@pytest.mark.needs_kafka
async def test_that_one_is_fenced_is_said_once(
    real_kafka: KafkaConfig, caplog: pytest.LogCaptureFixture
) -> None:
    """And not again by asyncio, with a traceback, of a future inside of the client."""
    async with ExactlyOnce(real_kafka) as zombie, ExactlyOnce(real_kafka) as owner:
        await zombie.open([0])
        await zombie.deliver(Batch(0, states={"v": b"1"}, next_offset=1))
        await owner.open([0])
        with pytest.raises(FencedError, match="another process has taken over"):
            await zombie.deliver(Batch(0, states={"v": b"2", "w": b"2"}, next_offset=2))
    gc.collect()
    assert [record.getMessage() for record in caplog.records if record.name == "asyncio"] == []


@pytest.mark.needs_kafka
async def test_open_transaction_of_a_dead_owner_is_undone(real_kafka: KafkaConfig) -> None:
    async with ExactlyOnce(real_kafka) as dead, ExactlyOnce(real_kafka) as owner:
        await dead.open([0])
        publisher = dead._publishers[0]
        assert publisher._producer is not None
        await publisher._producer.begin_transaction()
        await publisher._producer.send_and_wait(real_kafka.state_topic, b"lost", key=b"v", partition=0)
        await owner.open([0])
        assert (await restore(real_kafka, [0]))[0].states == {}


@pytest.mark.needs_kafka
async def test_what_was_undone_stays_so_when_the_delivery_is_changed(real_kafka: KafkaConfig) -> None:
    """Else chunks whose results were never published are taken for counted."""
    async with ExactlyOnce(real_kafka) as dead:
        await dead.open([0])
        await dead.deliver(Batch(0, states={"v": b"1"}, next_offset=1))
        publisher = dead._publishers[0]
        assert publisher._producer is not None
        await publisher._producer.begin_transaction()
        await publisher._producer.send_and_wait(real_kafka.state_topic, b"lost", key=b"v", partition=0)
        await publisher._producer.abort_transaction()
    after = real_kafka.model_copy(update={"delivery": "at_least_once"})
    assert await restore(after, [0]) == {0: Restored({"v": b"1"}, next_offset=1)}


async def test_broker_without_transactions_is_recognised(embedded_broker: str) -> None:
    kafka = fresh_names(embedded_broker)
    with pytest.raises(BrokerError, match=r'gives us no transactions .*set it to "at_least_once"'):
        await ExactlyOnce(kafka).__aenter__()


@pytest.mark.needs_kafka
async def test_results_are_safe_before_the_changelog_says_so(apache_kafka: str) -> None:
    """At-least-once: without the scores no state, so that a replay publishes them."""
    kafka = fresh_names(apache_kafka, "at_least_once")
    async with admin_client(kafka) as admin:
        nothing_fits = {"max.message.bytes": "10"}
        await admin.create_topics(
            [
                NewTopic(kafka.scores_topic, 1, 1, topic_configs=nothing_fits),
                NewTopic(kafka.state_topic, 1, 1),
            ]
        )
    async with AtLeastOnce(kafka) as delivery:
        with pytest.raises(BrokerError, match=kafka.scores_topic):
            await delivery.deliver(Batch(0, updates=[update("v", 0)], states={"v": b"state"}, next_offset=1))
    assert await restore(kafka, [0]) == {0: Restored()}


async def test_what_a_former_owner_writes_late_is_left_out(kafka: KafkaConfig) -> None:
    """At-least-once keeps nobody out: a process that was frozen goes on where it was."""
    frozen, owner = Term(1, generation=4), Term(1, generation=5)  # of those that took over the same state
    async with make_delivery(kafka) as delivery:
        await delivery.open([0])
        await delivery.deliver(Batch(0, states={"v": b"1", "w": b"1"}, next_offset=1, term=frozen))
        await delivery.deliver(Batch(0, states={"v": b"2", "x": b"2"}, next_offset=2, term=owner))
        await delivery.deliver(Batch(0, states={"v": b"late", "x": None}, next_offset=1, term=frozen))
        await delivery.deliver(Batch(0, states={"w": b"3"}, next_offset=3, term=owner))
    found = (await restore(kafka, [0]))[0]
    assert found == Restored({"v": b"2", "x": b"2", "w": b"3"}, next_offset=3, term=owner, stale=3)


def test_terms_rise_even_where_the_groups_generations_begin_anew() -> None:
    term = NO_TERM.next(7)
    assert term.next(8) > term.next(1) > term > NO_TERM


@pytest.mark.parametrize(
    ("key", "value", "headers"),
    [
        (b"\xfe\xff", b"a key that is no video_id", ()),
        (POSITION_KEY, b"no number", ()),
        (b"v", b"2", ((TERM_HEADER, b"no term"),)),
        (b"v", b"2", ((TERM_HEADER, msgpack.packb(("a", "b"))),)),
        (b"v", b"2", ((TERM_HEADER, msgpack.packb(1)),)),
        (b"v", b"2", ((GROUP_HEADER, b"\xff"),)),
    ],
)
def test_a_record_that_is_not_ours_is_left_out(key: bytes, value: bytes, headers: Headers) -> None:
    found = Restored()
    found.read("group", key, value, headers)
    found.read("group", b"v", b"1", ((TERM_HEADER, msgpack.packb(Term(1, 1))),))
    found.read("group", key, value, headers)
    assert found.states == {"v": b"1"}
    assert found.next_offset is None
    assert found.foreign >= 1
    assert found.foreign + found.stale == 2


def test_records_of_before_the_group_was_said_are_taken_those_of_another_are_not() -> None:
    found, ours, other = Restored(), ((GROUP_HEADER, b"ours"),), ((GROUP_HEADER, b"other"),)
    found.read("ours", b"v", b"old")
    found.read("ours", b"w", b"1", ours)
    found.read("ours", b"w", None, other)
    found.read("ours", POSITION_KEY, msgpack.packb(7), (*other, (TERM_HEADER, msgpack.packb(Term(9, 9)))))
    assert found == Restored({"v": b"old", "w": b"1"}, other_groups={"other"})

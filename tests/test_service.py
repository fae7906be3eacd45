"""The service against real brokers, with a pipeline that needs no networks."""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from collections import Counter
from dataclasses import replace

import aiohttp
import pytest
from aiokafka import TopicPartition
from fakes import (
    BAD,
    BROKEN,
    FakePipeline,
    chunk,
    committed,
    dead_letters,
    evidence_of,
    fresh_names,
    publish,
    running,
    service_config,
    until,
    watching,
)
from kafka_broker import each_delivery
from structlog.testing import capture_logs

from streamer.config import EvidenceConfig, KafkaConfig, RollingConfig
from streamer.errors import BrokerError, ConfigError, InferenceError
from streamer.kafka.embedded import EmbeddedBroker
from streamer.kafka.publish import ChunkPublisher
from streamer.kafka.topics import create_topics
from streamer.partition import PartitionWorker
from streamer.service import Service


async def test_scores_every_chunk_in_order(kafka: KafkaConfig) -> None:
    chunks = [chunk(f"video-{n % 5}", n // 5) for n in range(50)]
    async with watching(kafka) as scores:
        async with running(service_config(kafka), FakePipeline(seconds=0.005)):
            await publish(kafka, *chunks)
            await until(lambda: len(scores.updates) == 50)
        for n in range(5):
            updates = scores.of(f"video-{n}")
            assert [update.seq for update in updates] == list(range(10))
            assert [update.chunks for update in updates] == list(range(1, 11))
            assert all(update.status == "scored" for update in updates)
        assert scores.updates[0].latency_ms["total"] > 0
        assert scores.updates[0].latency_ms["decode"] == 2.0
    assert sum((await committed(kafka)).values()) == 50


@each_delivery
async def test_large_chunks(kafka: KafkaConfig) -> None:
    chunks = [chunk("large", seq, bytes([seq]) * 1_500_000, last=seq == 7) for seq in range(8)]
    async with watching(kafka) as scores:
        async with running(service_config(kafka, max_bytes_in_flight=4_000_000), FakePipeline()) as service:
            await publish(kafka, *chunks)
            await until(lambda: len(scores.updates) == 8)
        assert [update.seq for update in scores.updates] == list(range(8))
        assert scores.updates[-1].status == "final"
        assert service.metrics.registry.get_sample_value("streamer_in_flight_bytes") is not None


async def test_bad_chunks_among_good_ones(kafka: KafkaConfig) -> None:
    async with watching(kafka) as scores:
        async with running(service_config(kafka), FakePipeline()) as service:
            await publish(kafka, chunk("v", 0), chunk("v", 1, BAD), chunk("v", 2))
            async with ChunkPublisher(kafka) as publisher:
                await publisher.send_raw(b"no msgpack at all", b"v", [("origin", b"test")])
                await publisher.send_chunk(chunk("v", 3))
            await until(lambda: len(scores.updates) == 4)
            letters = await dead_letters(kafka, 2)
        assert [update.status for update in scores.updates] == ["scored", "undecodable", "scored", "scored"]
        assert scores.updates[1].error == "not_media"
        assert scores.updates[1].fake_score == scores.updates[0].fake_score
        assert scores.updates[-1].undecodable_chunks == 1
    by_stage = {letter.stage: letter for letter in letters}
    assert len(letters) == 2
    assert by_stage["decode"].reason == "not_media"
    assert (by_stage["decode"].video_id, by_stage["decode"].seq) == ("v", 1)
    bad = by_stage["message"]
    assert (bad.value, bad.key, bad.headers) == (b"no msgpack at all", b"v", [("origin", b"test")])
    assert (bad.reason, bad.topic, bad.video_id, bad.seq) == ("not_msgpack", kafka.chunks_topic, "v", None)
    assert bad.offset == by_stage["decode"].offset + 2
    assert sum((await committed(kafka)).values()) == 5
    count = service.metrics.registry.get_sample_value
    assert count("streamer_dead_letters_total", {"stage": "message", "reason": "not_msgpack"}) == 1


@each_delivery
async def test_a_dead_letter_that_is_published_again_counts(kafka: KafkaConfig) -> None:
    """Too much in a minute, as its reason was, it is no longer."""
    limited = service_config(kafka, max_video_chunks_per_minute=2)
    async with watching(kafka) as scores:
        async with running(limited, FakePipeline()):
            await publish(kafka, *(chunk("v", seq) for seq in range(3)))
            [letter] = await dead_letters(kafka, 1)
            await until(lambda: len(scores.updates) == 3)
        async with running(service_config(kafka), FakePipeline()), ChunkPublisher(kafka) as publisher:
            await publisher.send_raw(letter.value, letter.key, letter.headers)
            await until(lambda: len(scores.updates) == 4)
    last = scores.updates[-1]
    assert (last.seq, last.status) == (2, "scored")
    assert (last.chunks, last.undecodable_chunks, last.missing_chunks) == (3, 0, 0)


@each_delivery
async def test_evidence_is_published_once_of_every_chunk_that_was_counted(kafka: KafkaConfig) -> None:
    config = service_config(kafka).model_copy(update={"evidence": EvidenceConfig(publish=True)})
    chunks = [chunk("v", seq) for seq in range(4)]
    async with watching(kafka) as scores, running(config, FakePipeline()) as service:
        await publish(kafka, *chunks, chunk("v", 2), chunk("v", 4, BAD))
        await until(lambda: len(scores.updates) == 6)
        found = await evidence_of(kafka, "v", 4)
        count = service.metrics.registry.get_sample_value
        await until(lambda: count("streamer_evidence_messages_total") == 4)
        assert count("streamer_evidence_crops_total") == 4
    assert [evidence.seq for evidence in found] == [0, 1, 2, 3]
    one, two = found[0].crops[0].models.items()
    assert (one[0], two[0]) == FakePipeline.ensemble.names
    assert found[0].crops[0].fake_score == pytest.approx((one[1] + two[1]) / 2)
    assert found[0].crops[0].track == scores.updates[0].tracks[0].track
    assert [evidence.crops[0].time_seconds for evidence in found] == [0.0, 1.0, 2.0, 3.0]


@pytest.mark.needs_kafka
@pytest.mark.parametrize(("wanted", "trained"), [(False, True), (True, False)])
async def test_no_evidence_unless_it_is_wanted_and_the_members_are_trained(
    apache_kafka: str, *, wanted: bool, trained: bool
) -> None:
    kafka = fresh_names(apache_kafka)
    await create_topics(kafka, partitions=1)
    config = service_config(kafka).model_copy(update={"evidence": EvidenceConfig(publish=wanted)})
    pipeline = FakePipeline()
    pipeline.ensemble = replace(FakePipeline.ensemble, trained=trained)
    async with watching(kafka) as scores, running(config, pipeline):
        await publish(kafka, chunk("v", 0))
        await until(lambda: scores.updates)
    assert await evidence_of(kafka, "v", 0) == []


@pytest.mark.needs_kafka
async def test_a_missing_topic_of_evidence_is_missed_only_by_who_publishes_any(apache_kafka: str) -> None:
    kafka = fresh_names(apache_kafka)
    await create_topics(kafka, partitions=1)
    config = service_config(kafka.model_copy(update={"evidence_topic": "nowhere"}))
    async with running(config, FakePipeline()):
        pass
    publishing = config.model_copy(update={"evidence": EvidenceConfig(publish=True)})
    with pytest.raises(BrokerError, match=r"no topic nowhere; .*`streamer topics create`"):
        await Service(publishing, FakePipeline, connect_seconds=5).run()


@pytest.mark.needs_kafka
async def test_raw_media_with_headers(real_kafka: KafkaConfig) -> None:
    async with watching(real_kafka) as scores, running(service_config(real_kafka), FakePipeline()):
        async with ChunkPublisher(real_kafka) as publisher:
            for seq in range(3):
                headers = [("content-type", b"video/mp2t"), ("seq", str(seq).encode())]
                await publisher.send_raw(b"some media", b"camera", headers)
        await until(lambda: len(scores.updates) == 3)
    assert [update.seq for update in scores.of("camera")] == [0, 1, 2]


@pytest.mark.needs_kafka
async def test_failing_network_stops_the_service_and_loses_nothing(real_kafka: KafkaConfig) -> None:
    await publish(real_kafka, chunk("v", 0), chunk("v", 1), chunk("v", 2, BROKEN), chunk("v", 3))
    async with watching(real_kafka) as scores:
        service = Service(service_config(real_kafka), FakePipeline, connect_seconds=5)
        with pytest.raises(InferenceError, match="network one failed"):
            await asyncio.wait_for(service.run(), 30)
        done = sum((await committed(real_kafka)).values())
        await until(lambda: len(scores.chunks()) == done)
        assert scores.chunks() <= {("v", 0), ("v", 1)}


@each_delivery
async def test_two_members_share_and_hand_over(kafka: KafkaConfig) -> None:
    """Members join and leave in the midst of work: every chunk is counted by someone, none twice."""
    videos, length = 8, 40
    chunks = [chunk(f"video-{n}", seq) for seq in range(length) for n in range(videos)]
    expected = {(each.video_id, each.seq) for each in chunks}
    first, second = FakePipeline(seconds=0.02), FakePipeline(seconds=0.02)
    config = service_config(kafka)
    async with watching(kafka) as scores:
        publishing = asyncio.create_task(publish(kafka, *chunks))
        async with running(config, first) as one:
            await until(lambda: len(scores.updates) > 30)
            async with running(config, second) as two:
                await until(lambda: len(second.started) > 30)
                # each takes over what it is dealt in its own time
                await until(
                    lambda: (
                        len(one._assignment.intake.partitions) == len(two._assignment.intake.partitions) == 1
                    )
                )
            await publishing
            await until(lambda: scores.chunks() >= expected)
    assert scores.chunks() == expected
    by_chunk = Counter((update.video_id, update.seq) for update in scores.updates)
    assert set(by_chunk.values()) == {1}  # nobody had to give up anything
    for n in range(videos):
        updates = scores.of(f"video-{n}")
        assert [update.seq for update in updates] == list(range(length))
        for before, after in itertools.pairwise(updates):
            assert after.chunks == before.chunks + 1
    assert sum((await committed(kafka)).values()) == len(chunks)


@pytest.mark.needs_kafka
async def test_rebalance_keeps_the_state(real_kafka: KafkaConfig) -> None:
    """Whether a partition stays, goes or comes back: no video begins anew."""
    async with watching(real_kafka) as scores, running(service_config(real_kafka), FakePipeline()) as one:
        await publish(real_kafka, *(chunk(f"video-{n}", 0) for n in range(8)))
        await until(lambda: len(scores.updates) == 8)
        async with running(service_config(real_kafka), FakePipeline()):
            await until(lambda: len(one._assignment.intake.partitions) == 1)
        await until(lambda: one.why_not_ready() is None and len(one._assignment.intake.partitions) == 2)
        await publish(real_kafka, *(chunk(f"video-{n}", 1) for n in range(8)))
        await until(lambda: len(scores.updates) == 16)
        assert {update.chunks for update in scores.updates[8:]} == {2}


@each_delivery
async def test_drain_on_stop_finishes_what_is_under_way(kafka: KafkaConfig) -> None:
    await publish(kafka, *(chunk("v", seq) for seq in range(30)))
    pipeline = FakePipeline(seconds=0.1)
    async with watching(kafka) as scores:
        async with running(service_config(kafka, max_chunks_in_flight=2), pipeline):
            await until(lambda: len(scores.updates) >= 3)
        # stopped: all that was started is scored and committed, nothing was cancelled
        await until(lambda: len(scores.updates) >= len(pipeline.started))
        assert len(pipeline.started) < 16  # not all that was fetched
        assert not pipeline.cancelled
        assert sum((await committed(kafka)).values()) == len(pipeline.started) < 30
        async with running(service_config(kafka), FakePipeline()):
            await until(lambda: len(scores.chunks()) == 30)
    assert [update.seq for update in scores.updates] == list(range(30))


@pytest.mark.needs_kafka
async def test_drain_budget_is_kept_and_the_rest_is_done_again(real_kafka: KafkaConfig) -> None:
    await publish(real_kafka, *(chunk("v", seq) for seq in range(6)))
    pipeline = FakePipeline()
    async with watching(real_kafka) as scores:
        async with running(service_config(real_kafka, drain_seconds=0.3), pipeline):
            await until(lambda: len(scores.updates) == 6)
            pipeline.gate.clear()
            await publish(real_kafka, *(chunk("v", seq) for seq in range(6, 9)))
            await until(lambda: len(pipeline.started) == 9)
        assert len(pipeline.cancelled) == 3
        assert sum((await committed(real_kafka)).values()) == 6
        async with running(service_config(real_kafka), FakePipeline()):
            await until(lambda: len(scores.updates) == 9)
    assert [update.seq for update in scores.updates] == list(range(9))


@pytest.mark.needs_kafka
async def test_second_stop_ends_at_once(real_kafka: KafkaConfig) -> None:
    pipeline = FakePipeline()
    pipeline.gate.clear()
    await publish(real_kafka, chunk("v", 0))
    async with running(service_config(real_kafka, drain_seconds=60), pipeline) as service:
        await until(lambda: pipeline.started)
        service.stop()
        await asyncio.sleep(0.2)
        assert not pipeline.cancelled
        service.stop()
        async with asyncio.timeout(5):
            await until(lambda: pipeline.cancelled)
    assert await committed(real_kafka) == {}


@pytest.mark.needs_kafka
async def test_who_ends_takes_no_partitions_over(real_kafka: KafkaConfig) -> None:
    """As when the group is dealt anew in this moment: it would be fenced from what it has just given up."""
    with capture_logs() as lines:
        async with running(service_config(real_kafka), FakePipeline()) as service:
            service.stop()
            await service._consumer._listener.on_partitions_assigned(
                [TopicPartition(real_kafka.chunks_topic, 0)]
            )
    assert [line["event"] for line in lines].count("partitions assigned") == 1


@each_delivery
async def test_group_dealt_anew_while_a_process_ends(
    kafka: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when all are told to end: each leaves while the others give up what they have."""
    halt = PartitionWorker.halt

    async def slow_halt(worker: PartitionWorker, run: asyncio.Task[None]) -> int:
        await asyncio.sleep(0.2)  # for a delivery under way
        return await halt(worker, run)

    monkeypatch.setattr(PartitionWorker, "halt", slow_halt)
    pipeline = FakePipeline()
    pipeline.gate.clear()
    await publish(kafka, *(chunk(f"video-{n}", 0) for n in range(4)))
    with capture_logs() as lines:
        async with running(service_config(kafka, drain_seconds=0.5), pipeline) as service:
            await until(lambda: len(pipeline.started) == 4)
            service.stop()
            await until(lambda: "stopping" in [line["event"] for line in lines])
            revoked = [TopicPartition(kafka.chunks_topic, partition) for partition in range(2)]
            dealing = asyncio.create_task(service._consumer._listener.on_partitions_revoked(revoked))
    await dealing
    assert len(pipeline.cancelled) == 4
    async with watching(kafka) as scores, running(service_config(kafka), FakePipeline()):
        await until(lambda: len(scores.updates) == 4)


@each_delivery
async def test_revoked_partitions_publish_nothing_late(kafka: KafkaConfig) -> None:
    """A member whose chunks do not end within the budget gives them up, and the new owner does them."""
    stuck, helper = FakePipeline(), FakePipeline()
    stuck.gate.clear()
    async with watching(kafka) as scores:
        async with running(service_config(kafka, drain_seconds=0.5), stuck) as one:
            await publish(kafka, *(chunk(f"video-{n}", 0) for n in range(8)))
            await until(lambda: len(stuck.started) == 8)
            async with running(service_config(kafka, drain_seconds=0.5), helper):
                await until(lambda: len(stuck.cancelled) == 8)
                await until(lambda: len(scores.updates) == len(helper.started) > 0)
                stuck.gate.set()
                await until(lambda: len(scores.updates) == 8)
        assert one.metrics.registry.get_sample_value("streamer_cancelled_chunks_total") == 8
    assert len(scores.updates) == len(scores.chunks()) == 8


@pytest.mark.needs_kafka
async def test_back_pressure_pauses_and_resumes(real_kafka: KafkaConfig) -> None:
    pipeline = FakePipeline()
    pipeline.gate.clear()
    config = service_config(real_kafka, max_chunks_in_flight=3, max_queued_per_partition=5)
    await publish(real_kafka, *(chunk(f"video-{n % 8}", n // 8) for n in range(80)))
    async with watching(real_kafka) as scores:
        async with running(config, pipeline) as service:
            value = service.metrics.registry.get_sample_value
            await until(lambda: value("streamer_paused_partitions") == 2)
            assert service._consumer._consumer.paused()
            assert [value("streamer_queued_chunks", {"partition": p}) for p in "01"] == [5, 5]
            assert pipeline.under_way == 3
            pipeline.gate.set()
            await until(lambda: len(scores.updates) == 80)
            await until(lambda: value("streamer_paused_partitions") == 0)
        assert pipeline.most_under_way == 3
    assert len(scores.chunks()) == 80


@pytest.mark.needs_kafka
async def test_bytes_in_flight_are_bounded(real_kafka: KafkaConfig) -> None:
    pipeline = FakePipeline()
    pipeline.gate.clear()
    data = bytes(400_000)
    await publish(real_kafka, *(chunk("v", seq, data + bytes([seq])) for seq in range(12)))
    config = service_config(real_kafka, max_bytes_in_flight=1_000_000)
    async with watching(real_kafka) as scores, running(config, pipeline) as service:
        value = service.metrics.registry.get_sample_value
        await until(lambda: value("streamer_paused_partitions") == 2)
        assert 1_000_000 <= (value("streamer_in_flight_bytes") or 0) < 1_500_000
        pipeline.gate.set()
        await until(lambda: len(scores.updates) == 12)


@pytest.mark.needs_kafka
async def test_chunks_longer_than_the_poll_interval_do_not_livelock(real_kafka: KafkaConfig) -> None:
    """Processing time counts as polling, since partitions are polled while chunks are under way."""
    kafka = real_kafka.model_copy(update={"max_poll_interval_ms": 1000})
    pipeline = FakePipeline(seconds=2.5)
    async with watching(kafka) as scores:
        config = service_config(kafka, max_chunks_in_flight=1, max_queued_per_partition=1)
        async with running(config, pipeline) as service:
            await publish(kafka, chunk("v", 0), chunk("v", 1))
            await until(lambda: len(scores.updates) == 2)
            assert service.metrics.registry.get_sample_value("streamer_rebalances_total") == 1
    assert pipeline.started == [("v", 0), ("v", 1)]


@pytest.mark.needs_kafka
async def test_idle_videos_get_a_final_update(real_kafka: KafkaConfig) -> None:
    config = service_config(real_kafka).model_copy(update={"rolling": RollingConfig(idle_seconds=0.5)})
    async with watching(real_kafka) as scores, running(config, FakePipeline()):
        await publish(real_kafka, chunk("v", 0))
        await until(lambda: len(scores.updates) == 2)
    assert [update.status for update in scores.updates] == ["scored", "final"]
    assert scores.updates[0].fake_score == scores.updates[1].fake_score


@pytest.mark.needs_kafka
async def test_duplicates_are_not_counted_twice(real_kafka: KafkaConfig) -> None:
    async with watching(real_kafka) as scores, running(service_config(real_kafka), FakePipeline()):
        await publish(real_kafka, chunk("v", 0), chunk("v", 0), chunk("v", 1))
        await until(lambda: len(scores.updates) == 3)
    assert [update.status for update in scores.updates] == ["scored", "duplicate", "scored"]
    assert [update.chunks for update in scores.updates] == [1, 1, 2]


@pytest.mark.needs_kafka
async def test_endpoints(real_kafka: KafkaConfig) -> None:
    await publish(real_kafka, chunk("v", 0))
    async with (
        running(service_config(real_kafka), FakePipeline()) as service,
        aiohttp.ClientSession(f"http://127.0.0.1:{service.http_port}") as http,
    ):
        await until(lambda: service.metrics.registry.get_sample_value(*SCORED) == 1)
        for path, text in (("/healthz", "ok\n"), ("/readyz", "ok; no networks\n")):
            async with http.get(path) as answer:
                assert (answer.status, await answer.text()) == (200, text)
        async with http.get("/metrics") as answer:
            text = await answer.text()
        assert 'streamer_chunks_total{status="scored"} 1.0' in text
        service.stop()
        async with http.get("/readyz") as answer:
            assert (answer.status, await answer.text()) == (503, "stopping\n")


SCORED = ("streamer_chunks_total", {"status": "scored"})


async def test_unreachable_broker_is_an_error_in_time() -> None:
    config = service_config(KafkaConfig(bootstrap_servers="127.0.0.1:9"))
    service = Service(config, FakePipeline, connect_seconds=1)
    with pytest.raises(BrokerError, match=r"no Kafka reachable at 127\.0\.0\.1:9 within 1 s") as caught:
        await asyncio.wait_for(service.run(), 5)
    assert "security.protocol" not in str(caught.value)  # nobody is there to speak another one


@pytest.mark.needs_kafka
async def test_missing_topics_say_how_to_make_them(real_kafka: KafkaConfig) -> None:
    config = service_config(real_kafka.model_copy(update={"scores_topic": "not-there"}))
    with pytest.raises(BrokerError, match=r"no topic not-there; .*`streamer topics create`"):
        await Service(config, FakePipeline, connect_seconds=5).run()


@pytest.mark.needs_kafka
async def test_port_in_use_names_the_key(real_kafka: KafkaConfig) -> None:
    async with running(service_config(real_kafka), FakePipeline()) as service:
        config = service_config(real_kafka, http_port=service.http_port)
        with pytest.raises(ConfigError, match=r"service\.http_port"):
            await Service(config, FakePipeline).run()


@pytest.mark.needs_kafka
async def test_stop_while_loading(real_kafka: KafkaConfig) -> None:
    await create_topics(real_kafka)
    service = Service(service_config(real_kafka), FakePipeline)
    service.stop()
    await asyncio.wait_for(service.run(), 5)


async def test_stop_ends_in_time_when_the_broker_is_gone() -> None:
    async with EmbeddedBroker() as broker:
        kafka = fresh_names(broker.bootstrap_servers, "at_least_once")
        await create_topics(kafka, partitions=2)
        service = Service(service_config(kafka), FakePipeline, connect_seconds=5)
        task = asyncio.create_task(service.run())
        await until(lambda: service.why_not_ready() is None)
        assert broker.pid is not None
        os.kill(broker.pid, signal.SIGKILL)
        await asyncio.sleep(1)
        assert not task.done()  # the broker may come back
        service.stop()
        await asyncio.wait_for(task, 15)


@each_delivery
async def test_groups_that_share_a_state_topic_are_told_and_leave_out_no_chunks(kafka: KafkaConfig) -> None:
    """The second is ahead when the first comes back: its position is not the first one's."""
    other = kafka.model_copy(
        update={"group_id": f"{kafka.group_id}-2", "scores_topic": f"{kafka.scores_topic}-2"}
    )
    await create_topics(other, partitions=2)
    videos = [f"video-{n}" for n in range(4)]
    async with watching(kafka) as scores, watching(other) as scores_of_other:
        async with running(service_config(kafka), FakePipeline()):
            await publish(kafka, *(chunk(video, 0) for video in videos))
            await until(lambda: len(scores.updates) == 4)
        async with running(service_config(other), FakePipeline()):
            await publish(kafka, *(chunk(video, 1) for video in videos))
            await until(lambda: len(scores_of_other.updates) == 8)
        with capture_logs() as lines:
            async with running(service_config(kafka), FakePipeline()):
                await until(lambda: len(scores.updates) == 8)
    for each in (scores, scores_of_other):
        assert {(u.video_id, u.seq, u.chunks) for u in each.updates} == {
            (video, seq, seq + 1) for video in videos for seq in range(2)
        }
    told = [line["groups"] for line in lines if "states of other groups left out" in line["event"]]
    assert told == [[other.group_id]] * 2

"""Parts that fail, as docs/failures.md lists them: Kafka, its topics, the way to it, workers, clocks."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import NewPartitions
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from clips import encode_frames, make_clip, portrait
from fakes import (
    BROKEN,
    FakePipeline,
    ScoreLog,
    chunk,
    committed,
    dead_letters,
    fresh_names,
    publish,
    running,
    service_config,
    until,
    watching,
)
from kafka_broker import Kafka, RunningKafka, cluster, restartable_kafka
from members import make_engines, make_picky_detector, make_picky_member
from proxy import proxy
from structlog.testing import capture_logs

from streamer.command_group import BROKER, exit_code_of
from streamer.config import ClassifyConfig, Config, DecodeConfig, FacesConfig, KafkaConfig
from streamer.errors import BrokerError, InferenceError
from streamer.kafka.client import admin_client
from streamer.kafka.topics import create_topics, describe_broker
from streamer.messages import VideoChunk, encode_chunk
from streamer.pipeline import Pipeline
from streamer.service import Service

KILLED, HANGING = signal.SIGKILL, signal.SIGSTOP


@pytest.fixture
def quick_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """What goes wrong is noticed in a second."""
    monkeypatch.setattr("streamer.service.LOOK_SECONDS", 0.3)
    monkeypatch.setattr("streamer.kafka.presence.SILENT_SECONDS", 1.0)
    monkeypatch.setattr("streamer.kafka.presence.ANSWER_SECONDS", 1.0)
    monkeypatch.setattr("streamer.assignment.STUCK_SECONDS", 1.0)
    monkeypatch.setattr("streamer.kafka.publish.STOP_SECONDS", 1.0)


@pytest.fixture(scope="module")
def one_broker() -> Iterator[RunningKafka]:
    """Back in seconds, were it to die: its old self must be forgotten before it is let in again."""
    with restartable_kafka("broker.session.timeout.ms=9000") as broker:
        yield broker


@pytest.fixture
def own_broker(one_broker: RunningKafka) -> RunningKafka:
    """One that the test may stop and start, running."""
    one_broker.start()
    return one_broker


def metric(service: Service, name: str, **labels: str) -> float:
    return service.metrics.registry.get_sample_value(f"streamer_{name}", labels) or 0.0


async def each_once(scores: ScoreLog, seqs: int, videos: int = 4, *, repeats: bool = False) -> None:
    """Wait until every video has its updates: once, in order. repeats: at least once, counted once."""
    await until(lambda: len(scores.chunks()) == videos * seqs, seconds=120)
    for n in range(videos):
        updates = scores.of(f"video-{n}")
        assert {update.seq: update.chunks for update in updates} == {seq: seq + 1 for seq in range(seqs)}
        assert repeats or [update.seq for update in updates] == list(range(seqs))


def chunks(seq: int, videos: int = 4) -> list:
    return [chunk(f"video-{n}", seq) for n in range(videos)]


@pytest.mark.needs_kafka
async def test_broker_down_and_back(own_broker: RunningKafka, quick_looks: None) -> None:
    """The service waits, says so, and goes on as if nothing had been."""

    async def through_it(delivery: Literal["exactly_once", "at_least_once"], down: asyncio.Barrier) -> None:
        kafka = fresh_names(own_broker.kafka.bootstrap_servers, delivery)
        await create_topics(kafka, partitions=2)
        pipeline = FakePipeline()
        async with watching(kafka) as scores, running(service_config(kafka), pipeline) as service:
            await publish(kafka, *chunks(0))
            await each_once(scores, 1)
            pipeline.gate.clear()
            await publish(kafka, *chunks(1))
            await until(lambda: pipeline.under_way == 4)
            await down.wait()
            await until(lambda: "Kafka has not answered for" in (service.why_not_ready() or ""))
            await until(lambda: metric(service, "kafka_silent_seconds") > 1)
            pipeline.gate.set()  # results come while there is nobody to take them
            await until(lambda: metric(service, "delivery_age_seconds") > 1)
            await down.wait()
            await until(lambda: service.why_not_ready() is None, seconds=60)
            await publish(kafka, *chunks(2))
            await each_once(scores, 3)

    async def take_down(down: asyncio.Barrier) -> None:
        await down.wait()
        await asyncio.to_thread(own_broker.stop)
        await down.wait()
        await asyncio.to_thread(own_broker.start)

    down = asyncio.Barrier(3)
    async with asyncio.TaskGroup() as group:
        group.create_task(through_it("exactly_once", down))
        group.create_task(through_it("at_least_once", down))
        group.create_task(take_down(down))


@pytest.mark.needs_kafka
@pytest.mark.timeout(300)
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_disk_full_on_the_broker(
    own_broker: RunningKafka,
    quick_looks: None,
    monkeypatch: pytest.MonkeyPatch,
    delivery: Literal["exactly_once", "at_least_once"],
) -> None:
    """Half a record fits, and the broker ends. The service waits for it, then ends with status 3 and results
    that it could not deliver; once there is space, all is scored, each chunk once."""
    broker = own_broker
    kafka = fresh_names(broker.kafka.bootstrap_servers, delivery)
    await create_topics(kafka, partitions=1)
    large = [[chunk(f"video-{n}", seq, bytes([n, seq]) * 50_000) for n in range(4)] for seq in range(3)]
    pipeline = FakePipeline()
    service = Service(service_config(kafka), lambda: pipeline)
    async with watching(kafka) as scores:
        ending = asyncio.create_task(service.run())
        await publish(kafka, *large[0])
        await each_once(scores, 1)
        pipeline.gate.clear()
        await publish(kafka, *large[1])
        await until(lambda: pipeline.under_way == 4)
        broker.let_no_file_grow_beyond(broker.end_of(kafka.chunks_topic, 0) + 50_000)
        publishing = asyncio.create_task(publish(kafka, *large[2]))
        said = await asyncio.to_thread(broker.wait, 60)
        assert "File too large" in said
        assert "all log dirs" in said
        publishing.cancel()  # none of these was taken, as their producer knows
        await asyncio.gather(publishing, return_exceptions=True)
        monkeypatch.setattr("streamer.kafka.presence.AWAY_SECONDS", 5.0)
        pipeline.gate.set()
        with pytest.raises(BrokerError) as raised:
            await asyncio.wait_for(ending, 60)
        assert exit_code_of(raised.value) == BROKER
        assert len(scores.updates) == 4
        monkeypatch.undo()
        await asyncio.to_thread(broker.start)
        async with running(service_config(kafka), FakePipeline()):
            await publish(kafka, *large[2])
            await each_once(scores, 3, repeats=delivery == "at_least_once")


@pytest.fixture
def two_brokers() -> Iterator[list[RunningKafka]]:
    """A cluster of two, of which the second may be stopped."""
    with cluster(2) as brokers:
        yield brokers


@pytest.mark.needs_kafka
@pytest.mark.timeout(600)
async def test_broker_of_two_is_lost(two_brokers: list[RunningKafka], quick_looks: None) -> None:
    """Partitions get new leaders; scores need both replicas, so results wait until the other is back.

    In a transaction they would wait for a minute at most, and a starved machine may take longer to start it.
    """
    first, second = two_brokers
    kafka = fresh_names(first.kafka.bootstrap_servers, "at_least_once")
    await create_topics(kafka, partitions=2, replication=2)
    both = ConfigResource(ConfigResourceType.TOPIC, kafka.scores_topic, {"min.insync.replicas": "2"})
    async with admin_client(kafka) as admin:
        await admin.alter_configs([both])
        (chunks_topic,) = await admin.describe_topics([kafka.chunks_topic])
    assert {partition["leader"] for partition in chunks_topic["partitions"]} == {1, 2}
    async with watching(kafka) as scores, running(service_config(kafka), FakePipeline()) as service:
        await publish(kafka, *chunks(0))
        await each_once(scores, 1, repeats=True)
        await asyncio.to_thread(second.stop)
        await publish(kafka, *chunks(1))
        await until(lambda: "have not been acknowledged" in (service.why_not_ready() or ""), seconds=60)
        await until(lambda: metric(service, "delivery_age_seconds") > 1)
        assert len(scores.chunks()) == len(chunks(0))
        await asyncio.to_thread(second.start)
        await publish(kafka, *chunks(2))
        await each_once(scores, 3, repeats=True)
        await until(lambda: service.why_not_ready() is None)


@pytest.mark.needs_kafka
@pytest.mark.parametrize("topic", ["chunks_topic", "scores_topic"])
async def test_deleted_topic_ends_the_service(real_kafka: KafkaConfig, quick_looks: None, topic: str) -> None:
    """aiokafka alone would wait for ever: without partitions, or in a transaction."""
    service = Service(service_config(real_kafka), FakePipeline, connect_seconds=5)
    task = asyncio.create_task(service.run())
    await until(lambda: task.done() or service.why_not_ready() is None)
    name = getattr(real_kafka, topic)
    async with admin_client(real_kafka) as admin:
        await admin.delete_topics([name])
    if topic != "chunks_topic":
        await publish(real_kafka, *chunks(0))
    with pytest.raises(BrokerError, match=f"has no topic {name} any more"):
        await asyncio.wait_for(task, 30)


@pytest.mark.needs_kafka
async def test_topic_of_chunks_made_anew_within_seconds(
    real_kafka: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two looks nobody misses it; but the group has dealt no partitions."""
    monkeypatch.setattr("streamer.kafka.consume.METADATA_SECONDS", 1.0)
    async with watching(real_kafka) as scores, running(service_config(real_kafka), FakePipeline()) as service:
        async with admin_client(real_kafka) as admin:
            await admin.delete_topics([real_kafka.chunks_topic])
        await until(lambda: metric(service, "assigned_partitions") == 0)
        await create_topics(real_kafka, partitions=2)
        await publish(real_kafka, *chunks(0))
        await each_once(scores, 1)


@pytest.mark.needs_kafka
@pytest.mark.parametrize("lost", ["state_topic", "chunks_topic"])
async def test_topic_made_anew_while_nobody_runs_is_told(real_kafka: KafkaConfig, lost: str) -> None:
    """Of the chunks, also if the new topic is longer than the old one was: the position then looks right."""
    state_lost = lost == "state_topic"
    async with watching(real_kafka) as scores, running(service_config(real_kafka), FakePipeline()):
        await publish(real_kafka, *chunks(0))
        await each_once(scores, 1)
    positions = {p: offset for p, offset in (await committed(real_kafka)).items() if offset}
    name = getattr(real_kafka, lost)
    async with admin_client(real_kafka) as admin:
        await admin.delete_topics([name])
    while name in (await describe_broker(real_kafka)).topics:  # noqa: ASYNC110
        await asyncio.sleep(0.1)
    await create_topics(real_kafka, partitions=2)
    if not state_lost:
        await publish(real_kafka, *chunks(1), *chunks(2))
    with capture_logs() as lines:
        async with running(service_config(real_kafka), FakePipeline()):
            pass
    said = "has nothing of this partition" if state_lost else "the group has no offset of this partition"
    told = {line["partition"]: line["read_on_at"] for line in lines if said in line["event"]}
    assert told == positions


@pytest.mark.needs_kafka
async def test_partitions_added_while_running(
    real_kafka: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.kafka.consume.METADATA_SECONDS", 1.0)

    async def add(topic: str, total: int) -> None:
        async with admin_client(real_kafka) as admin:
            await admin.create_partitions({topic: NewPartitions(total)})

    service = Service(service_config(real_kafka), FakePipeline, connect_seconds=5)
    task = asyncio.create_task(service.run())
    await until(lambda: metric(service, "assigned_partitions") == 2)
    await add(real_kafka.state_topic, 3)
    await add(real_kafka.chunks_topic, 3)
    await until(lambda: metric(service, "assigned_partitions") == 3)
    await add(real_kafka.chunks_topic, 4)
    with pytest.raises(BrokerError, match=r"has 3 partitions and .* has 4: .*give the state topic as many"):
        await asyncio.wait_for(task, 30)


@pytest.fixture
async def proxied_kafka(own_kafka: Kafka) -> KafkaConfig:
    """Topics of two partitions, and the way to them by `own_kafka.proxy`."""
    kafka = fresh_names(own_kafka.bootstrap_servers)
    await create_topics(kafka, partitions=2)
    return kafka


@pytest.mark.needs_kafka
async def test_slow_broker(own_kafka: Kafka, proxied_kafka: KafkaConfig) -> None:
    """All takes longer, which shows; nothing is lost or given up."""
    direct = proxied_kafka
    async with proxy(own_kafka.proxy, own_kafka.proxied) as between, watching(direct) as scores:
        config = service_config(direct.model_copy(update={"bootstrap_servers": own_kafka.proxy}))
        async with running(config, FakePipeline()) as service:
            between.delay_seconds = 0.2
            for seq in range(3):
                await publish(direct, *chunks(seq))
            await each_once(scores, 3)
            count = metric(service, "delivery_duration_seconds_count")
            assert metric(service, "delivery_duration_seconds_sum") / count > 0.4
            assert metric(service, "rebalances_total") == 1


@pytest.mark.needs_kafka
async def test_way_to_the_broker_goes_silent(
    own_kafka: Kafka, proxied_kafka: KafkaConfig, quick_looks: None
) -> None:
    """Connections stay open and nothing comes, for longer than the session: the group deals anew."""
    direct = proxied_kafka
    async with proxy(own_kafka.proxy, own_kafka.proxied) as between, watching(direct) as scores:
        config = service_config(direct.model_copy(update={"bootstrap_servers": own_kafka.proxy}))
        async with running(config, FakePipeline()) as service:
            await publish(direct, *chunks(0))
            await each_once(scores, 1)
            between.open.clear()
            await publish(direct, *chunks(1))
            await until(lambda: "Kafka has not answered for" in (service.why_not_ready() or ""))
            await asyncio.sleep(direct.session_timeout_ms / 1000 + 1)
            between.open.set()
            await each_once(scores, 2)
            await until(lambda: service.why_not_ready() is None)
            await publish(direct, *chunks(2))
            await each_once(scores, 3)


@pytest.mark.needs_kafka
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_who_was_cut_off_forgets_what_it_knew(
    own_kafka: Kafka, proxied_kafka: KafkaConfig, delivery: str
) -> None:
    """Its partitions had another owner meanwhile, whose counts are in the changelog only."""
    direct = proxied_kafka.model_copy(update={"delivery": delivery})
    by_proxy = service_config(direct.model_copy(update={"bootstrap_servers": own_kafka.proxy}))
    pipeline = FakePipeline()
    async with (
        proxy(own_kafka.proxy, own_kafka.proxied) as between,
        watching(direct) as scores,
        running(by_proxy, pipeline) as cut_off,
    ):
        async with running(service_config(direct), FakePipeline()) as other:
            await until(lambda: metric(cut_off, "assigned_partitions") == 1)
            await publish(direct, *chunks(0))
            await each_once(scores, 1)
            async with asyncio.timeout(60):  # else the other one may rightly do them again
                while sum((await committed(direct)).values()) < len(chunks(0)):  # noqa: ASYNC110
                    await asyncio.sleep(0.05)
            between.open.clear()
            await until(lambda: metric(other, "assigned_partitions") == 2)
            await publish(direct, *chunks(1))
            await each_once(scores, 2)
        pipeline.gate.clear()  # it may have read those chunks as well
        between.open.set()
        await until(lambda: metric(cut_off, "assigned_partitions") == 2)
        pipeline.gate.set()
        await publish(direct, *chunks(2))
        await each_once(scores, 3)


@pytest.mark.needs_kafka
async def test_clock_jumps(real_kafka: KafkaConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wall clock set a day ahead, then back: no video ends, no time is negative, Kafka takes it all."""
    real, send = time.time, AIOKafkaProducer.send
    clock = {"ahead_seconds": 0.0}

    def set_clock() -> float:
        return real() + clock["ahead_seconds"]

    async def send_stamped(self: AIOKafkaProducer, *args: Any, **kwargs: Any) -> Any:
        """The compiled half of aiokafka does not ask `time.time`."""
        return await send(self, *args, **kwargs, timestamp_ms=round(1000 * time.time()))

    monkeypatch.setattr(time, "time", set_clock)
    monkeypatch.setattr(AIOKafkaProducer, "send", send_stamped)
    pipeline = FakePipeline()
    async with watching(real_kafka) as scores, running(service_config(real_kafka), pipeline) as service:
        for seq, ahead_seconds in enumerate((0.0, 86_400.0, -86_400.0)):
            clock["ahead_seconds"] = 0.0
            pipeline.gate.clear()
            await publish(real_kafka, *chunks(seq))
            await until(lambda: pipeline.under_way == 4)
            clock["ahead_seconds"] = ahead_seconds
            pipeline.gate.set()
            await each_once(scores, seq + 1)
        assert service.why_not_alive() is None
    assert {update.status for update in scores.updates} == {"scored"}
    assert min(update.latency_ms["total"] for update in scores.updates) >= 0


@pytest.mark.needs_kafka
@pytest.mark.parametrize(
    ("blow", "reason"), [(KILLED, "decoder_crashed"), (HANGING, "decoder_timeout")], ids=["killed", "hangs"]
)
async def test_decode_worker_fails(
    apache_kafka: str, tmp_path: Path, blow: signal.Signals, reason: str
) -> None:
    """It costs the chunk that it had, which is a dead letter, and is replaced."""
    kafka = fresh_names(apache_kafka)
    await create_topics(kafka, partitions=2)
    config = service_config(kafka).model_copy(
        update={
            "decode": DecodeConfig(workers=1, timeout_seconds=2 if blow == HANGING else 60),
            "classify": ClassifyConfig(
                engines=make_engines(tmp_path / "engines", sure=2.0), members=("sure",)
            ),
            "faces": FacesConfig(windows=()),
        }
    )
    clip = make_clip(tmp_path / "clip.mp4").read_bytes()
    pipeline = Pipeline(config)
    async with watching(kafka) as scores, running(config, pipeline) as service:
        workers = pipeline.decode_pool.pids
        for pid in workers:
            os.kill(pid, signal.SIGSTOP)
        await publish(kafka, chunk("v", 0, clip))
        await until(lambda: pipeline.decode_pool._idle.qsize() == 1)  # one has it
        if blow == KILLED:
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
        await until(lambda: scores.updates, seconds=60)
        for pid in workers:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        await publish(kafka, chunk("v", 1, clip))
        await until(lambda: len(scores.updates) == 2, seconds=60)
        assert metric(service, "decode_worker_restarts_total", reason=reason) >= 1
        assert metric(service, "dead_letters_total", stage="decode", reason=reason) == 1
    assert [(u.status, u.error) for u in scores.updates] == [("undecodable", reason), ("no_face", None)]


def with_networks(kafka: KafkaConfig, engines: Path) -> Config:
    """One member, the whole frame only, and time enough for batches to be shared."""
    return service_config(kafka).model_copy(
        update={
            "classify": ClassifyConfig(engines=engines, members=("member",), batch_timeout_ms=200),
            "faces": FacesConfig(windows=(), batch_timeout_ms=200),
        }
    )


@pytest.mark.needs_kafka
@pytest.mark.parametrize("stage", ["detect", "classify"])
async def test_chunk_that_a_network_fails_on_costs_only_itself(
    apache_kafka: str, tmp_path: Path, stage: str
) -> None:
    """The network is real, and gives NaN for one of nine chunks. The scores of the others, which shared its
    batches, are as if it had not been there."""
    engines = make_engines(tmp_path / "engines")
    make_picky_member(engines, "member", 0.65 if stage == "classify" else 1.0)
    if stage == "detect":
        make_picky_detector(engines, "blazeface_short_range", 0.4)
    good, bad = encode_frames(portrait()), encode_frames(portrait(washed_out=True))
    sent = [chunk(f"video-{n}", seq, good) for seq in range(3) for n in range(3)]
    sent[4] = chunk("video-1", 1, bad)
    innocent = [each for each in sent if each.data == good]

    async def score(chunks: list[VideoChunk]) -> tuple[ScoreLog, KafkaConfig, Service]:
        kafka = fresh_names(apache_kafka)
        await create_topics(kafka, partitions=1)
        await publish(kafka, *chunks)
        config = with_networks(kafka, engines)
        async with watching(kafka) as scores, running(config, Pipeline(config)) as service:
            await until(lambda: len(scores.updates) == len(chunks))
            assert service.why_not_ready() is None
        assert await committed(kafka) == {0: len(chunks)}
        return scores, kafka, service

    scores, kafka, service = await score(sent)
    without, _, _ = await score(innocent)
    refused = [update for update in scores.updates if update.status == "undecodable"]
    assert [(u.video_id, u.seq, u.error) for u in refused] == [("video-1", 1, "inference_failed")]
    expected = {(u.video_id, u.seq): (u.status, u.fake_score, u.frames) for u in without.updates}
    assert {expected[each.video_id, each.seq][0] for each in innocent} == {"scored"}
    assert expected == {
        (u.video_id, u.seq): (u.status, u.fake_score, u.frames) for u in scores.updates if u not in refused
    }
    (letter,) = await dead_letters(kafka, 1)
    assert (letter.stage, letter.reason, letter.value) == (stage, "inference_failed", encode_chunk(sent[4]))
    assert metric(service, "dead_letters_total", stage=stage, reason="inference_failed") == 1


@pytest.mark.needs_kafka
async def test_network_that_fails_on_everything_ends_the_service(apache_kafka: str, tmp_path: Path) -> None:
    """It is the network's fault and not the chunks', of which none is lost."""
    broken, mended = make_engines(tmp_path / "broken"), make_engines(tmp_path / "mended")
    make_picky_member(broken, "member", -1.0)
    make_picky_member(mended, "member", 1.0)
    kafka = fresh_names(apache_kafka)
    await create_topics(kafka, partitions=1)
    await publish(kafka, *(chunk(f"video-{n}", 0, encode_frames(portrait())) for n in range(4)))
    async with watching(kafka) as scores:
        config = with_networks(kafka, broken)
        service = Service(config, lambda: Pipeline(config))
        with pytest.raises(InferenceError, match=r"member: .*it fails on a known image, too"):
            await asyncio.wait_for(service.run(), 60)
        assert service.why_not_ready() == "stopping"
        assert await committed(kafka) == {}
        assert await dead_letters(kafka, 0) == scores.updates == []
        config = with_networks(kafka, mended)
        async with running(config, Pipeline(config)):
            await each_once(scores, 1)


@pytest.mark.needs_kafka
async def test_chunk_that_ends_the_service_is_named(apache_kafka: str) -> None:
    """It may end the next one, too: the log says which chunk to step over."""
    kafka = fresh_names(apache_kafka)
    await create_topics(kafka, partitions=1)
    await publish(kafka, chunk("v", 0), chunk("v", 1, BROKEN))
    with capture_logs() as logs, pytest.raises(InferenceError):
        await asyncio.wait_for(Service(service_config(kafka), FakePipeline).run(), 60)
    (said,) = [entry for entry in logs if entry["event"] == "chunk not processed"]
    assert (said["topic"], said["partition"], said["offset"], said["key"]) == (kafka.chunks_topic, 0, 1, b"v")

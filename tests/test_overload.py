"""More chunks than can be looked at: hot videos, lag, limits; with a pipeline that needs no networks."""

from __future__ import annotations

import asyncio
import itertools

import pytest
from aiokafka.partitioner import DefaultPartitioner
from fakes import (
    FakePipeline,
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
from kafka_broker import each_delivery
from structlog.testing import capture_logs

from streamer.config import KafkaConfig, SampleConfig
from streamer.kafka.topics import create_topics
from streamer.messages import VideoChunk
from streamer.types import ChunkPrediction

IN_FLIGHT, QUEUED = 4, 128


def partition_of(video_id: str) -> int:
    """Where a producer puts a video, of two partitions."""
    partition: int = DefaultPartitioner()(video_id.encode(), [0, 1], [0, 1])
    return partition


def names_in(partition: int, count: int) -> list[str]:
    """Names of videos of one partition."""
    names = (f"cold-{n}" for n in itertools.count())
    return list(itertools.islice((name for name in names if partition_of(name) == partition), count))


class HoldingPipeline(FakePipeline):
    """One of the chunks takes until `let_go`."""

    def __init__(self, held: tuple[str, int], *, seconds: float) -> None:
        super().__init__(seconds=seconds)
        self._held = held
        self.let_go = asyncio.Event()

    async def predict(self, chunk: VideoChunk, *, sampling_share: float = 1.0) -> ChunkPrediction:
        prediction = await super().predict(chunk, sampling_share=sampling_share)
        if (chunk.video_id, chunk.seq) == self._held:
            await self.let_go.wait()
        return prediction


@each_delivery
async def test_a_hot_video_does_not_starve_the_others(kafka: KafkaConfig) -> None:
    """A hot video with 100 times the chunks of each other one, all of them there before the service starts.

    A cold video's chunk that is in the queue waits for one round of turns, whether the hot video's chunks are
    in another partition or before it in the same one; and its score does not wait for those that have begun.
    """
    hot = "hot"
    beside, elsewhere = names_in(partition_of(hot), 3), names_in(1 - partition_of(hot), 1)[0]
    chunks = [chunk(hot, seq) for seq in range(300)]
    for seq in (2, 1, 0):
        place = 100 * seq + 80  # so many hot chunks are before it
        chunks[place:place] = [chunk(name, seq) for name in beside]
    chunks += [chunk(elsewhere, seq) for seq in range(3)]
    await publish(kafka, *chunks)
    pipeline = HoldingPipeline((hot, 0), seconds=0.01)
    pipeline.gate.clear()
    config = service_config(kafka, max_chunks_in_flight=IN_FLIGHT, max_queued_per_partition=QUEUED)
    async with watching(kafka) as scores, running(config, pipeline) as service:
        queued, partitions = service._assignment.intake.queued, (partition_of(hot), partition_of(elsewhere))
        await until(lambda: [queued(partition) for partition in partitions] == [QUEUED, 3], seconds=60)
        assert len(pipeline.started) == IN_FLIGHT
        pipeline.gate.set()
        await until(lambda: all(scores.of(name) for name in beside), seconds=60)
        assert not scores.of(hot)
        pipeline.let_go.set()
        await until(lambda: len(scores.updates) == len(chunks), seconds=60)
    begun, lanes = pipeline.started, len(beside) + 2
    for name in beside:
        assert begun.index((name, 0)) < IN_FLIGHT + lanes  # though 80 of the hot video are before it
    assert begun.index((elsewhere, 2)) < IN_FLIGHT + 3 * lanes
    for name in (hot, *beside, elsewhere):
        assert [update.seq for update in scores.of(name)] == list(range(300 if name == hot else 3))
    assert sum((await committed(kafka)).values()) == len(chunks)


@pytest.mark.needs_kafka
@pytest.mark.parametrize("policy", ["none", "thin"])
async def test_a_partition_behind_is_thinned_and_recovers(
    apache_kafka: str, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr("streamer.service.LAG_SECONDS", 0.05)
    kafka = fresh_names(apache_kafka)
    await create_topics(kafka, partitions=1)
    await publish(kafka, *(chunk("v", seq) for seq in range(40)))
    config = service_config(kafka, max_chunks_in_flight=2).model_copy(
        update={"sample": SampleConfig(lag_policy=policy, thin_from_lag=5)}
    )
    pipeline = FakePipeline(seconds=0.05)
    pipeline.gate.clear()
    with capture_logs() as lines:
        async with watching(kafka) as scores, running(config, pipeline) as service:
            value = service.metrics.registry.get_sample_value

            def rate() -> float | None:
                return value("streamer_sampling_rate_hertz", {"partition": "0"})

            await until(lambda: len(pipeline.started) == 2)
            await until(lambda: value("streamer_consumer_lag_records", {"partition": "0"}) == 40)
            if policy == "thin":
                await until(lambda: rate() == 0.5)
            pipeline.gate.set()
            await until(lambda: len(scores.updates) == 40)
            await until(lambda: rate() == 4.0)
            await publish(kafka, chunk("v", 40))
            await until(lambda: len(scores.updates) == 41)
            thinned = value("streamer_thinned_chunks_total")
    assert [update.seq for update in scores.updates] == list(range(41))
    assert scores.updates[-1].chunks == 41
    rates = [update.sampling_rate for update in scores.updates]
    changes = [line["frames_per_second"] for line in lines if line["event"] == "sampling rate changed by lag"]
    if policy == "none":
        assert set(rates) == {4.0}
        assert (thinned, changes) == (0, [])
    else:
        slow = rates.index(0.5)
        assert rates[:slow] == [4.0] * slow  # begun before the lag was known
        assert slow <= 2
        assert (changes[0], changes[-1], rates[-1]) == (0.5, 4.0, 4.0)
        assert rates[slow:] == sorted(rates[slow:], key=float)
        assert thinned == sum(rate < 4.0 for rate in rates if rate is not None)


@pytest.mark.needs_kafka
async def test_more_of_a_video_than_its_limit_becomes_dead_letters(apache_kafka: str) -> None:
    kafka = fresh_names(apache_kafka)
    await create_topics(kafka, partitions=1)
    await publish(kafka, *(chunk("hot", seq) for seq in range(10)), chunk("cold", 0), chunk("cold", 1))
    config = service_config(kafka, max_video_chunks_per_minute=3)
    async with watching(kafka) as scores, running(config, FakePipeline()) as service:
        await until(lambda: len(scores.updates) == 12)
        hot = scores.of("hot")
        scored = [update for update in hot if update.status == "scored"]
        assert 3 <= len(scored) <= 6  # 6 if a minute ended between the first and the last
        letters = await dead_letters(kafka, len(hot) - len(scored))
        count = service.metrics.registry.get_sample_value
        labels = {"stage": "limit", "reason": "too_many_chunks_per_minute"}
        assert count("streamer_dead_letters_total", labels) == len(letters)
    assert [update.seq for update in hot] == list(range(10))
    assert {letter.seq for letter in letters} == {update.seq for update in hot} - {u.seq for u in scored}
    assert {letter.reason for letter in letters} == {"too_many_chunks_per_minute"}
    assert hot[-1].undecodable_chunks == len(letters)
    assert [update.status for update in scores.of("cold")] == ["scored", "scored"]
    assert await committed(kafka) == {0: 12}

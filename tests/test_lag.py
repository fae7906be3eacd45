"""What the service says of chunks that it has not read, or never will."""

from __future__ import annotations

import pytest
from aiokafka import AIOKafkaProducer
from fakes import (
    FakePipeline,
    chunk,
    chunks_in,
    delete_records,
    partition_of,
    publish,
    running,
    service_config,
    until,
    watching,
)
from structlog.testing import capture_logs

from streamer.config import KafkaConfig
from streamer.messages import VideoChunk, encode_chunk


@pytest.mark.needs_kafka
async def test_lag_is_measured(real_kafka: KafkaConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.service.LAG_SECONDS", 0.1)
    pipeline = FakePipeline()
    pipeline.gate.clear()
    await publish(real_kafka, *(chunk("v", seq) for seq in range(7)))
    async with running(service_config(real_kafka), pipeline) as service:

        def lags() -> list[float | None]:
            value = service.metrics.registry.get_sample_value
            return [value("streamer_consumer_lag_records", {"partition": p}) for p in "01"]

        await until(lambda: sorted(lag or 0 for lag in lags()) == [0, 7])
        pipeline.gate.set()
        await until(lambda: lags() == [0, 0])


@pytest.mark.needs_kafka
@pytest.mark.parametrize("policy", ["earliest", "latest"])
async def test_lag_of_a_new_group_does_not_count_what_it_cannot_or_need_not_read(
    real_kafka: KafkaConfig, monkeypatch: pytest.MonkeyPatch, policy: str
) -> None:
    monkeypatch.setattr("streamer.service.LAG_SECONDS", 0.1)
    kafka = real_kafka.model_copy(update={"auto_offset_reset": policy})
    partition = await partition_of(kafka, *(chunk("v", seq) for seq in range(5)))
    if policy == "earliest":
        await delete_records(kafka, {partition: -1})
    pipeline = FakePipeline()
    async with running(service_config(kafka), pipeline) as service:

        def lag() -> float | None:
            value = service.metrics.registry.get_sample_value
            return value("streamer_consumer_lag_records", {"partition": str(partition)})

        await until(lambda: lag() is not None)
        assert lag() == 0
        pipeline.gate.clear()
        await publish(kafka, chunk("v", 5), chunk("v", 6))
        await until(lambda: lag() == 2)
        pipeline.gate.set()
        await until(lambda: lag() == 0)


@pytest.mark.needs_kafka
async def test_lag_and_what_is_withheld_with_a_transactional_producer(
    real_kafka: KafkaConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.service.LAG_SECONDS", 0.1)
    kafka = real_kafka
    producer = AIOKafkaProducer(
        bootstrap_servers=kafka.bootstrap_servers, transactional_id=f"{kafka.chunks_topic}-producer"
    )

    async def send(seq: int) -> None:
        await producer.send_and_wait(kafka.chunks_topic, encode_chunk(chunk("v", seq)), b"v", partition=0)

    async with watching(kafka) as scores, running(service_config(kafka), FakePipeline()) as service:

        def gauges() -> tuple[float | None, float | None]:
            """Lag, withheld."""
            value, labels = service.metrics.registry.get_sample_value, {"partition": "0"}
            return value("streamer_consumer_lag_records", labels), value("streamer_withheld_records", labels)

        await producer.start()
        try:
            async with producer.transaction():
                await send(0)
            await until(lambda: len(scores.updates) == 1)
            await until(lambda: gauges() == (0, 0))  # the marker behind the chunk was passed
            async with producer.transaction():
                await send(1)
                await send(2)
                await until(lambda: gauges() == (0, 2))
                assert len(scores.updates) == 1
            await until(lambda: gauges() == (0, 0) and len(scores.updates) == 3)
        finally:
            await producer.stop()


@pytest.mark.needs_kafka
@pytest.mark.parametrize("delivery", ["exactly_once", "at_least_once"])
async def test_chunks_lost_to_retention_are_counted_once(real_kafka: KafkaConfig, delivery: str) -> None:
    """By who takes the partition over, not again by the next one, and not what was read before."""
    kafka = real_kafka.model_copy(update={"delivery": delivery})
    config = service_config(kafka)

    async def lost_with(*more: VideoChunk) -> float | None:
        with capture_logs() as lines:
            async with running(config, FakePipeline()) as service:
                await publish(kafka, *more)
                await until(lambda: len(scores.updates) == seen + len(more))
                lost = service.metrics.registry.get_sample_value("streamer_lost_chunks_total")
        said = [line["chunks"] for line in lines if line["event"] == "chunks lost to retention"]
        assert said == ([lost] if lost else [])
        return lost

    async with watching(kafka) as scores:
        seen = 0
        assert await lost_with(chunk("v", 0), chunk("v", 1)) == 0
        await publish(kafka, *(chunk("v", seq) for seq in range(2, 7)))
        [partition] = {record.partition for record in await chunks_in(kafka, 7)}
        await delete_records(kafka, {partition: -1})
        seen = 2
        assert await lost_with() == 5
        assert await lost_with() == 0
        assert await lost_with(chunk("v", 7)) == 0
    assert [update.seq for update in scores.updates] == [0, 1, 7]

"""What the log says of a partition's chunks: each at debug, changes of an alert at info."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
import structlog
from fakes import BAD, FakePipeline, chunk, until
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from streamer.config import AlertConfig, FacesConfig, KafkaConfig, RollingConfig
from streamer.kafka.changelog import NO_TERM
from streamer.kafka.consume import Record
from streamer.kafka.deliver import Batch
from streamer.limits import VideoLimits
from streamer.messages import VideoChunk, encode_chunk
from streamer.metrics import Metrics
from streamer.outcome import process
from streamer.partition import PartitionWorker, Slot
from streamer.rolling import RollingScores
from streamer.thinning import Thinning

pytestmark = pytest.mark.usefixtures("restored_logging")


class Nowhere:
    """A delivery that takes everything."""

    async def deliver(self, batch: Batch) -> None:
        pass


async def lines_of(
    chunks: Sequence[VideoChunk], alert: AlertConfig, states: Mapping[str, bytes] | None = None
) -> list[Any]:
    """What is logged while these chunks are counted. states: restored before."""
    structlog.reset_defaults()
    rolling = RollingScores(RollingConfig(), alert, FacesConfig(), FakePipeline.ensemble)
    rolling.restore(states or {}, now_seconds=0.0)
    worker = PartitionWorker(
        *(3, rolling, Nowhere(), Metrics(CollectorRegistry()), KafkaConfig(commit_interval_ms=0)),  # type: ignore[arg-type]
        limits=VideoLimits(0, 0),
        thinning=Thinning(64),
        term=NO_TERM,
        start_offset=None,
        on_finished=lambda _: None,
    )
    pipeline = FakePipeline()

    async def work(slot: Slot) -> Any:
        slot.begun = True
        return await process(slot.record, pipeline.predict, 10_000)

    with capture_logs() as lines:
        run = asyncio.create_task(worker.run())
        for offset, each in enumerate(chunks):
            record = Record("chunks", 3, offset, 0, each.video_id.encode(), encode_chunk(each))
            worker.put(record, lambda slot: asyncio.create_task(work(slot)))
        await until(lambda: len(worker) == 0)
        await worker.halt(run)
    return lines


async def test_each_chunk_is_one_line_at_debug() -> None:
    lines = await lines_of([chunk("v", 0), chunk("v", 1, BAD), chunk("w", 0)], AlertConfig())
    assert [(line["event"], line["log_level"], line["video_id"], line["seq"]) for line in lines] == [
        ("chunk refused", "warning", "v", 1),
        ("chunk counted", "debug", "v", 0),
        ("chunk counted", "debug", "w", 0),
    ]
    counted = lines[1]
    assert counted["partition"] == 3
    assert counted["status"] == "scored"
    assert counted["ms"]["decode"] == 2.0


async def test_changes_of_an_alert_are_lines_at_info() -> None:
    """The score rises above the threshold at once and stays there, and so it is one line."""
    alert = AlertConfig(raise_at=0.0, clear_at=0.0, min_faces=1)
    lines = await lines_of([chunk("v", seq) for seq in range(3)], alert)
    (line,) = [line for line in lines if line["log_level"] == "info"]
    assert line["event"] == "alert raised"
    assert (line["video_id"], line["seq"], line["threshold"]) == ("v", 0, 0.0)
    assert line["window_score"] is not None


async def test_the_end_of_an_alert_is_a_line_too() -> None:
    chunks = [chunk("v", seq) for seq in range(3)]
    scores = [line["window_score"] for line in await lines_of(chunks, AlertConfig())]
    highest = scores.index(max(scores))
    assert highest < len(scores) - 1
    alert = AlertConfig(raise_at=scores[highest], clear_at=scores[highest], min_faces=1, score="window")
    lines = [line for line in await lines_of(chunks, alert) if line["log_level"] == "info"]
    assert [(line["event"], line["seq"]) for line in lines] == [
        ("alert raised", highest),
        ("alert cleared", highest + 1),
    ]


async def test_states_that_cannot_be_used_are_one_line() -> None:
    """Of a hundred thousand videos, mostly all have the same reason."""
    states = {"v": b"damaged", "w": b"damaged"}
    lines = await lines_of([chunk("v", 0), chunk("w", 0)], AlertConfig(), states)
    (line,) = [line for line in lines if line["log_level"] == "warning"]
    assert line["event"] == "stored states cannot be used; their videos begin anew"
    assert line["partition"] == 3
    assert "not the state of a video" in line["why"]

from __future__ import annotations

import ast
import re
from collections import Counter
from pathlib import Path
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry

from streamer.batching import Batcher
from streamer.errors import DecodeError
from streamer.messages import ScoreUpdate
from streamer.metrics import KNOWN_REASONS, Metrics, PipelineCollector
from streamer.types import EnsembleInfo


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def test_two_sets_of_metrics_live_side_by_side(metrics: Metrics) -> None:
    other = Metrics(CollectorRegistry())
    metrics.frames.inc(3)
    assert other.registry.get_sample_value("streamer_frames_total") == 0


def test_reasons_are_a_bounded_set(metrics: Metrics) -> None:
    for n in range(1000):
        metrics.dead_letter("decode", f"reason-{n}")
    metrics.dead_letter("decode", "not_media")
    value = metrics.registry.get_sample_value
    assert value("streamer_dead_letters_total", {"stage": "decode", "reason": "other"}) == 1000
    assert value("streamer_dead_letters_total", {"stage": "decode", "reason": "not_media"}) == 1


def test_every_reason_that_the_code_gives_is_known() -> None:
    """Reads the source: `XError("reason", ...)` anywhere in the package."""
    given: dict[str, set[str]] = {"MessageError": set(), "LimitError": set(), "DecodeError": set()}
    for path in (Path(__file__).parents[1] / "streamer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in given
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                given[node.func.id].add(node.args[0].value)
    assert all(given.values())
    assert given["MessageError"] <= KNOWN_REASONS["message"]
    assert given["LimitError"] <= KNOWN_REASONS["limit"]
    assert given["DecodeError"] <= KNOWN_REASONS["decode"]


def test_a_reason_of_another_stage_makes_no_series(metrics: Metrics) -> None:
    metrics.dead_letter("decode", "no_key")
    metrics.dead_letter("guess", "no_key")
    value = metrics.registry.get_sample_value
    assert value("streamer_dead_letters_total", {"stage": "decode", "reason": "no_key"}) is None
    assert value("streamer_dead_letters_total", {"stage": "decode", "reason": "other"}) == 1
    assert value("streamer_dead_letters_total", {"stage": "other", "reason": "other"}) == 1


def test_latency_is_in_seconds_and_the_total_no_stage(metrics: Metrics) -> None:
    metrics.latency({"decode": 1500.0, "total": 2000.0})
    value = metrics.registry.get_sample_value
    assert value("streamer_stage_duration_seconds_sum", {"stage": "decode"}) == 1.5
    assert value("streamer_stage_duration_seconds_count", {"stage": "total"}) is None
    assert value("streamer_end_to_end_latency_seconds_sum") == 2.0


def test_series_are_there_before_their_first_event(metrics: Metrics) -> None:
    """Else `increase` and `rate` miss it."""
    value = metrics.registry.get_sample_value
    for status in get_args(ScoreUpdate.model_fields["status"].annotation):
        assert value("streamer_chunks_total", {"status": status}) == 0
    for reason in DecodeError.REASONS:
        assert value("streamer_dead_letters_total", {"stage": "decode", "reason": reason}) == 0


UNITS = ("_seconds", "_bytes", "_ratio", "_records", "_hertz")
"""Base units, and what is counted. A gauge may also be named after what it counts, without a unit."""

COUNTED = {"chunks_in_flight", "queued_chunks", "videos", "unusable_states", "asyncio_tasks"}
COUNTED |= {"assigned_partitions", "paused_partitions", "missing_topics"}


def test_names_are_as_prometheus_has_them(metrics: Metrics) -> None:
    """https://prometheus.io/docs/practices/naming/; `promtool check metrics` agrees."""
    metrics.registry.register(PipelineCollector([], {}, {"nvdec": 1}))
    for family in metrics.registry.collect():
        if family.name.startswith("process_"):  # of the client library
            continue
        assert family.name.startswith("streamer_"), family.name
        name = family.name.removeprefix("streamer_")
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", name), name
        assert family.documentation.endswith("."), name
        if family.type == "histogram":
            assert name.endswith("_seconds"), name
        if family.type == "gauge":
            assert name.endswith(UNITS) or name in COUNTED, name
        for sample in family.samples:  # only the library itself adds `_total`, and to counters
            assert sample.name.endswith("_total") == (sample.name == f"{family.name}_total"), sample.name


def test_labels_are_a_bounded_set(metrics: Metrics) -> None:
    metrics.registry.register(PipelineCollector([], {}, {"nvdec": 1}))
    metrics.loaded(EnsembleInfo(("one",), "abc", trained=True))
    names = {name for family in metrics.registry.collect() for s in family.samples for name in s.labels}
    bounded = {"stage", "reason", "status", "network", "partition", "le", "decoder"}
    assert names <= bounded | {"version", "model_set", "trained"}
    value = metrics.registry.get_sample_value
    assert value("streamer_ensemble_info", {"model_set": "abc", "trained": "true"}) == 1


async def test_pipeline_counts_are_read_when_asked_for() -> None:
    registry, restarts, decoders = CollectorRegistry(), Counter[str](), Counter[str]()
    batcher: Batcher[int, int] = Batcher("detect", lambda items: items, max_items=4, timeout_ms=1, workers=1)
    registry.register(PipelineCollector([batcher], restarts, decoders))
    value = registry.get_sample_value
    assert value("streamer_batches_total", {"network": "detect"}) == 0
    await batcher.submit(1)
    await batcher.close()
    restarts["decoder_crashed"] += 2
    decoders["cpu_small"] += 3
    assert value("streamer_batches_total", {"network": "detect"}) == 1
    assert value("streamer_batch_fill_ratio", {"network": "detect"}) == 0.25
    assert value("streamer_decode_worker_restarts_total", {"reason": "decoder_crashed"}) == 2
    assert value("streamer_decoded_chunks_total", {"decoder": "cpu_small"}) == 3


def test_forgotten_partitions_leave_no_series(metrics: Metrics) -> None:
    metrics.lag.labels("3").set(7)
    metrics.forget_partition(3)
    metrics.forget_partition(4)
    assert metrics.registry.get_sample_value("streamer_consumer_lag_records", {"partition": "3"}) is None

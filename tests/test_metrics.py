from __future__ import annotations

from collections import Counter

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from streamer.batching import Batcher
from streamer.errors import ConfigError
from streamer.metrics import KNOWN_REASONS, Endpoints, Metrics, PipelineCollector


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
    import ast
    from pathlib import Path

    given = set()
    for path in (Path(__file__).parents[1] / "streamer").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Call)
                and isinstance(node.func, ast.Name)
                and node.func.id in ("MessageError", "DecodeError", "ChunkError")
                and node.args
                and isinstance(node.args[0], ast.Constant)
            ):
                given.add(node.args[0].value)
    assert given
    assert given <= KNOWN_REASONS


def test_stages_are_seconds(metrics: Metrics) -> None:
    metrics.stages({"decode": 1500.0, "total": 2000.0})
    value = metrics.registry.get_sample_value
    assert value("streamer_stage_duration_seconds_sum", {"stage": "decode"}) == 1.5
    assert value("streamer_stage_duration_seconds_count", {"stage": "total"}) == 1


async def test_pipeline_counts_are_read_when_asked_for() -> None:
    registry, restarts = CollectorRegistry(), Counter[str]()
    batcher: Batcher[int, int] = Batcher("detect", lambda items: items, max_items=4, timeout_ms=1, workers=1)
    registry.register(PipelineCollector([batcher], restarts))
    value = registry.get_sample_value
    assert value("streamer_batches_total", {"network": "detect"}) == 0
    await batcher.submit(1)
    await batcher.close()
    restarts["decoder_crashed"] += 2
    assert value("streamer_batches_total", {"network": "detect"}) == 1
    assert value("streamer_batch_fill_ratio", {"network": "detect"}) == 0.25
    assert value("streamer_decode_worker_restarts_total", {"reason": "decoder_crashed"}) == 2


def test_forgotten_partitions_leave_no_series(metrics: Metrics) -> None:
    metrics.lag.labels("3").set(7)
    metrics.forget_partition(3)
    metrics.forget_partition(4)
    assert metrics.registry.get_sample_value("streamer_consumer_lag_records", {"partition": "3"}) is None


async def test_endpoints_say_why_not(metrics: Metrics) -> None:
    why: dict[str, str | None] = {"alive": None, "ready": "loading networks"}
    endpoints = Endpoints(
        metrics.registry, host="127.0.0.1", port=0, alive=lambda: why["alive"], ready=lambda: why["ready"]
    )
    async with endpoints, aiohttp.ClientSession(f"http://127.0.0.1:{endpoints.port}") as http:

        async def ask(path: str) -> tuple[int, str]:
            async with http.get(path) as answer:
                return answer.status, await answer.text()

        assert await ask("/healthz") == (200, "ok\n")
        assert await ask("/readyz") == (503, "loading networks\n")
        why.update(alive="stalled", ready=None)
        assert await ask("/healthz") == (503, "stalled\n")
        assert await ask("/readyz") == (200, "ok\n")
        async with http.get("/metrics") as answer:
            assert answer.content_type == "text/plain"
            assert "# TYPE streamer_chunks_total counter" in await answer.text()
        async with http.get("/metrics", headers={"Accept": "application/openmetrics-text"}) as answer:
            assert (await answer.text()).endswith("# EOF\n")


async def test_port_in_use(metrics: Metrics) -> None:
    def fine() -> None:
        return None

    def endpoints(port: int) -> Endpoints:
        return Endpoints(metrics.registry, host="127.0.0.1", port=port, alive=fine, ready=fine)

    async with endpoints(0) as first:
        with pytest.raises(
            ConfigError, match=rf"service\.http_port: cannot listen on 127\.0\.0\.1:{first.port}"
        ):
            await endpoints(first.port).__aenter__()

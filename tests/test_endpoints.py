"""/metrics, /healthz and /readyz over a real socket."""

from __future__ import annotations

import aiohttp
import pytest
from prometheus_client import CollectorRegistry

from streamer.endpoints import Endpoints
from streamer.errors import ConfigError
from streamer.metrics import Metrics


@pytest.fixture
def registry() -> CollectorRegistry:
    return Metrics(CollectorRegistry()).registry


async def test_endpoints_say_why_not(registry: CollectorRegistry) -> None:
    why: dict[str, str | None] = {"alive": None, "ready": "loading networks"}
    endpoints = Endpoints(
        registry,
        host="127.0.0.1",
        port=0,
        alive=lambda: why["alive"],
        ready=lambda: why["ready"],
        path=lambda: "networks in a fake",
    )
    async with endpoints, aiohttp.ClientSession(f"http://127.0.0.1:{endpoints.port}") as http:

        async def ask(path: str) -> tuple[int, str]:
            async with http.get(path) as answer:
                return answer.status, await answer.text()

        assert await ask("/healthz") == (200, "ok\n")
        assert await ask("/readyz") == (503, "loading networks\n")
        why.update(alive="stalled", ready=None)
        assert await ask("/healthz") == (503, "stalled\n")
        assert await ask("/readyz") == (200, "ok; networks in a fake\n")
        async with http.get("/metrics") as answer:
            assert answer.content_type == "text/plain"
            assert "# TYPE streamer_chunks_total counter" in await answer.text()
        async with http.get("/metrics", headers={"Accept": "application/openmetrics-text"}) as answer:
            assert (await answer.text()).endswith("# EOF\n")


async def test_port_in_use(registry: CollectorRegistry) -> None:
    def fine() -> None:
        return None

    def endpoints(port: int) -> Endpoints:
        return Endpoints(registry, host="127.0.0.1", port=port, alive=fine, ready=fine)

    async with endpoints(0) as first:
        with pytest.raises(
            ConfigError, match=rf"service\.http_port: cannot listen on 127\.0\.0\.1:{first.port}"
        ):
            await endpoints(first.port).__aenter__()

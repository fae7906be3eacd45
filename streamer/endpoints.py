"""What is served over HTTP beside the work: /metrics, /healthz and /readyz."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder

from streamer.errors import ConfigError


class Endpoints:
    """HTTP server of /metrics, /healthz (200 while alive) and /readyz (200 when ready), with the reason."""

    def __init__(
        self,
        registry: CollectorRegistry,
        *,
        host: str,
        port: int,
        alive: Callable[[], str | None],
        ready: Callable[[], str | None],
        path: Callable[[], str] = str,
    ) -> None:
        """alive, ready: None if so, else why not. path: what computes, in words, told by /readyz."""
        self._registry = registry
        self._host = host
        self._asked_port = port
        self._alive = alive
        self._ready = ready
        self._path = path
        self._runner: web.AppRunner | None = None

    @property
    def port(self) -> int:
        """Where it listens, once started."""
        assert self._runner is not None
        port: int = self._runner.addresses[0][1]
        return port

    async def __aenter__(self) -> Self:
        """Listen. Raises ConfigError if the address cannot be used."""
        app = web.Application()
        app.router.add_get("/metrics", self._metrics)
        app.router.add_get("/healthz", self._healthz)
        app.router.add_get("/readyz", self._readyz)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        try:
            await web.TCPSite(self._runner, self._host, self._asked_port).start()
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"service.http_port: cannot listen on {self._host}:{self._asked_port}: {error.strerror}"
            ) from error
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    async def _metrics(self, request: web.Request) -> web.Response:
        encoder, content_type = choose_encoder(request.headers.get("Accept", ""))
        return web.Response(body=encoder(self._registry), headers={"Content-Type": content_type})

    async def _healthz(self, _: web.Request) -> web.Response:
        return _verdict(self._alive(), "ok")

    async def _readyz(self, _: web.Request) -> web.Response:
        return _verdict(self._ready(), f"ok; {self._path()}")


def _verdict(why_not: str | None, otherwise: str) -> web.Response:
    return web.Response(text=f"{why_not or otherwise}\n", status=503 if why_not else 200)

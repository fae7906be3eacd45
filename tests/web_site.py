"""A small HTTP server of what a test puts there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web


class Site:
    """What an HTTP server has; `address` ends in a slash."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.failures: dict[str, list[int]] = {}
        """Status codes that a path answers before its content."""
        self.ranges = True
        self.address = ""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.match_info["path"]
        self.asked.append(path)
        if self.failures.get(path):
            return web.Response(status=self.failures[path].pop(0))
        if path == "moved":
            raise web.HTTPFound(request.query["to"])
        if path not in self.content:
            return web.Response(status=404)
        body = self.content[path]
        if self.ranges and (asked := request.http_range).start is not None:
            return web.Response(body=body[asked], status=206)
        return web.Response(body=body)


@asynccontextmanager
async def serve() -> AsyncIterator[Site]:
    """An empty site on a free port."""
    site = Site()
    app = web.Application()
    app.router.add_get("/{path:.*}", site.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    server = web.TCPSite(runner, "127.0.0.1", 0)
    await server.start()
    assert server._server is not None
    site.address = f"http://127.0.0.1:{server._server.sockets[0].getsockname()[1]}/"
    yield site
    await runner.cleanup()

"""A TCP proxy that makes a broker slow, or silent without a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress


class Proxy:
    """Passes on what comes, both ways, later or not for now."""

    def __init__(self, target: str) -> None:
        self.delay_seconds = 0.0
        """Of everything that is read at once."""
        self.open = asyncio.Event()
        """While cleared, connections stay and nothing goes through."""
        self.open.set()
        self._target = target

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        host, port = self._target.split(":")
        there, to_there = await asyncio.open_connection(host, int(port))
        with suppress(OSError):
            await asyncio.gather(self._pass_on(reader, to_there), self._pass_on(there, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                await asyncio.sleep(self.delay_seconds)
                await self.open.wait()
                writer.write(data)
                await writer.drain()
        finally:
            writer.close()


@asynccontextmanager
async def proxy(address: str, target: str) -> AsyncIterator[Proxy]:
    """Listens at `address` within the block."""
    host, port = address.split(":")
    between = Proxy(target)
    connections: set[asyncio.Task[None]] = set()

    def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.add(asyncio.create_task(between.serve(reader, writer)))

    server = await asyncio.start_server(connected, host, int(port))
    try:
        yield between
    finally:
        server.close()
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

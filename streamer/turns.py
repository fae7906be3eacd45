"""Whose chunk is worked on next: videos take turns, so that one with many chunks cannot hold up the rest."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Turns:
    """At most `most` holders at once; a free place goes round-robin over the lanes that wait for one.

    Within a lane the first to wait is the first to go. With n lanes waiting, whoever stands first in its lane
    waits for at most n places to become free, however long the other lanes are.
    """

    def __init__(self, most: int) -> None:
        self._free = most
        self._lanes: OrderedDict[Hashable, deque[asyncio.Future[None]]] = OrderedDict()
        """Who waits; the lane whose turn it is comes first."""

    @asynccontextmanager
    async def turn(self, lane: Hashable) -> AsyncIterator[None]:
        """Wait for a place, and hold it within the block."""
        await self._take(lane)
        try:
            yield
        finally:
            self._pass_on()

    async def _take(self, lane: Hashable) -> None:
        if self._free:  # then nobody waits
            self._free -= 1
            return
        given: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lanes.setdefault(lane, deque()).append(given)
        try:
            await given
        except asyncio.CancelledError:
            if not given.cancelled():  # cancelled after the place was given, before it was taken
                self._pass_on()
            raise

    def _pass_on(self) -> None:
        """Give a place to the next lane's first; those that have stopped waiting are passed over."""
        while self._lanes:
            lane, waiting = self._lanes.popitem(last=False)
            while waiting:
                if not (first := waiting.popleft()).cancelled():
                    if waiting:
                        self._lanes[lane] = waiting
                    first.set_result(None)
                    return
        self._free += 1

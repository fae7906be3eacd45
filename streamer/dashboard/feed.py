"""The store as streams of server-sent events: what changed since, a few times a second."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from typing import Any

from pydantic_core import to_json
from sse_starlette import ServerSentEvent

from streamer.dashboard.store import Store

TICK_SECONDS = 0.3
"""Between two events of a stream: what changed meanwhile is told once."""

QUIET_SECONDS = 2.0
"""A page hears so often that the stream lives, when nothing changes."""

MAX_STREAMS = 100
"""Open at once."""


class Feed:
    """Ticks, and streams that follow them.

    Nothing is queued for a page: each asks for the changes since the version that it has. Those that keep up
    share one encoding; one that is slow skips ticks and gets their changes together.
    """

    def __init__(self, store: Store, *, tick_seconds: float = TICK_SECONDS) -> None:
        self.store = store
        self.streams = 0
        self.closed = False
        self._tick_seconds = tick_seconds
        self._ticked = asyncio.Event()
        self._frames: dict[int, bytes] = {}
        self._frames_of: object = None
        self._boot = secrets.token_hex(4)  # versions of another process mean nothing here

    async def run(self) -> None:
        """Tick until cancelled."""
        while True:
            await asyncio.sleep(self._tick_seconds)
            self.tick()

    def tick(self) -> None:
        """Let all streams look for changes."""
        self.store.expire(now_ms())
        self._frames.clear()  # they say what time it is
        self._ticked.set()
        self._ticked = asyncio.Event()

    def close(self) -> None:
        """End all streams."""
        self.closed = True
        self.tick()

    @property
    def is_full(self) -> bool:
        """Whether another stream would be one too many."""
        return self.streams >= MAX_STREAMS

    def videos(self, last_event_id: str | None) -> AsyncGenerator[bytes, None]:
        """All videos, then what changes."""
        store = self.store
        return self._follow(last_event_id, lambda: (store.version, store.status()), self._changes)

    def video(self, video_id: str) -> AsyncGenerator[bytes, None]:
        """One video."""
        return self._follow(
            None,
            lambda: (self.store.version_of(video_id), self.store.gallery.version_of(video_id)),
            lambda since, version: self._frame(version, self.store.video(video_id, since)),
        )

    def letters(self, last_event_id: str | None) -> AsyncGenerator[bytes, None]:
        """Dead letters and unreadable records."""
        return self._follow(
            last_event_id,
            lambda: (self.store.letters_version, None),
            lambda since, version: self._frame(version, self.store.letters_since(since)),
        )

    def _changes(self, since: int, version: int) -> bytes:
        now = (version, self.store.status())
        if now != self._frames_of:
            self._frames, self._frames_of = {}, now
        if since not in self._frames:
            self._frames[since] = self._frame(version, self.store.changes(since))
        return self._frames[since]

    def _frame(self, version: int, content: dict[str, Any]) -> bytes:
        data = to_json(content | {"now": now_ms()}, inf_nan_mode="null").decode()
        return ServerSentEvent(data, event="change", id=f"{self._boot}-{version}").encode()

    async def _follow(
        self,
        last_event_id: str | None,
        look: Callable[[], tuple[int, object]],
        encode: Callable[[int, int], bytes],
    ) -> AsyncGenerator[bytes, None]:
        """Events of what `encode` says has changed from a version to the one now.

        look: the version, and what changes without getting one. last_event_id: of this feed, to go on there.
        """
        boot, _, number = (last_event_id or "").partition("-")
        sent = int(number) if boot == self._boot and number.isdecimal() and len(number) < 20 else 0
        told: object = None
        told_at = time.monotonic()
        self.streams += 1
        try:
            while not self.closed:
                ticked = self._ticked
                if (now := look()) != told:
                    frame = encode(sent, now[0])
                    sent, told, told_at = now[0], now, time.monotonic()
                    yield frame
                elif time.monotonic() - told_at >= QUIET_SECONDS:
                    told_at = time.monotonic()
                    yield ServerSentEvent("", event="alive").encode()
                await ticked.wait()
        finally:
            self.streams -= 1


def now_ms() -> int:
    """Unix time."""
    return time.time_ns() // 1_000_000

"""Segments of an HLS playlist or a DASH manifest -> chunks, as the packager cut them. Shared by both."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import structlog

from streamer.fetch import ByteRange, Fetched, Fetcher
from streamer.files import Piece, SourceError
from streamer.messages import VideoChunk
from streamer.network import NetworkOptions

MAX_LISTING_BYTES = 8 * 1024 * 1024
"""Of a playlist or manifest: a day of two-second segments has 43,000 lines of some 100 bytes."""

EDGE_SEGMENTS = 3
"""A live video is joined so many segments before its end, as RFC 8216, 6.3.3 has players do."""

MIN_RELOAD_SECONDS, MAX_RELOAD_SECONDS = 0.5, 30.0

STALLED_RELOADS = 6
"""A live listing that has not changed in so many reload times is spoken of."""

_SOUND = frozenset({"mp4a", "ac-3", "ec-3", "opus", "Opus", "vorbis", "flac", "fLaC"})

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Segment:
    """What a playlist or manifest says of a segment."""

    number: int
    """Media sequence number of HLS, $Number$ of DASH; -1 if the packager gives none."""
    address: str
    part: ByteRange | None
    init: tuple[str, ByteRange | None] | None
    duration_seconds: float
    captured_at_ms: int | None
    """When its last frame was shot."""
    is_gap: bool = False
    """The packager does not have it."""
    start_seconds: float | None = None
    """Presentation time, of a live video Unix time; None: where the segment before it ends."""
    is_supposed: bool = False
    """By the clock, or the video's length, it should be there; nothing names it."""

    @property
    def end_seconds(self) -> float:
        """Presentation time, of a segment whose start is told."""
        return (self.start_seconds or 0.0) + self.duration_seconds


@dataclass(frozen=True, slots=True)
class Listing:
    """What one reading of a playlist or manifest says."""

    segments: list[Segment]
    """In order."""
    is_ended: bool
    reload_seconds: float
    """When to read again, within bounds."""
    video_seconds: float | None = None
    """Length of the video, if it is said."""


@dataclass(frozen=True, slots=True)
class Due:
    """A segment that had not been there, and its place in the video."""

    segment: Segment
    seq: int
    start_seconds: float
    """Of the chunk."""
    end_seconds: float
    """From where the video was joined."""
    video_seconds: float | None
    is_live: bool


async def follow(
    read: Callable[[], Awaitable[Listing]],
    take_new: Callable[[Listing], list[Due]],
    fetcher: Fetcher,
    video_id: str,
    network: NetworkOptions,
) -> AsyncGenerator[Piece, None]:
    """A chunk for each segment, until the video has ended. Raises SourceError."""
    segments = _Segments(fetcher, video_id, network.max_bytes)
    async for listing in _readings(read, video_id, network.attempts):
        for due in take_new(listing):
            last = listing.is_ended and due.segment is listing.segments[-1]
            if (piece := await segments.fetch(due, last=last)) is not None:
                yield piece


async def _readings(
    read: Callable[[], Awaitable[Listing]], video_id: str, attempts: int
) -> AsyncIterator[Listing]:
    """The listing as it grows, until it has ended; attempts: as in NetworkOptions."""
    seen: list[Segment] = []
    changed = time.monotonic()
    failures = 0
    stalled = False
    while True:
        started = time.monotonic()
        try:
            listing = await read()
        except SourceError as error:
            failures += 1
            never_read = not seen and failures == 1
            if never_read or error.reason != "unreadable" or failures == attempts:
                raise
            log.warning(
                "a playlist or manifest cannot be read; trying again", video_id=video_id, error=str(error)
            )
            await asyncio.sleep(min(2.0**failures, MAX_RELOAD_SECONDS))
            continue
        failures = 0
        yield listing
        if listing.is_ended:
            return
        # RFC 8216, 6.3.4: after the target duration, or half of it if nothing had changed
        wait = listing.reload_seconds
        if listing.segments == seen:
            wait /= 2
            silent = started - changed
            if not stalled and silent > STALLED_RELOADS * listing.reload_seconds:
                stalled = True
                log.warning("a playlist or manifest does not grow", video_id=video_id, seconds=round(silent))
        else:
            seen, changed, stalled = listing.segments, started, False
        await asyncio.sleep(max(wait - (time.monotonic() - started), MIN_RELOAD_SECONDS))


class _Segments:
    """Fetches segments, and an init segment once for all that need it."""

    def __init__(self, fetcher: Fetcher, video_id: str, max_bytes: int) -> None:
        self._fetcher, self._video_id, self._max_bytes = fetcher, video_id, max_bytes
        self._init: tuple[tuple[str, ByteRange | None], bytes] | None = None

    async def fetch(self, due: Due, *, last: bool) -> Piece | None:
        """The segment as a chunk; None if it is a gap, or one of a live video that cannot be had."""
        segment = due.segment
        if segment.is_gap:
            return None
        try:
            init = await self._fetch_init(segment)
            fetched = await self._fetch_media(due, self._max_bytes - len(init or b""))
        except SourceError as error:
            if not due.is_live or error.reason == "forbidden_address":
                raise SourceError(error.reason, f"segment {due.seq}: {error}") from error
            log.warning("a segment is left out", video_id=self._video_id, seq=due.seq, error=str(error))
            return None
        captured = segment.captured_at_ms
        if due.is_live:
            now_ms = round(1000 * time.time())
            captured = now_ms if captured is None else min(captured, now_ms)
        chunk = VideoChunk(
            video_id=self._video_id,
            seq=due.seq,
            data=fetched.data,
            init=init,
            start_seconds=due.start_seconds,
            duration_seconds=due.video_seconds,
            captured_at_ms=captured,
            last=last,
        )
        return Piece(chunk, due.end_seconds)

    async def _fetch_media(self, due: Due, max_bytes: int) -> Fetched:
        segment = due.segment
        try:
            return await self._fetcher.get(segment.address, max_bytes=max_bytes, part=segment.part)
        except SourceError as error:
            if not segment.is_supposed or not due.is_live or error.reason != "unreadable":
                raise
        await asyncio.sleep(segment.duration_seconds / 2)  # our clock may be ahead of the packager's
        return await self._fetcher.get(segment.address, max_bytes=max_bytes, part=segment.part)

    async def _fetch_init(self, segment: Segment) -> bytes | None:
        if segment.init is None:
            return None
        if self._init is None or self._init[0] != segment.init:
            address, part = segment.init
            try:
                fetched = await self._fetcher.get(address, max_bytes=self._max_bytes, part=part)
            except SourceError as error:
                raise SourceError(error.reason, f"its init segment: {error}") from error
            self._init = segment.init, fetched.data
        return self._init[1]


def choose(renditions: Sequence[tuple[int, int, T]], min_height: int) -> T:
    """Of (bandwidth, height in lines or 0, rendition): the cheapest with `min_height` lines.

    If none says that it has so many, the tallest; raises SourceError if there is none at all.
    """
    if not renditions:
        raise SourceError("no_video", "there is no rendition with video")
    enough = [one for one in renditions if one[1] >= min_height]
    if enough:
        return min(enough, key=lambda one: one[:2])[2]
    return max(renditions, key=lambda one: (one[1], one[0]))[2]


def is_sound(codecs: str) -> bool:
    """Whether a list of codecs (RFC 6381) names sound alone; not if it is empty."""
    kinds = [codec.strip().split(".")[0] for codec in codecs.split(",") if codec.strip()]
    return bool(kinds) and _SOUND.issuperset(kinds)


def bounded_reload(seconds: float) -> float:
    """Seconds until a listing is read again, within bounds."""
    return min(max(seconds, MIN_RELOAD_SECONDS), MAX_RELOAD_SECONDS)

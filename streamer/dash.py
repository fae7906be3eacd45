"""MPEG-DASH manifests -> chunks: the segments as the packager cut them, static and live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace
from statistics import median_low

import structlog

from streamer.adaptive import EDGE_SEGMENTS, MAX_LISTING_BYTES, Due, Listing, Segment, follow
from streamer.fetch import Fetcher
from streamer.files import Piece, SourceError
from streamer.mpd import Manifest
from streamer.network import NetworkSource

MAX_STEP = 10_000
"""A number that rises by more is one that the packager began anew with."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Presentation(NetworkSource):
    """A DASH manifest, by URL or path."""

    async def pieces(self, chunk_seconds: float) -> AsyncGenerator[Piece, None]:
        """A chunk for each segment, whatever `chunk_seconds` says.

        Its seq counts from 0; of a live video, it is the segment's $Number$ or, where addresses have none,
        Unix time over the usual duration of a segment: so one that is restarted goes on. Raises SourceError.
        """
        async with Fetcher() as fetcher:
            watched = _Watched(self, fetcher)
            following = follow(watched.read, watched.take_new, fetcher, self.video_id, self.network)
            async with aclosing(following) as pieces:
                async for piece in pieces:
                    yield piece


class _Watched:
    """What has been seen of a video, and which segments come next."""

    def __init__(self, source: Presentation, fetcher: Fetcher) -> None:
        self._source, self._fetcher = source, fetcher
        self._location = source.location
        self._manifest: Manifest | None = None
        self._fetch_at = 0.0
        """By `time.monotonic`."""
        self._origin_seconds: float | None = None
        """Of a live video: see Clock."""
        self._last: Due | None = None
        self._joined_seconds = 0.0

    async def read(self) -> Listing:
        """The segments that there are now. Raises SourceError."""
        is_first = self._manifest is None
        if self._manifest is None or time.monotonic() >= self._fetch_at:
            self._manifest = await self._fetch()
        manifest = self._manifest
        if manifest.is_dynamic:
            self._origin_seconds = manifest.origin_seconds
        listing = await asyncio.to_thread(
            manifest.listing, self._source.network.min_height, self._origin_seconds, time.time()
        )
        if not (listing.segments and listing.segments[-1].is_supposed):
            self._fetch_at = 0.0  # nothing new comes by itself
        if is_first and not manifest.is_dynamic:
            there = [one for one in listing.segments if await self._is_there(one)]
            if not there:
                raise SourceError("unreadable", "no segment of the manifest is there")
            return replace(listing, segments=there)
        return listing

    async def _fetch(self) -> Manifest:
        fetched = await self._fetcher.get(self._location, max_bytes=MAX_LISTING_BYTES)
        manifest = await asyncio.to_thread(Manifest, fetched.data, fetched.address)
        self._location = manifest.location or self._location
        self._fetch_at = time.monotonic() + manifest.update_seconds
        return manifest

    async def _is_there(self, segment: Segment) -> bool:
        """Whether a segment exists that only the length of the video, which may be its sound's, calls for."""
        if not segment.is_supposed:
            return True
        try:
            await self._fetcher.get(
                segment.address, max_bytes=self._source.network.max_bytes, part=segment.part
            )
        except SourceError as error:
            if error.reason != "unreadable":
                raise
            log.warning(
                "the video is shorter than its manifest says",
                video_id=self._source.video_id,
                error=str(error),
            )
            return False
        return True

    def take_new(self, listing: Listing) -> list[Due]:
        """Segments that had not been there."""
        if self._last is not None:
            end = self._last.segment.end_seconds
            new = [one for one in listing.segments if _start(one) + one.duration_seconds / 2 > end]
        elif self._origin_seconds is not None:
            new = listing.segments[-EDGE_SEGMENTS:]
            self._joined_seconds = _start(new[0]) if new else 0.0
        else:
            new = listing.segments
        return [self._place(one, listing) for one in new]

    def _place(self, segment: Segment, listing: Listing) -> Due:
        self._last = Due(
            segment,
            self._seq(segment, listing),
            _start(segment),
            segment.end_seconds - self._joined_seconds,
            listing.video_seconds,
            self._origin_seconds is not None,
        )
        return self._last

    def _seq(self, segment: Segment, listing: Listing) -> int:
        last = self._last
        if self._origin_seconds is None:
            return 0 if last is None else last.seq + 1
        if last is None:
            usual = median_low(one.duration_seconds for one in listing.segments)
            return segment.number if segment.number >= 0 else round(_start(segment) / usual)
        step = segment.number - last.segment.number
        if min(segment.number, last.segment.number) < 0 or not 0 < step <= MAX_STEP:
            step = 1 + round(max(0.0, _start(segment) - last.segment.end_seconds) / segment.duration_seconds)
        if step > 1:
            log.warning("segments were missed", video_id=self._source.video_id, segments=step - 1)
        return last.seq + step


def _start(segment: Segment) -> float:
    return segment.start_seconds or 0.0

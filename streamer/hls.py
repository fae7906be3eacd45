"""HLS playlists (RFC 8216) -> chunks: the segments as the packager cut them, VOD and live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

import m3u8
import structlog

from streamer.adaptive import (
    EDGE_SEGMENTS,
    MAX_LISTING_BYTES,
    Due,
    Listing,
    Segment,
    bounded_reload,
    choose,
    follow,
    is_sound,
)
from streamer.fetch import ByteRange, Fetcher, resolve
from streamer.files import Piece, SourceError
from streamer.messages import MAX_SECONDS
from streamer.network import NetworkSource

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Playlist(NetworkSource):
    """An HLS playlist, by URL or path: a master playlist or a media playlist."""

    async def pieces(self, chunk_seconds: float) -> AsyncGenerator[Piece, None]:
        """A chunk for each segment, whatever `chunk_seconds` says; its seq is its media sequence number.

        So two that watch the same playlist, or one that was restarted, count nothing twice. Raises
        SourceError.
        """
        async with Fetcher() as fetcher:
            address = await self._media_address(fetcher)

            async def read() -> Listing:
                return read_media_playlist(*await _load(fetcher, address))

            take_new = _Position(self.video_id).take_new
            async with aclosing(follow(read, take_new, fetcher, self.video_id, self.network)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _media_address(self, fetcher: Fetcher) -> str:
        """Of the media playlist to watch."""
        playlist, base = await _load(fetcher, self.location)
        if not playlist.is_variant:
            return base
        return resolve(base, choose_rendition(playlist, self.network.min_height))


class _Position:
    """What has been seen of a playlist: position in the video, and which segments come next."""

    def __init__(self, video_id: str) -> None:
        self._video_id = video_id
        self._next: int | None = None
        self._shift = 0
        """Added to sequence numbers: a packager that was restarted begins anew."""
        self._position_seconds = 0.0
        self._origin_seconds = 0.0
        """Unix time at which a live video was joined, as in `streamer.stream`."""
        self._video_seconds: float | None = None
        self._is_live = False

    def take_new(self, playlist: Listing) -> list[Due]:
        """Segments that had not been there."""
        segments = playlist.segments
        if self._next is None:
            self._is_live = not playlist.is_ended
            if self._is_live:
                segments = segments[-EDGE_SEGMENTS:]
                self._origin_seconds = _unix_seconds(segments)
            else:
                self._video_seconds = sum(segment.duration_seconds for segment in segments) or None
        elif segments and segments[-1].number + 1 < self._next - self._shift:
            log.warning("an HLS playlist counts from the beginning again", video_id=self._video_id)
            self._shift = self._next - segments[0].number
        new = [one for one in segments if self._next is None or one.number + self._shift >= self._next]
        if new and self._next is not None and (missed := new[0].number + self._shift - self._next):
            log.warning("HLS segments were missed", video_id=self._video_id, segments=missed)
            self._position_seconds += missed * new[0].duration_seconds
        if new:
            self._next = new[-1].number + self._shift + 1
        return [self._place(segment) for segment in new]

    def _place(self, segment: Segment) -> Due:
        start = self._position_seconds
        self._position_seconds += segment.duration_seconds
        return Due(
            segment,
            segment.number + self._shift,
            self._origin_seconds + start,
            self._position_seconds,
            self._video_seconds,
            self._is_live,
        )


def choose_rendition(playlist: Any, min_height: int) -> str:
    """Reference of the cheapest rendition with `min_height` lines; if none says that it has, of the highest.

    Raises SourceError if there is no video.
    """
    renditions = [
        (one.stream_info.bandwidth or 0, (one.stream_info.resolution or (0, 0))[1], str(one.uri))
        for one in playlist.playlists
        if one.uri and (one.stream_info.resolution is not None or not is_sound(one.stream_info.codecs or ""))
    ]
    return choose(renditions, min_height)


def read_media_playlist(playlist: Any, base: str) -> Listing:
    """What is needed of a parsed media playlist. Raises SourceError."""
    if playlist.is_variant:
        raise SourceError("not_media", "the master playlist names another master playlist")
    first = playlist.media_sequence or 0
    if not 0 <= first < 2**53:
        raise SourceError("not_media", f"media sequence number {first:.20g}")
    segments: list[Segment] = []
    ends: dict[str, int] = {}
    for number, one in enumerate(playlist.segments, first):
        if not one.uri:  # parts of a segment that is not complete yet
            continue
        if one.key is not None and one.key.method not in (None, "NONE"):
            raise SourceError("encrypted", f"the segments are encrypted ({one.key.method!r:.30})")
        if not 0 <= (one.duration or 0.0) <= 3600:  # NaN, too
            raise SourceError("not_media", f"segment {number} lasts {one.duration} s")
        address = resolve(base, one.uri)
        part = _byte_range(one.byterange, ends.get(address, 0))
        if part:
            ends[address] = part.start + part.length
        init = None
        if one.init_section is not None:
            init = (resolve(base, one.init_section.uri or ""), _byte_range(one.init_section.byterange, 0))
        duration = float(one.duration or 0.0)
        captured = _captured_at_ms(one.current_program_date_time, duration)
        segments.append(Segment(number, address, part, init, duration, captured, bool(one.gap_tag)))
    if playlist.is_endlist and not segments:
        raise SourceError("no_video", "the playlist has no segment")
    reload = bounded_reload(float(playlist.target_duration or 0))
    return Listing(segments, playlist.is_endlist, reload)


async def _load(fetcher: Fetcher, address: str) -> tuple[Any, str]:
    """The parsed playlist and the address it came from. Raises SourceError."""
    fetched = await fetcher.get(address, max_bytes=MAX_LISTING_BYTES)
    text = fetched.data.decode("utf-8", "replace")
    if not text.lstrip("\ufeff").startswith("#EXTM3U"):
        raise SourceError("not_media", "not an HLS playlist: it does not start with #EXTM3U")
    try:
        return await asyncio.to_thread(m3u8.loads, text), fetched.address
    except Exception as error:
        raise SourceError("not_media", f"not an HLS playlist: {error!r:.200}") from error


def _unix_seconds(segments: list[Segment]) -> float:
    """When the first segment begins; as far as it is not said, as if the last one ended now."""
    if segments and (captured_at_ms := segments[0].captured_at_ms) is not None:
        return max(0.0, captured_at_ms / 1000 - segments[0].duration_seconds)
    return time.time() - sum(segment.duration_seconds for segment in segments)


def _captured_at_ms(began: datetime | None, duration_seconds: float) -> int | None:
    """When a segment's last frame was shot; None if that is not said, or beyond all time."""
    if began is None:
        return None
    seconds = (began if began.tzinfo else began.replace(tzinfo=UTC)).timestamp() + duration_seconds
    return max(0, round(1000 * seconds)) if seconds <= MAX_SECONDS else None


def _byte_range(text: str | None, start: int) -> ByteRange | None:
    """`length[@start]`; start: where it begins if it does not say so. Raises SourceError."""
    if not text:
        return None
    length, _, at = text.partition("@")
    try:
        part = ByteRange(int(at) if at else start, int(length))
    except ValueError as error:
        raise SourceError("not_media", f"not a byte range: {text!r:.50}") from error
    if part.start < 0 or part.length <= 0:
        raise SourceError("not_media", f"not a byte range: {text!r:.50}")
    return part

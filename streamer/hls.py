"""HLS playlists (RFC 8216) -> chunks: the segments as the packager cut them, VOD and live."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import m3u8
import structlog

from streamer.fetch import ByteRange, Fetcher, resolve
from streamer.files import Piece, SourceError
from streamer.messages import VideoChunk
from streamer.sources import NetworkOptions, without_secrets

MAX_PLAYLIST_BYTES = 8 * 1024 * 1024
"""A day of two-second segments has 43,000 lines of some 100 bytes."""

EDGE_SEGMENTS = 3
"""A live video is joined so many segments before its end, as RFC 8216, 6.3.3 has players do."""

MIN_RELOAD_SECONDS, MAX_RELOAD_SECONDS = 0.5, 30.0

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Segment:
    """What a media playlist says of a segment."""

    number: int
    """Media sequence number."""
    address: str
    part: ByteRange | None
    init: tuple[str, ByteRange | None] | None
    duration_seconds: float
    captured_at_ms: int | None
    """When its last frame was shot, by EXT-X-PROGRAM-DATE-TIME."""
    is_gap: bool
    """The packager does not have it (EXT-X-GAP)."""


@dataclass(frozen=True, slots=True)
class MediaPlaylist:
    """What one reading of a media playlist says."""

    segments: list[Segment]
    """In order."""
    is_ended: bool
    reload_seconds: float
    """The target duration, within bounds."""


@dataclass(frozen=True, slots=True)
class Playlist:
    """An HLS playlist, by URL or path: a master playlist or a media playlist."""

    location: str = field(repr=False)
    video_id: str
    network: NetworkOptions

    @property
    def name(self) -> str:
        return without_secrets(self.location)

    async def pieces(self, chunk_seconds: float) -> AsyncGenerator[Piece, None]:
        """A chunk for each segment, whatever `chunk_seconds` says; its seq is its media sequence number.

        So two that watch the same playlist, or one that was restarted, count nothing twice. Raises
        SourceError.
        """
        async with Fetcher() as fetcher:
            address = await self._media_address(fetcher)
            watched = _Watched(self, fetcher)
            async for playlist in self._readings(fetcher, address):
                for segment in watched.take_new(playlist):
                    last = playlist.is_ended and segment is playlist.segments[-1]
                    if (piece := await watched.fetch(segment, last=last)) is not None:
                        yield piece

    async def _media_address(self, fetcher: Fetcher) -> str:
        """Of the media playlist to watch."""
        playlist, base = await _load(fetcher, self.location)
        if not playlist.is_variant:
            return base
        return resolve(base, choose_rendition(playlist, self.network.min_height))

    async def _readings(self, fetcher: Fetcher, address: str) -> AsyncIterator[MediaPlaylist]:
        """The media playlist as it grows, until it has ended."""
        seen: list[Segment] = []
        failures = 0
        while True:
            started = time.monotonic()
            try:
                playlist = read_media_playlist(*await _load(fetcher, address))
            except SourceError as error:
                failures += 1
                never_read = not seen and failures == 1
                if never_read or error.reason != "unreadable" or failures == self.network.attempts:
                    raise
                log.warning(
                    "an HLS playlist cannot be read; trying again", video_id=self.video_id, error=str(error)
                )
                await asyncio.sleep(min(2.0**failures, MAX_RELOAD_SECONDS))
                continue
            failures = 0
            yield playlist
            if playlist.is_ended:
                return
            # RFC 8216, 6.3.4: after the target duration, or half of it if nothing had changed
            wait = playlist.reload_seconds / (2 if playlist.segments == seen else 1)
            seen = playlist.segments
            await asyncio.sleep(max(wait - (time.monotonic() - started), MIN_RELOAD_SECONDS))


class _Watched:
    """What has been seen of a playlist: position in the video, and which segments come next."""

    def __init__(self, playlist: Playlist, fetcher: Fetcher) -> None:
        self._video_id, self._max_bytes = playlist.video_id, playlist.network.max_bytes
        self._fetcher = fetcher
        self._next: int | None = None
        self._shift = 0
        """Added to sequence numbers: a packager that was restarted begins anew."""
        self._position_seconds = 0.0
        self._origin_seconds = 0.0
        """Unix time at which a live video was joined, as in `streamer.stream`."""
        self._video_seconds: float | None = None
        self._is_live = False
        self._init: tuple[tuple[str, ByteRange | None], bytes] | None = None

    def take_new(self, playlist: MediaPlaylist) -> list[Segment]:
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
        return new

    async def fetch(self, segment: Segment, *, last: bool) -> Piece | None:
        """The segment as a chunk; None if it is a gap, or one of a live video that cannot be had."""
        start = self._position_seconds
        self._position_seconds += segment.duration_seconds
        if segment.is_gap:
            return None
        try:
            init = await self._fetch_init(segment)
            fetched = await self._fetcher.get(
                segment.address, max_bytes=self._max_bytes - len(init or b""), part=segment.part
            )
        except SourceError as error:
            if not self._is_live or error.reason == "forbidden_address":
                raise
            log.warning(
                "an HLS segment is left out", video_id=self._video_id, number=segment.number, error=str(error)
            )
            return None
        captured = segment.captured_at_ms
        if captured is None and self._is_live:
            captured = round(1000 * time.time())
        chunk = VideoChunk(
            video_id=self._video_id,
            seq=segment.number + self._shift,
            data=fetched.data,
            init=init,
            start_seconds=self._origin_seconds + start,
            duration_seconds=self._video_seconds,
            captured_at_ms=captured,
            last=last,
        )
        return Piece(chunk, self._position_seconds)

    async def _fetch_init(self, segment: Segment) -> bytes | None:
        if segment.init is None:
            return None
        if self._init is None or self._init[0] != segment.init:
            address, part = segment.init
            fetched = await self._fetcher.get(address, max_bytes=self._max_bytes, part=part)
            self._init = segment.init, fetched.data
        return self._init[1]


def choose_rendition(playlist: Any, min_height: int) -> str:
    """Reference of the cheapest rendition with `min_height` lines; if none says that it has, of the highest.

    Raises SourceError if there is no video.
    """
    renditions = [
        (one.stream_info.bandwidth or 0, (one.stream_info.resolution or (0, 0))[1], one.uri)
        for one in playlist.playlists
        if one.uri and _may_be_video(one.stream_info)
    ]
    if not renditions:
        raise SourceError("no_video", "the master playlist has no rendition with video")
    enough = [one for one in renditions if one[1] >= min_height]
    _, _, uri = min(enough) if enough else max(renditions, key=lambda one: (one[1], one[0]))
    return str(uri)


def read_media_playlist(playlist: Any, base: str) -> MediaPlaylist:
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
        captured = None
        if (date := one.current_program_date_time) is not None:
            captured = max(0, round(1000 * (date.timestamp() + (one.duration or 0.0))))
        duration = float(one.duration or 0.0)
        segments.append(Segment(number, address, part, init, duration, captured, bool(one.gap_tag)))
    if playlist.is_endlist and not segments:
        raise SourceError("no_video", "the playlist has no segment")
    reload = min(max(float(playlist.target_duration or 0), MIN_RELOAD_SECONDS), MAX_RELOAD_SECONDS)
    return MediaPlaylist(segments, playlist.is_endlist, reload)


async def _load(fetcher: Fetcher, address: str) -> tuple[Any, str]:
    """The parsed playlist and the address it came from. Raises SourceError."""
    fetched = await fetcher.get(address, max_bytes=MAX_PLAYLIST_BYTES)
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


def _may_be_video(info: Any) -> bool:
    """Whether a rendition is not certainly sound alone."""
    kinds = [codec.strip().split(".")[0] for codec in (info.codecs or "").split(",") if codec.strip()]
    sound = {"mp4a", "ac-3", "ec-3", "opus", "Opus", "flac", "fLaC"}
    return info.resolution is not None or not kinds or not sound.issuperset(kinds)

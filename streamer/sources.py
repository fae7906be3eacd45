"""What can be published: names on the command line -> sources of chunks."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Protocol
from urllib.parse import urlsplit

from streamer.errors import ConfigError
from streamer.files import Piece, pieces_of, unicode_of, video_id_of
from streamer.messages import MAX_VIDEO_ID_BYTES
from streamer.network import NetworkOptions, is_url, without_secrets

STREAM_SCHEMES = ("rtsp", "rtsps", "rtmp", "rtmps", "http", "https", "tcp", "udp", "rtp", "srt")
"""Of URLs that FFmpeg reads; srt only where it was built with it, which PyAV's wheels are not."""


class Source(Protocol):
    """A video that is cut into chunks somewhere."""

    @property
    def name(self) -> str:
        """For people; without passwords."""

    @property
    def video_id(self) -> str:
        """What it is published under."""

    def pieces(self, chunk_seconds: float) -> AsyncGenerator[Piece, None]:
        """Its chunks, cut at the first keyframe after each `chunk_seconds` if they are not cut already.

        Close it with `contextlib.aclosing`. Raises SourceError, after the chunks before the fault.
        """


@dataclass(frozen=True, slots=True)
class Clip:
    """A file."""

    path: Path
    video_id: str

    @property
    def name(self) -> str:
        return str(self.path)

    def pieces(self, chunk_seconds: float) -> AsyncGenerator[Piece, None]:
        return pieces_of(self.path, self.video_id, chunk_seconds)


def sources_of(
    inputs: Sequence[str], video_id: str | None, network: NetworkOptions | None = None
) -> list[Source]:
    """A source for each input, named after it. Raises ConfigError if names are ambiguous or of no use."""
    network = network or NetworkOptions()
    if video_id is not None and len(inputs) > 1:
        raise ConfigError("--video-id names one video, but there are several inputs")
    if network.hls and network.dash:
        raise ConfigError("--hls and --dash: publish playlists and manifests one after the other")
    sources = []
    for number, text in enumerate(inputs, 1):
        try:
            name = default_video_id(text) if video_id is None else video_id
            sources.append(_source(text, unicode_of(name), network))
        except ValueError:  # urlsplit's, which may quote a password
            raise ConfigError(f"input {number} begins as a URL and is none") from None
    seen: dict[str, Source] = {}
    for source in sources:
        if not 0 < len(source.video_id.encode()) <= MAX_VIDEO_ID_BYTES:
            raise ConfigError(
                f"a video_id has 1 to {MAX_VIDEO_ID_BYTES} bytes, {source.video_id!r:.60} has not"
            )
        if source.video_id in seen:
            raise ConfigError(
                f"{seen[source.video_id].name} and {source.name} would both be video {source.video_id!r}; "
                f"publish them one by one, with --video-id"
            )
        seen[source.video_id] = source
    return sources


def ffmpeg_options(texts: Sequence[str]) -> dict[str, str]:
    """`KEY=VALUE` each. Raises ConfigError."""
    pairs = [text.partition("=") for text in texts]
    for text, (key, equals, _) in zip(texts, pairs, strict=True):
        if not (key and equals):
            raise ConfigError(f"--input-option takes KEY=VALUE, e.g. rtsp_transport=udp; got {text!r}")
    return {key: value for key, _, value in pairs}


def default_video_id(text: str) -> str:
    """A file's name without extension; of a URL, host and path, without extension, user and query."""
    if not is_url(text):
        return video_id_of(Path(text))
    parts = urlsplit(text)
    path = PurePosixPath(f"{parts.netloc.rpartition('@')[2]}{parts.path}")
    return str(path.with_suffix("")) if parts.path.strip("/") else str(path)


def _source(text: str, video_id: str, network: NetworkOptions) -> Source:
    if network.hls or network.dash:
        if is_url(text) and urlsplit(text).scheme not in ("http", "https"):
            option = "--hls" if network.hls else "--dash"
            raise ConfigError(f"{option} reads http, https and files, not {without_secrets(text)}")
        if network.hls:
            from streamer.hls import Playlist

            return Playlist(text, video_id, network)
        from streamer.dash import Presentation

        return Presentation(text, video_id, network)
    if is_url(text):
        from streamer.stream import Stream

        if urlsplit(text).path.endswith((".m3u8", ".m3u")):
            raise ConfigError(f"{without_secrets(text)} is an HLS playlist: --hls")
        if urlsplit(text).path.endswith(".mpd"):
            raise ConfigError(f"{without_secrets(text)} is a DASH manifest: --dash")
        if urlsplit(text).scheme not in STREAM_SCHEMES:
            raise ConfigError(f"{without_secrets(text)}: streams are {', '.join(STREAM_SCHEMES)}")
        if urlsplit(text).port is None and urlsplit(text).scheme in ("tcp", "udp", "rtp", "srt"):
            raise ConfigError(
                f"{without_secrets(text)}: a port is lacking, as in {urlsplit(text).scheme}://HOST:9000"
            )
        return Stream(text, video_id, network)
    return Clip(Path(text), video_id)

"""Sources that are read over the network: how, and how they are called for people."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")  # two letters at least


@dataclass(frozen=True, slots=True)
class NetworkOptions:
    """How playlists and streams are read."""

    hls: bool = False
    """All inputs are HLS playlists, local ones too."""
    dash: bool = False
    """They are DASH manifests."""
    min_height: int = 720
    """Of the renditions of a playlist or manifest, the cheapest with so many lines is taken."""
    attempts: int = 0
    """Give up after so many failures in a row; 0: never."""
    ffmpeg: Mapping[str, str] = field(default_factory=dict)
    """Options of FFmpeg for streams, e.g. `rtsp_transport`."""
    max_bytes: int = 16 * 1024 * 1024
    """Of a chunk."""


@dataclass(frozen=True, slots=True)
class NetworkSource:
    """What a `Source` over the network is told of."""

    location: str = field(repr=False)
    """URL; of a playlist or manifest, it may be a path."""
    video_id: str
    network: NetworkOptions

    @property
    def name(self) -> str:
        return without_secrets(self.location)


def is_url(text: str) -> bool:
    """Whether it is no path: `scheme://...`."""
    return _URL.match(text) is not None


def without_secrets(url: str) -> str:
    """A URL without user, password, query and fragment, for people."""
    if not is_url(url):
        return url
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"

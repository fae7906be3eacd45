"""Reads playlists and segments: over HTTP with retries, or from the playlist's own folder. Nothing else.

A playlist, or a manifest of DASH, is a stranger's: it may name any address. Only `http` and `https` are
followed, redirects included; files are read only if the playlist itself is one, and only from its folder.
Which hosts can be reached is for the network to decide: a playlist can name those inside of it, too, and what
they answer becomes a chunk.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote, urljoin, urlsplit

import aiohttp
from tenacity import retry, retry_if_exception_type, stop_after_attempt, wait_random_exponential
from yarl import URL

from streamer.files import SourceError

TIMEOUT = aiohttp.ClientTimeout(total=30, sock_connect=10, sock_read=15)

ATTEMPTS = 4
"""At one playlist or segment, over a few seconds: a segment is worth no more to a live video."""

_READ_BYTES = 64 * 1024

_NOT_IN_A_URL = re.compile(r"[^!-~]+")
"""Spaces and letters beyond ASCII, as FFmpeg writes file names into playlists."""


class _PassingError(Exception):
    """A failure that may have passed a moment later."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """What was read, and the address it came from after redirects, against which its own are resolved."""

    data: bytes
    address: str

    def __repr__(self) -> str:
        return f"Fetched({len(self.data)} bytes)"


@dataclass(frozen=True, slots=True)
class ByteRange:
    """Bytes [start, start + length) of a resource."""

    start: int
    length: int


class Fetcher:
    """Use as `async with Fetcher() as fetcher: await fetcher.get(address, max_bytes=...)`."""

    def __init__(self) -> None:
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Fetcher:
        self._session = aiohttp.ClientSession(timeout=TIMEOUT, headers={"User-Agent": "streamer"})
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def get(self, address: str, *, max_bytes: int, part: ByteRange | None = None) -> Fetched:
        """Read a URL or, if it is none, a file. Raises SourceError, after some attempts where they help."""
        try:
            if is_http(address):
                fetched = await self._get_http(address, max_bytes, part)
            else:
                data = await asyncio.to_thread(_read_file, Path(address), max_bytes, part)
                fetched = Fetched(data, address)
        except _PassingError as error:
            raise SourceError("unreadable", str(error)) from error
        except (aiohttp.ClientError, ValueError) as error:  # no URL, too many redirects, one to file://
            raise SourceError("unreadable", type(error).__name__) from error  # its text may hold a token
        except OSError as error:
            raise SourceError("unreadable", error.strerror or str(error)) from error
        if part and len(fetched.data) != part.length:
            raise SourceError("damaged", f"{len(fetched.data)} bytes came where {part.length} were asked for")
        return fetched

    @retry(
        retry=retry_if_exception_type(_PassingError),
        wait=wait_random_exponential(multiplier=0.5, max=4),
        stop=stop_after_attempt(ATTEMPTS),
        reraise=True,
    )
    async def _get_http(self, address: str, max_bytes: int, part: ByteRange | None) -> Fetched:
        headers = {"Range": f"bytes={part.start}-{part.start + part.length - 1}"} if part else {}
        if part and part.length > max_bytes:
            raise _too_large(max_bytes)
        try:
            # encoded, but for what no request may hold: a signed URL must arrive as it was written
            url = URL(_NOT_IN_A_URL.sub(lambda match: quote(match[0]), address), encoded=True)
            async with self._session.get(url, headers=headers) as response:
                if response.status in (408, 425, 429) or response.status >= 500:
                    raise _PassingError(f"HTTP {response.status} {response.reason}")
                if response.status >= 400:
                    raise SourceError("unreadable", f"HTTP {response.status} {response.reason}")
                if part and response.status != 206:
                    raise SourceError("unreadable", "the server does not serve byte ranges")
                body = bytearray()
                while len(body) <= max_bytes and (piece := await response.content.read(_READ_BYTES)):
                    body += piece
                if len(body) > max_bytes:
                    raise _too_large(max_bytes)
                return Fetched(bytes(body), str(response.url))
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError) as error:
            late = isinstance(error, TimeoutError)  # its text holds the URL, which may hold a token
            raise _PassingError("no answer in time" if late else str(error)) from error


def is_http(address: str) -> bool:
    """Whether it is read over HTTP; else it is a file's path."""
    return urlsplit(address).scheme in ("http", "https")


def resolve(base: str, *references: str) -> str:
    """The address that a playlist or manifest at `base` means by references, each relative to the one before.

    Raises SourceError if it is forbidden.
    """
    try:
        return (_resolve_http if is_http(base) else _resolve_local)(base, references)
    except ValueError as error:
        raise SourceError("forbidden_address", "it names an address that is none") from error


def _resolve_http(base: str, references: Sequence[str]) -> str:
    for reference in references:
        base = urljoin(base, reference)
        if not is_http(base):
            scheme = urlsplit(base).scheme
            raise SourceError("forbidden_address", f"it names an address of scheme {scheme!r:.20}")
    return base


def _resolve_local(base: str, references: Sequence[str]) -> str:
    folder = Path(base).resolve().parent
    path = ""
    for number, reference in enumerate(references):
        if is_http(reference):
            return _resolve_http(reference, references[number + 1 :])
        parts = urlsplit(reference)
        if parts.scheme:
            raise SourceError("forbidden_address", f"it names an address of scheme {parts.scheme!r:.20}")
        if parts.path:
            above = "" if parts.path.startswith("/") else path[: path.rfind("/") + 1]
            path = above + unquote(parts.path)
    file = (folder / path).resolve()
    if not file.is_relative_to(folder):
        raise SourceError("forbidden_address", "a local playlist may name files of its own folder only")
    return str(file)


def _read_file(path: Path, max_bytes: int, part: ByteRange | None) -> bytes:
    with path.open("rb") as file:
        if part and part.length <= max_bytes:
            file.seek(part.start)
            return file.read(part.length)
        data = file.read(max_bytes + 1)
    if part or len(data) > max_bytes:
        raise _too_large(max_bytes)
    return data


def _too_large(max_bytes: int) -> SourceError:
    return SourceError("too_many_bytes", f"a playlist, manifest or segment of more than {max_bytes} bytes")

"""Live streams (RTSP, RTMP, HTTP, TCP ...) -> segments cut at keyframes, nothing re-encoded.

As for files (`streamer.segment`), FFmpeg runs in a process of its own, which starts without heavy libraries.
A segment with a damaged packet is left out.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import resource
import signal
import socket
import ssl
import sys
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from streamer.child import LENGTH, child_command, child_environment
from streamer.errors import DecodeError
from streamer.segment import (
    DEMUXERS,
    MEMORY_BYTES,
    Muxer,
    cut,
    packets_of,
    stated_seconds,
    video_stream,
    write_message,
)

OPEN_SECONDS = 15.0
"""For connecting and for finding out what is sent."""

READ_SECONDS = 15.0
"""Without a packet the stream counts as lost."""

JUMP_SECONDS = 10.0
"""Of timestamps, forwards; backwards none. Beyond it the stream is taken up anew."""

MAX_SEGMENT_SECONDS = 60.0
"""Without a keyframe."""

_FIELDS_OF_FILES = ("start_seconds", "duration_seconds", "lost", "is_last", "format")

_PROTOCOLS = "tcp,udp,rtp,srtp,tls,http,https,httpproxy,rtmp,rtmps,rtmpt,rtmpts,srt"
"""What FFmpeg may use: the network, no files."""

_STREAM_DEMUXERS = f"{DEMUXERS},rtsp,rtp,live_flv"

_DEFAULTS = {"rtsp_transport": "tcp", "reconnect": "1"}
"""Of FFmpeg's options. Packets that UDP loses would cost chunks; a file over HTTP that is cut off would be
read, and counted, from its beginning again."""

_AUTHORITIES = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt")
"""Where Debian and Fedora keep the certificates that Python is not told of as one file."""

_OVER_TLS = ("https:", "rtsps:", "rtmps:", "rtmpts:", "tls:")
_TLS_ADVICE = (
    "; if its certificate is of an authority that is not known here, name it in SSL_CERT_FILE, or let "
    "certificates go unchecked with --input-option tls_verify=0"
)

_IN_BETWEEN = (
    "; ffmpeg in between can read it: ffmpeg -i URL -c:v libx264 -pix_fmt yuv420p -g 50 -f mpegts "
    "'tcp://127.0.0.1:9000?listen', and publish tcp://127.0.0.1:9000"
)

_RTSP_LISTENING = {"listen_timeout": "86400"}
"""Seconds; FFmpeg refuses its own default."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A piece of a stream that can be decoded on its own."""

    data: bytes
    start_seconds: float
    """Since the first keyframe of the connection."""
    duration_seconds: float
    captured_at_ms: int
    """Unix time at which its last packet came, milliseconds."""
    lost: int
    """Segments left out before it."""
    is_last: bool
    """The source has an end, and this is it; a live one never says so."""
    format: str
    """`matroska`, or `mp4` where that must hide what an edit list hides."""

    def __repr__(self) -> str:
        return f"Recorded({len(self.data)} bytes, {self.start_seconds:.3f} s + {self.duration_seconds:.3f} s)"


async def record(
    url: str, chunk_seconds: float, *, options: Mapping[str, str], max_bytes: int
) -> AsyncGenerator[Recorded, None]:
    """Record until the stream ends. Close it with `contextlib.aclosing`. Raises DecodeError.

    options: of FFmpeg. max_bytes: of a segment.
    """
    settings = {"url": url, "chunk_seconds": chunk_seconds, "options": dict(options), "max_bytes": max_bytes}
    process = await asyncio.create_subprocess_exec(
        *child_command("streamer.record"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env=child_environment(os.environ),
        start_new_session=True,  # Ctrl-C reaches the whole group of the terminal: not this one
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        # not as arguments, which every user of the machine can read; the child ends when it closes
        process.stdin.write(json.dumps(settings).encode() + b"\n")
        while True:
            try:
                (size,) = LENGTH.unpack(await process.stdout.readexactly(LENGTH.size))
                fields = json.loads(await process.stdout.readexactly(size))
                if "error" in fields:
                    raise DecodeError(*fields["error"])
                data = await process.stdout.readexactly(fields.pop("bytes"))
            except asyncio.IncompleteReadError:
                break
            yield Recorded(data=data, **fields)
        if (code := await process.wait()) != 0:
            how = f"by signal {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
            raise DecodeError("decoder_crashed", f"reading the stream ended {how}")
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.stdin.close()
        await process.wait()


def main() -> None:
    """Entry point of the child: settings from standard input, segments to standard output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    import av

    settings = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        with _open(settings["url"], settings["options"]) as source:
            for fields, data in _segments(source, settings["chunk_seconds"], settings["max_bytes"]):
                write_message({**fields, "bytes": len(data)}, data)
    except BrokenPipeError:
        sys.exit(1)  # nobody wants the rest
    except DecodeError as error:
        write_message({"error": [error.reason, str(error)]})
    except MemoryError:
        write_message({"error": ["decoder_out_of_memory", "not enough memory to record this stream"]})
    except av.ExitError:
        write_message({"error": ["unreadable", "nothing came in time"]})
    except av.FFmpegError as error:
        more = _more_of(settings["url"]) if error.errno == errno.EIO else ""
        write_message({"error": ["unreadable", f"FFmpeg: {error.strerror}{more}"]})


def _more_of(url: str) -> str:
    """What "Input/output error" may mean, FFmpeg's answer to many things."""
    host = urlsplit(url).hostname
    try:
        socket.getaddrinfo(host or "localhost", None)
    except OSError:
        return f"; no address is known of host {host}"
    return _TLS_ADVICE if url.startswith(_OVER_TLS) else ""


def _end_with_parent() -> None:
    """Even while FFmpeg waits for a stream that does not come."""
    while os.read(sys.stdin.fileno(), 1):  # not through its buffer, whose lock Python wants at its end
        pass
    os._exit(1)


def _open(url: str, options: dict[str, str]) -> Any:
    import av

    if "listen" in options.get("rtsp_flags", ""):
        options = _RTSP_LISTENING | options
    is_listening = "listen" in f"{url} {options}"  # waits for whoever sends, however long it takes
    try:
        return av.open(
            url,
            container_options=_DEFAULTS
            | _tls_options()
            | options
            | {"format_whitelist": _STREAM_DEMUXERS, "protocol_whitelist": _PROTOCOLS},
            metadata_errors="replace",
            timeout=(None if is_listening else OPEN_SECONDS, READ_SECONDS),
        )
    except av.ProtocolNotFoundError as error:
        text = f"FFmpeg is built without this protocol{_IN_BETWEEN}"
        raise DecodeError("unsupported_format", text) from error
    except av.ArgumentError as error:  # the answer to what is not on the whitelist
        text = f"neither RTSP nor RTMP nor one of {DEMUXERS}{_IN_BETWEEN}"
        raise DecodeError("unsupported_format", text) from error


def _tls_options() -> dict[str, str]:
    """For the server's certificate to be checked, which FFmpeg does not do unless it is told."""
    bundle = ssl.get_default_verify_paths().cafile or next(filter(os.path.exists, _AUTHORITIES), None)
    return {"tls_verify": "1"} | ({"ca_file": bundle} if bundle else {})


def _segments(source: Any, chunk_seconds: float, max_bytes: int) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Fields and data of each segment. Raises DecodeError."""
    stream = video_stream(source)
    has_end = source.size > 0 or stated_seconds(source, stream) is not None
    if not has_end:
        yield from _live_segments(source, stream, chunk_seconds, max_bytes)
        return
    for fields, data in cut(source, stream, chunk_seconds):  # a file, as if it lay here
        if len(data) > max_bytes:
            raise _too_many_bytes(max_bytes)
        kept = {name: fields[name] for name in _FIELDS_OF_FILES}
        yield {**kept, "captured_at_ms": round(1000 * time.time())}, data


def _too_many_bytes(max_bytes: int) -> DecodeError:
    text = f"a chunk of more than {max_bytes} bytes; let the camera send keyframes"
    return DecodeError("too_many_bytes", text)


def _live_segments(
    source: Any, stream: Any, chunk_seconds: float, max_bytes: int
) -> Iterator[tuple[dict[str, Any], bytes]]:
    """Raises DecodeError also if timestamps jump."""
    time_base = stream.time_base
    current: Muxer | None = None
    origin: int | None = None
    start = end = size = lost = 0
    expected: int | None = None  # by the order of decoding: pictures may be shown seconds earlier or later
    came_ms = 0

    def finished(muxer: Muxer, until: int) -> tuple[dict[str, Any], bytes]:
        fields = {
            "start_seconds": float((start - (origin or 0)) * time_base),
            "duration_seconds": max(float((until - start) * time_base), 0.0),
            "captured_at_ms": came_ms,
            "lost": lost,
            "is_last": False,
            "format": muxer.format,
        }
        return fields, muxer.finish()

    for packet in packets_of(source, stream):
        pts = packet.dts if packet.pts is None else packet.pts
        if pts is None or packet.is_corrupt:
            if current is not None:
                current, lost = None, lost + 1
            continue
        decoded = pts if packet.dts is None else packet.dts
        if expected is not None and not -1 <= (decoded - expected) * time_base <= JUMP_SECONDS:
            raise DecodeError(
                "damaged", f"timestamps jump by {float((decoded - expected) * time_base):.1f} s"
            )
        if current is None:
            if not packet.is_keyframe:
                continue
            current, start, end, size = Muxer(stream), pts, pts, 0
            origin = pts if origin is None else origin
        elif packet.is_keyframe and (pts - start) * time_base >= chunk_seconds:
            yield finished(current, pts)
            current, start, size, lost = Muxer(stream), pts, 0, 0
        size += packet.size
        if size > max_bytes:
            raise _too_many_bytes(max_bytes)
        expected = decoded + (packet.duration or 0)
        end = max(end, pts + (packet.duration or 0))
        if (end - start) * time_base > MAX_SEGMENT_SECONDS + chunk_seconds:
            raise DecodeError("no_keyframe", f"no keyframe for {MAX_SEGMENT_SECONDS:.0f} s")
        came_ms = round(1000 * time.time())
        current.add(packet)  # changes the packet's time base
    if current is not None:
        yield finished(current, end)


if __name__ == "__main__":
    main()

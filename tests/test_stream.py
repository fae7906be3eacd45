"""Live streams -> chunks, over real sockets."""

from __future__ import annotations

import asyncio
import io
import socket
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import av
import media
import paff
import psutil
import pytest
import trustme
from aiohttp import web
from decoding import decode
from fakes import until

from streamer import stream as stream_module
from streamer.errors import ConfigError
from streamer.files import Piece, SourceError
from streamer.network import NetworkOptions
from streamer.segment import segments_of
from streamer.sources import sources_of
from streamer.stream import Stream


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "FIRST_PAUSE_SECONDS", 0.01)
    monkeypatch.setattr(stream_module, "LONGEST_PAUSE_SECONDS", 0.1)


@pytest.fixture
def port() -> int:
    """One that is free."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
        return number


@pytest.fixture(scope="module")
def clip() -> bytes:
    """MPEG-TS, 90 frames, a keyframe every second."""
    return media.encode(frames=90, gop=30)


def stream(url: str, *, attempts: int = 1, max_bytes: int = 10**7, **ffmpeg: str) -> Stream:
    return Stream(url, "cam", NetworkOptions(attempts=attempts, ffmpeg=ffmpeg, max_bytes=max_bytes))


async def take(source: Stream, most: int = 1000) -> tuple[list[Piece], SourceError | None]:
    """The first chunks, and how it ended if it did before."""
    found: list[Piece] = []
    try:
        async with asyncio.timeout(90), aclosing(source.pieces(0.9)) as pieces:
            async for piece in pieces:
                found.append(piece)  # those before an error count
                if len(found) == most:
                    break
    except SourceError as error:
        return found, error
    return found, None


@asynccontextmanager
async def sending(*connections: bytes) -> AsyncIterator[str]:
    """Address of a server that answers each connection with the next bytes, and then is gone."""
    waiting = list(connections)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            if waiting[0].startswith(b"HTTP"):
                await reader.readuntil(b"\r\n\r\n")
            writer.write(waiting.pop(0))
            if not waiting:
                server.close()
            await writer.drain()
            writer.close()
            await writer.wait_closed()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


def frames_of(piece: Piece) -> list[int]:
    """Indices that the frames of a chunk show."""
    return [media.index_of(image) for image in decode(piece.chunk.data)[1]]


def seqs(pieces: list[Piece]) -> list[int]:
    """Relative to the first."""
    return [piece.chunk.seq - pieces[0].chunk.seq for piece in pieces]


def positions(pieces: list[Piece]) -> list[float]:
    """Starts in seconds, relative to the first."""
    starts = [piece.chunk.start_seconds for piece in pieces]
    assert starts[0] is not None
    return [start - starts[0] for start in starts if start is not None]


async def test_a_stream_is_cut_at_its_keyframes(clip: bytes) -> None:
    async with sending(clip) as address:
        found, error = await take(stream(address))
    assert error is not None
    assert error.reason == "stream_ended"
    assert [frames_of(piece) for piece in found] == [list(range(n, n + 30)) for n in (0, 30, 60)]
    chunks = [piece.chunk for piece in found]
    assert [chunk.seq - chunks[0].seq for chunk in chunks] == [0, 1, 2]
    assert positions(found) == pytest.approx([0, 1, 2], abs=0.01)
    assert [piece.end_seconds for piece in found] == pytest.approx([1, 2, 3], abs=0.05)
    # Unix time, so that a recording that is started again goes on
    assert chunks[0].start_seconds == pytest.approx(time.time(), abs=90)
    assert chunks[0].seq == int((chunks[0].start_seconds or 0) / 0.9)
    assert not any(chunk.last for chunk in chunks)
    assert {chunk.video_id for chunk in chunks} == {"cam"}
    assert all(abs((chunk.captured_at_ms or 0) / 1000 - time.time()) < 60 for chunk in chunks)


async def test_frames_of_two_field_pictures() -> None:
    async with sending(paff.interlaced_clip("mpegts", frames=48, gop=12)) as address:
        found, _ = await take(stream(address))
    seen = [[paff.index_of(image) for image in decode(piece.chunk.data)[1]] for piece in found]
    assert seen == [list(range(24)), list(range(24, 48))]


async def test_a_lost_stream_is_connected_again(clip: bytes) -> None:
    started = time.monotonic()
    async with sending(clip, b"no video", clip) as address:
        found, error = await take(stream(address, attempts=3))
    took = time.monotonic() - started
    assert error is not None  # nobody there any more, three times
    assert "refused" in str(error)
    assert len(found) == 6
    numbers = seqs(found)
    assert numbers[:3] == [0, 1, 2]
    assert [number - numbers[3] for number in numbers[3:]] == [0, 1, 2]
    # the gap is one in the video, too, in seconds and in chunks
    assert 2.99 <= positions(found)[3] <= 3 + took
    assert 3 <= numbers[3] <= (3 + took) / 0.9 + 1
    assert frames_of(found[3]) == list(range(30))


async def test_a_damaged_segment_is_left_out(clip: bytes) -> None:
    packets = [clip[start : start + 188] for start in range(0, len(clip), 188)]
    pictures = [
        n for n, packet in enumerate(packets) if packet[1] & 0x5F == 0x41 and packet[2] == 0
    ]  # PID 256
    assert len(pictures) == 90
    del packets[pictures[45]]  # the continuity counter of the next one tells
    async with sending(b"".join(packets)) as address:
        found, _ = await take(stream(address))
    assert seqs(found) == [0, 2]
    assert [frames_of(piece)[0] for piece in found] == [0, 60]
    assert positions(found)[1] == pytest.approx(2, abs=0.01)


async def test_timestamps_that_jump_back(clip: bytes) -> None:
    async with sending(clip + clip, clip) as address:
        found, error = await take(stream(address, attempts=2), most=5)
    assert error is None
    # what was under way when they jumped is left out; then the connection is made anew
    assert seqs(found) == sorted(set(seqs(found)))
    assert [frames_of(piece)[0] for piece in found] == [0, 30, 0, 30, 60]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (media.encode("avi", "mjpeg", frames=30, pix_fmt="yuvj420p"), "unsupported_codec"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n", "unreadable"),
        (b"v=0\r\nm=video 5004 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\n", "unreadable"),
    ],
)
async def test_what_is_refused(data: bytes, reason: str) -> None:
    async with sending(data) as address:
        found, error = await take(stream(address))
    assert not found
    assert error is not None
    assert error.reason == reason


async def test_limits(monkeypatch: pytest.MonkeyPatch, clip: bytes) -> None:
    async with sending(clip) as address:
        found, error = await take(stream(address, attempts=0, max_bytes=2000))
    assert not found
    assert error is not None  # hopeless: not tried again
    assert error.reason == "too_many_bytes"


def test_only_the_network() -> None:
    for url in ("file:///etc/passwd", "concat://a", "pipe://0", "ftp://host/a"):
        with pytest.raises(ConfigError, match="streams are rtsp"):
            sources_of([url], None)


def test_addresses_that_are_none() -> None:
    with pytest.raises(ConfigError, match="a port is lacking"):
        sources_of(["tcp://camera"], None)
    with pytest.raises(ConfigError, match="is none"):
        sources_of(["rtsp://camera:99999/x"], None)


async def test_files_behind_a_network_scheme_are_not_read(clip: bytes) -> None:
    found, error = await take(stream("rtsp://127.0.0.1:1/x", attempts=2))
    assert (found, error and error.reason) == ([], "unreadable")


async def test_a_host_that_nobody_knows_is_named() -> None:
    _, error = await take(stream("rtsp://camera.invalid:8554/door"))
    assert "no address is known of host camera.invalid" in str(error)


# ------------------------------------------------------------------------------ HTTP


@pytest.fixture
async def site() -> AsyncIterator[dict[str, Any]]:
    """Content by path; `address` is where, `tls_address` over TLS, with a certificate of `authority`."""
    content: dict[str, Any] = {}

    async def answer(request: web.Request) -> web.StreamResponse:
        body = content[request.path]
        if isinstance(body, bytes):
            asked = request.http_range
            if asked.start is None:
                return web.Response(body=body, headers={"Accept-Ranges": "bytes"})
            end = len(body)
            headers = {"Content-Range": f"bytes {asked.start}-{end - 1}/{end}"}
            return web.Response(body=body[asked], status=206, headers=headers)
        response = web.StreamResponse()
        response.enable_chunked_encoding()
        await response.prepare(request)
        with suppress(ConnectionError):
            for part in body:
                await response.write(part)
        return response

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    content["authority"] = trustme.CA()
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    content["authority"].issue_cert("127.0.0.1").configure_cert(tls)
    for key, scheme, context in (("address", "http", None), ("tls_address", "https", tls)):
        server = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await server.start()
        assert server._server is not None
        content[key] = f"{scheme}://127.0.0.1:{server._server.sockets[0].getsockname()[1]}"
    yield content
    await runner.cleanup()


async def test_the_certificate_of_a_server_is_checked(
    site: dict[str, Any], clip: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site["/clip.ts"] = clip
    url = f"{site['tls_address']}/clip.ts"
    found, error = await take(stream(url))
    assert found == []
    assert "SSL_CERT_FILE" in str(error)
    assert "tls_verify=0" in str(error)
    found, _ = await take(stream(url, tls_verify="0"))
    assert len(found) == 3
    site["authority"].cert_pem.write_to_path(str(tmp_path / "authority.pem"))
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "authority.pem"))
    found, _ = await take(stream(url))
    assert len(found) == 3


async def test_http_without_an_end(site: dict[str, Any], clip: bytes) -> None:
    site["/live.ts"] = [clip[start : start + 1316] for start in range(0, len(clip), 1316)]
    found, error = await take(stream(f"{site['address']}/live.ts?token=secret"))
    assert [frames_of(piece)[0] for piece in found] == [0, 30, 60]
    assert error is not None
    assert error.reason == "stream_ended"


async def test_a_file_over_http_ends(site: dict[str, Any]) -> None:
    site["/clip.mp4"] = media.encode("mp4", frames=60, gop=30)
    found, error = await take(stream(f"{site['address']}/clip.mp4"))
    assert error is None
    assert [piece.chunk.last for piece in found] == [False, True]


async def test_a_file_over_http_is_cut_as_one_that_lies_here(site: dict[str, Any], tmp_path: Path) -> None:
    """With a pause, in which a live stream would count as lost, and with pictures that a trim hides."""
    pts = [number * media.TICKS // media.FPS + (number >= 40) * 20 * media.TICKS for number in range(90)]
    clips = {
        "pause.mkv": media.encode("matroska", frames=90, gop=30, pts=pts),
        "trimmed.mp4": media.trimmed(media.encode("mp4", frames=90, gop=30), 20 / media.FPS),
    }
    for name, clip in clips.items():
        site[f"/{name}"] = clip
        (tmp_path / name).write_bytes(clip)
        found, error = await take(stream(f"{site['address']}/{name}", attempts=1))
        assert error is None
        here = list(segments_of(tmp_path / name, 0.9))
        assert [frames_of(piece) for piece in found] == [
            [media.index_of(image) for image in decode(segment.data)[1]] for segment in here
        ]
        assert positions(found) == pytest.approx([segment.start_seconds for segment in here], abs=0.01)


def http_answer(body: bytes, begin: int = 0, end: int | None = None) -> bytes:
    """With the length of the body from `begin`, and the body up to `end`."""
    status = f"206 Partial Content\r\nContent-Range: bytes {begin}-{len(body) - 1}/{len(body)}"
    head = f"HTTP/1.1 {status if begin else '200 OK'}\r\nContent-Length: {len(body) - begin}\r\n"
    return f"{head}Accept-Ranges: bytes\r\nConnection: close\r\n\r\n".encode() + body[begin:end]


async def test_a_file_over_http_that_is_cut_off_goes_on_there() -> None:
    """It does not begin again, which would count its beginning twice."""
    clip = media.encode("matroska", frames=180, gop=30, width=640, height=360)
    half = len(clip) // 2
    async with sending(http_answer(clip, 0, half), http_answer(clip, half)) as address:
        found, error = await take(stream(address.replace("tcp", "http")))
    assert error is None
    assert [frames_of(piece)[0] for piece in found] == [0, 30, 60, 90, 120, 150]
    assert found[-1].chunk.last


@pytest.mark.parametrize("container", ["mpegts", "mp4"])
async def test_a_server_that_states_the_size_sends_a_file(container: str) -> None:
    """MPEG-TS says nothing of its length; an MP4 in fragments, that of the first."""
    init, fragments = media.fragmented(frames=90, gop=30)
    clip = media.encode(frames=90, gop=30) if container == "mpegts" else init + b"".join(fragments)
    answer = http_answer(clip).replace(b"Accept-Ranges: bytes\r\n", b"")
    async with sending(answer) as address:
        found, error = await take(stream(address.replace("tcp", "http")))
    assert error is None
    assert [piece.chunk.last for piece in found] == [False, False, True]


async def test_live_mp4_in_fragments_is_connected_again() -> None:
    init, fragments = media.fragmented(frames=90, gop=30)
    clip = init + b"".join(fragments)
    async with sending(clip, clip) as address:
        found, error = await take(stream(address, attempts=2))
    assert error is not None
    assert [frames_of(piece)[0] for piece in found] == [0, 30, 60, 0, 30, 60]
    assert not any(piece.chunk.last for piece in found)


async def test_an_index_at_the_end_without_ranges_is_refused() -> None:
    clip = media.with_index_far_behind(media.encode("mp4"))
    answer = http_answer(clip).replace(b"Accept-Ranges: bytes\r\n", b"")
    for data, scheme in ((answer, "http"), (clip, "tcp")):
        async with sending(data) as address:
            found, error = await take(stream(address.replace("tcp", scheme), attempts=0))
        assert found == []
        assert "faststart" in str(error)


async def test_mjpeg_of_a_webcam_is_refused_and_the_way_is_named() -> None:
    picture = media.encode("mjpeg", "mjpeg", frames=1, pix_fmt="yuvj420p")
    part = b"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace;boundary=frame\r\n\r\n"
    async with sending(head + (part + picture + b"\r\n") * 50) as address:
        found, error = await take(stream(address.replace("tcp", "http"), attempts=0))
    assert found == []
    assert "ffmpeg in between" in str(error)


async def test_a_protocol_that_ffmpeg_does_not_have_is_refused() -> None:
    _, error = await take(stream("srt://127.0.0.1:1", attempts=0))
    assert "built without" in str(error)


async def test_pictures_that_are_shown_seconds_after_others() -> None:
    """One a second, out of order: no jump."""
    pts = [number * media.TICKS for number in range(12)]
    clip = media.encode("mpegts", gop=6, pts=pts, options={"bf": "3", "b_strategy": "0"})
    async with sending(clip) as address:
        found, _ = await take(stream(address, attempts=1))
    assert [frames_of(piece) for piece in found] == [list(range(6)), list(range(6, 12))]


# --------------------------------------------------- RTSP and RTMP, pushed to a listener


def push(url: str, container: str, clip: bytes) -> None:
    """Send a clip as an encoder would, as soon as someone listens."""
    deadline = time.monotonic() + 60
    options = {"rtsp_transport": "tcp"} if container == "rtsp" else {}
    while True:
        try:
            with (
                av.open(io.BytesIO(clip)) as source,
                av.open(url, "w", format=container, options=options) as output,
            ):
                template = source.streams.video[0]
                target = output.add_stream_from_template(template, opaque=True)
                for packet in source.demux(template):
                    if packet.size:
                        packet.stream = target
                        output.mux(packet)
            return
        except av.ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


@pytest.mark.parametrize(
    ("scheme", "container", "listen", "first"),
    [
        (
            "rtsp",
            "rtsp",
            {"rtsp_flags": "listen"},
            30,
        ),  # RTP's first picture comes without a time: joined late
        ("rtmp", "flv", {"listen": "1"}, 0),
        ("tcp", "mpegts", {"listen": "1"}, 0),
    ],
)
async def test_what_an_encoder_pushes(
    port: int, clip: bytes, scheme: str, container: str, listen: dict[str, str], first: int
) -> None:
    url = f"{scheme}://127.0.0.1:{port}" + ("" if scheme == "tcp" else "/live/cam")
    pushing = asyncio.create_task(asyncio.to_thread(push, url, container, clip))
    try:
        found, _ = await take(stream(url, **listen), most=2)
    finally:
        with suppress(av.FFmpegError):  # nobody listens to the end
            await pushing
    assert [frames_of(piece) for piece in found] == [list(range(n, n + 30)) for n in (first, first + 30)]
    assert positions(found) == pytest.approx([0, 1], abs=0.01)


# ------------------------------------------------------------------------- processes


async def test_leaving_early_leaves_no_process(port: int) -> None:
    me = psutil.Process()
    before = set(me.children())
    waiting = asyncio.create_task(take(stream(f"tcp://127.0.0.1:{port}?listen")))
    await until(lambda: set(me.children()) - before)
    (child,) = set(me.children()) - before
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
    assert not child.is_running()


async def test_a_process_that_is_killed_is_replaced(clip: bytes) -> None:
    me = psutil.Process()
    before = set(me.children())
    async with (
        sending(clip, clip) as address,
        asyncio.timeout(90),
        aclosing(stream(address, attempts=2).pieces(0.9)) as pieces,
    ):
        first = await anext(pieces)
        (child,) = set(me.children()) - before
        child.kill()
        rest = [await anext(pieces) for _ in range(3)]
    numbers = seqs([first, *rest])
    assert numbers == sorted(set(numbers))

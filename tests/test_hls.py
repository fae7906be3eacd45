"""HLS playlists -> chunks: files, VOD over HTTP, and a live playlist that slides."""

from __future__ import annotations

import asyncio
import time
from contextlib import aclosing
from pathlib import Path
from typing import Any

import m3u8
import media
import pytest
from decoding import decode
from fakes import until
from structlog.testing import capture_logs
from web_site import Site

from streamer import fetch
from streamer.fetch import resolve
from streamer.files import Piece, SourceError
from streamer.hls import Playlist, choose_rendition, read_media_playlist
from streamer.network import NetworkOptions

HEAD = "#EXTM3U\n#EXT-X-VERSION:7\n#EXT-X-TARGETDURATION:{target}\n#EXT-X-MEDIA-SEQUENCE:{first}\n"
END = "#EXT-X-ENDLIST\n"


def segment_line(uri: str, seconds: float = 1.0, *before: str) -> str:
    return "".join(f"{line}\n" for line in before) + f"#EXTINF:{seconds},\n{uri}\n"


def vod(*lines: str) -> str:
    return HEAD.format(target=1, first=0) + "".join(lines) + END


@pytest.fixture(scope="module")
def transport() -> list[bytes]:
    """Three MPEG-TS segments of a second."""
    return media.cut_at_keyframes(media.encode(frames=90, gop=30), "mpegts")


@pytest.fixture(scope="module")
def cmaf() -> tuple[bytes, list[bytes]]:
    """An init segment, and two media segments of a second."""
    return media.fragmented(frames=60, gop=30)


@pytest.fixture(scope="module")
def other_cmaf() -> tuple[bytes, list[bytes]]:
    """The same in another size: after an advertisement."""
    return media.fragmented(frames=60, gop=30, width=192, height=160)


def playlist(location: str, **options: Any) -> Playlist:
    return Playlist(location, "show", NetworkOptions(hls=True, **options))


async def pieces(location: str, **options: Any) -> list[Piece]:
    async with aclosing(playlist(location, **options).pieces(2.0)) as found:
        return [piece async for piece in found]


async def failure(location: str, **options: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await pieces(location, **options)
    return caught.value


def frames_of(piece: Piece) -> list[int]:
    """Indices that the frames of a chunk show."""
    return [media.index_of(image) for image in decode(piece.chunk.data, piece.chunk.init)[1]]


# ------------------------------------------------------------------------------- VOD


def write_vod(folder: Path, segments: list[bytes]) -> Path:
    for number, data in enumerate(segments):
        (folder / f"part {number}.ts").write_bytes(data)
    path = folder / "index.m3u8"
    path.write_text(vod(*(segment_line(f"part%20{number}.ts") for number in range(len(segments)))))
    return path


async def test_a_local_playlist(tmp_path: Path, transport: list[bytes]) -> None:
    found = await pieces(str(write_vod(tmp_path, transport)))
    assert [frames_of(piece) for piece in found] == [list(range(n, n + 30)) for n in (0, 30, 60)]
    chunks = [piece.chunk for piece in found]
    assert [chunk.data for chunk in chunks] == transport
    assert [chunk.seq for chunk in chunks] == [0, 1, 2]
    assert [chunk.start_seconds for chunk in chunks] == [0, 1, 2]
    assert [piece.end_seconds for piece in found] == [1, 2, 3]
    assert [chunk.last for chunk in chunks] == [False, False, True]
    assert {chunk.duration_seconds for chunk in chunks} == {3}
    assert {chunk.captured_at_ms for chunk in chunks} == {None}
    assert {chunk.video_id for chunk in chunks} == {"show"}


async def test_a_master_playlist_over_http(site: Site, transport: list[bytes]) -> None:
    site.content = {
        "show/master.m3u8": b"#EXTM3U\n"
        b"#EXT-X-STREAM-INF:BANDWIDTH=9000,RESOLUTION=1920x1080\nhigh/index.m3u8\n"
        b"#EXT-X-STREAM-INF:BANDWIDTH=3000,RESOLUTION=1280x720\nmiddle/index.m3u8?token=a%2Fb\n"
        b"#EXT-X-STREAM-INF:BANDWIDTH=500,RESOLUTION=640x360\nlow/index.m3u8\n",
        "show/middle/index.m3u8": vod(segment_line("../segments/0.ts"), segment_line("/far.ts")).encode(),
        "show/segments/0.ts": transport[0],
        "far.ts": transport[1],
    }
    found = await pieces(f"{site.address}moved?to={site.address}show/master.m3u8")
    assert [piece.chunk.data for piece in found] == transport[:2]
    assert site.asked == [
        "moved",
        "show/master.m3u8",
        "show/middle/index.m3u8",
        "show/segments/0.ts",
        "far.ts",
    ]


async def test_names_that_are_not_escaped(site: Site, transport: list[bytes]) -> None:
    """As FFmpeg writes them; those that are stay as they are."""
    names = ["my vidéo0.ts", "my%20vid%C3%A9o1.ts?a=%2F|b"]
    site.content = {
        "a ü/index.m3u8": vod(*map(segment_line, names)).encode(),
        "a ü/my vidéo0.ts": transport[0],
        "a ü/my vidéo1.ts": transport[1],
    }
    found = await pieces(f"{site.address}a ü/index.m3u8")
    assert [piece.chunk.data for piece in found] == transport[:2]


async def test_init_segments_and_a_discontinuity(
    site: Site, cmaf: tuple[bytes, list[bytes]], other_cmaf: tuple[bytes, list[bytes]]
) -> None:
    (init, parts), (other_init, other_parts) = cmaf, other_cmaf
    site.content = {
        "index.m3u8": vod(
            segment_line("0.m4s", 1.0, '#EXT-X-MAP:URI="init.mp4"'),
            segment_line("1.m4s"),
            segment_line("2.m4s", 1.0, "#EXT-X-DISCONTINUITY", '#EXT-X-MAP:URI="other.mp4"'),
            segment_line("3.m4s"),
        ).encode(),
        "init.mp4": init,
        "other.mp4": other_init,
        **{f"{number}.m4s": data for number, data in enumerate([*parts, *other_parts])},
    }
    found = await pieces(f"{site.address}index.m3u8")
    assert [frames_of(piece) for piece in found] == 2 * [list(range(30)), list(range(30, 60))]
    assert [piece.chunk.init for piece in found] == [init, init, other_init, other_init]
    assert [piece.chunk.start_seconds for piece in found] == [0, 1, 2, 3]
    assert site.asked.count("init.mp4") == site.asked.count("other.mp4") == 1


@pytest.mark.parametrize("local", [True, False])
async def test_byte_ranges(site: Site, tmp_path: Path, cmaf: tuple[bytes, list[bytes]], local: bool) -> None:
    init, parts = cmaf
    text = vod(
        segment_line(
            "all.mp4",
            1.0,
            f'#EXT-X-MAP:URI="all.mp4",BYTERANGE="{len(init)}@0"',
            f"#EXT-X-BYTERANGE:{len(parts[0])}@{len(init)}",
        ),
        segment_line("all.mp4", 1.0, f"#EXT-X-BYTERANGE:{len(parts[1])}"),  # goes on where the last one ended
    )
    site.content = {"index.m3u8": text.encode(), "all.mp4": init + b"".join(parts)}
    for name, data in site.content.items():
        (tmp_path / name).write_bytes(data)
    found = await pieces(str(tmp_path / "index.m3u8") if local else f"{site.address}index.m3u8")
    assert [piece.chunk.init for piece in found] == [init, init]
    assert [piece.chunk.data for piece in found] == parts
    if not local:
        site.ranges = False
        assert "byte ranges" in str(await failure(f"{site.address}index.m3u8"))


async def test_retries(site: Site, transport: list[bytes], at_once: None) -> None:
    site.content = {
        "index.m3u8": vod(segment_line("0.ts"), segment_line("1.ts")).encode(),
        "0.ts": transport[0],
    }
    site.failures = {"index.m3u8": [503], "0.ts": [500, 429, 502]}
    async with aclosing(playlist(f"{site.address}index.m3u8").pieces(2.0)) as found:
        assert (await anext(found)).chunk.data == transport[0]
        with pytest.raises(SourceError, match=r"^segment 1: HTTP 404"):
            await anext(found)
    assert site.asked.count("0.ts") == 4
    assert site.asked.count("1.ts") == 1
    site.failures = {"index.m3u8": [503] * fetch.ATTEMPTS}
    assert str(await failure(f"{site.address}index.m3u8")) == "HTTP 503 Service Unavailable"
    site.content["index.m3u8"] = vod(segment_line("0.ts", 1.0, '#EXT-X-MAP:URI="init.mp4"')).encode()
    said = "segment 0: its init segment: HTTP 404 Not Found"
    assert str(await failure(f"{site.address}index.m3u8")) == said


# ------------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<html></html>", "not_media"),
        ("", "not_media"),
        (vod(), "no_video"),
        (vod("#EXTINF:abc,\n0.ts\n"), "not_media"),
        (vod("#EXTINF:nan,\n0.ts\n"), "not_media"),
        (vod("#EXTINF:-1,\n0.ts\n"), "not_media"),
        (vod("#EXTINF:1e9,\n0.ts\n"), "not_media"),
        (vod(segment_line("0.ts", 1.0, "#EXT-X-BYTERANGE:x@y")), "not_media"),
        (vod(segment_line("0.ts", 1.0, "#EXT-X-BYTERANGE:-5@0")), "not_media"),
        (vod(segment_line("0.ts", 1.0, '#EXT-X-KEY:METHOD=AES-128,URI="k"')), "encrypted"),
        (vod(segment_line("file:///etc/passwd")), "forbidden_address"),
        (vod(segment_line("http://[::1/0.ts")), "forbidden_address"),
        (vod(segment_line("http://host:port/0.ts")), "unreadable"),
        (vod(segment_line("0.ts", 1.0, "#EXT-X-MAP:BYTERANGE=5")), "not_media"),
        (vod(segment_line("0.ts")).replace("SEQUENCE:0", f"SEQUENCE:{2**64}"), "not_media"),
        (vod(segment_line("0.ts")).replace("SEQUENCE:0", "SEQUENCE:-1"), "not_media"),
        (vod(segment_line("0.ts")).replace("SEQUENCE:0", "SEQUENCE:1e999"), "not_media"),
        (vod(segment_line("ftp://host/0.ts")), "forbidden_address"),
        (vod(segment_line("0.ts", 1.0, '#EXT-X-MAP:URI="file:///etc/passwd"')), "forbidden_address"),
        ("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nfile:///etc/passwd\n", "forbidden_address"),
        ("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\nindex.m3u8\n", "not_media"),
        ('#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1,CODECS="mp4a.40.2"\nindex.m3u8\n', "no_video"),
    ],
)
async def test_playlists_that_are_refused(site: Site, text: str, reason: str) -> None:
    site.content["index.m3u8"] = text.encode()
    assert (await failure(f"{site.address}index.m3u8")).reason == reason


async def test_a_redirect_to_a_file_is_not_followed(site: Site) -> None:
    assert (await failure(f"{site.address}moved?to=file:///etc/hostname")).reason == "unreadable"


async def test_too_large(site: Site, tmp_path: Path, transport: list[bytes], at_once: None) -> None:
    most = len(transport[0]) - 1
    site.content = {"index.m3u8": vod(segment_line("0.ts")).encode(), "0.ts": transport[0]}
    for location in (f"{site.address}index.m3u8", str(write_vod(tmp_path, transport))):
        assert (await failure(location, max_bytes=most)).reason == "too_many_bytes"
    site.content["index.m3u8"] = vod(segment_line("0.ts", 1.0, f"#EXT-X-BYTERANGE:{most + 1}@0")).encode()
    assert (await failure(f"{site.address}index.m3u8", max_bytes=most)).reason == "too_many_bytes"


async def test_nobody_there(at_once: None) -> None:
    error = await failure("http://127.0.0.1:1/index.m3u8?token=secret")
    assert error.reason == "unreadable"
    assert "secret" not in str(error)


def test_a_local_playlist_stays_in_its_folder(tmp_path: Path) -> None:
    base = tmp_path / "show" / "index.m3u8"
    base.parent.mkdir()
    (base.parent / "link").symlink_to("/etc")
    assert resolve(str(base), "a/0.ts") == str(base.parent / "a" / "0.ts")
    assert resolve(str(base), "https://cdn/0.ts") == "https://cdn/0.ts"
    for reference in (
        "../0.ts",
        "/etc/passwd",
        "%2e%2e/0.ts",
        "link/passwd",
        "file:///etc/passwd",
        "data:,x",
    ):
        with pytest.raises(SourceError) as caught:
            resolve(str(base), reference)
        assert caught.value.reason == "forbidden_address"


# ------------------------------------------------------------------------ renditions


@pytest.mark.parametrize(
    ("min_height", "chosen"), [(720, "middle"), (360, "low"), (721, "high"), (1080, "high"), (2160, "high")]
)
def test_the_cheapest_rendition_with_enough_lines(min_height: int, chosen: str) -> None:
    master = m3u8.loads(
        "#EXTM3U\n"
        '#EXT-X-STREAM-INF:BANDWIDTH=100,CODECS="mp4a.40.2"\nsound\n'
        "#EXT-X-STREAM-INF:BANDWIDTH=9000,RESOLUTION=1920x1080\nhigh\n"
        "#EXT-X-STREAM-INF:BANDWIDTH=4000,RESOLUTION=1280x720\ndearer\n"
        '#EXT-X-STREAM-INF:BANDWIDTH=3000,RESOLUTION=1280x720,CODECS="avc1.4d401f,mp4a.40.2"\nmiddle\n'
        "#EXT-X-STREAM-INF:BANDWIDTH=500,RESOLUTION=640x360\nlow\n"
    )
    assert choose_rendition(master, min_height) == chosen


def test_renditions_that_state_no_size() -> None:
    master = m3u8.loads("#EXTM3U\n#EXT-X-STREAM-INF:BANDWIDTH=1\na\n#EXT-X-STREAM-INF:BANDWIDTH=2\nb\n")
    assert choose_rendition(master, 720) == "b"


# ------------------------------------------------------------------------------ live


class Packager:
    """A live playlist of a window of `segments`, moved by the test."""

    def __init__(self, site: Site, segments: list[bytes]) -> None:
        self.site, self._segments = site, segments
        self.location = f"{site.address}live.m3u8"
        self.show(0, 0)

    def show(self, first: int, end: int, *, ended: bool = False, before: str = "", name: str = "s") -> None:
        """Segments [first, end) are in the playlist."""
        lines = [before, *(segment_line(f"{name}{number}.ts", 0.5) for number in range(first, end))]
        text = HEAD.format(target=1, first=first) + "".join(lines) + (END if ended else "")
        self.site.content["live.m3u8"] = text.encode()
        for number in range(end):
            self.site.content[f"{name}{number}.ts"] = self._segments[number % len(self._segments)]


@pytest.fixture
async def packager(site: Site, transport: list[bytes]) -> Packager:
    return Packager(site, transport)


async def test_a_live_playlist(packager: Packager, transport: list[bytes]) -> None:
    packager.show(100, 110)
    async with asyncio.timeout(60), aclosing(playlist(packager.location).pieces(2.0)) as found:
        # joined three segments before the end
        first = [(await anext(found)).chunk for _ in range(3)]
        assert [chunk.seq for chunk in first] == [107, 108, 109]
        began = first[0].start_seconds
        assert began == pytest.approx(time.time(), abs=60)  # Unix time: one that is restarted goes on
        assert [(chunk.start_seconds or 0) - began for chunk in first] == pytest.approx([0, 0.5, 1], abs=1e-5)
        assert all(abs((chunk.captured_at_ms or 0) / 1000 - time.time()) < 30 for chunk in first)
        assert {chunk.duration_seconds for chunk in first} == {None}
        # it moves on by one, then by so many that some are missed
        packager.show(102, 111)
        assert (await anext(found)).chunk.seq == 110
        packager.show(114, 116)
        late = (await anext(found)).chunk
        assert (late.seq, (late.start_seconds or 0) - began) == (114, pytest.approx(3.5, abs=1e-5))
        assert (await anext(found)).chunk.seq == 115
        # the packager begins anew: numbers and time go on
        packager.show(0, 2, name="anew")
        again = [(await anext(found)).chunk for _ in range(2)]
        assert [chunk.seq for chunk in again] == [116, 117]
        assert [(chunk.start_seconds or 0) - began for chunk in again] == pytest.approx([4.5, 5], abs=1e-5)
        # a segment that is not there is left out, and the end says so
        packager.show(1, 4, name="anew", ended=True)
        del packager.site.content["anew2.ts"]
        end = (await anext(found)).chunk
        assert (end.seq, end.last) == (119, True)
        assert (end.start_seconds or 0) - began == pytest.approx(6, abs=1e-5)
        assert await anext(found, None) is None
    assert end.data == transport[0]


async def test_capture_times_and_gaps(packager: Packager) -> None:
    packager.show(0, 1, ended=True, before="#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:00.000Z\n#EXT-X-GAP\n")
    assert await pieces(packager.location) == []
    packager.show(0, 2, ended=True, before="#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:00.000Z\n#EXT-X-GAP\n")
    (piece,) = await pieces(packager.location)
    assert (piece.chunk.seq, piece.chunk.start_seconds, piece.chunk.last) == (1, 0.5, True)
    assert piece.chunk.captured_at_ms == 1_767_225_601_000  # half a second of gap, half a second of video


async def test_capture_times_before_all_time(packager: Packager) -> None:
    packager.show(0, 1, ended=True, before="#EXT-X-PROGRAM-DATE-TIME:1901-01-01T00:00:00Z\n")
    (piece,) = await pieces(packager.location)
    assert piece.chunk.captured_at_ms == 0


async def test_capture_times_beyond_all_time(packager: Packager, transport: list[bytes]) -> None:
    packager.show(0, 1, before="#EXT-X-PROGRAM-DATE-TIME:2999-01-01T00:00:00Z\n")
    async with aclosing(playlist(packager.location).pieces(2.0)) as found:
        chunk = (await anext(found)).chunk
    assert chunk.data == transport[0]
    assert chunk.start_seconds == pytest.approx(time.time(), abs=60)
    assert (chunk.captured_at_ms or 0) / 1000 == pytest.approx(time.time(), abs=60)


def test_capture_times_without_a_time_zone(monkeypatch: pytest.MonkeyPatch) -> None:
    """They mean UTC, wherever they are read."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    text = vod(segment_line("0.ts", 1.0, "#EXT-X-PROGRAM-DATE-TIME:2026-01-01T00:00:00"))
    try:
        (segment,) = read_media_playlist(m3u8.loads(text), "http://x/index.m3u8").segments
    finally:
        monkeypatch.undo()
        time.tzset()
    assert segment.captured_at_ms == 1_767_225_601_000


async def test_a_live_playlist_that_goes_away_and_comes_back(
    packager: Packager, site: Site, at_once: None
) -> None:
    packager.show(0, 2)
    async with asyncio.timeout(60), aclosing(playlist(packager.location).pieces(2.0)) as found:
        assert [(await anext(found)).chunk.seq for _ in range(2)] == [0, 1]
        site.failures["live.m3u8"] = [404]
        packager.show(1, 3)
        assert (await anext(found)).chunk.seq == 2


async def test_a_live_playlist_that_does_not_grow_is_told_of_once(
    packager: Packager, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.adaptive.STALLED_RELOADS", 0.5)
    packager.show(0, 2)
    with capture_logs() as logs:
        async with asyncio.timeout(60), aclosing(playlist(packager.location).pieces(2.0)) as found:
            assert [(await anext(found)).chunk.seq for _ in range(2)] == [0, 1]
            following = asyncio.ensure_future(anext(found))
            await until(lambda: site.asked.count("live.m3u8") == 5)
            packager.show(1, 3)
            assert (await following).chunk.seq == 2
    assert [entry["event"] for entry in logs] == ["a playlist or manifest does not grow"]


async def test_it_is_given_up_after_so_many_attempts(packager: Packager, site: Site, at_once: None) -> None:
    packager.show(0, 1)
    async with asyncio.timeout(60), aclosing(playlist(packager.location, attempts=2).pieces(2.0)) as found:
        await anext(found)
        site.failures["live.m3u8"] = [404, 410]
        with pytest.raises(SourceError, match="HTTP 410"):
            await anext(found)


def test_how_often_it_is_read() -> None:
    for target, seconds in ((2, 2), (0, 0.5), (600, 30)):
        text = HEAD.format(target=target, first=0) + segment_line("0.ts")
        assert read_media_playlist(m3u8.loads(text), "http://cdn/x.m3u8").reload_seconds == seconds

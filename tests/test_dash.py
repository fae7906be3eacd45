"""MPEG-DASH manifests -> chunks: what FFmpeg writes, static and live, and what strangers may write."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from contextlib import aclosing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import av
import media
import pytest
from decoding import decode
from manifests import SINCE_1970, mpd, template, timeline
from web_site import Site

from streamer.dash import Presentation
from streamer.demo_clips import demo_clips
from streamer.files import Piece, SourceError
from streamer.messages import VideoChunk
from streamer.network import NetworkOptions
from streamer.publish import publish_source

FPS = 25
"""Of the bundled clips, which have a keyframe every second."""

TIMELINE = {"use_template": "1", "use_timeline": "1"}
NUMBER = {"use_template": "1", "use_timeline": "0"}
LIST = {"use_template": "0"}
RANGES = {"single_file": "1"}


def packaged(
    folder: Path, clips: list[Path], seconds: float, options: dict[str, str]
) -> Iterator[dict[str, bytes]]:
    """A clip as FFmpeg's packager writes it, a representation for each; the files so far, every second.

    The last ones are those of a video that has ended.
    """
    folder.mkdir()

    def files() -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in folder.iterdir()}

    inputs = [av.open(str(clip)) for clip in clips]
    muxing = av.open(str(folder / "m.mpd"), "w", format="dash", options={"seg_duration": "1", **options})
    with muxing as output:
        packets = []
        for source in inputs:
            template = source.streams.video[0]
            stream = output.add_stream_from_template(template)
            for packet in source.demux(template):
                if packet.size and packet.pts * packet.time_base < seconds:
                    packet.stream = stream
                    packets.append(packet)
        packets.sort(key=lambda packet: packet.dts * packet.time_base)
        for packet in packets:
            at, is_key = packet.pts * packet.time_base, packet.is_keyframe
            output.mux(packet)
            if is_key and at >= 1:
                yield files()
    for source in inputs:
        source.close()
    yield files()


def package(folder: Path, options: dict[str, str]) -> Path:
    """The bundled clip's first four seconds, as a static manifest."""
    *_, _ = packaged(folder, [demo_clips()[0]], 4, options)
    return folder / "m.mpd"


def presentation(location: str | Path, **options: Any) -> Presentation:
    return Presentation(str(location), "show", NetworkOptions(dash=True, **options))


async def pieces(location: str | Path, **options: Any) -> list[Piece]:
    async with aclosing(presentation(location, **options).pieces(2.0)) as found:
        return [piece async for piece in found]


async def failure(location: str | Path, **options: Any) -> SourceError:
    with pytest.raises(SourceError) as caught:
        await pieces(location, **options)
    return caught.value


def frame_times(chunk: VideoChunk) -> list[float]:
    return decode(chunk.data, chunk.init)[0]


class Recorder:
    """Keeps the chunks."""

    def __init__(self) -> None:
        self.chunks: list[VideoChunk] = []

    async def send_chunk(self, chunk: VideoChunk) -> None:
        self.chunks.append(chunk)


# ---------------------------------------------------------------------------- static


@pytest.mark.parametrize("options", [TIMELINE, NUMBER, LIST, RANGES])
@pytest.mark.parametrize("local", [True, False])
async def test_what_ffmpeg_packages(site: Site, tmp_path: Path, options: dict[str, str], local: bool) -> None:
    path = package(tmp_path / "show", options)
    site.content = {f"show/{file.name}": file.read_bytes() for file in path.parent.iterdir()}
    recorder = Recorder()
    source = presentation(path if local else f"{site.address}moved?to={site.address}show/m.mpd")
    done = await publish_source(recorder, source, 2.0, realtime=False)
    chunks = recorder.chunks
    assert [chunk.seq for chunk in chunks] == [0, 1, 2, 3]
    assert [chunk.start_seconds for chunk in chunks] == [0, 1, 2, 3]
    assert [chunk.last for chunk in chunks] == [False, False, False, True]
    assert {chunk.duration_seconds for chunk in chunks} == {4}
    assert {chunk.captured_at_ms for chunk in chunks} == {None}
    assert (done.chunks, done.seconds, done.video_seconds) == (4, 4, 4)
    assert [len(frame_times(chunk)) for chunk in chunks] == [FPS] * 4
    assert len({chunk.init for chunk in chunks}) == 1
    if not local and options is not RANGES:
        assert site.asked.count("show/init-stream0.m4s") == 1


async def test_a_ladder(tmp_path: Path) -> None:
    low, high = tmp_path / "low.mp4", tmp_path / "high.mp4"
    low.write_bytes(media.encode("mp4", frames=60, gop=30, width=128, height=96))
    high.write_bytes(media.encode("mp4", frames=60, gop=30, width=192, height=160))
    *_, files = packaged(tmp_path / "show", [low, high], 9, TIMELINE)
    assert files["m.mpd"].count(b"<Representation") == 2
    for min_height, height in ((90, 96), (97, 160), (160, 160), (1080, 160)):
        found = await pieces(tmp_path / "show" / "m.mpd", min_height=min_height)
        images = [image for piece in found for image in decode(piece.chunk.data, piece.chunk.init)[1]]
        assert {image.shape[0] for image in images} == {height}
        assert [media.index_of(image) for image in images] == list(range(60))


@pytest.fixture(scope="module")
def cmaf() -> tuple[bytes, list[bytes]]:
    """An init segment, and eight media segments of half a second."""
    return media.fragmented(frames=120, gop=15)


def put(site: Site, text: str, cmaf: tuple[bytes, list[bytes]], names: list[str], init: str) -> str:
    """Serve a manifest and its segments; its address."""
    site.content |= {"show/m.mpd": text.encode(), init: cmaf[0]}
    site.content |= dict(zip(names, cmaf[1], strict=False))
    return f"{site.address}show/m.mpd"


async def test_addresses_from_every_level(site: Site, cmaf: tuple[bytes, list[bytes]]) -> None:
    text = mpd(
        attributes='mediaPresentationDuration="P0Y0M0DT0H0M1.00S"',
        periods="""
        <BaseURL> ../cdn/ </BaseURL><BaseURL>http://127.0.0.1:1/</BaseURL>
        <Period>
          <BaseURL>p1/</BaseURL>
          <SegmentTemplate timescale="2" duration="1" startNumber="7"/>
          <AdaptationSet contentType="audio"><Representation id="a" bandwidth="1"/></AdaptationSet>
          <AdaptationSet mimeType="video/mp4" height="96">
            <BaseURL>video/</BaseURL>
            <SegmentTemplate initialization="$RepresentationID$-$Bandwidth$.mp4"/>
            <Representation id="v1" bandwidth="1000">
              <BaseURL>./x/</BaseURL>
              <SegmentTemplate media="$RepresentationID$-$Number%05d$-$Bandwidth%06d$$$.m4s"/>
            </Representation>
          </AdaptationSet>
        </Period>""",
    )
    names = [f"cdn/p1/video/x/v1-0000{number}-001000$.m4s" for number in (7, 8)]
    address = put(site, text, cmaf, names, "cdn/p1/video/x/v1-1000.mp4")
    assert [piece.chunk.data for piece in await pieces(address)] == cmaf[1][:2]


async def test_base_urls_of_a_local_manifest(tmp_path: Path, cmaf: tuple[bytes, list[bytes]]) -> None:
    path = tmp_path / "m.mpd"
    path.write_text(mpd(f"<BaseURL>a%20b/</BaseURL>{template(media='../c/$Number$.m4s')}"))
    (tmp_path / "a b").mkdir()
    (tmp_path / "c").mkdir()
    (tmp_path / "a b" / "init.mp4").write_bytes(cmaf[0])
    for number, data in enumerate(cmaf[1][:4], 1):
        (tmp_path / "c" / f"{number}.m4s").write_bytes(data)
    assert [piece.chunk.data for piece in await pieces(path)] == cmaf[1][:4]


async def test_times_of_a_timeline(site: Site, cmaf: tuple[bytes, list[bytes]]) -> None:
    runs = timeline('t="1000" d="1" r="1"', 'd="1" r="-1"', 't="1004" d="1"', 't="1006" d="1" r="-1"')
    text = mpd(
        template('presentationTimeOffset="1000"', runs, media="s$Time$.m4s"),
        attributes='mediaPresentationDuration="PT4S"',
    )
    names = [f"show/s{ticks}.m4s" for ticks in (1000, 1001, 1002, 1003, 1004, 1006, 1007)]
    found = await pieces(put(site, text, cmaf, names, "show/init.mp4"))
    assert [piece.chunk.start_seconds for piece in found] == [0, 0.5, 1, 1.5, 2, 3, 3.5]
    assert [piece.chunk.seq for piece in found] == list(range(7))
    assert [piece.chunk.data for piece in found] == cmaf[1][:7]
    assert [len(frame_times(piece.chunk)) for piece in found] == [15] * 7


async def test_periods_one_after_the_other(site: Site, cmaf: tuple[bytes, list[bytes]]) -> None:
    other = media.fragmented(frames=30, gop=15, width=192, height=160)

    def period(attributes: str, content: str) -> str:
        return f"""<Period {attributes}><AdaptationSet contentType="video">
            <Representation id="v" bandwidth="1" height="96">{content}</Representation>
        </AdaptationSet></Period>"""

    text = mpd(
        periods=period('duration="PT1S"', template())
        + '<Period duration="PT0.5S"><AdaptationSet contentType="audio"/></Period>'
        + period("", f"<BaseURL>ad/</BaseURL>{template()}"),
        attributes='mediaPresentationDuration="PT2.5S"',
    )
    address = put(site, text, cmaf, ["show/1.m4s", "show/2.m4s"], "show/init.mp4")
    address = put(site, text, other, ["show/ad/1.m4s", "show/ad/2.m4s"], "show/ad/init.mp4")
    found = await pieces(address)
    assert [piece.chunk.start_seconds for piece in found] == [0, 0.5, 1.5, 2]
    assert [piece.chunk.seq for piece in found] == [0, 1, 2, 3]
    assert [piece.chunk.last for piece in found] == [False, False, False, True]
    shown = [decode(piece.chunk.data, piece.chunk.init)[1] for piece in found]
    assert [(len(images), images[0].shape[0]) for images in shown] == [(15, 96)] * 2 + [(15, 160)] * 2


async def test_sound_that_is_longer_than_the_video(site: Site, cmaf: tuple[bytes, list[bytes]]) -> None:
    text = mpd(template(), attributes='mediaPresentationDuration="PT1.05S"')
    address = put(site, text, cmaf, ["show/1.m4s", "show/2.m4s"], "show/init.mp4")
    assert [piece.chunk.last for piece in await pieces(address)] == [False, True]
    address = put(site, text, cmaf, [f"show/{number}.m4s" for number in (1, 2, 3)], "show/init.mp4")
    found = await pieces(address)
    assert [piece.chunk.last for piece in found] == [False, False, True]
    assert found[-1].end_seconds == pytest.approx(1.05, abs=0.5)


async def test_a_segment_that_is_missing(site: Site, cmaf: tuple[bytes, list[bytes]]) -> None:
    address = put(site, mpd(template()), cmaf, ["show/1.m4s"], "show/init.mp4")
    async with aclosing(presentation(address).pieces(2.0)) as found:
        assert (await anext(found)).chunk.data == cmaf[1][0]
        with pytest.raises(SourceError, match="HTTP 404"):
            await anext(found)


# ------------------------------------------------------------------- what is refused

BOMB = "".join(f'<!ENTITY e{n} "{f"&e{n - 1};" * 10}">' for n in range(1, 12))
PROTECTED = '<ContentProtection schemeIdUri="urn:mpeg:dash:mp4protection:2011" value="cenc"/>'
ELSEWHERE = '<Period xmlns:x="http://www.w3.org/1999/xlink" x:href="p.xml"/>'
LIVE = 'type="dynamic" availabilityStartTime="2026-01-01T00:00:00Z"'


@pytest.mark.parametrize(
    ("text", "reason", "said"),
    [
        ("", "not_media", "not a DASH manifest"),
        ("#EXTM3U\n", "not_media", "not a DASH manifest"),
        ("<html></html>", "not_media", "'html'"),
        ('<?xml version="1.0" encoding="nonsense"?><MPD/>', "not_media", "not a DASH manifest"),
        (f'<!DOCTYPE MPD [<!ENTITY e0 "x">{BOMB}]><MPD>&e11;</MPD>', "not_media", "DOCTYPE"),
        ('<!DOCTYPE MPD [<!ENTITY x SYSTEM "file:///etc/passwd">]><MPD>&x;</MPD>', "not_media", "DOCTYPE"),
        ('<!DOCTYPE MPD SYSTEM "http://127.0.0.1:1/x.dtd"><MPD/>', "not_media", "DOCTYPE"),
        ("<MPD/>", "not_media", "no Period"),
        (mpd(periods="<Period/>"), "no_video", "no segment"),
        (mpd(template(), attributes=""), "not_media", "how long the video is"),
        (mpd(template(), attributes='mediaPresentationDuration="2 s"'), "not_media", "'2 s'"),
        (mpd(template(), attributes='mediaPresentationDuration="PT"'), "not_media", "'PT'"),
        (mpd(template(), attributes='mediaPresentationDuration="P99999Y"'), "not_media", "P99999Y"),
        (mpd(template(), attributes='mediaPresentationDuration="P1Y"'), "not_media", "more than 100000"),
        (mpd(template("")), "not_media", "how long its segments are"),
        (mpd(template('duration="0"')), "not_media", "how long its segments are"),
        (mpd(template('duration="-1"')), "not_media", "'-1'"),
        (
            mpd(template('duration="99999"'), attributes='mediaPresentationDuration="P1D"'),
            "not_media",
            "lasts",
        ),
        (mpd(template(f'duration="1" startNumber="{2**64}"')), "not_media", "startNumber"),
        (mpd(template(f'duration="1" startNumber="{"9" * 5000}"')), "not_media", "startNumber"),
        (mpd(template("", timeline('d="1" r="-1"')), attributes=""), "not_media", "how long the video is"),
        (mpd(template("", timeline('t="0" d="1" r="-1"', f't="{2**62}" d="1"'))), "not_media", "more than"),
        (mpd(template("", timeline(f'd="1" r="{10**18}"'))), "not_media", "more than 100000"),
        (mpd(template("", timeline(*['d="1" r="9999"'] * 11))), "not_media", "more than 100000"),
        (mpd(template("", timeline('d="0"'))), "not_media", "S@d"),
        (mpd(template("", timeline('t="0"'))), "not_media", "S@d"),
        (mpd(template("", timeline('d="1" r="x"'))), "not_media", "S@r"),
        (mpd(template("", timeline(f't="{2**62}" d="1"'))), "not_media", "lasts"),
        (mpd(template("", timeline('d="1"')).replace('"2"', f'"{2**32}"')), "not_media", "lasts"),
        (mpd(template().replace('timescale="2"', 'timescale="0"')), "not_media", "timescale"),
        (mpd(template(media="$SubNumber$.m4s")), "unsupported_format", "$SubNumber$"),
        (
            mpd('<SegmentBase indexRange="0-99"/><BaseURL>v.mp4</BaseURL>'),
            "unsupported_format",
            "SegmentBase",
        ),
        (mpd("<BaseURL>v.mp4</BaseURL>"), "unsupported_format", "publish that file itself"),
        (mpd(periods=ELSEWHERE), "unsupported_format", "xlink"),
        (mpd('<SegmentList duration="1"><SegmentURL mediaRange="9-5"/></SegmentList>'), "not_media", "'9-5'"),
        (mpd('<SegmentList duration="1"><SegmentURL mediaRange="x"/></SegmentList>'), "not_media", "'x'"),
        (mpd('<SegmentList duration="1"/>'), "no_video", "no segment"),
        (mpd(PROTECTED + template()), "encrypted", "ContentProtection"),
        (mpd(template(), attributes='type="dynamic"'), "not_media", "availabilityStartTime"),
        (mpd(template(), attributes='type="dynamic" availabilityStartTime="now"'), "not_media", "'now'"),
        (mpd('<SegmentList duration="1"/>', attributes=LIVE), "unsupported_format", "SegmentTemplate"),
        (mpd(template(media="file:///etc/passwd")), "forbidden_address", "'file'"),
        (mpd("<BaseURL>file:///etc/</BaseURL>" + template(media="passwd")), "forbidden_address", "'file'"),
        (mpd(template().replace("init.mp4", "ftp://host/init.mp4")), "forbidden_address", "'ftp'"),
        (mpd(template(media="http://[::1/x")), "forbidden_address", "that is none"),
        (
            mpd(template(), attributes=LIVE).replace("<Period>", "<Location>file:///x</Location><Period>"),
            "forbidden_address",
            "'file'",
        ),
    ],
)
async def test_manifests_that_are_refused(site: Site, text: str, reason: str, said: str) -> None:
    site.content["m.mpd"] = text.encode()
    started = time.process_time()
    error = await failure(f"{site.address}m.mpd")
    assert (error.reason, site.asked) == (reason, ["m.mpd"])
    assert said in str(error)
    assert time.process_time() - started < 5


@pytest.mark.parametrize(
    "reference", ["../0.m4s", "/etc/passwd", "%2e%2e/0.m4s", "link/passwd", "file:///etc/passwd", "a%00b"]
)
@pytest.mark.parametrize("base", ["", "<BaseURL>sub/</BaseURL>", "<BaseURL>http.d/</BaseURL>"])
async def test_a_local_manifest_stays_in_its_folder(tmp_path: Path, reference: str, base: str) -> None:
    folder = tmp_path / "show"
    folder.mkdir()
    (folder / "link").symlink_to("/etc")
    if base:
        reference = reference.replace("../", "../../").replace("%2e%2e/", "..%2f%2e%2e/")
        reference = reference.replace("link/", "../link/")
    (folder / "m.mpd").write_text(mpd(base + template(media=reference)))
    assert (await failure(folder / "m.mpd")).reason == "forbidden_address"


async def test_clear_video_beside_what_is_none(site: Site, cmaf: tuple[bytes, list[bytes]]) -> None:
    trick = '<EssentialProperty schemeIdUri="http://dashif.org/guidelines/trickmode" value="1"/>'

    def group(attributes: str, inner: str = "") -> str:
        element = (
            f'<Representation id="no" bandwidth="1" height="2160">{template(media="no")}</Representation>'
        )
        return f"<AdaptationSet {attributes}>{inner}{element}</AdaptationSet>"

    text = mpd(template()).replace(
        "<Period>",
        "<Period>"
        + group('contentType="audio"')
        + group('mimeType="video/mp4" codecs="mp4a.40.2"')
        + group('mimeType="image/jpeg"')
        + group('mimeType="application/mp4" codecs="stpp"')
        + group('contentType="video"', trick)
        + group('contentType="video"', PROTECTED),
    )
    names = [f"show/{number}.m4s" for number in (1, 2, 3, 4)]
    found = await pieces(put(site, text, cmaf, names, "show/init.mp4"), min_height=96)
    assert [piece.chunk.data for piece in found] == cmaf[1][:4]


async def test_too_large(site: Site, tmp_path: Path) -> None:
    path = package(tmp_path / "show", TIMELINE)
    site.content = {file.name: file.read_bytes() for file in path.parent.iterdir()}
    most = len(site.content["chunk-stream0-00001.m4s"])  # and the init segment comes on top
    for location in (path, f"{site.address}m.mpd"):
        assert (await failure(location, max_bytes=most)).reason == "too_many_bytes"
    site.content["m.mpd"] += b" " * (8 * 1024 * 1024)
    assert (await failure(f"{site.address}m.mpd")).reason == "too_many_bytes"


async def test_retries(site: Site, cmaf: tuple[bytes, list[bytes]], at_once: None) -> None:
    names = [f"show/{number}.m4s" for number in (1, 2, 3, 4)]
    address = put(site, mpd(template()), cmaf, names, "show/init.mp4")
    site.failures = {"show/m.mpd": [503], "show/init.mp4": [500, 502], "show/1.m4s": [429]}
    assert [piece.chunk.data for piece in await pieces(address)] == cmaf[1][:4]
    site.failures = {"show/m.mpd": [503] * 4}
    assert str(await failure(f"{address}?token=secret")) == "HTTP 503 Service Unavailable"


# ------------------------------------------------------------------------------ live


async def test_a_live_manifest_that_grows(site: Site, tmp_path: Path) -> None:
    """Written by FFmpeg, second by second, with a window of five segments."""
    options = {**TIMELINE, "window_size": "5", "extra_window_size": "20", "update_period": "1"}
    steps = list(packaged(tmp_path / "live", [demo_clips()[0]], 9.6, options))
    assert [b'type="dynamic"' in files["m.mpd"] for files in steps] == [True] * 9 + [False]
    async with asyncio.timeout(60), aclosing(presentation(f"{site.address}m.mpd").pieces(2.0)) as found:
        site.content = steps[3]  # four segments are there
        chunks = [(await anext(found)).chunk for _ in range(3)]
        assert [chunk.seq for chunk in chunks] == [2, 3, 4]  # joined three before the end
        site.content = steps[4]
        chunks.append((await anext(found)).chunk)
        site.content = {name: data for name, data in steps[7].items() if name != "chunk-stream0-00007.m4s"}
        chunks += [(await anext(found)).chunk for _ in range(2)]  # one of three cannot be had
        site.content = steps[9]
        chunks += [piece.chunk async for piece in found]
    assert [chunk.seq for chunk in chunks] == [2, 3, 4, 5, 6, 8, 9, 10]
    assert [chunk.last for chunk in chunks] == [False] * 7 + [True]
    began = chunks[0].start_seconds or 0.0
    assert began == pytest.approx(time.time(), abs=60)
    starts = [(chunk.start_seconds or 0) - began for chunk in chunks]
    assert starts == pytest.approx([0, 1, 2, 3, 4, 6, 7, 8], abs=1e-5)
    assert [len(frame_times(chunk)) for chunk in chunks] == [FPS] * 7 + [15]
    assert {chunk.duration_seconds for chunk in chunks} == {None}
    assert all(abs((chunk.captured_at_ms or 0) / 1000 - time.time()) < 60 for chunk in chunks)


def began_ago(seconds: float, more: str = "") -> str:
    moment = datetime.fromtimestamp(time.time() - seconds, UTC).isoformat()
    return f'type="dynamic" availabilityStartTime="{moment}" {more}'


async def test_live_segments_come_by_the_clock(site: Site, cmaf: tuple[bytes, list[bytes]]) -> None:
    """$Number$ and duration: nothing new is written, the manifest is read once."""
    began = began_ago(10.1, 'mediaPresentationDuration="PT11.5S"')
    text = mpd(template('duration="1" startNumber="5"'), attributes=began)
    names = [f"show/{number}.m4s" for number in range(20, 28)]
    address = put(site, text, cmaf, names, "show/init.mp4")
    del site.content["show/25.m4s"]
    async with asyncio.timeout(30):
        found = await pieces(address)
    assert [piece.chunk.seq for piece in found] == [
        22,
        23,
        24,
        26,
        27,
    ]  # 20 were there, then one each half second
    assert found[-1].chunk.last
    assert [piece.end_seconds for piece in found] == pytest.approx([0.5, 1, 1.5, 2.5, 3], abs=1e-5)
    assert site.asked.count("show/m.mpd") == 1
    assert site.asked.count("show/25.m4s") == 2  # our clock might have been ahead
    assert [len(frame_times(piece.chunk)) for piece in found] == [15] * 5


async def test_addresses_by_time_count_by_unix_time(site: Site, cmaf: tuple[bytes, list[bytes]]) -> None:
    def show(first: int, *, kind: str = "dynamic") -> None:
        runs = timeline(f't="{first}" d="1" r="2"')
        text = mpd(
            "<BaseURL>/show/</BaseURL>" + template("", runs, media="$Time$"),
            attributes=f'type="{kind}" {SINCE_1970} minimumUpdatePeriod="PT0S"',
        ).replace("<Period>", "<Location>next.mpd</Location><Period>")
        names = [f"show/{first + number}" for number in range(3)]
        put(site, text, cmaf, names, "show/init.mp4")
        if first != half_seconds:
            site.content["show/next.mpd"] = site.content.pop("show/m.mpd")

    half_seconds = 3_500_000_000
    show(half_seconds)
    async with (
        asyncio.timeout(60),
        aclosing(presentation(f"{site.address}show/m.mpd").pieces(2.0)) as found,
    ):
        chunks = [(await anext(found)).chunk for _ in range(3)]
        assert [chunk.seq - half_seconds for chunk in chunks] == [0, 1, 2]
        show(half_seconds + 1)
        assert (await anext(found)).chunk.seq == half_seconds + 3
        show(half_seconds + 6)  # two were missed
        chunks = [(await anext(found)).chunk for _ in range(3)]
        assert [chunk.seq - half_seconds for chunk in chunks] == [6, 7, 8]
        assert [chunk.start_seconds for chunk in chunks] == [half_seconds / 2 + 3 + n / 2 for n in range(3)]
        show(half_seconds + 7, kind="static")
        end = [piece.chunk async for piece in found]
    assert [(chunk.seq - half_seconds, chunk.last) for chunk in end] == [(9, True)]


async def test_a_live_manifest_that_goes_away_and_comes_back(
    site: Site, cmaf: tuple[bytes, list[bytes]], at_once: None
) -> None:
    began = began_ago(10)

    def show(end: int) -> None:
        text = mpd(template("", timeline(f'd="1" r="{end - 1}"')), attributes=began)
        names = [f"show/{number}.m4s" for number in range(1, end + 1)]
        put(site, text, cmaf, names, "show/init.mp4")

    show(1)
    location = f"{site.address}show/m.mpd"
    async with asyncio.timeout(60), aclosing(presentation(location, attempts=2).pieces(2.0)) as found:
        assert (await anext(found)).chunk.seq == 1
        site.failures["show/m.mpd"] = [404]
        show(2)
        assert (await anext(found)).chunk.seq == 2
        site.failures["show/m.mpd"] = [404, 410]
        with pytest.raises(SourceError, match="HTTP 410"):
            await anext(found)

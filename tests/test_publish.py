"""Files -> chunks."""

from __future__ import annotations

import asyncio
import fcntl
import math
import os
import re
import struct
import termios
import time
from pathlib import Path

import media
import psutil
import pytest
from clips import make_clip
from fakes import fresh_names, until

from streamer.config import Config, KafkaConfig
from streamer.dash import Presentation
from streamer.errors import BrokerError, ConfigError
from streamer.files import FileError
from streamer.hls import Playlist
from streamer.kafka.topics import create_topics
from streamer.messages import VideoChunk
from streamer.network import NetworkOptions
from streamer.publish import Published, publish_source, publish_sources
from streamer.sources import Clip, sources_of
from streamer.stream import Stream
from streamer.tasks import gather_or_cancel


class Recorder:
    """Keeps the chunks and when they came."""

    def __init__(self) -> None:
        self.chunks: list[VideoChunk] = []
        self.at_seconds: list[float] = []
        self._started = time.monotonic()

    async def send_chunk(self, chunk: VideoChunk) -> None:
        self.chunks.append(chunk)
        self.at_seconds.append(time.monotonic() - self._started)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three seconds, a keyframe every second."""
    return make_clip(tmp_path_factory.mktemp("clips") / "camera.mp4")


async def test_chunks_of_a_clip(clip: Path) -> None:
    recorder = Recorder()
    told: list[Published] = []
    done = await publish_source(recorder, Clip(clip, "cam"), 1.0, realtime=False, on_chunk=told.append)
    assert [chunk.seq for chunk in recorder.chunks] == [0, 1, 2]
    assert [chunk.last for chunk in recorder.chunks] == [False, False, True]
    assert [chunk.start_seconds for chunk in recorder.chunks] == pytest.approx([0, 1, 2])
    assert {chunk.video_id for chunk in recorder.chunks} == {"cam"}
    assert {chunk.duration_seconds for chunk in recorder.chunks} == {3.0}
    assert {chunk.captured_at_ms for chunk in recorder.chunks} == {None}
    assert told[-1] == done
    assert (done.chunks, done.seconds, done.video_seconds) == (3, pytest.approx(3), pytest.approx(3))
    assert done.bytes == sum(len(chunk.data) for chunk in recorder.chunks)


async def test_longer_chunks(clip: Path) -> None:
    recorder = Recorder()
    await publish_source(recorder, Clip(clip, "cam"), 1.5, realtime=False)
    assert [chunk.start_seconds for chunk in recorder.chunks] == pytest.approx([0, 2])


async def test_realtime_hands_a_chunk_over_when_it_is_complete(clip: Path) -> None:
    recorder = Recorder()
    before_ms = 1000 * time.time()
    await publish_source(recorder, Clip(clip, "cam"), 1.0, realtime=True)
    for end_seconds, at_seconds in zip((1, 2, 3), recorder.at_seconds, strict=True):
        assert end_seconds - 0.05 <= at_seconds < end_seconds + 0.9
    stamps = [chunk.captured_at_ms for chunk in recorder.chunks]
    assert all(stamp is not None and stamp >= before_ms + 900 for stamp in stamps)


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "unreadable"), (b"", "not_media"), (b"hello\n" * 100, "not_media")]
)
async def test_what_is_no_video(tmp_path: Path, content: bytes | None, reason: str) -> None:
    path = tmp_path / "text.mp4"
    if content is not None:
        path.write_bytes(content)
    recorder = Recorder()
    with pytest.raises(FileError) as caught:
        await publish_source(recorder, Clip(path, "x"), 1.0, realtime=False)
    assert caught.value.reason == reason
    assert not recorder.chunks


@pytest.mark.parametrize("seconds", [-5.0, math.nan, 5e10])
async def test_a_stated_length_that_is_none(tmp_path: Path, seconds: float) -> None:
    data = media.encode("matroska", frames=30, gop=30)
    at = data.index(b"\x44\x89\x88") + 3  # Duration, eight bytes, milliseconds
    path = tmp_path / "clip.mkv"
    path.write_bytes(data[:at] + struct.pack(">d", 1000 * seconds) + data[at + 8 :])
    recorder = Recorder()
    await publish_source(recorder, Clip(path, "x"), 1.0, realtime=False)
    assert [chunk.duration_seconds for chunk in recorder.chunks] == [None]


async def test_timestamps_that_jump_beyond_all_time(tmp_path: Path) -> None:
    path = tmp_path / "clip.mkv"
    path.write_bytes(media.encode("matroska", frames=0, gop=1, pts=(0, 20_000_000_000 * media.TICKS)))
    recorder = Recorder()
    with pytest.raises(FileError, match=r"timestamps jump to 2e\+10 s") as caught:
        await publish_source(recorder, Clip(path, "x"), 1.0, realtime=False)
    assert caught.value.reason == "damaged"
    assert len(recorder.chunks) == 1


async def test_a_damaged_chunk_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "clip.ts"
    path.write_bytes(media.damaged_mpegts(media.encode(frames=60, gop=15, width=320, height=240), 0.6))
    recorder = Recorder()
    done = await publish_source(recorder, Clip(path, "x"), 0.4, realtime=False)
    assert [(chunk.seq, chunk.last) for chunk in recorder.chunks] == [(0, False), (1, False), (3, True)]
    assert (done.chunks, done.lost) == (3, 1)


async def test_a_pipe_that_says_nothing_more_can_be_left(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe.ts"
    os.mkfifo(pipe)
    writer = os.open(pipe, os.O_RDWR)
    try:
        os.write(writer, media.encode("mpegts", frames=10)[:1880])
        publishing = asyncio.create_task(publish_source(Recorder(), Clip(pipe, "x"), 1.0, realtime=False))
        child = psutil.Process()
        await until(lambda: any("streamer.segment" in each.cmdline() for each in child.children()))
        # until all is read, and it waits for more
        await until(lambda: fcntl.ioctl(writer, termios.FIONREAD, bytes(4)) == bytes(4))
        publishing.cancel()
        async with asyncio.timeout(20):
            await asyncio.wait([publishing])
        assert publishing.cancelled()
    finally:
        os.close(writer)


def test_names() -> None:
    clips = sources_of(["a/lobby.mp4", "b/door.cam.mkv"], None)
    assert [clip.video_id for clip in clips] == ["lobby", "door.cam"]
    assert sources_of(["a.mp4"], "entrance")[0].video_id == "entrance"
    assert sources_of([os.fsdecode(b"\xff.mp4")], None)[0].video_id == "\ufffd"


@pytest.mark.parametrize(
    ("url", "video_id", "name"),
    [
        (
            "rtsp://me:secret@cam1:554/door/stream?token=1",
            "cam1:554/door/stream",
            "rtsp://cam1:554/door/stream",
        ),
        ("rtmp://host/live.flv", "host/live", "rtmp://host/live.flv"),
        ("tcp://127.0.0.1:9000?listen", "127.0.0.1:9000", "tcp://127.0.0.1:9000"),
    ],
)
def test_names_of_streams_hold_no_secrets(url: str, video_id: str, name: str) -> None:
    (source,) = sources_of([url], None)
    assert isinstance(source, Stream)
    assert (source.video_id, source.name) == (video_id, name)
    assert "secret" not in repr(source)


def test_playlists() -> None:
    network = NetworkOptions(hls=True, min_height=480)
    (source,) = sources_of(["https://cdn/show/master.m3u8?key=1"], None, network)
    assert isinstance(source, Playlist)
    assert (source.video_id, source.name) == ("cdn/show/master", "https://cdn/show/master.m3u8")
    with pytest.raises(ConfigError, match="--hls"):
        sources_of(["https://cdn/show/master.m3u8?key=1"], None)


def test_manifests() -> None:
    (source,) = sources_of(["https://me:secret@cdn/show/m.mpd?key=1"], None, NetworkOptions(dash=True))
    assert isinstance(source, Presentation)
    assert (source.video_id, source.name) == ("cdn/show/m", "https://cdn/show/m.mpd")
    assert "secret" not in repr(source)
    with pytest.raises(ConfigError, match="--dash"):
        sources_of(["https://cdn/show/m.mpd?key=1"], None)


def test_ambiguous_names() -> None:
    with pytest.raises(ConfigError, match=r"a/x\.mp4 and b/x\.mkv would both be video 'x'"):
        sources_of(["a/x.mp4", "b/x.mkv"], None)
    with pytest.raises(ConfigError, match="--video-id"):
        sources_of(["a.mp4", "b.mp4"], "one")
    with pytest.raises(ConfigError, match="1 to 512 bytes"):
        sources_of(["a.mp4"], "x" * 513)
    with pytest.raises(ConfigError, match="1 to 512 bytes"):
        sources_of(["a.mp4"], "")
    with pytest.raises(ConfigError, match="input 2 begins as a URL and is none") as caught:
        sources_of(["a.mp4", "http://me:secret@[::1"], None)
    assert "secret" not in str(caught.value)


@pytest.mark.needs_kafka
async def test_to_a_broker(clip: Path, real_kafka: KafkaConfig, capsys: pytest.CaptureFixture[str]) -> None:
    missing = clip.parent / "missing.mp4"
    sources = [Clip(clip, "camera"), Clip(missing, "missing")]
    code = await publish_sources(Config(kafka=real_kafka), sources, 1.0, realtime=False)
    assert code == 1
    out, err = capsys.readouterr()
    assert f"{clip}: video camera, 3 chunks, 3.0 s, " in out
    assert f"error  {missing}: No such file or directory" in err


async def test_chunks_too_large_for_the_producer(
    tmp_path: Path, clip: Path, kafka: KafkaConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    big = make_clip(tmp_path / "noise.mp4", seconds=1, size=512, noise=True)
    assert big.stat().st_size > 1_500_000
    config = Config(kafka=kafka.model_copy(update={"max_message_bytes": 1_000_000}))
    sources = [Clip(big, "noise"), Clip(clip, "camera")]
    assert await publish_sources(config, sources, 1.0, realtime=False) == 1
    out, err = capsys.readouterr()
    assert re.search(r"error  \S+noise\.mp4: .*; cut shorter chunks \(--chunk-seconds; of HLS", err)
    assert f"{clip}: video camera, 3 chunks" in out


@pytest.mark.needs_kafka
async def test_a_chunk_too_large_for_its_topic_ends_its_source_alone(
    tmp_path: Path, clip: Path, real_kafka: KafkaConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    """The broker refuses it, and from then on everything that the same producer sends to that partition."""
    topic = real_kafka.model_copy(update={"chunks_topic": f"{real_kafka.chunks_topic}-narrow"})
    await create_topics(topic.model_copy(update={"max_message_bytes": 1_000_000}), partitions=1)
    big = make_clip(tmp_path / "noise.mp4", seconds=1, size=512, noise=True)
    sources = [Clip(clip, "camera"), Clip(clip, "other"), Clip(big, "noise")]
    assert await publish_sources(Config(kafka=topic), sources, 1.0, realtime=True) == 1
    out, err = capsys.readouterr()
    assert re.search(r"error  \S+noise\.mp4: could not publish \d,\d+,\d+ bytes .*max\.message\.bytes", err)
    assert f"{clip}: video camera, 3 chunks" in out
    assert f"{clip}: video other, 3 chunks" in out


async def test_a_producer_may_see_the_topic_of_chunks_alone(embedded_broker: str, clip: Path) -> None:
    kafka = fresh_names(embedded_broker, "at_least_once")
    await create_topics(kafka, partitions=1)
    hidden = {key: f"hidden-{key}" for key in ("scores_topic", "dead_letters_topic", "state_topic")}
    config = Config(kafka=kafka.model_copy(update=hidden))
    assert await publish_sources(config, [Clip(clip, "cam")], 1.0, realtime=False) == 0


async def test_topics_are_asked_for_first(embedded_broker: str, clip: Path) -> None:
    with pytest.raises(BrokerError, match="streamer topics create"):
        await publish_sources(
            Config(kafka=fresh_names(embedded_broker)), [Clip(clip, "camera")], 1.0, realtime=False
        )


async def test_the_first_failure_is_raised_as_it_is() -> None:
    async def fails() -> None:
        raise BrokerError("gone")

    async def never() -> None:
        await asyncio.sleep(3600)

    with pytest.raises(BrokerError, match="gone"):
        await gather_or_cancel([never(), fails()])

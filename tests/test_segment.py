from __future__ import annotations

import gc
import io
import os
import subprocess
import sys
import threading
from contextlib import closing, suppress
from fractions import Fraction
from pathlib import Path

import av
import media
import numpy as np
import paff
import psutil
import pytest
from decoding import decode

from streamer.child import child_environment
from streamer.errors import DecodeError
from streamer.segment import Segment, _read_segments, segments_of


def written(folder: Path, data: bytes, name: str = "clip") -> Path:
    path = folder / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("container", "codec"),
    [
        *[(container, "h264") for container in ("mpegts", "mp4", "matroska", "avi", "flv")],
        *[(container, "hevc") for container in ("mpegts", "mp4")],
        *[(container, "vp9") for container in ("webm", "mp4", "ivf")],
        *[(container, "av1") for container in ("webm", "mp4")],
    ],
)
def test_segments_hold_all_frames_once(tmp_path: Path, container: str, codec: str) -> None:
    path = written(tmp_path, media.encode(container, codec, frames=120, gop=15))
    segments = list(segments_of(path, 0.9))
    seen: list[int] = []
    for segment in segments:
        times, images, end = decode(segment.data)
        assert media.index_of(images[0]) == pytest.approx(segment.start_seconds * media.FPS, abs=0.1)
        assert end == pytest.approx(segment.duration_seconds, abs=0.04)
        precise = 0.04 if container == "avi" else 0.002  # AVI has no timestamps: FFmpeg guesses
        assert times == pytest.approx([number / media.FPS for number in range(len(times))], abs=precise)
        seen += [media.index_of(image) for image in images]
    assert seen == list(range(120))
    assert [segment.is_last for segment in segments] == [False] * (len(segments) - 1) + [True]
    assert all(segment.duration_seconds >= 0.9 for segment in segments[:-1])
    if container != "ivf":  # which states no duration
        assert segments[0].video_seconds == pytest.approx(4, abs=0.1)
    if codec == "h264":
        assert len(segments) == 4  # every second keyframe


def test_recordings_one_after_the_other(tmp_path: Path) -> None:
    """Each begins at the same time; the packets are numbered on, as where they are joined on purpose."""
    data = bytearray(media.encode("mpegts", frames=45, gop=15) * 2)
    numbers: dict[int, int] = {}
    for at in range(0, len(data), 188):
        stream = (data[at + 1] & 0x1F) << 8 | data[at + 2]
        if data[at + 3] & 0x10:  # has a payload, and with it the next number
            numbers[stream] = (numbers.get(stream, -1) + 1) % 16
        data[at + 3] = data[at + 3] & 0xF0 | numbers.get(stream, 0)
    segments = list(segments_of(written(tmp_path, bytes(data)), 0.9))
    spans = [(segment.start_seconds, segment.duration_seconds) for segment in segments]
    assert spans == [pytest.approx(span, abs=0.002) for span in ((0, 1), (1, 0.5), (1.5, 1), (2.5, 0.5))]
    seen = [media.index_of(image) for segment in segments for image in decode(segment.data)[1]]
    assert seen == [*range(45), *range(45)]
    assert [segment.is_last for segment in segments] == [False, False, False, True]


@pytest.mark.parametrize(("place", "lost"), [(0.1, 0), (0.6, 2)], ids=["first", "another"])
def test_a_damaged_segment_is_left_out(tmp_path: Path, place: float, lost: int) -> None:
    clip = media.encode("mpegts", frames=60, gop=15, width=320, height=240)
    segments = list(segments_of(written(tmp_path, media.damaged_mpegts(clip, place)), 0.4))
    left = [number for number in range(4) if number != lost]
    seen = [media.index_of(image) for segment in segments for image in decode(segment.data)[1]]
    assert seen == [frame for number in left for frame in range(15 * number, 15 * number + 15)]
    assert [segment.lost for segment in segments] == [int(number == lost + 1) for number in left]
    starts = [0.5 * number for number in left]  # also after one that was lost: as a player shows them
    assert [segment.start_seconds for segment in segments] == pytest.approx(starts, abs=0.002)


@pytest.mark.parametrize("container", ["mpegts", "mp4"])
def test_frames_of_two_field_pictures(tmp_path: Path, container: str) -> None:
    """In MPEG-TS each field is a packet, and the second has no time."""
    path = written(tmp_path, paff.interlaced_clip(container, frames=48, gop=12))
    segments = list(segments_of(path, 0.9))
    seen = []
    for segment in segments:
        times, images, end = decode(segment.data)
        assert times == pytest.approx([number / paff.FPS for number in range(24)], abs=0.002)
        assert end == pytest.approx(segment.duration_seconds, abs=0.002)
        seen += [paff.index_of(image) for image in images]
    assert seen == list(range(48))
    assert [segment.start_seconds for segment in segments] == pytest.approx([0, 0.96], abs=0.002)


@pytest.mark.parametrize("container", ["matroska", "mp4", "mpegts"])
def test_a_recording_that_starts_after_an_hour(tmp_path: Path, container: str) -> None:
    """Lasts as long as any: by its stated length the sampling rate is chosen."""
    hour = [(3600 * media.FPS + number) * media.TICKS // media.FPS for number in range(120)]
    first = next(segments_of(written(tmp_path, media.encode(container, pts=hour)), 1))
    assert (first.start_seconds, first.video_seconds) == (0, pytest.approx(4, abs=0.1))


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1", "mpeg4"])
def test_pictures_that_a_trim_hides_stay_hidden(tmp_path: Path, codec: str) -> None:
    whole = media.encode("mp4", codec, frames=120, gop=30, rotation=90)
    segments = list(segments_of(written(tmp_path, media.trimmed(whole, 50 / media.FPS)), 0.9))
    assert [segment.format for segment in segments] == ["mp4", "matroska"]
    assert [(segment.start_seconds, segment.duration_seconds) for segment in segments] == [
        pytest.approx(span, abs=0.002) for span in ((0, 4 / 3), (4 / 3, 1))
    ]
    seen = []
    for segment in segments:
        times, images, _ = decode(segment.data)
        assert times == pytest.approx([number / media.FPS for number in range(len(times))], abs=0.002)
        assert media.corners_of(images[0]) == [1, 2, 3, 0]
        upright = [np.rot90(image, -1) for image in images]
        seen += [media.index_of(image) for image in upright]
    assert seen == list(range(50, 120))


def test_an_edit_list_of_several_pieces(tmp_path: Path) -> None:
    """Nothing of a piece is lost; a picture after its end may come along if one before needs it."""
    data = media.edited(media.encode("mp4", frames=150, gop=15), [(0.7, 1.2), (2.2, 4.0)])
    segments = list(segments_of(written(tmp_path, data), 1))
    pieces = [range(21, 36), range(66, 105), range(105, 120)]
    assert len(segments) == len(pieces)
    for segment, piece in zip(segments, pieces, strict=True):
        seen = [media.index_of(image) for image in decode(segment.data)[1]]
        assert seen[: len(piece)] == list(piece)
        assert seen[len(piece) :] in ([], [piece.stop], [piece.stop + 1])
    starts = [segment.start_seconds for segment in segments]
    assert starts == pytest.approx([0, 0.5, 1.8], abs=0.002)
    assert [segment.is_last for segment in segments] == [False, False, True]


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    data = media.encode("mp4", frames=60, gop=30)
    whole = decode(data)[1]
    parts = [image for part in segments_of(written(tmp_path, data), 1) for image in decode(part.data)[1]]
    assert all(np.array_equal(one, other) for one, other in zip(whole, parts, strict=True))


@pytest.mark.parametrize("degrees", [90, 180, 270])
@pytest.mark.parametrize("codec", ["h264", "hevc", "av1"])
def test_rotation_is_kept(tmp_path: Path, codec: str, degrees: int) -> None:
    path = written(tmp_path, media.encode("mp4", codec, frames=60, rotation=degrees))
    for segment in segments_of(path, 1):
        _, images, _ = decode(segment.data)
        assert media.corners_of(images[0]) == [(corner + degrees // 90) % 4 for corner in range(4)]


def test_sound_is_left_out(tmp_path: Path) -> None:
    with_sound = written(tmp_path, media.encode("mp4", audio=True), "with")
    without = written(tmp_path, media.encode("mp4"), "without")
    assert [len(s.data) for s in segments_of(with_sound, 1)] == pytest.approx(
        [len(s.data) for s in segments_of(without, 1)], abs=50
    )


def test_one_segment_when_the_file_is_shorter(tmp_path: Path) -> None:
    (segment,) = segments_of(written(tmp_path, media.encode("mp4", frames=10)), 60)
    assert segment.is_last
    assert segment.start_seconds == 0
    assert segment.duration_seconds == pytest.approx(1 / 3, abs=0.001)


def test_variable_frame_rate(tmp_path: Path) -> None:
    pts = (0, 3000, 6000, 96_000, 99_000, 189_000, 192_000)
    path = written(tmp_path, media.encode("mp4", frames=0, pts=pts, gop=2))
    segments = list(segments_of(path, 0.1))
    shown = [segment.start_seconds + time for segment in segments for time in decode(segment.data)[0]]
    assert shown == pytest.approx([moment / media.TICKS for moment in pts], abs=0.002)
    end = segments[-1].start_seconds + segments[-1].duration_seconds
    assert end == pytest.approx(195_000 / media.TICKS, abs=0.002)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "not_media"),
        (b"This is no video. " * 100, "not_media"),
        (b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n", "not_media"),
        (bytes(100_000), "not_media"),
        (media.encode("h264", frames=3), "unsupported_format"),
    ],
)
def test_what_is_no_video(tmp_path: Path, data: bytes, reason: str) -> None:
    with pytest.raises(DecodeError) as caught:
        list(segments_of(written(tmp_path, data), 1))
    assert caught.value.reason == reason


def test_codec_that_is_not_accepted(tmp_path: Path) -> None:
    data = media.encode("avi", "mjpeg", frames=3, pix_fmt="yuvj420p")
    with pytest.raises(DecodeError) as caught:
        list(segments_of(written(tmp_path, data), 1))
    assert caught.value.reason == "unsupported_codec"


@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_truncated_mp4(tmp_path: Path, share: float) -> None:
    data = media.encode("mp4", muxer_options={"movflags": "+frag_keyframe+empty_moov"}, width=640, height=360)
    whole = media.encode("mp4", width=640, height=360)
    for name, one in (("fragmented", data), ("whole", whole)):
        with pytest.raises(DecodeError):
            list(segments_of(written(tmp_path, one[: int(len(one) * share)], name), 1))


def test_file_that_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        list(segments_of(tmp_path / "nothing.mp4", 1))
    with pytest.raises(IsADirectoryError):
        list(segments_of(tmp_path, 1))


def test_leaving_early_leaves_nothing_behind(tmp_path: Path) -> None:
    path = written(tmp_path, media.encode("mp4", frames=120, gop=5))
    me = psutil.Process()
    gc.collect()
    before = me.num_fds(), len(me.children())
    with closing(segments_of(path, 0.1)) as segments:
        next(segments)
    assert (me.num_fds(), len(me.children())) == before


def test_process_that_is_killed(tmp_path: Path) -> None:
    path = written(tmp_path, media.encode("mp4", frames=250, gop=1, width=640, height=360))
    with closing(segments_of(path, 0.01)) as segments:
        before = set(psutil.Process().children())  # brokers of other tests
        next(segments)
        (child,) = set(psutil.Process().children()) - before
        child.kill()
        with pytest.raises(DecodeError, match="SIGKILL") as caught:
            list(segments)
        assert caught.value.reason == "decoder_crashed"


def test_a_pipe_that_nobody_writes_to_can_be_given_up(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def end_soon(child: subprocess.Popen[bytes]) -> None:
        threading.Timer(0.5, child.kill).start()

    with pytest.raises(DecodeError, match="SIGKILL"):
        next(segments_of(pipe, 0.9, on_start=end_soon))


def test_a_pipe_is_read_when_somebody_writes_to_it(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    clip = media.encode(frames=60, gop=15)

    def write_soon(_: subprocess.Popen[bytes]) -> None:
        threading.Timer(0.5, pipe.write_bytes, [clip]).start()

    assert len(list(segments_of(pipe, 0.9, on_start=write_soon))) == 2


def through_a_pipe(pipe: Path, data: bytes) -> list[Segment]:
    os.mkfifo(pipe)

    def write() -> None:
        with suppress(BrokenPipeError):
            pipe.write_bytes(data)

    return list(segments_of(pipe, 0.9, on_start=lambda _: threading.Thread(target=write).start()))


def test_mp4_through_a_pipe(tmp_path: Path) -> None:
    init, fragments = media.fragmented(frames=90, gop=30)
    found = through_a_pipe(tmp_path / "fragments", init + b"".join(fragments))
    assert len(found) == 3
    assert {segment.video_seconds for segment in found} == {None}  # FFmpeg knows the first fragment's alone
    with pytest.raises(DecodeError, match="faststart"):
        through_a_pipe(tmp_path / "index", media.with_index_far_behind(media.encode("mp4")))


def test_a_pipe_gives_each_segment_as_soon_as_it_is_there(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    go_on = threading.Event()

    def write() -> None:
        with pipe.open("wb") as file:
            file.write(media.encode(frames=150, gop=30))
            file.flush()
            go_on.wait(60)

    writer = threading.Thread(target=write)
    with closing(segments_of(pipe, 0.9, on_start=lambda _: writer.start())) as segments:
        assert next(segments).start_seconds == 0
        go_on.set()
        assert len(list(segments)) == 4
    writer.join()


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_a_file_that_grows_does_not_pass_as_a_whole_one(tmp_path: Path, container: str) -> None:
    """Noise: the child waits until somebody takes what it has cut, as there is more than a pipe holds."""
    noise = np.random.default_rng(0).integers(0, 256, (240, 320, 3), np.uint8)
    roll = lambda index, width, height: np.roll(noise, 37 * index, axis=1)  # noqa: E731
    clip = media.encode(container, frames=40, gop=5, width=320, height=240, draw=roll)
    half = len(clip) // 2
    assert half > 500_000
    path = written(tmp_path, clip[:half])
    with closing(segments_of(path, 0.1)) as segments:
        next(segments)
        with path.open("ab") as file:
            file.write(clip[half : half + 188 * 1000])
        with pytest.raises(DecodeError, match="still being written"):
            list(segments)


def test_a_group_of_pictures_without_end_is_refused_in_time(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(media.encode("matroska", frames=1))) as source,
        av.open(buffer, "w", format="matroska") as output,
    ):
        (keyframe,) = (packet for packet in source.demux() if packet.size)
        keyframe.stream = output.add_stream_from_template(source.streams.video[0], opaque=True)
        output.mux(keyframe)
        for number in range(1, 81):
            packet = av.Packet(bytes(1_000_000))
            packet.stream, packet.time_base = keyframe.stream, Fraction(1, media.FPS)
            packet.pts = packet.dts = number
            output.mux(packet)
    code = "import streamer.segment as s; s.MEMORY_BYTES = 240 << 20; s.main()"
    answer = subprocess.run(
        [sys.executable, "-c", code, "2.0"],
        input=buffer.getvalue(),
        capture_output=True,
        env=child_environment(os.environ),
        check=True,
    )
    with pytest.raises(DecodeError, match="no keyframe for so long") as caught:
        list(_read_segments(io.BytesIO(answer.stdout)))
    assert caught.value.reason == "decoder_out_of_memory"

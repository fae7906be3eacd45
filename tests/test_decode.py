"""Decoding in this process, of what is known not to crash it; hostile media go to test_decode_pool."""

from __future__ import annotations

import functools
import io
from dataclasses import replace
from typing import Any

import av
import media
import numpy as np
import pytest
from decoding import LIMITS, decode

import streamer.decode
from streamer.errors import DecodeError
from streamer.nvdec import Nvdec
from streamer.sample import Sampler

encode = functools.cache(media.encode)


def refused(data: bytes, init: bytes | None = None, **settings: Any) -> str:
    """Reason of the DecodeError."""
    with pytest.raises(DecodeError) as caught:
        decode(data, init, **settings)
    assert caught.value.reason in DecodeError.REASONS
    return caught.value.reason


@pytest.mark.parametrize(("container", "codec"), media.FORMATS)
def test_every_format(container: str, codec: str) -> None:
    times, images, end = decode(encode(container, codec))
    assert [media.index_of(image) for image in images] == list(range(60))
    assert times == pytest.approx([number / media.FPS for number in range(60)], abs=0.001)
    assert end == pytest.approx(60 / media.FPS, abs=0.002)
    assert {image.shape for image in images} == {(96, 128, 3)}
    assert media.corners_of(images[7]) == [0, 1, 2, 3]


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1"])
def test_cmaf_segments_with_their_init_segment_apart(codec: str) -> None:
    init, segments = media.fragmented(codec, frames=60, gop=30)
    assert len(segments) == 2
    for number, segment in enumerate(segments):
        times, images, end = decode(segment, init)
        assert [media.index_of(image) for image in images] == list(range(30 * number, 30 * number + 30))
        assert times[0] == 0
        assert end == pytest.approx(1, abs=0.001)
        assert refused(segment) == "no_init"


def test_fragmented_mp4_in_one_piece() -> None:
    init, segments = media.fragmented(frames=60, gop=30)
    assert len(decode(init + b"".join(segments))[0]) == 60


def test_live_matroska_of_unknown_size() -> None:
    assert len(decode(encode("matroska"))[0]) == 60
    live = media.encode("matroska", muxer_options={"live": "1"})
    assert len(decode(live)[0]) == 60


@pytest.mark.parametrize("container", ["mpegts", "mp4", "matroska"])
def test_sound_is_passed_over(container: str) -> None:
    assert len(decode(encode(container, audio=True))[0]) == 60


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_variable_frame_rate_by_timestamps(container: str) -> None:
    pts = [0, 3000, 6000, 96_000, 99_000, 189_000, 192_000]  # two pauses of a second
    times, images, end = decode(encode(container, pts=tuple(pts), frames=0))
    assert times == pytest.approx([moment / media.TICKS for moment in pts], abs=0.001)
    assert end > times[-1]
    # A frame shown for a second is the one to keep at whatever moment of it.
    kept, images, _ = decode(encode(container, pts=tuple(pts), frames=0), rate=1.5)
    assert len(kept) <= 4
    assert {2, 4} <= {media.index_of(image) for image in images}


def test_a_pause_does_not_count_twice() -> None:
    """In MP4 its length is that of a picture that is decoded, not shown, before it."""
    pts = tuple(n * 3000 + (900_000 if n >= 30 else 0) for n in range(36))
    times, _, end = decode(encode("mp4", pts=pts, frames=0, gop=60))
    assert times[-1] == pytest.approx(pts[-1] / media.TICKS, abs=0.001)
    assert end == pytest.approx(times[-1] + 1 / 30, abs=0.001)


def test_sampling_keeps_the_frames_that_the_sampler_asks_for() -> None:
    data = encode("mpegts", frames=90)
    sampler = Sampler(4, seed=5)
    expected = [n for n in range(90) if sampler.takes(n / media.FPS, (n + 1) / media.FPS)]
    times, images, _ = decode(data, rate=4, seed=5)
    assert [media.index_of(image) for image in images] == expected
    assert times == pytest.approx([n / media.FPS for n in expected], abs=1e-6)
    assert [media.index_of(image) for image in decode(data, rate=4, seed=6)[1]] != expected


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_skipping_nonreference_frames(codec: str) -> None:
    """The frame before is kept in place of a skipped one; time and end do not change."""
    data = encode("mpegts", codec, frames=90)
    times, images, end = decode(data, rate=4)
    skipping = replace(LIMITS, skip_nonreference=True)
    times_skipping, images_skipping, end_skipping = decode(data, rate=4, limits=skipping)
    assert len(times_skipping) == len(times)
    assert end_skipping == pytest.approx(end)
    late = [
        media.index_of(frame) - media.index_of(reference)
        for frame, reference in zip(images, images_skipping, strict=True)
    ]
    assert set(late) <= {0, 1, 2}
    assert any(late)
    dense = decode(data, rate=20, limits=skipping)[1]  # more than half of all frames: nothing is skipped
    assert [media.index_of(image) for image in dense] == [
        media.index_of(image) for image in decode(data, rate=20)[1]
    ]


@pytest.mark.parametrize("codec", ["h264", "hevc"])
def test_open_gop_starts_at_its_keyframe(codec: str) -> None:
    options = {
        "h264": {"x264-params": "open-gop=1:keyint=20:min-keyint=20:scenecut=0:bframes=3:b-adapt=0"},
        "hevc": {"x265-params": "log-level=none:open-gop=1:keyint=20:min-keyint=20:scenecut=0:bframes=3"},
    }
    data = media.encode("mpegts", codec, frames=100, options=options[codec])
    segments = media.cut_at_keyframes(data, "mpegts")
    assert len(segments) >= 4
    seen: list[int] = []
    for segment in segments:
        times, images, _ = decode(segment)
        indices = [media.index_of(image) for image in images]
        assert indices == list(range(indices[0], indices[0] + len(indices)))
        assert times == pytest.approx([number / media.FPS for number in range(len(times))], abs=0.001)
        seen += indices
    assert len(seen) == len(set(seen))
    assert 100 - len(seen) <= 3 * (len(segments) - 1)  # leading pictures, which need the GOP before


@pytest.mark.parametrize(
    "params",
    [
        "slices=4",
        "interlaced=1",
        "bframes=4:b-pyramid=normal:weightp=2",
        "ref=5:cabac=0",
        "intra-refresh=1:keyint=20",
    ],
)
def test_h264_variants_pass(params: str) -> None:
    data = media.encode("mpegts", options={"preset": "medium", "x264-params": params})
    assert [media.index_of(image) for image in decode(data)[1]] == list(range(60))


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuvj420p", "gray"])
def test_pixel_formats(pix_fmt: str) -> None:
    _, images, _ = decode(media.encode("mp4", frames=4, pix_fmt=pix_fmt))
    assert [media.index_of(image) for image in images] == [0, 1, 2, 3]
    if pix_fmt != "gray":
        assert media.corners_of(images[0]) == [0, 1, 2, 3]


@pytest.mark.parametrize("full_range", [False, True])
@pytest.mark.parametrize(
    ("space", "height", "name"),
    [
        (1, 96, "BT.709"),
        (6, 96, "BT.601"),
        (2, 96, "untagged SD"),
        (2, 720, "untagged HD"),
        (3, 720, "reserved, HD"),
        (9, 96, "BT.2020"),
    ],
)
def test_colours_by_the_frames_own_matrix_and_range(
    space: int, height: int, name: str, full_range: bool
) -> None:
    """Kr, Kb of ITU-R BT.709, BT.601 and BT.2020."""
    kr, kb = {1: (0.2126, 0.0722), 6: (0.299, 0.114), 9: (0.2627, 0.0593)}[
        space if space not in (2, 3) else (1 if height >= 720 else 6)
    ]
    colours = np.array([(200, 40, 40), (40, 180, 60), (50, 60, 210), (128, 128, 128), (250, 250, 250)], float)
    _, images, _ = decode(coloured_clip(colours, kr, kb, space, height, full_range=full_range))
    width = images[0].shape[1]
    seen = [
        images[0][height // 2, (2 * n + 1) * width // (2 * len(colours))].astype(int)
        for n in range(len(colours))
    ]
    assert np.abs(np.array(seen) - colours).max() <= 4, name


def test_colours_of_another_kind_are_refused() -> None:
    """YCgCo, constant luminance of BT.2020, ICtCp: no matrix of ours gives their colours."""
    for space in (8, 10, 14):
        grey = coloured_clip(np.full((5, 3), 128.0), 0.299, 0.114, space, 96, full_range=False)
        assert refused(grey) == "unsupported_format"


def coloured_clip(colours: Any, kr: float, kb: float, space: int, height: int, *, full_range: bool) -> bytes:
    """One frame of vertical stripes, converted to YCbCr by the formula of ITU-R BT.709 section 3."""
    r, g, b = (colours / 255).T
    luma = kr * r + (1 - kr - kb) * g + kb * b
    cb, cr = (b - luma) / (2 - 2 * kb), (r - luma) / (2 - 2 * kr)
    levels = (
        (luma * 255, cb * 255 + 128, cr * 255 + 128)
        if full_range
        else (luma * 219 + 16, cb * 224 + 128, cr * 224 + 128)
    )
    stripe = 32
    planes = [
        np.tile(np.repeat(np.rint(level).astype(np.uint8), stripe // part), (height // part, 1))
        for level, part in zip(levels, (1, 2, 2), strict=True)
    ]
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream: Any = output.add_stream("h264", rate=media.FPS, options={"qp": "4"})
        stream.width, stream.height, stream.pix_fmt = stripe * len(colours), height, "yuv420p"
        stream.codec_context.colorspace = space
        stream.codec_context.color_range = 2 if full_range else 1
        frame = av.VideoFrame.from_ndarray(
            np.concatenate([plane.reshape(-1) for plane in planes]).reshape(height * 3 // 2, -1),
            format="yuv420p",
        )
        frame.colorspace, frame.color_range, frame.pts = space, 2 if full_range else 1, 0
        output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def test_single_picture() -> None:
    times, images, end = decode(encode("mp4", frames=1))
    assert times == [0]
    assert media.index_of(images[0]) == 0
    assert end == pytest.approx(1 / media.FPS, abs=0.001)


# what is refused


class Pretended(Nvdec):
    """Without a GPU: what would go to NVDEC is decoded on the CPU. declines: it shows that it was."""

    def __init__(self, min_pixels: int = 0, *, declines: bool = False) -> None:
        self.min_pixels, self.decoder, self.settings, self._declines = min_pixels, None, None, declines

    def note(self, pixel_format: str) -> None:
        if self._declines:
            super().note(pixel_format)


@pytest.mark.parametrize(
    ("codec", "nvdec", "decoder"),
    [
        ("h264", Pretended(), "nvdec"),
        ("h264", Pretended(min_pixels=10**6), "cpu_small"),
        ("h264", Pretended(declines=True), "cpu_refused"),
        ("av1", Pretended(), "cpu_codec"),
    ],
)
def test_nvdec_is_asked_for_some(codec: str, nvdec: Pretended, decoder: str) -> None:
    data = encode("mp4", codec)
    expected, got = decode(data), decode(data, nvdec=nvdec)
    assert nvdec.decoder == decoder
    assert (got[0], got[2]) == (expected[0], expected[2])


@pytest.mark.parametrize("after", [0, 1, 3])
def test_what_nvdec_fails_on_is_decoded_on_the_cpu(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    real, attempts = streamer.decode._sample, []

    def failing(*arguments: Any) -> Any:
        attempts.append(arguments)
        frames = real(*arguments)
        if len(attempts) > 1:
            return (yield from frames)
        for _ in range(after):
            yield next(frames)
        raise DecodeError("damaged", "the decoder failed: External library error")

    data = encode("mp4", "h264")
    expected = decode(data, rate=10)
    monkeypatch.setattr("streamer.decode._sample", failing)
    nvdec = Pretended()
    got = decode(data, rate=10, nvdec=nvdec)
    assert (nvdec.decoder, len(attempts)) == ("cpu_failed", 2)
    assert (got[0], got[2]) == (expected[0], expected[2])
    assert [media.index_of(image) for image in got[1]] == [media.index_of(image) for image in expected[1]]
    assert len(got[0]) > 3


def test_what_is_damaged_is_so_on_the_cpu_too() -> None:
    data = encode("matroska", "hevc")
    nvdec = Pretended()
    assert refused(data[: len(data) // 2], nvdec=nvdec) == refused(data[: len(data) // 2])


def test_empty() -> None:
    assert refused(b"") == "empty"


def test_too_many_pixels_are_refused_before_decoding() -> None:
    assert refused(encode("mp4"), limits=replace(LIMITS, max_pixels=128 * 96 - 1)) == "too_large"
    assert len(decode(encode("mp4"), limits=replace(LIMITS, max_pixels=128 * 96))[0]) == 60


@pytest.mark.parametrize("factor", [1.5, 4])
def test_resolution_that_grows_beyond_the_limit_midway(factor: float) -> None:
    small = media.encode("mpegts", frames=30)
    large = media.encode("mpegts", frames=30, width=int(128 * factor), height=int(96 * factor))
    joined = media.mpegts_joined(small, large)
    assert refused(joined, limits=replace(LIMITS, max_pixels=128 * 96)) == "too_large"
    _, images, _ = decode(joined)
    assert {image.shape for image in images} == {(96, 128, 3), (int(96 * factor), int(128 * factor), 3)}


def test_too_long_in_seconds() -> None:
    assert refused(encode("mp4"), limits=replace(LIMITS, max_seconds=1.0)) == "too_long"
    sparse = encode("matroska", pts=(0, 3000, 500 * media.TICKS), frames=0)
    assert refused(sparse) == "too_long"


def test_too_many_frames() -> None:
    assert refused(encode("mp4"), limits=replace(LIMITS, max_frames=59)) == "too_long"
    assert len(decode(encode("mp4"), limits=replace(LIMITS, max_frames=60))[0]) == 60


def test_sound_without_video() -> None:
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream: Any = output.add_stream("aac", rate=48_000, layout="mono")
        for number in range(20):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.rate, frame.pts = 48_000, 1024 * number
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    assert refused(buffer.getvalue()) == "no_video"


def test_codec_that_is_not_accepted() -> None:
    assert refused(media.encode("matroska", "mjpeg", frames=3, pix_fmt="yuvj420p")) == "unsupported_codec"


@pytest.mark.parametrize("container", ["avi", "flv", "mpeg", "asf", "h264"])
def test_container_that_is_not_accepted(container: str) -> None:
    assert refused(media.encode(container, frames=3)) == "unsupported_format"


def test_image() -> None:
    assert refused(b"\x89PNG\r\n\x1a\n" + bytes(1000)) == "unsupported_format"


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9"])
def test_start_between_keyframes(codec: str) -> None:
    whole = media.encode("matroska", codec, frames=60, gop=60)
    assert refused(media.without_packets(whole, lambda number: number < 5)) == "no_keyframe"


def test_reference_picture_lost_midway() -> None:
    """A lost picture that others refer to; the container itself is whole."""
    whole = media.encode("matroska", "hevc", frames=60, gop=60)
    assert refused(media.without_packets(whole, lambda number: 4 <= number <= 9)) == "damaged"


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
@pytest.mark.parametrize(("container", "codec"), media.FORMATS)
def test_truncated(container: str, codec: str, share: float) -> None:
    data = encode(container, codec)
    size = int(len(data) * share)
    if container == "mpegts":
        size += (
            size % 188 == 0
        )  # a cut between two packets may be one between two pictures: see the next test
    assert refused(data[:size]) == "damaged"


def test_h264_mpegts_cut_between_packets() -> None:
    """Within a picture, the decoder misses the rest; between two, nothing tells, but what is left is good."""
    data = encode("mpegts", width=320, height=240)
    whole = decode(data)[1]
    reasons, passed = set(), 0
    for packets in range(1, len(data) // 188):
        try:
            _, images, _ = decode(data[: packets * 188])
        except DecodeError as error:
            reasons.add(error.reason)
        else:
            passed += 1
            assert all(np.array_equal(image, whole[media.index_of(image)]) for image in images)
    assert reasons <= {"damaged", "no_frames", "no_video", "no_keyframe"}
    assert 0 < passed < len(data) // 188 - 10  # the encoder's threads make it a few more or less


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1"])
def test_any_bit_flipped_under_a_matroska_checksum(codec: str) -> None:
    data = encode("matroska", codec)
    first, last = data.index(b"\x1f\x43\xb6\x75") + 18, data.rindex(b"\x1c\x53\xbb\x6b")
    for position in np.random.default_rng(0).integers(first, last, 40).tolist():
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        assert refused(bytes(flipped)) == "damaged"


def test_mpegts_packets_missing_repeated_or_marked() -> None:
    data = encode("mpegts", width=320, height=240)
    packets = [data[at : at + 188] for at in range(0, len(data), 188)]
    middle = next(n for n, p in enumerate(packets) if n > 40 and not p[1] & 0x40 and not p[3] & 0x20)
    assert refused(b"".join(packets[:middle] + packets[middle + 1 :])) == "damaged"
    assert refused(b"".join(packets[: middle + 1] + packets[middle - 1 :])) == "damaged"
    marked = bytearray(packets[middle])
    marked[1] |= 0x80
    assert refused(b"".join([*packets[:middle], bytes(marked), *packets[middle + 1 :]])) == "damaged"
    assert refused(b"".join([*packets[: middle + 1], *packets[middle:]])) == "damaged"
    headless = bytearray(data)
    headless[data.index(b"\x00\x00\x01\xe0", 5000)] = 1  # a PES packet that FFmpeg would pass over
    assert refused(bytes(headless)) == "damaged"


@pytest.mark.parametrize("container", ["mpegts", "mp4"])
def test_a_flipped_bit_is_refused_or_leaves_all_frames(container: str) -> None:
    """What formats without checksums allow to promise: one picture's head may be lost, never more."""
    data = encode(container, width=320, height=240)
    refusals = 0
    for position in np.random.default_rng(1).integers(0, len(data), 150).tolist():
        flipped = bytearray(data)
        flipped[position] ^= 1 << (position % 8)
        try:
            times, _, _ = decode(bytes(flipped))
        except DecodeError:
            refusals += 1
        else:
            assert len(times) >= 58
    assert refusals > 30  # much of this small MPEG-TS is stuffing, which nobody reads

"""Which videos the GPU's decoder gets; needs no GPU."""

from __future__ import annotations

import pytest

from streamer.nvdec import _LIMITS, DECODERS, choose
from streamer.video_stream import CODECS

HD = 1280 * 720


@pytest.mark.parametrize(
    ("codec", "pixel_format", "width", "height", "why"),
    [
        ("h264", "yuv420p", 1920, 1080, "nvdec"),
        ("h264", "yuvj420p", 1280, 720, "nvdec"),
        ("h264", "yuv420p", 720, 1280, "nvdec"),
        ("h264", "yuv420p", 1279, 720, "cpu_small"),
        ("h264", "yuv420p", 640, 360, "cpu_small"),
        ("h264", "yuv420p", 4096, 4096, "nvdec"),
        ("h264", "yuv420p", 4112, 2160, "cpu_size"),
        ("h264", "yuv420p", 2160, 4112, "cpu_size"),
        ("h264", "yuv420p10le", 1920, 1080, "cpu_format"),
        ("h264", "yuv422p", 1920, 1080, "cpu_format"),
        ("h264", None, 1920, 1080, "cpu_format"),
        ("hevc", "yuv420p10le", 3840, 2160, "nvdec"),
        ("hevc", "yuv444p", 1920, 1080, "cpu_format"),
        ("hevc", "yuv420p", 8192, 4320, "nvdec"),
        ("hevc", "yuv420p", 8208, 4320, "cpu_size"),
        ("vp8", "yuv420p", 1920, 1080, "nvdec"),
        ("vp9", "yuv420p", 3840, 2160, "nvdec"),
        ("mpeg2video", "yuv420p", 1920, 1088, "nvdec"),
        ("mpeg4", "yuv420p", 2048, 1080, "cpu_size"),
        ("libdav1d", "yuv420p", 1920, 1080, "cpu_codec"),
        ("prores", "yuv422p10le", 1920, 1080, "cpu_codec"),
    ],
)
def test_choice(codec: str, pixel_format: str | None, width: int, height: int, why: str) -> None:
    assert choose(codec, pixel_format, width, height, HD) == (why == "nvdec", why)
    assert why in DECODERS


@pytest.mark.parametrize("codec", _LIMITS)
def test_no_video_is_smaller_than_a_decoder_takes(codec: str) -> None:
    assert choose(codec, "yuv420p", 40, 8, 0).why == "cpu_size"
    width, height = _LIMITS[codec].least
    assert choose(codec, "yuv420p", width, height, 0).hardware
    assert choose(codec, "yuv420p", width - 1, height, 0).why == "cpu_size"


def test_every_codec_is_one_that_is_decoded() -> None:
    assert set(CODECS) - set(_LIMITS) == {"libdav1d"}
    assert set(_LIMITS) <= set(CODECS)

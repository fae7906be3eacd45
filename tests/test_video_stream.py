from __future__ import annotations

import io
from pathlib import Path

import av
import media
import pytest
from decoding import decode
from structlog.testing import capture_logs

from streamer.errors import DecodeError
from streamer.files import pieces_of
from streamer.segment import segments_of


@pytest.mark.parametrize("container", ["mpegts", "matroska"])
def test_of_several_streams_the_first_is_taken_whatever_their_rates(container: str, tmp_path: Path) -> None:
    first = media.encode("mp4", pts=range(0, 2 * media.TICKS, 6000), width=160, height=96, gop=15)
    second = media.encode("mp4", frames=60, width=320, height=192)
    clip = media.side_by_side(container, first, second)
    with av.open(io.BytesIO(clip)) as source:
        best = source.streams.best("video")
        assert best is not None
        assert best.width == 320  # FFmpeg's choice
    _, images, end = decode(clip)
    assert {image.shape for image in images} == {(96, 160, 3)}
    assert (len(images), end) == (30, pytest.approx(2, abs=0.1))
    path = tmp_path / "clip"
    path.write_bytes(clip)
    segments = list(segments_of(path, 0.9))
    assert [segment.videos for segment in segments] == [2] * len(segments)
    assert {image.shape for each in segments for image in decode(each.data)[1]} == {(96, 160, 3)}


@pytest.mark.parametrize("cover", [0, 1])
def test_cover_pictures_are_passed_over(cover: int) -> None:
    clips = [media.encode("mp4", frames=30, width=160, height=96)]
    clips.insert(cover, media.encode("mp4", "mjpeg", frames=1, pix_fmt="yuvj420p", width=640, height=640))
    clip = media.side_by_side("mp4", *clips, covers=[cover])
    assert {image.shape for image in decode(clip)[1]} == {(96, 160, 3)}


def test_a_stream_that_can_be_decoded_comes_before_one_that_cannot() -> None:
    thumbnails = media.encode("matroska", "mjpeg", frames=30, pix_fmt="yuvj420p", width=640, height=640)
    clip = media.side_by_side("matroska", thumbnails, media.encode("mp4", frames=30, width=160, height=96))
    assert {image.shape for image in decode(clip)[1]} == {(96, 160, 3)}


def test_a_cover_alone_is_no_video() -> None:
    cover = media.encode("mp4", "mjpeg", frames=1, pix_fmt="yuvj420p", width=160, height=96)
    with pytest.raises(DecodeError, match="no video stream"):
        decode(media.side_by_side("mp4", cover, covers=[0]))


async def test_that_a_file_has_more_streams_is_said_once(tmp_path: Path) -> None:
    clip = media.encode("mp4", frames=60, gop=15)
    for name, data in (("one", clip), ("two", media.side_by_side("mp4", clip, clip))):
        (tmp_path / name).write_bytes(data)
        with capture_logs() as logs:
            assert [piece async for piece in pieces_of(tmp_path / name, name, 0.5)]
        assert [line["streams"] for line in logs] == ([2] if name == "two" else [])

"""Frames come upright, with square pixels, and not combed."""

from __future__ import annotations

import functools
import io
from dataclasses import replace
from fractions import Fraction

import av
import media
import numpy as np
import pytest
from decoding import LIMITS, decode

from streamer.decode import sampled_frames
from streamer.sample import Sampler
from streamer.types import UInt8Array

encode = functools.cache(media.encode)


@pytest.mark.parametrize("container", ["mp4", "matroska"])
@pytest.mark.parametrize("mirrored", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_rotation_and_mirroring_are_undone(container: str, degrees: int, mirrored: bool) -> None:
    if container == "matroska" and mirrored:
        degrees = 0  # Matroska's pose has no place for a mirrored and turned picture
    data = encode(container, frames=5, rotation=degrees, mirrored=mirrored)
    _, images, _ = decode(data)
    assert images[3].shape == ((96, 128, 3) if degrees in (0, 180) else (128, 96, 3))
    assert media.corners_of(images[3]) == media.corners_of(shown_by_a_player(data))
    if not mirrored:  # counterclockwise: at 90 degrees, the top right corner (1) comes to the top left
        assert media.corners_of(images[3]) == [(corner + degrees // 90) % 4 for corner in range(4)]


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv422p"])
@pytest.mark.parametrize(
    ("container", "codec", "options"), [("mp4", "h264", {"qp": "4"}), ("mpegts", "mpeg2video", {"qmax": "2"})]
)
def test_interlaced_frames_are_not_combed(
    container: str, codec: str, options: dict[str, str], pix_fmt: str
) -> None:
    data = media.encode(
        container, codec, frames=8, options=options, pix_fmt=pix_fmt, interlaced=True, draw=media.sliding
    )
    frames = list(sampled_frames(data, None, Sampler(1000, 1), LIMITS))
    assert all(frame.picture.interlaced_frame and frame.yuv_layout() is None for frame in frames)
    images = decode(data)[1]
    assert len(images) == 8
    inside = np.arange(128) % 16 // 4 % 3 != 0  # chroma is blurred at the bar's sides
    for number, image in enumerate(images):
        error = np.abs(image.astype(int) - media.sliding(2 * number, 128, 96))
        assert error[:, inside].max() < 40, number


def test_interlaced_frames_are_turned_upright() -> None:
    images = decode(encode("mp4", frames=3, interlaced=True, rotation=90))[1]
    assert [media.corners_of(image) for image in images] == [[1, 2, 3, 0]] * 3
    assert {image.shape for image in images} == {(128, 96, 3)}


def test_square_progressive_frames_are_only_converted() -> None:
    frames = list(sampled_frames(encode("mp4"), None, Sampler(1000, 1), LIMITS))
    for frame, image in zip(frames, decode(encode("mp4"))[1], strict=True):
        assert frame.yuv_layout() is not None
        converted = frame.picture.to_ndarray(
            format="rgb24", src_colorspace="ITU601", src_color_range="MPEG", dst_color_range="JPEG"
        )
        assert np.array_equal(image, converted)


@pytest.mark.parametrize("size", [(96, 128), (96, 200)])
@pytest.mark.parametrize("interlaced", [False, True])
def test_frames_of_nvdec_are_those_of_the_cpu(size: tuple[int, int], interlaced: bool) -> None:
    """It gives NV12, of which swscale would blur the chroma."""
    for frame in sampled_frames(encode("mp4", interlaced=interlaced), None, Sampler(1000, 1), LIMITS):
        pictures = (frame.picture, frame.picture.reformat(format="nv12"))
        planar, interleaved = (replace(frame, picture=picture, size=size) for picture in pictures)
        assert interleaved.picture.interlaced_frame == interlaced
        shown, expected = np.empty((2, *planar.shape()), np.uint8)
        interleaved.write_rgb(shown)
        planar.write_rgb(expected)
        np.testing.assert_array_equal(shown, expected)


@pytest.mark.parametrize("container", ["mpegts", "mp4", "matroska"])
@pytest.mark.parametrize(
    ("aspect", "shape"),
    [
        (Fraction(2), (96, 256, 3)),
        (Fraction(4, 3), (96, 171, 3)),
        (Fraction(8, 9), (108, 128, 3)),
        (Fraction(1, 4), (384, 128, 3)),
        (Fraction(1), (96, 128, 3)),
        (Fraction(101, 100), (96, 128, 3)),
        (Fraction(5), (96, 128, 3)),
        (Fraction(1, 5), (96, 128, 3)),
    ],
)
def test_pixels_become_square(container: str, aspect: Fraction, shape: tuple[int, int, int]) -> None:
    data = encode(container, frames=3, aspect=aspect)
    _, images, _ = decode(data)
    assert {image.shape for image in images} == {shape}
    assert [media.index_of(image) for image in images] == [0, 1, 2]
    assert media.corners_of(images[0]) == [0, 1, 2, 3]
    frame = next(sampled_frames(data, None, Sampler(1000, 1), LIMITS))
    assert (frame.yuv_layout() is None) == (shape != (96, 128, 3))


@pytest.mark.parametrize("codec", ["h264", "mpeg4"])
def test_pixels_become_square_by_their_own_shape_after_a_change(codec: str) -> None:
    """As in television, from 16:9 to 4:3 and back; the container knows the first one alone."""
    wide = media.encode("mpegts", codec, frames=12, aspect=Fraction(2))
    narrow = media.encode("mpegts", codec, frames=12, aspect=Fraction(4, 3))
    _, images, _ = decode(media.mpegts_joined(wide, narrow, wide))
    widths = [image.shape[1] for image in images]
    for begins, width in ((0, 256), (12, 171), (24, 256)):
        assert set(widths[begins : begins + 10]) == {width}  # the decoder reads two pictures ahead


@pytest.mark.parametrize(("degrees", "shape"), [(90, (256, 96, 3)), (180, (96, 256, 3)), (270, (256, 96, 3))])
def test_pixels_become_square_before_the_frame_is_turned(degrees: int, shape: tuple[int, int, int]) -> None:
    _, images, _ = decode(encode("mp4", frames=3, aspect=Fraction(2), rotation=degrees))
    assert images[1].shape == shape
    assert media.corners_of(images[1]) == [(corner + degrees // 90) % 4 for corner in range(4)]


def test_interlaced_frames_with_pixels_that_are_not_square() -> None:
    """MPEG-2 has only frames of 4:3, 16:9 and 2.21:1."""
    data = media.encode(
        "mpegts", "mpeg2video", frames=3, aspect=Fraction(4, 3), interlaced=True, draw=media.sliding
    )
    image = decode(data)[1][2]
    assert image.shape == (96, 171, 3)
    assert image[:, 89:103].mean(2).min() > 80
    assert max(image[:, :80].max(), image[:, 112:].max()) < 60


@pytest.mark.parametrize("aspect", [Fraction(2), Fraction(1, 3)])
def test_stretched_frames_keep_within_the_limit(aspect: Fraction) -> None:
    limits = replace(LIMITS, max_pixels=128 * 96)
    _, images, _ = decode(encode("mp4", frames=3, aspect=aspect), limits=limits)
    height, width, _ = images[0].shape
    assert 0.97 * limits.max_pixels < height * width <= limits.max_pixels
    assert width / height == pytest.approx(128 / 96 * aspect, rel=0.03)
    assert media.index_of(images[2]) == 2


def shown_by_a_player(data: bytes) -> UInt8Array:
    """A frame turned as the specification of the display matrix says, pixel by pixel.

    (x, y, 1) becomes (a x + c y + tx, b x + d y + ty), ISO/IEC 14496-12 section 6.2.2; of which only the
    directions matter here.
    """
    with av.open(io.BytesIO(data)) as container:
        frame = next(container.decode(video=0))
    image = frame.to_ndarray(format="rgb24")
    if "DISPLAYMATRIX" not in [item.type.name for item in frame.side_data]:
        return image
    matrix = np.frombuffer(bytes(frame.side_data["DISPLAYMATRIX"]), np.int32).reshape(3, 3) / 65536
    height, width = image.shape[:2]
    y, x = np.mgrid[:height, :width]
    new_x, new_y = matrix[0, 0] * x + matrix[1, 0] * y, matrix[0, 1] * x + matrix[1, 1] * y
    new_x, new_y = (np.rint(axis - axis.min()).astype(int) for axis in (new_x, new_y))
    shown = np.zeros((new_y.max() + 1, new_x.max() + 1, 3), np.uint8)
    shown[new_y, new_x] = image
    return shown

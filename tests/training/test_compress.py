"""H.264 and JPEG in memory: as strong as a long clip's, in place, and nothing of one picture in another."""

from __future__ import annotations

import math
from typing import Any

import av
import cv2
import numpy as np
import pytest
from portraits import astronaut, sharpness

from streamer.errors import TrainingError
from streamer.training import compress
from streamer.training.compress import Preset, h264, jpeg
from streamer.types import UInt8Array


@pytest.fixture(scope="module")
def face() -> UInt8Array:
    return astronaut().picture.rgb


def through(rgb: UInt8Array, crf: float, seed: int = 0, preset: Preset = "medium") -> UInt8Array:
    (result,) = h264([rgb], crf=crf, preset=preset, rng=np.random.default_rng(seed))
    return result


@pytest.mark.parametrize("shape", [(208, 208), (61, 97), (33, 40), (7, 5)])
def test_shape_stays(face: UInt8Array, shape: tuple[int, int]) -> None:
    image = np.ascontiguousarray(face[60 : 60 + shape[0], 50 : 50 + shape[1]])
    result = through(image, 23)
    assert (result.shape, result.dtype) == (image.shape, np.uint8)
    assert cv2.PSNR(result, image) > 20


def test_more_is_lost_at_a_higher_crf(face: UInt8Array) -> None:
    quality = [cv2.PSNR(through(face, crf), face) for crf in (1, 18, 23, 32, 40, 51)]
    assert quality == sorted(quality, reverse=True)
    assert quality[1] > 36
    assert quality[4] < 30
    assert sharpness(through(face, 40)) < 0.8 * sharpness(face)


def test_every_frame_of_the_clip_lies_where_the_picture_lay(face: UInt8Array) -> None:
    grey = cv2.cvtColor(face, cv2.COLOR_RGB2GRAY).astype(np.float32)
    results = [through(face, 18, seed) for seed in range(24)]
    assert len({result.tobytes() for result in results}) == len(results)
    for result in results:
        shift, _ = cv2.phaseCorrelate(grey, cv2.cvtColor(result, cv2.COLOR_RGB2GRAY).astype(np.float32))
        assert np.hypot(*shift) < 0.1
        assert cv2.PSNR(result, face) > 33


def test_pictures_of_one_call_share_the_parameters_and_nothing_else(face: UInt8Array) -> None:
    other = np.ascontiguousarray(face[::-1])
    rng = np.random.default_rng
    for seed in range(4):
        together = h264([face, other, face], crf=30, rng=rng(seed))
        (alone,) = h264([face], crf=30, rng=rng(seed))
        np.testing.assert_array_equal(together[0], alone)
        np.testing.assert_array_equal(together[2], alone)
        assert not np.array_equal(together[1], alone)


@pytest.mark.parametrize("preset", ["superfast", "veryfast", "medium"])
def test_same_seed_same_picture(face: UInt8Array, preset: Preset) -> None:
    """With macroblock-tree rate control, 1 of 20 is another."""
    for seed in range(60):
        np.testing.assert_array_equal(through(face, 26, seed, preset), through(face, 26, seed, preset))


@pytest.mark.parametrize("preset", ["superfast", "veryfast", "medium"])
def test_as_strong_as_in_a_long_clip(face: UInt8Array, preset: Preset) -> None:
    small = cv2.resize(face, (192, 192), interpolation=cv2.INTER_AREA)
    clip = [
        cv2.warpAffine(
            small,
            np.array([[1, 0, 3 * math.sin(t / 8)], [0, 1, 2 * math.cos(t / 8)]]),
            (192, 192),
            flags=cv2.INTER_CUBIC,
            borderMode=cv2.BORDER_REPLICATE,
        )
        for t in range(48)
    ]
    for crf in (24.0, 38.0):
        decoded = decode_long(clip, crf, preset)
        long = np.mean([cv2.PSNR(decoded[t], clip[t]) for t in range(8, 40)])
        short = np.mean([cv2.PSNR(through(small, crf, seed, preset), small) for seed in range(12)])
        better = 1.2 if preset == "veryfast" else 0.0
        assert abs(short - long - better) < 1.2, (crf, short, long)


def decode_long(clip: list[UInt8Array], crf: float, preset: str) -> list[UInt8Array]:
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width, encoder.pix_fmt, encoder.framerate = 192, 192, "yuv420p", 30
    encoder.time_base, encoder.thread_count = compress.Fraction(1, 30), 1
    encoder.options = {"crf": str(crf), "preset": preset}
    decoder: Any = av.CodecContext.create("h264", "r")
    packets = []
    for t, image in enumerate(clip):
        frame = av.VideoFrame.from_ndarray(cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420), format="yuv420p")
        frame.pts = t
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    frames = [frame for packet in (*packets, None) for frame in decoder.decode(packet)]
    return [cv2.cvtColor(frame.to_ndarray(), cv2.COLOR_YUV2RGB_I420) for frame in frames]


def test_without_libx264(face: UInt8Array, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(name: str, mode: str) -> None:
        raise av.codec.codec.UnknownCodecError(name)

    monkeypatch.setattr(av.CodecContext, "create", refuse)
    with pytest.raises(TrainingError, match=r"H\.264 of a picture of shape \(208, 208, 3\), CRF 23: libx264"):
        through(face, 23)


def test_jpeg(face: UInt8Array) -> None:
    quality = [cv2.PSNR(jpeg(face, q), face) for q in (10, 40, 90, 100)]
    assert quality == sorted(quality)
    assert quality[0] < 28 < 33 < quality[2]
    assert jpeg(face, 50).shape == face.shape
    red = np.full((16, 16, 3), (250, 10, 10), np.uint8)
    assert jpeg(red, 90)[8, 8, 0] > 200

from __future__ import annotations

import cv2
import numpy as np
import pytest
import skimage.data

from streamer.faces.crop import crop_faces
from streamer.training.altered import altered_pixels
from streamer.types import Float32Array, UInt8Array

FAKE_SQUARE, REAL_SQUARE = (120.0, 30.0, 300.0), (110.0, 44.0, 280.0)


def crop(rgb: UInt8Array, square: tuple[float, float, float], side: int) -> UInt8Array:
    x, y, length = square
    return crop_faces(rgb, np.array([[x, y, x + length, y + length]], np.float32), margin=0.0, size=side)[0]


def frames() -> tuple[UInt8Array, UInt8Array]:
    """A photograph, and the same with another colour between (230, 120) and (270, 170)."""
    real = np.ascontiguousarray(skimage.data.astronaut())
    fake = real.copy()
    fake[120:170, 230:270] = 255 - fake[120:170, 230:270]
    return fake, real


def compressed(rgb: UInt8Array, quality: int) -> UInt8Array:
    done, data = cv2.imencode(".jpg", rgb, [cv2.IMWRITE_JPEG_QUALITY, quality])
    assert done
    return np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)


def of_frame(altered: Float32Array) -> Float32Array:
    """(300, 300): as of a crop that was not shrunk."""
    return np.asarray(cv2.resize(altered, (300, 300)), np.float32)


@pytest.mark.parametrize("sides", [(300, 280), (150, 280), (300, 140)])
@pytest.mark.parametrize("qualities", [None, (35, 30)])
def test_what_was_altered(sides: tuple[int, int], qualities: tuple[int, int] | None) -> None:
    """Crops that lie elsewhere, are shrunk, and are compressed each on its own."""
    fake, real = frames()
    fake, real = crop(fake, FAKE_SQUARE, sides[0]), crop(real, REAL_SQUARE, sides[1])
    if qualities:
        fake, real = (compressed(each, q) for each, q in zip((fake, real), qualities, strict=True))
    altered = altered_pixels(fake, FAKE_SQUARE, real, REAL_SQUARE)
    assert altered is not None
    assert (altered.shape, altered.dtype) == (fake.shape[:2], np.float32)
    assert 0 <= altered.min() <= altered.max() <= 1
    inside = np.zeros((300, 300), bool)
    inside[90:140, 110:150] = True
    around = cv2.dilate(inside.astype(np.uint8), np.ones((61, 61), np.uint8)) > 0
    assert of_frame(altered)[inside].mean() > 0.8
    assert of_frame(altered)[~around].mean() < 0.05


def test_nothing_was_altered() -> None:
    _, real = frames()
    fake, real = crop(real, FAKE_SQUARE, 300), crop(real, REAL_SQUARE, 280)
    assert altered_pixels(fake, FAKE_SQUARE, real, REAL_SQUARE) is None
    assert altered_pixels(compressed(fake, 35), FAKE_SQUARE, compressed(real, 30), REAL_SQUARE) is None


def test_faces_at_different_places() -> None:
    fake, real = frames()
    assert altered_pixels(fake[:64, :64], (0.0, 0.0, 64.0), real[-64:, -64:], (448.0, 448.0, 64.0)) is None


@pytest.mark.parametrize("scale", [0.5, 0.9])
def test_frames_of_another_size(scale: float) -> None:
    fake, real = frames()
    fake = np.asarray(cv2.resize(fake, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA), np.uint8)
    x, y, side = FAKE_SQUARE
    square = (scale * x, scale * y, scale * side)
    crops = crop(fake, square, round(square[2])), crop(real, REAL_SQUARE, 280)
    assert altered_pixels(crops[0], square, crops[1], REAL_SQUARE) is None

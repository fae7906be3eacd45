"""Changes of pictures that blending and augmentation share."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from portraits import astronaut, sharpness

from streamer.training import image_ops as ops
from streamer.types import UInt8Array


@pytest.fixture(scope="module")
def face() -> UInt8Array:
    return astronaut().picture.rgb


def test_tones() -> None:
    levels = np.arange(256, dtype=np.uint8)[:, None, None].repeat(3, axis=2)
    np.testing.assert_array_equal(ops.adjust_tones(levels), levels)
    brighter = ops.adjust_tones(levels, brightness=0.1)
    np.testing.assert_array_equal(brighter[[0, 100, 250], 0, 0], [26, 126, 255])
    np.testing.assert_array_equal(ops.adjust_tones(levels, contrast=1.0)[[64, 127, 128], 0, 0], [0, 126, 128])
    np.testing.assert_array_equal(ops.adjust_tones(levels, gamma=2.0)[[0, 51, 255], 0, 0], [0, 10, 255])
    np.testing.assert_array_equal(ops.adjust_tones(levels, shift=(5, 0, -7))[100, 0], [105, 100, 93])


def test_colour_keeps_luma(face: UInt8Array) -> None:
    assert np.abs(ops.adjust_colour(face).astype(int) - face).max() <= 1
    grey = ops.adjust_colour(face, saturation=-1.0).astype(int)
    assert np.abs(grey - grey.mean(axis=2, keepdims=True)).max() <= 1
    muted = np.full((1, 1, 3), (140, 120, 110), np.uint8)
    for change in ({"hue_degrees": 40.0}, {"saturation": 0.5}):
        changed = ops.adjust_colour(muted, **change)
        assert np.abs(changed.astype(int) - muted).max() > 3
        assert float(changed[0, 0] @ ops.GREY) == pytest.approx(float(muted[0, 0] @ ops.GREY), abs=1)
    turned = ops.adjust_colour(muted, hue_degrees=180.0)[0, 0]
    assert turned[0] < turned[2], "the opposite hue of a warm grey is a cold one"


def test_detail(face: UInt8Array) -> None:
    before = sharpness(face)
    assert sharpness(ops.blur(face, 1.0)) < 0.6 * before
    assert sharpness(ops.reduce_resolution(face, 0.4, "area", "cubic")) < 0.7 * before
    assert ops.reduce_resolution(face, 0.01, "area", "linear").shape == face.shape
    assert sharpness(ops.sharpen(face, 0.8)) > 1.3 * before
    assert sharpness(ops.motion_blur(face, 6.0, 30.0)) < 0.8 * before


@pytest.mark.parametrize("filtered", [lambda rgb: ops.median(rgb, 5), lambda rgb: ops.smooth(rgb, 2.0, 40.0)])
def test_smoothing_takes_noise_and_keeps_edges(filtered: Callable[[UInt8Array], UInt8Array]) -> None:
    step = np.full((60, 60, 3), 60, np.uint8)
    step[:, 30:] = 180
    noisy = ops.add_levels(step, ops.draw_noise((60, 60), 8.0, 0.0, np.random.default_rng(0)))
    clean = filtered(noisy)
    assert (clean.shape, clean.dtype) == (noisy.shape, np.uint8)
    assert clean[:, :25].std() < 0.4 * noisy[:, :25].std()
    assert clean[:, 32:].mean() - clean[:, 27:29].mean() > 110, "a Gaussian would make a ramp of it"


@pytest.mark.parametrize(("angle", "along"), [(0.0, 1), (90.0, 0)])
def test_motion_blurs_along_its_line(angle: float, along: int) -> None:
    dot = np.zeros((21, 21, 3), np.uint8)
    dot[10, 10] = 255
    rows, columns = np.nonzero(ops.motion_blur(dot, 8.0, angle)[:, :, 0])
    spans = np.ptp(rows), np.ptp(columns)
    assert spans[along] >= 7
    assert spans[1 - along] <= 2
    white = np.full((9, 9, 3), 255, np.uint8)
    assert ops.motion_blur(white, 5.0, 33.0).min() >= 254


@pytest.mark.parametrize("grain", [0.0, 1.0])
def test_noise(grain: float) -> None:
    noise = ops.draw_noise((200, 100), 5.0, grain, np.random.default_rng(0))
    assert (noise.shape, noise.dtype) == ((200, 100, 3), np.float32)
    assert noise.std() == pytest.approx(5.0, rel=0.05)
    neighbours = np.corrcoef(noise[:, :-1].ravel(), noise[:, 1:].ravel())[0, 1]
    assert (neighbours > 0.5) == (grain > 0)


def test_levels_are_added_and_clipped() -> None:
    rgb = np.array([[[0, 100, 250]]], np.uint8)
    added = ops.add_levels(rgb, np.array([[[-9.0, 2.6, 9.0]]], np.float32))
    np.testing.assert_array_equal(added, [[[0, 103, 255]]])


@pytest.mark.parametrize("interpolation", ["linear", "cubic", "lanczos"])
def test_warp(face: UInt8Array, interpolation: ops.Interpolation) -> None:
    window = (40, 30, 100, 90)
    inside = face[30:120, 40:140]
    still = np.array([[1, 0, 0], [0, 1, 0]], np.float32)
    none = ops.Placement(still, None, face.shape[:2], interpolation)
    np.testing.assert_array_equal(ops.warp(face, none, window), inside)
    shifted = ops.Placement(still + np.float32([[0, 0, 3], [0, 0, -2]]), None, face.shape[:2], interpolation)
    np.testing.assert_array_equal(ops.warp(face, shifted, window), face[28:118, 43:143])
    field = np.full((4, 4, 2), (3, -2), np.float32)
    displaced = ops.Placement(still, field, face.shape[:2], interpolation)
    assert np.abs(ops.warp(face, displaced, window).astype(int) - face[28:118, 43:143]).max() <= 1


def test_warp_mirrors_the_edges() -> None:
    white = np.full((20, 20, 3), 255, np.uint8)
    away = np.array([[1, 0, 15], [0, 1, -15]], np.float32)
    placement = ops.Placement(away, np.zeros((3, 3, 2), np.float32), (20, 20), "cubic")
    assert ops.warp(white, placement, (0, 0, 20, 20)).min() == 255

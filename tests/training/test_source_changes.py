"""What sets a source apart: each change, its range, and the colours of another picture."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from portraits import astronaut, sharpness
from pydantic import ValidationError

from streamer.training.source_changes import (
    FREQUENCIES,
    Frequency,
    FrequencyWeights,
    SourceChanges,
    change,
    change_frequency,
    draw_warp,
    match_colours,
)
from streamer.types import UInt8Array

STILL = SourceChanges(
    colour=0, shading=0, frequencies=FrequencyWeights(**{k: k == "none" for k in FREQUENCIES})
)


def only(kind: Frequency) -> SourceChanges:
    return SourceChanges(
        colour=0, shading=0, frequencies=FrequencyWeights(**{k: k == kind for k in FREQUENCIES})
    )


@pytest.fixture(scope="module")
def face() -> UInt8Array:
    return astronaut().picture.rgb


@pytest.mark.parametrize(
    ("kind", "least", "most"),
    [
        ("none", 1, 1),
        ("downscale", 0.1, 0.95),
        ("sharpen", 1.05, 4),
        ("blur", 0.1, 0.95),
        ("jpeg", 0.4, 1.1),
        ("noise", 1.02, 4),
        ("repaint", 0.3, 1.4),
    ],
)
def test_sharpness_changes_as_named(face: UInt8Array, kind: Frequency, least: float, most: float) -> None:
    for seed in range(6):
        changed = change_frequency(face, np.random.default_rng(seed), only(kind))
        assert least <= sharpness(changed) / sharpness(face) <= most
        assert np.array_equal(changed, face) == (kind == "none")
        assert np.abs(changed.mean(axis=(0, 1)) - face.mean(axis=(0, 1))).max() < 2, "colours stay"


def test_repainting_keeps_edges_and_takes_noise_away() -> None:
    edge = np.full((60, 60, 3), 60, np.uint8)
    edge[:, 30:] = 190
    noisy = np.clip(edge + np.random.default_rng(0).normal(0, 4, edge.shape), 0, 255).astype(np.uint8)
    changed = change_frequency(noisy, np.random.default_rng(1), only("repaint"))
    flat = slice(5, 55), slice(5, 25)
    assert changed[flat].std() < 0.6 * noisy[flat].std()
    assert int(changed[30, 31, 0]) - int(changed[30, 28, 0]) > 100


@pytest.mark.parametrize("which", ["colour", "shading"])
def test_colour_and_light(face: UInt8Array, which: str) -> None:
    config = STILL.model_copy(update={which: 1.0})
    off = []
    for seed in range(20):
        changed = change(face, np.random.default_rng(seed), config)
        off.append(np.abs(changed.astype(int) - face).mean())
    assert min(off) > 0.3
    assert max(off) < 50
    assert np.ptp(off) > 3, "weak ones and strong ones"
    np.testing.assert_array_equal(change(face, np.random.default_rng(0), STILL), face)


def test_warp_is_small_and_varied(face: UInt8Array) -> None:
    config, face_px = SourceChanges(), 94.0
    moves = []
    for seed in range(30):
        place = draw_warp(face.shape, face_px, np.random.default_rng(seed), config)
        middle = np.array([104.0, 104.0])
        moves.append(place.matrix[:, :2] @ middle + place.matrix[:, 2] - middle)
        assert np.abs(moves[-1]).max() < 0.06 * face_px
        assert abs(np.linalg.det(place.matrix[:, :2]) - 1) < 0.11
        assert place.displacement is not None
        assert np.abs(place.displacement).max() < 0.06 * face_px
    assert np.std(moves) > 0.5
    still = draw_warp(
        face.shape, face_px, np.random.default_rng(0), config.model_copy(update={"warp_strength": (0, 0)})
    )
    np.testing.assert_allclose(still.matrix, [[1, 0, 0], [0, 1, 0]], atol=1e-5)
    assert not np.any(still.displacement)


def test_colours_are_matched_under_the_mask(face: UInt8Array) -> None:
    mask = np.zeros(face.shape[:2], np.float32)
    mask[60:150, 60:150] = 1
    inside = mask > 0
    tinted = np.clip(face * np.array([0.7, 0.9, 1.2]) + [10, 0, 0], 0, 255).astype(np.uint8)

    def off(rgb: UInt8Array) -> float:
        return float(np.abs(rgb[inside].astype(int).mean(axis=0) - face[inside].mean(axis=0)).max())

    whole, half = match_colours(tinted, face, mask, 1.0), match_colours(tinted, face, mask, 0.5)
    assert off(whole) < 5 < off(half) < off(tinted)
    assert np.abs(match_colours(tinted, face, mask, 0.0).astype(int) - tinted).mean() < 2  # Lab in 8 bits
    flat = np.full_like(face, 128)
    flat[::2] = 129
    assert match_colours(flat, face, mask, 1.0)[inside].std(axis=0).max() < 10, "noise is not blown up"


def test_wrong_configuration() -> None:
    with pytest.raises(ValidationError, match="above 0"):
        FrequencyWeights(**dict.fromkeys(FREQUENCIES, 0.0))
    with pytest.raises(ValidationError):
        SourceChanges.model_validate({"colors": 1})


def test_small_pictures() -> None:
    small = cv2.resize(astronaut().picture.rgb, (9, 7))
    for kind in FREQUENCIES:
        assert change_frequency(small, np.random.default_rng(0), only(kind)).shape == (7, 9, 3)

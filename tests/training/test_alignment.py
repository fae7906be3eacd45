"""One face laid over another: a known move is found again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from portraits import astronaut, moved

from streamer.training.alignment import FacePicture, align, misfit
from streamer.training.image_ops import warp
from streamer.types import Float32Array, UInt8Array


def turned(degrees: float, scale: float, x: float, y: float) -> Float32Array:
    cos, sin = scale * np.cos(np.deg2rad(degrees)), scale * np.sin(np.deg2rad(degrees))
    return np.array([[cos, -sin, x], [sin, cos, y]], np.float32)


def laid_over(source: FacePicture, target: FacePicture) -> UInt8Array:
    height, width = target.rgb.shape[:2]
    return warp(*align(source, target), (0, 0, width, height))


def off(source: FacePicture, target: FacePicture) -> float:
    """Mean difference in the face, levels."""
    face = slice(60, 160), slice(60, 150)
    return float(np.abs(laid_over(source, target)[face].astype(int) - target.rgb[face]).mean())


@pytest.mark.parametrize("with_landmarks", [True, False])
@pytest.mark.parametrize(
    ("matrix", "side", "levels"),
    [
        (turned(0, 1, 0, 0), 208, 0.5),
        (turned(15, 1, 40, -10), 240, 3),
        (turned(-10, 1.5, 20, 30), 384, 3),
        (turned(5, 0.6, 10, 5), 150, 7),
        (turned(0, 2.5, -60, -60), 384, 3),
    ],
)
def test_a_similarity_is_undone(matrix: Float32Array, side: int, levels: float, with_landmarks: bool) -> None:
    target = astronaut().picture
    source = moved(target, matrix, side)
    if not with_landmarks:
        source = replace(source, landmarks=None)
    unmoved = replace(source, keypoints=target.keypoints, landmarks=None)
    assert off(source, target) < levels
    if matrix[0, 1]:
        assert off(source, target) < 0.5 * off(unmoved, target)
    assert misfit(source, target) < 1e-3


def test_landmarks_undo_what_is_no_affine_map() -> None:
    """A mouth moved down by 6 px: its place in the source is looked up 6 px lower."""
    target = astronaut().picture
    assert target.landmarks is not None
    mouth = target.keypoints[3]
    near = np.linalg.norm(target.landmarks - mouth, axis=1) < 18
    source = replace(
        target, landmarks=target.landmarks + np.where(near[:, None], [0, 6], 0).astype(np.float32)
    )
    result = laid_over(source, target).astype(int)
    x, y = np.rint(mouth).astype(int)
    patch = slice(y - 5, y + 5), slice(x - 8, x + 8)
    lower = target.rgb[y + 1 : y + 11, x - 8 : x + 8].astype(int)
    assert np.abs(result[patch] - lower).mean() < 0.5 * np.abs(result[patch] - target.rgb[patch]).mean()
    eyes = slice(70, 90), slice(75, 135)
    assert np.abs(result[eyes] - target.rgb[eyes]).mean() < 8


def test_misfit_grows_with_the_turn_of_the_head() -> None:
    target = astronaut().picture
    assert target.landmarks is not None

    def narrowed(share: float) -> FacePicture:
        return moved(target, np.array([[share, 0, 0], [0, 1, 0]], np.float32), 208)

    values = [misfit(narrowed(share), target) for share in (1.0, 0.95, 0.8, 0.5)]
    assert values == sorted(values)
    assert values[0] < 1e-4
    assert 0.03 < values[2] < 0.2

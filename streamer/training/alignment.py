"""One face laid over another: which two fit, and where each pixel of the target's picture is found in the
source's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np

from streamer.training.face_regions import face_size_px
from streamer.training.image_ops import Placement
from streamer.training.types import CropRecord
from streamer.types import Float32Array, UInt8Array

GRID = 20
"""Cells a side of the grid on which the landmarks' displacements are interpolated."""
REACH = 0.06
"""Standard deviation of their Gaussian weights, share of the face's width: about two points of the mesh."""
SHRINK_FROM = 0.75
"""Scale below which a source is averaged before it is sampled, lest it alias."""

PARTNERS = 16
"""Faces of other people among which the one of the most similar pose is taken for a cross-blend."""

_NO_PIXELS = np.zeros((1, 1, 3), np.uint8)


@dataclass(frozen=True, slots=True)
class FacePicture:
    """A picture with one face."""

    rgb: UInt8Array
    """(height, width, 3) uint8 RGB."""
    landmarks: Float32Array | None
    """(468, 2) float32 pixels, MediaPipe's face mesh; None: not known."""
    keypoints: Float32Array
    """(6, 2) float32 pixels, as BlazeFace gives them."""


def align(source: FacePicture, target: FacePicture) -> tuple[UInt8Array, Placement]:
    """Picture to sample, and where each pixel of the target's picture is found in it.

    By keypoints: the similarity of least squares. By landmarks, if both have them: the affine map of least
    squares and, on top of it, what each landmark is still off by, spread smoothly over its surroundings
    (Nadaraya-Watson regression), so that eyes and mouths meet. Raises TrainingError if the target's keypoints
    are no face's.
    """
    goal, points = _points(target, source)
    matrix = _fit(goal, points, affine=source.landmarks is not None and target.landmarks is not None)
    rgb = source.rgb
    scale = float(np.sqrt(abs(np.linalg.det(matrix[:, :2]))))  # pixels of the source for one of the target
    if 1 / scale < SHRINK_FROM:
        size = [max(1, round(side / scale)) for side in rgb.shape[1::-1]]
        rgb = np.asarray(cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), np.uint8)
        shrunk = np.divide(rgb.shape[1::-1], source.rgb.shape[1::-1], dtype=np.float32)
        # a pixel's centre is at +0.5 on both sides of the change
        matrix = matrix * shrunk[:, None]
        matrix[:, 2] += 0.5 * shrunk - 0.5
        points = (points + 0.5) * shrunk - 0.5
    displacement = None
    if len(goal) > len(target.keypoints):
        left_over = points - (goal @ matrix[:, :2].T + matrix[:, 2])
        displacement = _spread(goal, left_over, target.rgb.shape[:2], REACH * face_size_px(target.keypoints))
    return rgb, Placement(matrix.astype(np.float32), displacement, target.rgb.shape[:2], "cubic")


def misfit(source: FacePicture, target: FacePicture) -> float:
    """How unlike two faces are turned: what remains between their points after the best similarity.

    Root mean square, share of the target face's width; pictures of one pose are below about 0.05.
    """
    goal, points = _points(target, source)
    matrix = _fit(points, goal, affine=False)
    off = points @ matrix[:, :2].T + matrix[:, 2] - goal
    return float(np.sqrt((off**2).sum(axis=1).mean()) / face_size_px(target.keypoints))


def find_partner(record: CropRecord, draw: Callable[[], CropRecord]) -> CropRecord:
    """Of some faces of other groups, the one that is turned most alike. draw: one of faces of all groups, of
    which there are at least two."""
    drawn = [draw() for _ in range(PARTNERS)]
    others = [other for other in drawn if other.group != record.group]
    while not others:
        other = draw()
        others = [other] if other.group != record.group else []
    target, *faces = (
        FacePicture(_NO_PIXELS, None, np.array(each.keypoints, np.float32)) for each in (record, *others)
    )
    return others[int(np.argmin([misfit(face, target) for face in faces]))]


def _points(target: FacePicture, source: FacePicture) -> tuple[Float32Array, Float32Array]:
    if target.landmarks is not None and source.landmarks is not None:
        return target.landmarks, source.landmarks
    return target.keypoints, source.keypoints


def _fit(start: Float32Array, end: Float32Array, *, affine: bool) -> Float32Array:
    """(2, 3) map of least squares from points (n, 2) to points (n, 2)."""
    x, y = start.astype(np.float64).T
    one, zero = np.ones_like(x), np.zeros_like(x)
    if affine:
        columns = np.stack([x, y, one], axis=1)
        return np.asarray(np.linalg.lstsq(columns, end.astype(np.float64))[0].T, np.float32)
    rows = np.concatenate([np.stack([x, -y, one, zero], axis=1), np.stack([y, x, zero, one], axis=1)])
    a, b, c, d = np.linalg.lstsq(rows, end.T.ravel().astype(np.float64))[0]
    return np.array([[a, -b, c], [b, a, d]], np.float32)


def _spread(
    places: Float32Array, values: Float32Array, shape: tuple[int, int], reach_px: float
) -> Float32Array:
    """Mean of values (n, 2) around each cell of a grid over the picture, (GRID, GRID, 2) float32."""
    height, width = shape
    cells = (np.arange(GRID, dtype=np.float32) + 0.5) / GRID
    x, y = np.meshgrid(cells * width - 0.5, cells * height - 0.5)
    centres = np.stack([x, y], axis=-1).reshape(-1, 1, 2)
    squared = ((centres - places) ** 2).sum(axis=-1) / reach_px**2  # (cells, n)
    weights = np.exp(-0.5 * (squared - squared.min(axis=1, keepdims=True)))  # never all zero
    weights /= weights.sum(axis=1, keepdims=True)
    return np.asarray((weights @ values).reshape(GRID, GRID, 2), np.float32)

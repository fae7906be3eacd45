"""Where the parts of a face are: outlines from MediaPipe's mesh, or from BlazeFace's six keypoints.

Points are (x, y), pixels. "Right" is the person's own.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Literal, get_args

import cv2
import numpy as np

from streamer.errors import TrainingError
from streamer.training.landmarks import POINTS
from streamer.types import Float32Array

Region = Literal[
    "face", "jaw_to_brows", "inner_face", "lower_half", "mouth_and_chin", "mouth", "eyes", "nose"
]
REGIONS: tuple[Region, ...] = get_args(Region)

SMALLEST_FACE_PX = 8.0

# Numbers of the mesh's points: FACE_OVAL, LIPS, ..._EYE, ..._EYEBROW of MediaPipe's face_mesh_connections.py;
# those of the nose and cheeks from its canonical_face_model_uv_visualization.png. The oval runs from the top
# of the forehead clockwise as seen in the picture.
FACE_OVAL = (
    *(10, 338, 297, 332, 284, 251, 389, 356, 454, 323, 361, 288, 397, 365, 379, 378, 400, 377),
    *(152, 148, 176, 149, 150, 136, 172, 58, 132, 93, 234, 127, 162, 21, 54, 103, 67, 109),
)
OUTER_LIPS = (61, 146, 91, 181, 84, 17, 314, 405, 321, 375, 291, 409, 270, 269, 267, 0, 37, 39, 40, 185)
RIGHT_EYE, LEFT_EYE = (33, 145, 133, 159), (263, 374, 362, 386)
RIGHT_EYEBROW, LEFT_EYEBROW = (46, 70, 63, 105, 66, 107, 55), (276, 300, 293, 334, 296, 336, 285)
NOSE = (168, 122, 351, 129, 358, 48, 278, 98, 327, 2)
CHEEKS = (50, 280)
BELOW_EYES = (118, 119, 347, 348)
NASOLABIAL_FOLDS = (216, 212, 436, 432)
CHIN = (175, 171, 396)
EAR_TO_EAR = FACE_OVAL[FACE_OVAL.index(356) : FACE_OVAL.index(127) + 1]
"""Jaw line from ear to ear, as the 68 points of iBUG have it."""
LOWER_JAW = FACE_OVAL[FACE_OVAL.index(361) : FACE_OVAL.index(132) + 1]
BROWS = (*RIGHT_EYEBROW, *LEFT_EYEBROW)

_POINTS: MappingProxyType[Region, tuple[int, ...]] = MappingProxyType(
    {
        "face": FACE_OVAL,
        "jaw_to_brows": (*EAR_TO_EAR, *BROWS),
        "inner_face": (*BROWS, *CHEEKS, *OUTER_LIPS),
        "lower_half": (*LOWER_JAW, *CHEEKS, 2),
        "mouth_and_chin": (*OUTER_LIPS, 2, *NASOLABIAL_FOLDS, *CHIN),
        "mouth": (*OUTER_LIPS, 164, 18),
        "eyes": (*RIGHT_EYE, *LEFT_EYE, *BROWS, *BELOW_EYES),
        "nose": NOSE,
    }
)

_ELLIPSES: MappingProxyType[Region, tuple[float, float, float, float]] = MappingProxyType(
    {
        "face": (0, 0.28, 1.10, 1.40),
        "jaw_to_brows": (0, 0.62, 1.05, 1.02),
        "inner_face": (0, 0.42, 0.80, 0.84),
        "lower_half": (0, 1.08, 0.90, 0.58),
        "mouth_and_chin": (0, 1.08, 0.62, 0.48),
        "mouth": (0, 1.00, 0.50, 0.30),
        "eyes": (0, -0.08, 0.85, 0.32),
        "nose": (0, 0.45, 0.33, 0.50),
    }
)
"""Centre and half axes (x, y) in units of the vector between the eyes (x) and of that from their middle to
the mouth (y), which are about 63 and 69 mm of a face 140 mm wide and 190 mm high."""

CORNERS = 64
"""Of an outline from an ellipse."""


def face_size_px(keypoints: Float32Array) -> float:
    """About the width of the face. keypoints: (6, 2) float32 as BlazeFace gives them.

    Raises TrainingError below 8 px: the keypoints are no face's then.
    """
    across, down = _axes(keypoints)
    size = 2.2 * max(float(np.linalg.norm(across)), 0.9 * float(np.linalg.norm(down)))
    if not size >= SMALLEST_FACE_PX:
        raise TrainingError(f"keypoints span a face of {size:.1f} px, at least {SMALLEST_FACE_PX:g} needed")
    return size


def region_outline(region: Region, landmarks: Float32Array | None, keypoints: Float32Array) -> Float32Array:
    """Convex outline of a region, (n, 2) float32.

    landmarks: (468, 2) float32, MediaPipe's face mesh; if None, an ellipse is set by the keypoints, (6, 2).
    """
    if keypoints.shape != (6, 2) or (landmarks is not None and landmarks.shape != (POINTS, 2)):
        raise ValueError(
            f"landmarks, keypoints must be ({POINTS}, 2) or None, (6, 2), got "
            f"{None if landmarks is None else landmarks.shape}, {keypoints.shape}"
        )
    if landmarks is not None:
        hull = cv2.convexHull(np.asarray(landmarks[list(_POINTS[region])], np.float32))
        return np.asarray(hull[:, 0], np.float32)
    across, down = _axes(keypoints)
    if float(np.linalg.norm(across)) < 0.5 * float(np.linalg.norm(down)):  # in profile the eyes meet
        across = np.array([down[1] / 2, -down[0] / 2], np.float32)
    x, y, half_x, half_y = _ELLIPSES[region]
    angle = np.linspace(0, 2 * np.pi, CORNERS, endpoint=False)
    units = np.stack([x + half_x * np.cos(angle), y + half_y * np.sin(angle)], axis=1)
    middle = keypoints[:2].mean(axis=0)
    return np.asarray(middle + units @ np.stack([across, down]), np.float32)


def _axes(keypoints: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Right eye to left eye, middle of the eyes to mouth."""
    right_eye, left_eye, _, mouth = keypoints[:4]
    return left_eye - right_eye, mouth - (right_eye + left_eye) / 2

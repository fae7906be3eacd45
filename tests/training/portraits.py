"""A face with its landmarks, cut as the crop cache cuts it; and pictures of it elsewhere."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import skimage.data

from streamer.backends.load import load_network
from streamer.training.alignment import FacePicture
from streamer.training.contact_sheet import SheetFace
from streamer.training.landmarks import LandmarkFinder
from streamer.types import Float32Array, UInt8Array

ENGINES = Path(__file__).parents[2] / "engines"
LEFT, TOP, SIDE = 121, 24, 208
"""Of the crop in skimage's astronaut: about 0.6 box sides around the face."""
BOX = (178.0, 80.9, 272.1, 175.0)
KEYPOINTS = ((204, 101), (248, 108), (222, 125), (219, 146), (178, 109), (271, 125))
"""What the detector says of it, pixels of the whole picture."""


@cache
def _astronaut() -> SheetFace:
    rgb = skimage.data.astronaut()
    finder = LandmarkFinder(load_network(ENGINES / "face_landmark.json", backend="openvino", precision="f32"))
    keypoints = np.array(KEYPOINTS, np.float32)
    landmarks = finder.find(rgb, np.array(BOX, np.float32), keypoints)
    assert landmarks is not None
    corner = np.array([LEFT, TOP], np.float32)
    crop = np.ascontiguousarray(rgb[TOP : TOP + SIDE, LEFT : LEFT + SIDE])
    crop.setflags(write=False)
    box = (BOX[0] - LEFT, BOX[1] - TOP, BOX[2] - LEFT, BOX[3] - TOP)
    return SheetFace(FacePicture(crop, landmarks - corner, keypoints - corner), box)


def astronaut(*, landmarks: bool = True) -> SheetFace:
    """The face, (208, 208) px; its box is 94 px wide. Read-only."""
    face = _astronaut()
    return face if landmarks else SheetFace(replace(face.picture, landmarks=None), face.box)


def moved(picture: FacePicture, matrix: Float32Array, side: int) -> FacePicture:
    """The picture after an affine map (2, 3) of its pixels, (side, side)."""
    rgb = cv2.warpAffine(
        picture.rgb, matrix, (side, side), flags=cv2.INTER_AREA, borderMode=cv2.BORDER_REFLECT_101
    )

    def map_points(points: Float32Array) -> Float32Array:
        return (points @ matrix[:, :2].T + matrix[:, 2]).astype(np.float32)

    assert picture.landmarks is not None
    return FacePicture(
        np.asarray(rgb, np.uint8), map_points(picture.landmarks), map_points(picture.keypoints)
    )


def sharpness(rgb: UInt8Array) -> float:
    """Mean absolute Laplacian, levels."""
    grey = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY)
    return float(np.abs(cv2.Laplacian(grey, cv2.CV_32F)).mean())

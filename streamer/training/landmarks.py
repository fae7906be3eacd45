"""Face crops -> the 468 points of a face mesh, by MediaPipe Face Mesh.

Kartynnik et al., Real-time Facial Surface Geometry from Monocular Video on Mobile GPUs (2019). The network
wants the face upright in the middle of its input. As in MediaPipe, that is a square 1.5 times the longer side
of the box, around its centre, turned so that the eyes are level (mediapipe/modules/face_landmark/
face_detection_front_detection_to_roi.pbtxt).
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from streamer.backends.base import Network
from streamer.errors import ManifestError
from streamer.types import Float32Array, UInt8Array

POINTS = 468
"""Of MediaPipe's canonical face model; its numbering."""

REGION_SCALE = 1.5
"""Side of the network's view in longer sides of the face's box, as in MediaPipe."""

MIN_PRESENCE = 0.5
"""Probability of a face in the view from which its points are believed, as in MediaPipe."""

_RIGHT_EYE, _LEFT_EYE = 0, 1


class LandmarkFinder:
    """Finds the landmarks of detected faces."""

    def __init__(self, network: Network, *, min_presence: float = MIN_PRESENCE) -> None:
        """Put a network to use; it stays the caller's to close.

        min_presence: see MIN_PRESENCE. Raises ManifestError if the network finds no landmarks.
        """
        manifest = network.manifest
        if manifest.kind != "landmarks" or manifest.input.height != manifest.input.width:
            raise ManifestError(f"{manifest.name}: not a network for landmarks with a square input")
        self._network, self._min_presence = network, min_presence

    def find(self, rgb: UInt8Array, box: Float32Array, keypoints: Float32Array) -> Float32Array | None:
        """Landmarks of one face, (468, 2) float32 (x, y), pixels of `rgb`; None if there is no face.

        rgb: (height, width, 3) uint8. box: (4,) and keypoints: (6, 2), the detector's, pixels of `rgb`.
        Blocks. Raises InferenceError.
        """
        size = self._network.manifest.input.width
        to_view = view_of(box, keypoints, size)
        landmarks, presence = self._network.run(look_at(rgb, to_view, size)[None])
        # As probabilities, and safe from overflow: sigmoid(x) = (1 + tanh(x / 2)) / 2.
        if (1 + math.tanh(float(presence[0, 0]) / 2)) / 2 < self._min_presence:
            return None
        back = cv2.invertAffineTransform(to_view)  # (2, 3)
        return (landmarks[0, :, :2] @ back[:, :2].T + back[:, 2]).astype(np.float32)  # (468, 2)


def view_of(box: Float32Array, keypoints: Float32Array, size: int) -> NDArray[np.float64]:
    """Turn and scale that bring a face upright into (size, size), (2, 3) float64: image -> view pixels."""
    centre = (box[:2].astype(np.float64) + box[2:]) / 2
    side = REGION_SCALE * float((box[2:] - box[:2]).max())
    # The subject's right eye is on the left of the image.
    run, rise = (keypoints[_LEFT_EYE] - keypoints[_RIGHT_EYE]).tolist()
    angle = math.degrees(math.atan2(rise, run))
    to_view = np.asarray(cv2.getRotationMatrix2D(centre.tolist(), angle, size / side), np.float64)
    to_view[:, 2] += size / 2 - centre
    return to_view


def look_at(rgb: UInt8Array, to_view: NDArray[np.float64], size: int) -> UInt8Array:
    """What the network sees, (size, size, 3) uint8; beyond the image its edge pixels repeat."""
    return np.asarray(
        cv2.warpAffine(rgb, to_view, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE),
        np.uint8,
    )

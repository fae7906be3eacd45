"""The three networks, and frames with a face at a known size and place."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data

from streamer.backends.base import Network
from streamer.backends.load import load_network
from streamer.config import FacesConfig
from streamer.faces.detect import FaceDetector
from streamer.types import Float32Array, UInt8Array

ENGINES = Path(__file__).parents[2] / "engines"
ASTRONAUT_BOX = (177, 81, 272, 175)
"""What the original short-range network says of `astronaut()` in LiteRT."""

MakeDetector = Callable[..., FaceDetector]
Paste = Callable[..., tuple[UInt8Array, Float32Array]]


@pytest.fixture(scope="session")
def networks() -> Iterator[dict[str, Network]]:
    """`short_range`, `back`, `full_range`."""
    loaded = {
        name: load_network(ENGINES / f"blazeface_{name}.json", backend="openvino", precision="f32")
        for name in ("short_range", "back", "full_range")
    }
    yield loaded
    for network in loaded.values():
        network.close()


@pytest.fixture(scope="session")
def make_detector(networks: dict[str, Network]) -> MakeDetector:
    """The default detector, with changes to its configuration."""

    def make(**changes: object) -> FaceDetector:
        config = FacesConfig(**changes)  # type: ignore[arg-type]
        return FaceDetector(
            networks["short_range"], config, scanner=networks["back"], verifier=networks["full_range"]
        )

    return make


@pytest.fixture(scope="session")
def scenery() -> UInt8Array:
    """A face-free frame, (1080, 1920, 3)."""
    halves = [
        cv2.resize(picture[: picture.shape[1] * 1080 // 960], (960, 1080), interpolation=cv2.INTER_CUBIC)
        for picture in (skimage.data.coffee(), skimage.data.rocket())
    ]
    return np.concatenate(halves, axis=1)


@pytest.fixture(scope="session")
def paste() -> Paste:
    """paste(frame, x, y, height_px) -> the frame with the astronaut's head, its face there, and the box."""
    astronaut = skimage.data.astronaut()
    left, top, right, bottom = 115, 0, 330, 230
    y, x = np.mgrid[top:bottom, left:right].astype(np.float32)
    radius = np.hypot((x - 224.5) / 95, (y - 115) / 115)
    head_mask = np.clip((1 - radius) / 0.2, 0, 1)[:, :, None]

    def put(frame: UInt8Array, x: int, y: int, height_px: float) -> tuple[UInt8Array, Float32Array]:
        scale = height_px / (ASTRONAUT_BOX[3] - ASTRONAUT_BOX[1])
        size = (round((right - left) * scale), round((bottom - top) * scale))
        way = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        head = cv2.resize(astronaut[top:bottom, left:right], size, interpolation=way)
        mask = cv2.resize(head_mask, size, interpolation=way)[:, :, None].clip(0, 1)
        box = (np.array(ASTRONAUT_BOX, np.float32) - np.array([left, top, left, top])) * scale
        at_x, at_y = x - round(float(box[0])), y - round(float(box[1]))
        result = frame.copy()
        place = result[max(0, at_y) : at_y + size[1], max(0, at_x) : at_x + size[0]]
        inside = np.s_[max(0, -at_y) :, max(0, -at_x) :]
        head, alpha = (
            part[inside][: place.shape[0], : place.shape[1]] for part in (head.astype(np.float32), mask)
        )
        place[...] = np.rint(place + (head - place) * alpha).astype(np.uint8)
        return result, (box + np.array([at_x, at_y, at_x, at_y])).astype(np.float32)

    return put

"""A crop cache of drawn faces, whose fakes a small network learns in seconds: a green square on the cheek."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
from records import record_of

from streamer.training.augment_config import AUGMENTATIONS, AugmentConfig
from streamer.training.config import TrainConfig, parse_config
from streamer.training.crops import Crop, write_crop
from streamer.training.types import FAKE, REAL, CropRecord, Split
from streamer.types import UInt8Array

SIDE = 96
BOX = (26.0, 26.0, 70.0, 70.0)
KEYPOINTS = ((39.0, 42.0), (57.0, 42.0), (48.0, 51.0), (48.0, 60.0), (29.0, 45.0), (67.0, 45.0))


def draw_face(rng: np.random.Generator) -> UInt8Array:
    """(96, 96, 3) uint8: a textured oval with eyes and a mouth on a textured ground."""
    ground = cv2.resize(rng.uniform(0, 255, (6, 6, 3)), (SIDE, SIDE), interpolation=cv2.INTER_CUBIC)
    skin = np.array([200, 160, 130]) + rng.uniform(-30, 30, 3)
    cv2.ellipse(ground, (48, 48), (20, 26), 0, 0, 360, skin.tolist(), -1)
    for x, y in (*KEYPOINTS[:2], KEYPOINTS[3]):
        cv2.ellipse(ground, (int(x), int(y)), (5, 2), 0, 0, 360, (60.0, 40.0, 40.0), -1)
    return np.clip(ground + rng.normal(0, 4, ground.shape), 0, 255).astype(np.uint8)


def make_fake(real: UInt8Array) -> UInt8Array:
    fake = real.copy()
    fake[50:62, 32:44] = (20, 220, 40)
    return fake


def make_cache(
    cache: Path, *, people: int = 4, frames: int = 2, split: Split = "train", seed: int = 0
) -> list[CropRecord]:
    """Of each person a real video and its fake."""
    rng = np.random.default_rng(seed)
    records: list[CropRecord] = []
    for person in range(people):
        for frame in range(frames):
            real = draw_face(rng)
            for label, rgb in ((REAL, real), (FAKE, make_fake(real))):
                kind = "fake" if label == FAKE else "real"
                item = f"{split}/{kind}/{person}.mp4"
                file = f"crops/{item}.{frame:03}.png"
                write_crop(cache, file, Crop(rgb, frame / 4, BOX, KEYPOINTS, None))
                records.append(
                    record_of(
                        item,
                        file=file,
                        frame=frame,
                        time_seconds=frame / 4,
                        label=label,
                        generator="square" if label == FAKE else "real",
                        group=f"{split}/{person}",
                        split=split,
                        box=BOX,
                        keypoints=KEYPOINTS,
                        original=f"{split}/real/{person}.mp4" if label == FAKE else None,
                    )
                )
    return records


def toy_config(**changes: Any) -> TrainConfig:
    """A small network from random weights on fakes of the toy cache, without augmentation.

    Batches give the statistics to the end: in so few steps it has not yet gathered any of use.
    """
    values: dict[str, Any] = {
        "model": {"architecture": "mobilenet_v2", "pretrained": False, "batch_statistics": 1.0},
        "input": {"size": 64},
        "mixture": {"self_blended": 0, "dataset_fake": 1},
        "augment": AugmentConfig().without(*AUGMENTATIONS).model_dump(),
        "optimiser": {"learning_rate": 2e-3, "warm_up_steps": 2, "ema_decay": 0.8},
        "validation": {"every": 4, "blends": 0},
        "steps": 8,
        "batch": 8,
        "precision": "f32",
        "workers": 0,
    }
    return parse_config(merge(values, changes), "toy")


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """The sections of `over` replace single keys of those in `base`."""
    return base | {
        key: base[key] | value if isinstance(value, dict) and key in base else value
        for key, value in over.items()
    }

"""A crop record as tests need it."""

from __future__ import annotations

from typing import Any

from streamer.training.types import REAL, CropRecord


def record_of(item: str, **changes: Any) -> CropRecord:
    """Of the first frame of a real video for training, whose people are in no other."""
    values = {
        "file": f"{item}.png",
        "item": item,
        "frame": 0,
        "time_seconds": 0.0,
        "label": REAL,
        "generator": "real",
        "source": "folder",
        "group": item,
        "split": "train",
        "box": (0.0, 0.0, 1.0, 1.0),
        "keypoints": (),
        "landmarks": False,
    }
    return CropRecord(**values | changes)

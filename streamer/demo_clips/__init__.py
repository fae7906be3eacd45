"""The two clips of `streamer demo`; see README.md here."""

from __future__ import annotations

from pathlib import Path


def first_clip() -> Path:
    """A bundled clip that is as the camera saw it."""
    return Path(__file__).parent / "untouched.mp4"

"""The two clips of `streamer demo`; see README.md here."""

from __future__ import annotations

from pathlib import Path

_FOLDER = Path(__file__).parent


def demo_clips() -> tuple[Path, Path]:
    """Of one face: manipulated, and as the camera saw it."""
    return _FOLDER / "manipulated.mp4", _FOLDER / "untouched.mp4"

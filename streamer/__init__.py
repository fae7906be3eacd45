"""Real-time deepfake detection: video chunks in, rolling fake scores out.

As a library: `from streamer import Detector`, see `streamer.detector`. It is imported when first asked for:
the command line starts without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from streamer.detector import AsyncDetector, Detector

__all__ = ["AsyncDetector", "Detector", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name in ("AsyncDetector", "Detector"):
        import streamer.detector

        return getattr(streamer.detector, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

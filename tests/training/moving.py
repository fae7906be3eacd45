"""Clips of a photograph that moves."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from streamer.types import UInt8Array


def write_clip(path: Path, picture: UInt8Array, **options: str) -> None:
    """The picture, moving sideways for 4 s at 10 frames/s; options: of x264."""
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=10, options={"preset": "ultrafast"} | options)
        stream.height, stream.width = picture.shape[:2]
        stream.pix_fmt = "yuv420p"
        for index in range(40):
            moved = np.ascontiguousarray(np.roll(picture, index // 4, axis=1))
            frame = av.VideoFrame.from_ndarray(moved, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))

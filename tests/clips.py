"""Small videos made on the spot."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

FPS = 10


def make_clip(
    path: Path, *, seconds: float = 3.0, keyframe_seconds: float = 1.0, size: int = 64, noise: bool = False
) -> Path:
    """An H.264 video of a moving gradient, or of noise without loss, 1.5 bytes a pixel; no face."""
    rng = np.random.default_rng(1)
    options = {"preset": "ultrafast", "sc_threshold": "0"} | ({"qp": "0"} if noise else {})
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = round(keyframe_seconds * FPS)
        stream.codec_context.max_b_frames = 0
        for index in range(round(seconds * FPS)):
            ramp = (np.arange(size) * 4 + index * 8).astype(np.uint8)
            rgb = np.broadcast_to(ramp[None, :, None], (size, size, 3))
            if noise:
                rgb = rng.integers(0, 256, (size, size, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(rgb), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return path

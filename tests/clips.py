"""Small videos made on the spot."""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from streamer.demo_clips import demo_clips
from streamer.messages import VideoChunk
from streamer.segment import segments_of

FPS = 10


def make_clip(path: Path, *, seconds: float = 3.0, size: int = 64, noise: bool = False) -> Path:
    """H.264 of a moving gradient, or of noise (lossless, 1.5 bytes a pixel); a keyframe a second, no face."""
    rng = np.random.default_rng(1)
    options = {"preset": "ultrafast", "sc_threshold": "0"} | ({"qp": "0"} if noise else {})
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=FPS, options=options)
        stream.width = stream.height = size
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = FPS
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


def portrait(*, washed_out: bool = False) -> list[NDArray[np.uint8]]:
    """A second of the bundled clip of one person, FPS frames of (360, 360, 3) uint8 RGB. Their mean is about
    0.56 of white, or washed out 0.78; the face is found in both."""
    frames = []
    with av.open(str(demo_clips()[1])) as clip:
        for frame in islice(clip.decode(video=0), 0, 3 * FPS, 3):
            rgb = np.ascontiguousarray(frame.to_ndarray(format="rgb24", width=640, height=360)[:, 120:480])
            frames.append(255 - (255 - rgb) // 2 if washed_out else rgb)
    return frames


def encode_frames(frames: Sequence[NDArray[np.uint8]]) -> bytes:
    """An MP4 of these frames, each (height, width, 3) uint8 RGB, FPS a second."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as output:
        stream = output.add_stream("libx264", rate=FPS, options={"preset": "ultrafast", "crf": "18"})
        stream.pix_fmt = "yuv420p"
        stream.height, stream.width = frames[0].shape[:2]
        for index, rgb in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(rgb, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    return buffer.getvalue()


def clip_chunks(video_id: str) -> list[VideoChunk]:
    """The bundled clip of one person, cut at its keyframes."""
    return [
        VideoChunk(
            video_id=video_id,
            seq=seq,
            data=segment.data,
            start_seconds=segment.start_seconds,
            last=segment.is_last,
        )
        for seq, segment in enumerate(segments_of(demo_clips()[1], 2.0))
    ]

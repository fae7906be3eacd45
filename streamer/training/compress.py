"""Real H.264 and JPEG compression of pictures, in memory.

A single encoded picture is an I-frame, which hardly any frame of a video is. So each picture is given a short
clip around it, itself under small motion, encoded as I B B P: what comes back went through motion
compensation, skipped blocks and the deblocking filter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import av
import cv2
import numpy as np
from av.codec.codec import UnknownCodecError

from streamer.errors import TrainingError
from streamer.types import Float32Array, UInt8Array

Preset = Literal["superfast", "veryfast", "medium"]

X264 = "bframes=2:b-adapt=0:scenecut=0:mbtree=0"
"""One I-frame, two B-frames, a P-frame. Macroblock-tree rate control is off: it looks at frames to come, of
which so short a clip has none, and gave other bytes for the same clip in 1 of 20 runs. Without it four
frames come out as 48 with it, within 0.5 dB of PSNR on 200 px photographs at CRF 20 to 42 for `superfast`
and `medium`; for `veryfast`, which looks 10 frames ahead and not 40, as at a CRF of 2 to 3 less."""

FRAMES = 4
SHOWN = (0.1, 0.3, 0.3, 0.3)
"""Chance of each frame (I, B, B, P) to be the picture. Streams have an I-frame every 30 to 250 frames; here
they are more frequent, since still scenes repeat them by skipped blocks."""

MOTION_PX = 0.4
"""Mean speed, pixels a frame; a talking head, between still and about 2 px."""
ZOOM = 0.001
"""Standard deviation of the zoom, share a frame."""

MACROBLOCK_PX = 16


@dataclass(frozen=True, slots=True)
class _Motion:
    """What the clip around a picture does; one for all the pictures of a call."""

    shown: int
    """Which frame is the picture itself."""
    step: tuple[float, float]
    """Shift a frame, pixels (x, y)."""
    zoom: float
    """Growth a frame, share."""
    offset: tuple[int, int]
    """Where the picture lies on the grid of macroblocks, pixels (x, y), in [0, 16)."""


def h264(
    images: Sequence[UInt8Array], *, crf: float, preset: Preset = "medium", rng: np.random.Generator
) -> list[UInt8Array]:
    """Pictures as they come out of an H.264 video.

    images: each (height, width, 3) uint8 RGB. All get the same motion, frame type and place on the grid of
    macroblocks, each an encoder of its own: nothing of one gets into another. crf: [1, 51];
    FaceForensics++ c23 is 23 and c40 is 40, both of preset `medium`. Returns as many pictures of the same
    shapes. 4:2:0, BT.601. Raises TrainingError where FFmpeg fails or has no libx264.
    """
    motion = _draw_motion(rng)
    return [_compress(image, motion, crf, preset) for image in images]


def jpeg(image: UInt8Array, quality: int) -> UInt8Array:
    """A picture (height, width, 3) uint8 RGB as JPEG of a quality in [1, 100] leaves it; 4:2:0."""
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not done:
        raise TrainingError(f"JPEG of a picture of shape {image.shape} failed")
    decoded = np.asarray(cv2.imdecode(data, cv2.IMREAD_COLOR), np.uint8)
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)


def _draw_motion(rng: np.random.Generator) -> _Motion:
    speed, angle = rng.exponential(MOTION_PX), rng.uniform(0, 2 * np.pi)
    x, y = rng.integers(0, MACROBLOCK_PX, 2).tolist()
    return _Motion(
        shown=int(rng.choice(FRAMES, p=SHOWN)),
        step=(float(speed * np.cos(angle)), float(speed * np.sin(angle))),
        zoom=float(rng.normal(0, ZOOM)),
        offset=(x, y),
    )


def _compress(image: UInt8Array, motion: _Motion, crf: float, preset: Preset) -> UInt8Array:
    height, width = image.shape[:2]
    x, y = motion.offset
    even = cv2.copyMakeBorder(
        image, y, (y + height) % 2, x, (x + width) % 2, cv2.BORDER_REPLICATE
    )  # even sides, as 4:2:0 needs
    padded = np.asarray(even, np.uint8)
    clip = [padded if t == motion.shown else _moved(padded, motion, t) for t in range(FRAMES)]
    try:
        decoded = _through_codec(clip, crf, preset)
    except (av.FFmpegError, UnknownCodecError) as error:
        raise TrainingError(f"H.264 of a picture of shape {image.shape}, CRF {crf:g}: {error}") from error
    if len(decoded) != FRAMES:
        raise TrainingError(f"H.264 of a picture of shape {image.shape}: {len(decoded)} of {FRAMES} frames")
    shown = np.asarray(cv2.cvtColor(decoded[motion.shown], cv2.COLOR_YUV2RGB_I420), np.uint8)
    return np.ascontiguousarray(shown[y : y + height, x : x + width], np.uint8)


def _moved(image: UInt8Array, motion: _Motion, t: int) -> UInt8Array:
    """The picture at frame t of its clip."""
    height, width = image.shape[:2]
    steps = t - motion.shown
    zoom = 1 + steps * motion.zoom
    matrix: Float32Array = np.array(
        [
            [zoom, 0, steps * motion.step[0] + (1 - zoom) * width / 2],
            [0, zoom, steps * motion.step[1] + (1 - zoom) * height / 2],
        ],
        np.float32,
    )
    moved = cv2.warpAffine(
        image, matrix, (width, height), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(moved, np.uint8)


def _through_codec(clip: list[UInt8Array], crf: float, preset: Preset) -> list[UInt8Array]:
    """Frames (height, width, 3) uint8 RGB -> decoded frames (height * 3 / 2, width) uint8 I420."""
    # Any: the stubs of PyAV know one codec context, without the fields of video encoders.
    encoder: Any = av.CodecContext.create("libx264", "w")
    encoder.height, encoder.width = clip[0].shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.framerate = "yuv420p", Fraction(1, 30), 30
    encoder.thread_count = 1
    encoder.options = {"crf": f"{crf:.2f}", "preset": preset, "x264-params": X264}
    decoder: Any = av.CodecContext.create("h264", "r")
    decoder.thread_count = 1
    packets = []
    for t, image in enumerate(clip):
        planes = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2YUV_I420), np.uint8)
        frame = av.VideoFrame.from_ndarray(planes, format="yuv420p")
        frame.pts = t
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoded = [frame for packet in (*packets, None) for frame in decoder.decode(packet)]
    return [frame.to_ndarray() for frame in decoded]

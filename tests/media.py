"""Test clips made on the spot. Every frame shows its own index and which corner is which."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from typing import Any, cast

os.environ.setdefault("SVT_LOG", "0")  # SVT-AV1 would write to stderr

import av
import numpy as np
from av.stream import Disposition
from numpy.typing import NDArray

FPS = 30
TICKS = 90_000  # time base of clips with given timestamps

Image = NDArray[np.uint8]

ENCODERS = {
    "h264": ("libx264", {"preset": "veryfast", "x264-params": "bframes=2:b-adapt=0:scenecut=0"}),
    "hevc": (
        "libx265",
        {"preset": "ultrafast", "x265-params": "log-level=none:bframes=2:b-adapt=0:open-gop=0"},
    ),
    "vp8": ("libvpx", {"deadline": "realtime", "cpu-used": "8"}),
    "vp9": ("libvpx-vp9", {"deadline": "realtime", "cpu-used": "8"}),
    "av1": ("libsvtav1", {"preset": "12"}),
    "mpeg4": ("mpeg4", {}),
    "mpeg2video": ("mpeg2video", {}),
    "mjpeg": ("mjpeg", {}),
}

FORMATS = [
    *[("mpegts", codec) for codec in ("h264", "hevc", "mpeg4", "mpeg2video")],
    *[("mp4", codec) for codec in ("h264", "hevc", "vp9", "av1", "mpeg4", "mpeg2video")],
    *[("matroska", codec) for codec in ("h264", "hevc", "vp8", "vp9", "av1", "mpeg4", "mpeg2video")],
    *[("webm", codec) for codec in ("vp8", "vp9", "av1")],
]
"""(container, codec) that packagers and cameras make, and we accept."""

FRAGMENTED = ("h264", "hevc", "vp9", "av1", "mpeg4")
"""Codecs in CMAF."""

_BITS = 8
_CORNERS = ((230, 30, 30), (30, 200, 30), (30, 30, 230), (220, 220, 40))  # clockwise from the top left


def picture(index: int, width: int, height: int) -> Image:
    """(height, width, 3) uint8 RGB: coloured corners, and the index as black and white bars."""
    image = np.full((height, width, 3), 128, np.uint8)
    top, left = height // 4, width // 4
    areas = ((0, 0), (0, width - left), (height - top, width - left), (height - top, 0))
    for (y, x), colour in zip(areas, _CORNERS, strict=True):
        image[y : y + top, x : x + left] = colour
    for bit in range(_BITS):
        x = bit * width // _BITS
        image[height // 2 - top // 2 : height // 2 + top // 2, x : x + width // _BITS] = 255 * (
            index >> bit & 1
        )
    return image


def sliding(index: int, width: int, height: int) -> Image:
    """A bright, blue bar on black that moves by an eighth of the width in a frame."""
    image = np.zeros((height, width, 3), np.uint8)
    left = index * width // 8 % width
    image[:, left : left + width // 8] = (40, 40, 255)
    return image


def woven(first: Image, second: Image, pix_fmt: str) -> av.VideoFrame:
    """An interlaced frame: even lines of the first picture, odd lines of the second, chroma likewise."""
    frame, other = (
        av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
        for image in (first, second)
    )
    for plane, source in zip(frame.planes, other.planes, strict=True):
        lines, odd = (np.frombuffer(p, np.uint8).reshape(-1, plane.line_size) for p in (plane, source))
        lines[1::2] = odd[1::2]
    return frame


def index_of(rgb: Image) -> int:
    """The index that an upright frame shows."""
    height, width = rgb.shape[:2]
    bars = (rgb[height // 2, (2 * bit + 1) * width // (2 * _BITS)].mean() > 128 for bit in range(_BITS))
    return sum(1 << bit for bit, is_white in enumerate(bars) if is_white)


def corners_of(rgb: Image) -> list[int]:
    """Which of an upright frame's corners is seen at each corner, clockwise from the top left: [0, 1, 2,
    3]."""
    height, width = rgb.shape[:2]
    inset_y, inset_x = height // 12, width // 12
    seen = (
        rgb[inset_y, inset_x],
        rgb[inset_y, -inset_x],
        rgb[-inset_y, -inset_x],
        rgb[-inset_y, inset_x],
    )
    distances = np.abs(np.array(seen, int)[:, None] - np.array(_CORNERS)[None]).sum(2)
    return [int(nearest) for nearest in distances.argmin(1)]


def encode(
    container: str = "mpegts",
    codec: str = "h264",
    *,
    frames: int = 60,
    width: int = 128,
    height: int = 96,
    gop: int = 30,
    pts: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    muxer_options: dict[str, str] | None = None,
    rotation: float | None = None,
    mirrored: bool = False,
    pix_fmt: str = "yuv420p",
    audio: bool = False,
    aspect: Fraction | None = None,
    interlaced: bool = False,
    draw: Callable[[int, int, int], Image] = picture,
) -> bytes:
    """A whole clip: FPS frames/s, or shown at `pts`, in 1 / TICKS seconds.

    rotation, mirrored: display matrix; degrees counterclockwise that a player must turn it by. aspect: a
    pixel's width by its height. draw: makes a picture of its index, width and height. interlaced: each frame
    is woven of two pictures.
    """
    encoder, defaults = ENCODERS[codec]
    if interlaced:
        defaults = defaults | {"flags": "+ilme+ildct"}
    buffer = io.BytesIO()
    with kept_priority(), av.open(buffer, "w", format=container, options=muxer_options or {}) as output:
        stream: Any = output.add_stream(
            encoder, rate=FPS, options=defaults | {"g": str(gop)} | (options or {})
        )
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        sound: Any = output.add_stream("aac", rate=48_000, layout="mono") if audio else None
        if rotation is not None or mirrored:
            stream.set_display_rotation(rotation or 0, hflip=mirrored)
        if aspect is not None:
            stream.codec_context.sample_aspect_ratio = aspect
        if pts is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, TICKS)
        for index in range(frames if pts is None else len(pts)):
            if interlaced:
                frame = woven(draw(2 * index, width, height), draw(2 * index + 1, width, height), pix_fmt)
            else:
                frame = av.VideoFrame.from_ndarray(draw(index, width, height), format="rgb24")
            frame.pts, frame.time_base = (
                (index, Fraction(1, FPS)) if pts is None else (pts[index], Fraction(1, TICKS))
            )
            output.mux(stream.encode(frame))
            if sound is not None:
                silence = av.AudioFrame.from_ndarray(
                    np.zeros((1, 48_000 // FPS), np.float32), format="fltp", layout="mono"
                )
                silence.rate, silence.pts = 48_000, index * 48_000 // FPS
                output.mux(sound.encode(silence))
        output.mux(stream.encode(None))
        if sound is not None:
            output.mux(sound.encode(None))
    return buffer.getvalue()


@contextmanager
def kept_priority() -> Iterator[None]:
    """SVT-AV1 makes the thread that calls it a real-time one (SCHED_FIFO) if root does, and leaves it so: it
    and all that it starts later would starve every other process.
    """
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, parameters)


def fragmented(codec: str = "h264", **settings: Any) -> tuple[bytes, list[bytes]]:
    """CMAF: an init segment and the media segments that need it, one for each group of pictures."""
    flags = {"movflags": "frag_keyframe+empty_moov+default_base_moof+skip_trailer"}
    data = encode("mp4", codec, muxer_options=flags, **settings)
    boxes = mp4_boxes(data)
    starts = [position for position, kind, _ in boxes if kind == b"moof"]
    ends = [*starts[1:], len(data)]
    return data[: starts[0]], [data[start:end] for start, end in zip(starts, ends, strict=True)]


def mp4_boxes(data: bytes) -> list[tuple[int, bytes, int]]:
    """(position, kind, size) of the boxes at top level."""
    boxes, position = [], 0
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "big")
        boxes.append((position, data[position + 4 : position + 8], size))
        position += size
    return boxes


def with_index_far_behind(data: bytes) -> bytes:
    """An MP4 with 3 MB between its pictures and its index, as if they were many: no buffer holds both."""
    index = next(position for position, kind, _ in mp4_boxes(data) if kind == b"moov")
    size = 3_000_000
    return data[:index] + struct.pack(">I4s", size, b"free") + bytes(size - 8) + data[index:]


def trimmed(data: bytes, seconds: float) -> bytes:
    """An MP4 copied as it is, with an edit list that hides its beginning: as `ffmpeg -ss` and phones trim."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format="mp4") as output:
        template = source.streams.video[0]
        stream = output.add_stream_from_template(template, opaque=True)
        offset = round(seconds / cast(Fraction, template.time_base))
        for packet in source.demux(template):
            if packet.size:
                packet.stream = stream
                packet.pts, packet.dts = cast(int, packet.pts) - offset, cast(int, packet.dts) - offset
                output.mux(packet)
    return buffer.getvalue()


def edited(data: bytes, pieces: Sequence[tuple[float, float]]) -> bytes:
    """An MP4 whose edit list shows, one after the other, these pieces of what it showed: [start, end),
    seconds."""
    clip = bytearray(data)
    boxes = {kind: clip.index(kind) - 4 for kind in (b"moov", b"trak", b"edts", b"elst", b"mvhd", b"mdhd")}
    movie_ticks, ticks = (
        int.from_bytes(clip[boxes[kind] + 20 :][:4], "big") for kind in (b"mvhd", b"mdhd")
    )  # a second, in the header of the movie and in that of its only track
    entries = boxes[b"elst"] + 16  # of 12 bytes: duration, start, speed
    first = int.from_bytes(clip[entries + 4 : entries + 8], "big")
    listed = [(round((end - start) * movie_ticks), first + round(start * ticks)) for start, end in pieces]
    old = 12 * int.from_bytes(clip[entries - 4 : entries], "big")
    new = b"".join(struct.pack(">IiI", *entry, 1 << 16) for entry in listed)
    clip[entries - 4 : entries + old] = struct.pack(">I", len(listed)) + new
    for kind in (b"moov", b"trak", b"edts", b"elst"):
        size = int.from_bytes(clip[boxes[kind] : boxes[kind] + 4], "big") + len(new) - old
        clip[boxes[kind] : boxes[kind] + 4] = size.to_bytes(4, "big")
    return bytes(clip)


def cut_at_keyframes(data: bytes, container: str) -> list[bytes]:
    """The groups of pictures of a clip, each in a container of its own, copied as they are."""
    segments: list[bytes] = []
    with av.open(io.BytesIO(data)) as source:
        template = source.streams.video[0]
        groups: list[list[Any]] = []
        for packet in source.demux(template):
            if packet.size:
                groups.extend([[]] if packet.is_keyframe else [])
                groups[-1].append(packet)
        for group in groups:
            buffer = io.BytesIO()
            with av.open(buffer, "w", format=container) as output:
                stream = output.add_stream_from_template(template, opaque=True)
                for packet in group:
                    packet.stream = stream
                    output.mux(packet)
            segments.append(buffer.getvalue())
    return segments


def without_packets(data: bytes, drops: Callable[[int], bool]) -> bytes:
    """A clip copied into Matroska, but for the packets whose number `drops` takes out."""
    buffer = io.BytesIO()
    with av.open(io.BytesIO(data)) as source, av.open(buffer, "w", format="matroska") as output:
        template = source.streams.video[0]
        stream = output.add_stream_from_template(template, opaque=True)
        for number, packet in enumerate(source.demux(template)):
            if packet.size and not drops(number):
                packet.stream = stream
                output.mux(packet)
    return buffer.getvalue()


def damaged_mpegts(data: bytes, place: float) -> bytes:
    """A clip of which one packet, in a picture after a place in [0, 1], is marked as damaged."""
    damaged = bytearray(data)
    packets = range(int(place * len(data)) // 188 * 188, len(data), 188)
    at = next(n for n in packets if not data[n + 1] & 0x40 and not data[n + 3] & 0x20)
    damaged[at + 1] |= 0x80
    return bytes(damaged)


def mpegts_joined(*clips: bytes) -> bytes:
    """MPEG-TS clips of the same codec one after the other in one stream, copied as they are."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mpegts") as output:
        stream: Any = None
        offset = 0
        for clip in clips:
            with av.open(io.BytesIO(clip)) as source:
                template = source.streams.video[0]
                stream = stream or output.add_stream_from_template(template, opaque=True)
                end = offset
                for packet in source.demux(template):
                    if packet.size:
                        packet.stream = stream
                        packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                        end = max(end, packet.pts + packet.duration)
                        output.mux(packet)
                offset = end
    return buffer.getvalue()


def side_by_side(container: str, *clips: bytes, covers: Sequence[int] = ()) -> bytes:
    """The video streams of several clips in one file, copied as they are; covers: which are pictures."""
    buffer = io.BytesIO()
    with ExitStack() as opened:
        output = opened.enter_context(av.open(buffer, "w", format=container))
        packets: list[Any] = []
        for number, clip in enumerate(clips):
            source = opened.enter_context(av.open(io.BytesIO(clip)))
            stream = output.add_stream_from_template(source.streams.video[0], opaque=True)
            if number in covers:
                stream.disposition = Disposition.attached_pic
            for packet in source.demux(source.streams.video[0]):
                if packet.size:
                    packet.stream = stream
                    packets.append(packet)
        for packet in sorted(packets, key=lambda each: each.dts * each.time_base):
            output.mux(packet)
    return buffer.getvalue()

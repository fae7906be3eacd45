"""H.264 whose frames are coded as two field pictures each (PAFF), as broadcasters send it; x264 writes none.

Every picture is one grey, in macroblocks that are not compressed at all (I_PCM), but the second field of a
keyframe, which refers to the first. ITU-T H.264, 7.3.2.1 (SPS), 7.3.2.2 (PPS), 7.3.3 (slice header).
"""

from __future__ import annotations

import io
from fractions import Fraction
from typing import Any

import av
import numpy as np

SIDE = 64
FPS = 25
_MACROBLOCKS = SIDE // 16 * SIDE // 32
"""Of a field."""


def interlaced_clip(container: str, *, frames: int, gop: int) -> bytes:
    """Frame n is of luma 20 + 4 n. Both its fields go in one packet with one time."""
    pictures = [b"".join(_fields(number, number % gop)) for number in range(frames)]
    buffer = io.BytesIO()
    with (
        av.open(io.BytesIO(b"".join(pictures)), format="h264") as raw,
        av.open(buffer, "w", format=container) as output,
    ):
        stream: Any = output.add_stream_from_template(raw.streams.video[0], opaque=True)
        for number, picture in enumerate(pictures):
            packet = av.Packet(picture)
            packet.stream, packet.time_base = stream, Fraction(1, FPS)
            packet.pts = packet.dts = number
            packet.duration = 1
            packet.is_keyframe = number % gop == 0
            output.mux(packet)
    return buffer.getvalue()


def index_of(rgb: np.typing.NDArray[np.uint8]) -> int:
    """Number of a decoded frame."""
    return round((float(rgb.mean()) * 219 / 255 + 16 - 20) / 4)


def _fields(number: int, place: int) -> tuple[bytes, bytes]:
    """place: in the group of pictures, of at most 16."""
    head = _unit(9, "11110000")  # access unit delimiter
    second = head + _field(place, luma=None if place == 0 else 20 + 4 * number, bottom=True)
    if place == 0:
        return head + _SEQUENCE + _PICTURE + _field(0, luma=20 + 4 * number, bottom=False), second
    return head + _field(place, luma=20 + 4 * number, bottom=False), second


def _field(place: int, *, luma: int | None, bottom: bool) -> bytes:
    """luma: None: as the field before."""
    is_idr = place == 0 and not bottom
    bits = _ue(0) + _ue(5 if luma is None else 7) + _ue(0) + f"{place:04b}" + f"1{bottom:b}"
    bits += _ue(0) if is_idr else ""
    bits += "00" if luma is None else ""  # default references
    bits += "00" if is_idr else "0"  # kept for reference
    bits += _ue(0) + _ue(1)  # quantiser as in the PPS; no deblocking
    if luma is None:
        return _unit(0x61, bits + _ue(_MACROBLOCKS) + "1")  # all skipped
    samples = "".join(f"{sample:08b}" for sample in [luma] * 256 + [128] * 128)
    for _ in range(_MACROBLOCKS):
        bits += _ue(25)
        bits += "0" * (-len(bits) % 8) + samples
    return _unit(0x65 if is_idr else 0x61, bits + "1")


def _unit(head: int, bits: str) -> bytes:
    """A NAL unit; nothing in it may look like the start of another."""
    bits += "0" * (-len(bits) % 8)
    out, zeros = bytearray(), 0
    for byte in int(bits, 2).to_bytes(len(bits) // 8, "big"):
        if zeros >= 2 and byte <= 3:
            out.append(3)
            zeros = 0
        out.append(byte)
        zeros = zeros + 1 if byte == 0 else 0
    return bytes([0, 0, 0, 1, head, *out])


def _ue(value: int) -> str:
    """Exp-Golomb code."""
    code = f"{value + 1:b}"
    return "0" * (len(code) - 1) + code


# Main profile, level 3; order of presentation is that of decoding; two reference frames; fields allowed.
_SEQUENCE = _unit(
    0x67,
    f"{77:08b}{0:08b}{30:08b}{_ue(0)}{_ue(0)}{_ue(2)}{_ue(2)}0{_ue(SIDE // 16 - 1)}"
    f"{_ue(SIDE // 32 - 1)}001001",
)
_PICTURE = _unit(0x68, f"{_ue(0)}{_ue(0)}00{_ue(0)}{_ue(0)}{_ue(0)}000{_ue(0)}{_ue(0)}{_ue(0)}1001")

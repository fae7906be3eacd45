"""Whether a media segment is whole, read from its container's outer structure alone. Pure.

FFmpeg's demuxers are made to play whatever is left of a broken file: Matroska cut in the middle just ends
early. Here half a chunk must not pass as a whole one, so the outer structure is checked first: every MP4 box
and EBML element ends inside the data, EBML checksums hold, MPEG-TS packets are all there and in sequence.

What no check can see, because these formats carry no length or checksum for it: an MPEG-TS segment cut
exactly between two pictures, pictures left out before they came into the container, and a changed bit in the
compressed pictures that still decodes. Layouts: ISO/IEC 14496-12 section 4.2 (boxes), RFC 8794 (EBML),
ISO/IEC 13818-1 section 2.4.3 (transport stream).
"""

from __future__ import annotations

import re
import zlib
from typing import Literal

import numpy as np

from streamer.errors import DecodeError

Container = Literal["mpegts", "mp4", "matroska"]

_TS_PACKET = 188
_TS_SYNC = 0x47

_EBML_MAGIC = b"\x1a\x45\xdf\xa3"
_SEGMENT = 0x18538067
_CLUSTER = 0x1F43B675
HEAD_BYTES = 4096
"""Of Matroska, up to the size of its `Segment`."""

_CRC32_HEAD = b"\xbf\x84"  # element ID of CRC-32, size 4

_MAX_PROGRAM_TABLES = 64
"""Different packets of the table that names an MPEG-TS's programs: one is usual, each names up to 46, and
FFmpeg's time grows with the cube of their number (8000: 7 s, from 36 kB)."""

_PACKED_MOOV = re.compile(rb"cmov.{4}dcom", re.DOTALL)
"""QuickTime's compressed `moov`, of which 1 MB may unpack to 1 GB; no packager has written it for decades."""

_TOP_LEVEL_BOXES = frozenset(
    b"ftyp styp moov moof mdat sidx ssix emsg prft free skip wide uuid meta pdin mfra".split()
)

_OTHER_MEDIA = (
    (b"\x89PNG", "PNG image"),
    (b"\xff\xd8\xff", "JPEG image"),
    (b"GIF8", "GIF image"),
    (b"RIFF", "AVI, WAVE or WebP"),
    (b"FLV\x01", "Flash video"),
    (b"OggS", "Ogg"),
    (b"\x00\x00\x01\xba", "MPEG program stream"),
    (b"\x30\x26\xb2\x75", "ASF/WMV"),
    (b"\x00\x00\x00\x01", "raw H.264/HEVC without a container"),
    (b"#EXTM3U", "playlist"),
)


def check_structure(data: bytes, *, after_init: bool) -> Container:
    """Tell the container of a segment by its first bytes and verify that it is whole.

    data: init segment, if any, and media segment, concatenated. after_init: whether there was an init
    segment; its Matroska `Segment` may announce the size of a longer file. Raises DecodeError with reason
    `not_media`, `unsupported_format`, `no_init` or `damaged`.
    """
    if data.startswith(_EBML_MAGIC):
        _check_matroska(data, after_init=after_init)
        return "matroska"
    if data[4:8] in _TOP_LEVEL_BOXES:
        _check_mp4(data)
        return "mp4"
    for magic, name in _OTHER_MEDIA:
        if data.startswith(magic):
            raise DecodeError("unsupported_format", f"{name} is not accepted, only MPEG-TS, MP4 and Matroska")
    if data[0] == _TS_SYNC and (len(data) <= _TS_PACKET or data[_TS_PACKET] == _TS_SYNC):
        _check_mpegts(data)
        return "mpegts"
    raise DecodeError("not_media", "neither MPEG-TS nor MP4 nor Matroska/WebM")


def _check_mp4(data: bytes) -> None:
    position, seen = 0, set()
    while position < len(data):
        head = 8
        size, kind = int.from_bytes(data[position : position + 4], "big"), data[position + 4 : position + 8]
        if size == 1:  # 64-bit size follows
            size, head = int.from_bytes(data[position + 8 : position + 16], "big"), 16
        elif size == 0 and kind == b"mdat":  # the last box may reach to the end
            size = len(data) - position
        if size < head or position + size > len(data) or not _is_box_name(kind):
            name = kind.decode("latin-1")
            raise DecodeError(
                "damaged", f"MP4 box {name!r} at byte {position} does not fit: the data is cut or broken"
            )
        seen.add(kind)
        position += size
    if _PACKED_MOOV.search(data):
        raise DecodeError("unsupported_format", "MP4 with a compressed `moov` is not accepted")
    if b"moov" not in seen:
        raise DecodeError("no_init", "MP4 without `moov`: a CMAF/fMP4 segment needs its init segment")


def matroska_end(head: bytes) -> int | None:
    """Where a Matroska file says that it ends, in bytes; None: it does not, as a live one.

    head: its first HEAD_BYTES. Raises DecodeError if they are no head of Matroska.
    """
    position = 0
    while True:
        element, position = _ebml_number(head, position, max_length=4, keep_marker=True)
        size, position = _ebml_number(head, position, max_length=8, keep_marker=False)
        if element == _SEGMENT:
            return None if size is None else position + size
        position += size or 0


def _is_box_name(kind: bytes) -> bool:
    return len(kind) == 4 and all(0x20 <= byte < 0x7F or byte == 0xA9 for byte in kind)  # A9: QuickTime's ©


def _check_matroska(data: bytes, *, after_init: bool) -> None:
    position, has_segment = 0, False
    while position < len(data):
        element, position = _ebml_number(data, position, max_length=4, keep_marker=True)
        size, position = _ebml_number(data, position, max_length=8, keep_marker=False)
        end = len(data) if size is None else position + size
        has_segment = has_segment or element == _SEGMENT
        if element in (_SEGMENT, _CLUSTER) and size is None:
            continue  # live: the size is unknown, look at the children
        if element == _SEGMENT:
            if end > len(data) and not after_init:
                raise DecodeError(
                    "damaged", f"Matroska data is cut: {end} bytes announced, {len(data)} there"
                )
            continue
        if size is None or end > len(data):
            raise DecodeError(
                "damaged", f"Matroska element {element:#x} ends at byte {end}, the data at {len(data)}"
            )
        if data.startswith(_CRC32_HEAD, position) and size >= 6:
            stated = int.from_bytes(data[position + 2 : position + 6], "little")
            if zlib.crc32(memoryview(data)[position + 6 : end]) != stated:
                raise DecodeError("damaged", f"checksum of Matroska element {element:#x} does not hold")
        position = end
    if not has_segment:
        raise DecodeError("damaged", "Matroska data is cut within its head")


def _ebml_number(data: bytes, position: int, *, max_length: int, keep_marker: bool) -> tuple[int | None, int]:
    """Variable-length number of EBML and the position behind it; None: all ones, i.e. an unknown size."""
    length = 9 - data[position].bit_length() if position < len(data) else 9
    if length > max_length or position + length > len(data):
        raise DecodeError("damaged", f"no EBML element at byte {position}: the data is cut or broken")
    number = int.from_bytes(data[position : position + length], "big")
    if keep_marker:
        return number, position + length
    number -= 1 << (7 * length)
    unknown = number == (1 << (7 * length)) - 1
    return (None if unknown else number), position + length


def _check_mpegts(data: bytes) -> None:
    if len(data) % _TS_PACKET:
        raise DecodeError(
            "damaged", f"MPEG-TS of {len(data)} bytes, no multiple of {_TS_PACKET}: the data is cut"
        )
    packets = np.frombuffer(data, np.uint8).reshape(-1, _TS_PACKET)
    if not (packets[:, 0] == _TS_SYNC).all():
        raise DecodeError("damaged", "MPEG-TS packet without its sync byte")
    if (packets[:, 1] & 0x80).any():
        raise DecodeError(
            "damaged", "MPEG-TS packet marked as faulty by its transport (transport_error_indicator)"
        )
    pid = (packets[:, 1].astype(np.uint16) & 0x1F) << 8 | packets[:, 2]
    if len(set(map(bytes, packets[pid == 0, 4:]))) > _MAX_PROGRAM_TABLES:
        raise DecodeError("unsupported_format", "MPEG-TS of hundreds of programs is not accepted")
    starts = (packets[:, 1] & 0x40) != 0
    has_adaptation, has_payload = (packets[:, 3] & 0x20) != 0, (packets[:, 3] & 0x10) != 0
    adaptation_length = packets[:, 4].astype(np.intp)
    payload_at = np.minimum(np.where(has_adaptation, 5 + adaptation_length, 4), _TS_PACKET - 4)
    rows = np.arange(len(packets))
    is_video = starts & has_payload  # ... and begins with 00 00 01 E0..EF, the head of a video PES packet
    for offset, byte in enumerate((0, 0, 1)):
        is_video &= packets[rows, payload_at + offset] == byte
    is_video &= (packets[rows, payload_at + 3] & 0xF0) == 0xE0
    announced_break = has_adaptation & (adaptation_length > 0) & ((packets[:, 5] & 0x80) != 0)
    for video_pid in set(pid[is_video].tolist()):  # np.unique would import numpy.ma, which a worker may not
        mine = (pid == video_pid) & has_payload
        if (mine & starts & ~is_video).any():
            raise DecodeError("damaged", f"MPEG-TS video (PID {video_pid}): the head of a picture is broken")
        step = np.diff((packets[mine, 3] & 0x0F).astype(np.int16)) % 16
        if not ((step == 1) | announced_break[mine][1:]).all():
            raise DecodeError("damaged", f"MPEG-TS packets of the video (PID {video_pid}) are missing")

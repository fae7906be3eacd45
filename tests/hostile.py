"""Damaged chunks: each is bound to be refused, whatever FFmpeg would make of it.

A changed bit inside the compressed pictures may decode to slightly different ones without any error, and an
MPEG-TS segment may be cut exactly between two pictures; these formats hold nothing that would tell, so
neither is here. The flips here hit what is checked (sync bytes, box sizes, anything under a Matroska
checksum) or are so many that a picture's slices cannot all stay valid.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping

import media

TS_PACKET = 188
ZEROS_CRC32 = 0x5B64C2B0  # of 1 GiB of them


def damaged_chunks(good: Mapping[str, bytes], n: int = 200, seed: int = 0) -> list[tuple[str, bytes]]:
    """n damaged chunks, (name, bytes), names unique; the same for the same arguments.

    good: intact clips by container: `mpegts` and `mp4` (not fragmented) of H.264, `matroska` with checksums
    as FFmpeg writes them by default.
    """
    if set(good) != {"mpegts", "mp4", "matroska"}:
        raise ValueError(f"one clip each of mpegts, mp4, matroska is needed, got {sorted(good)}")
    rng = random.Random(seed)
    chunks = list(specials(good))
    makers: tuple[tuple[str, Callable[[Mapping[str, bytes], random.Random], bytes]], ...] = (
        ("truncated mpegts", _cut_mpegts),
        ("truncated mp4", lambda good, rng: _cut(good["mp4"], rng)),
        ("truncated matroska", lambda good, rng: _cut(good["matroska"], rng)),
        ("flipped sync byte", _flip_sync_byte),
        ("lost packet", _lose_ts_packet),
        ("flipped box size", _flip_box_size),
        ("flipped bit under checksum", _flip_in_cluster),
        ("scrambled mpegts", lambda good, rng: _scramble_ts(good["mpegts"], rng)),
        ("scrambled mp4", _scramble_mdat),
    )
    while len(chunks) < n:
        name, make = makers[len(chunks) % len(makers)]
        chunks.append((f"{name} {len(chunks)}", make(good, rng)))
    return chunks[:n]


def specials(good: Mapping[str, bytes]) -> Iterator[tuple[str, bytes]]:
    """Chunks that are not damaged clips but something else."""
    yield "empty", b""
    yield "one byte", b"\x47"
    yield "text", b"This is no video. " * 500
    yield "html", b"<!doctype html><html><body>404 Not Found</body></html>"
    yield "playlist", b"#EXTM3U\n#EXTINF:10,\nfile:///etc/passwd\n"
    yield "concat script", b"ffconcat version 1.0\nfile /etc/passwd\n"
    yield "zeros", bytes(100_000)
    yield "noise", random.Random(1).randbytes(100_000)
    yield "gzip bomb", gzip_bomb()
    yield "10,000 x 10,000 image", huge_png()
    yield "mp4 cut at 406 bytes", good["mp4"][:406]
    yield "mp4 head alone", good["mp4"][:32]
    yield (
        "mp4 without moov",
        b"".join(
            good["mp4"][at : at + size] for at, kind, size in media.mp4_boxes(good["mp4"]) if kind != b"moov"
        ),
    )
    yield "matroska head alone", good["matroska"][:40]
    yield "mpegts tables alone", good["mpegts"][: 3 * TS_PACKET]
    yield "sound alone", wave()


def zlib_bomb() -> bytes:
    """1 GiB of zeros in about 1 MB."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    mebibyte = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    adler32 = ((1 << 30) % 65521) << 16 | 1
    return b"\x78\xda" + mebibyte * 1024 + packer.flush() + struct.pack("!I", adler32)


def gzip_bomb() -> bytes:
    """The same as a file of its own."""
    head, tail = b"\x1f\x8b\x08\0\0\0\0\0\x02\xff", struct.pack("<II", ZEROS_CRC32, 1 << 30)
    return head + zlib_bomb()[2:-4] + tail


def huge_png() -> bytes:
    """A PNG of 10,000 x 10,000 pixels, one bit each."""

    def part(kind: bytes, body: bytes) -> bytes:
        return struct.pack("!I", len(body)) + kind + body + struct.pack("!I", zlib.crc32(kind + body))

    rows = bytes((1 + 1250) * 10_000)
    head = struct.pack("!IIBBBBB", 10_000, 10_000, 1, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + part(b"IHDR", head) + part(b"IDAT", zlib.compress(rows)) + part(b"IEND", b"")
    )


def wave() -> bytes:
    """A second of silence in a WAVE file."""
    samples = bytes(2 * 8000)
    head = struct.pack("<4sIHHIIHH", b"fmt ", 16, 1, 1, 8000, 16000, 2, 16)
    body = b"WAVE" + head + struct.pack("<4sI", b"data", len(samples)) + samples
    return struct.pack("<4sI", b"RIFF", len(body)) + body


def bombs() -> Iterator[tuple[str, bytes]]:
    """Small files that declare, or unpack to, far more than they hold."""
    mp4 = media.encode("mp4", frames=5)
    yield "mp4 of 2^32-1 samples", _patched(mp4, b"stsz", 8, b"\0\0\0\1\xff\xff\xff\xff")  # of a byte each
    yield "mp4 of 2^31-1 samples in a run", _patched(mp4, b"stts", 8, b"\x7f\xff\xff\xff")
    yield "mp4 of 2^32-1 runs", _patched(mp4, b"stts", 4, b"\xff\xff\xff\xff")
    yield "mp4 of 2^32-1 chunks", _patched(mp4, b"stco", 4, b"\xff\xff\xff\xff")
    yield "mp4 of 2^32-1 descriptions", _patched(mp4, b"stsd", 4, b"\xff\xff\xff\xff")
    yield "mp4 that lasts for years", _patched(mp4, b"stts", 8, b"\0\0\0\5\x7f\xff\xff\xff")
    yield "mp4 of 2000 tracks", _with_tracks(mp4, 2000)
    yield "mp4 nested 100,000 deep", _box(b"ftyp", b"isom\0\0\0\0") + _nested_boxes(100_000)
    yield "mp4 with 1 GiB packed into moov", _box(b"ftyp", b"isom\0\0\0\0") + _packed_moov()
    yield "vp8 of 16383 x 16383", _patched_frame("vp8", b"\x9d\x01\x2a", 3, b"\xff\x3f\xff\x3f")
    yield "mpeg2video of 4095 x 4095", _patched_frame("mpeg2video", b"\0\0\1\xb3", 4, b"\xff\xff\xff")
    yield "matroska of 65535 x 65535", matroska(b"V_VP8", b"\x10\2\0\x9d\x01\x2a\xff\x3f\xff\x3f")
    yield "matroska of 5000 tracks", matroska(b"V_VP8", b"", tracks=5000)
    yield "matroska with 1 GiB packed into a frame", matroska(b"V_VP8", zlib_bomb(), packed=True)
    yield "matroska nested 100,000 deep", matroska(b"V_VP8", b"", tags=_nested_elements(100_000))
    yield (
        "matroska with a tag of 2^56-2 bytes",
        matroska(b"V_VP8", b"", tags=b"\x67\xc8\x01" + b"\xff" * 6 + b"\xfe"),
    )
    yield "mpegts of 8000 programs", programs(8000)


def _patched(mp4: bytes, kind: bytes, offset: int, value: bytes) -> bytes:
    """With bytes of a box's contents changed."""
    at = mp4.index(kind) + 4 + offset
    return mp4[:at] + value + mp4[at + len(value) :]


def _patched_frame(codec: str, before: bytes, offset: int, value: bytes) -> bytes:
    """Matroska, in every picture of which bytes of the head are changed."""
    data = media.encode("matroska", codec, frames=5, gop=1, muxer_options={"write_crc32": "0"})
    assert data.count(before) >= 5
    parts = data.split(before)
    skip = offset - len(before)
    return before.join([parts[0], *(part[:skip] + value + part[skip + len(value) :] for part in parts[1:])])


def _box(kind: bytes, body: bytes) -> bytes:
    return struct.pack("!I", 8 + len(body)) + kind + body


def _nested_boxes(depth: int) -> bytes:
    return b"".join(struct.pack("!I4s", 8 * (depth - n), b"moov") for n in range(depth))


def _with_tracks(mp4: bytes, tracks: int) -> bytes:
    """An MP4 whose one track is there many times."""
    parts = {kind: mp4[at : at + size] for at, kind, size in media.mp4_boxes(mp4)}
    head, track, rest = parts[b"moov"][8:].partition(b"trak")
    size = int.from_bytes(head[-4:], "big")
    track += rest
    whole = head[-4:] + track[: size - 4]
    moov = _box(b"moov", head[:-4] + whole * tracks + track[size - 4 :])
    return parts[b"ftyp"] + moov + parts[b"mdat"]


def _packed_moov() -> bytes:
    """QuickTime's compressed `moov`."""
    packed = _box(b"cmvd", struct.pack("!I", 1 << 30) + zlib_bomb())
    return _box(b"moov", _box(b"cmov", _box(b"dcom", b"zlib") + packed))


def _element(number: int, body: bytes) -> bytes:
    """EBML, with a size of eight bytes."""
    name = number.to_bytes((number.bit_length() + 7) // 8, "big")
    return name + (len(body) | 1 << 56).to_bytes(8, "big") + body


def _nested_elements(depth: int) -> bytes:
    """SimpleTag in SimpleTag ... in Tags."""
    inner = b"".join(b"\x67\xc8" + (10 * (depth - 1 - n) | 1 << 56).to_bytes(8, "big") for n in range(depth))
    return _element(0x1254C367, _element(0x7373, inner))


def matroska(
    codec: bytes, frame: bytes, *, tracks: int = 1, packed: bool = False, tags: bytes = b""
) -> bytes:
    """A hand-made file of one frame; packed: it is zlib data."""
    size = _element(0xB0, b"\xff\xff") + _element(0xBA, b"\xff\xff")  # pixels
    zlib_encoding = _element(0x6D80, _element(0x6240, _element(0x5034, _element(0x4254, b"\0"))))
    entries = [
        _element(
            0xAE,
            _element(0xD7, number.to_bytes(2, "big"))
            + _element(0x73C5, number.to_bytes(2, "big"))
            + _element(0x83, b"\1")
            + _element(0x86, codec)
            + _element(0xE0, size)
            + (zlib_encoding if packed else b""),
        )
        for number in range(1, tracks + 1)
    ]
    block = _element(0xA3, b"\x81\0\0\x80" + frame)
    return _element(0x1A45DFA3, _element(0x4282, b"matroska")) + _element(
        0x18538067,
        _element(0x1654AE6B, b"".join(entries)) + tags + _element(0x1F43B675, _element(0xE7, b"\0") + block),
    )


def programs(programs: int) -> bytes:
    """MPEG-TS whose tables name so many programs, 253 in each section, and hold no picture."""
    packets, counter = [], 0
    for first in range(1, programs, 253):
        numbers = range(first, min(first + 253, programs))
        body = b"".join(struct.pack("!HH", n, 0xE000 | 32 + n % 8000) for n in numbers)
        head = struct.pack("!BHHBBB", 0, 0xB000 | 9 + len(body), 1, 0xC1, first // 253 % 256, 255)
        section = b"\0" + head + body
        section += struct.pack("!I", _crc32_mpeg(section[1:]))
        for at in range(0, len(section), 184):
            start = 0x40 if at == 0 else 0
            packets.append(
                bytes((0x47, start, 0, 0x10 | counter % 16)) + section[at : at + 184].ljust(184, b"\xff")
            )
            counter += 1
    return b"".join(packets)


def _crc32_mpeg(data: bytes) -> int:
    """ISO/IEC 13818-1 annex A: not reflected, not inverted."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte << 24
        for _ in range(8):
            crc = (crc << 1 ^ (0x04C11DB7 if crc >> 31 else 0)) & 0xFFFFFFFF
    return crc


def _cut(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.randrange(1, len(data))]


def _cut_mpegts(good: Mapping[str, bytes], rng: random.Random) -> bytes:
    data = good["mpegts"]
    return data[: rng.randrange(len(data) // TS_PACKET) * TS_PACKET + rng.randrange(1, TS_PACKET)]


def _flip(data: bytes, position: int, rng: random.Random) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _flip_sync_byte(good: Mapping[str, bytes], rng: random.Random) -> bytes:
    data = good["mpegts"]
    return _flip(data, rng.randrange(len(data) // TS_PACKET) * TS_PACKET, rng)


def _lose_ts_packet(good: Mapping[str, bytes], rng: random.Random) -> bytes:
    """Without one packet from the middle of the video."""
    data = good["mpegts"]
    packets = [data[at : at + TS_PACKET] for at in range(0, len(data), TS_PACKET)]
    pid = max((p[1:3] for p in packets if not p[1] & 0x40), key=[p[1:3] for p in packets].count)
    of_video = [number for number, packet in enumerate(packets) if packet[1:3] == pid]
    del packets[rng.choice(of_video[1:-1])]
    return b"".join(packets)


def _flip_box_size(good: Mapping[str, bytes], rng: random.Random) -> bytes:
    """Of a box that matters: `ftyp` grown over the empty `free` behind it would hurt nobody."""
    data = good["mp4"]
    position, _, _ = rng.choice([box for box in media.mp4_boxes(data) if box[1] in (b"mdat", b"moov")])
    return _flip(data, position + rng.randrange(4), rng)


def _flip_in_cluster(good: Mapping[str, bytes], rng: random.Random) -> bytes:
    """One bit changed in what a cluster's checksum protects: behind ID (4 bytes), size (8), checksum (6)."""
    data = good["matroska"]
    starts, at = [], 0
    while (at := data.find(b"\x1f\x43\xb6\x75", at)) >= 0:
        starts.append(at)
        at += 4
    number = rng.randrange(len(starts))
    end = starts[number + 1] if number + 1 < len(starts) else data.rindex(b"\x1c\x53\xbb\x6b")  # the index
    return _flip(data, rng.randrange(starts[number] + 18, end), rng)


def _scramble(data: bytes, start: int, end: int, rng: random.Random) -> bytes:
    """One byte in eight made random: what remains of a transfer that went wrong."""
    changed = bytearray(data)
    for position in range(start, end):
        if rng.randrange(8) == 0:
            changed[position] = rng.randrange(256)
    return bytes(changed)


def _scramble_mdat(good: Mapping[str, bytes], rng: random.Random) -> bytes:
    data = good["mp4"]
    position, _, size = next(box for box in media.mp4_boxes(data) if box[1] == b"mdat")
    return _scramble(data, position + 8, position + size, rng)


def _scramble_ts(data: bytes, rng: random.Random) -> bytes:
    return _scramble(data, 3 * TS_PACKET, len(data), rng)

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


def gzip_bomb() -> bytes:
    """1 GiB of zeros in about 1 MB of gzip."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 31)
    block = bytes(1024 * 1024)
    return b"".join(packer.compress(block) for _ in range(1024)) + packer.flush()


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

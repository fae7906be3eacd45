"""Damaged media through the real decode pool: whatever the file, frames or a DecodeError, and we live.

    python fuzz/fuzz_decode.py --files 20000 --keep /tmp/kept
    python fuzz/fuzz_decode.py --again /tmp/kept/417-decoder_crashed.msgpack

No coverage-guided fuzzer: what may break is FFmpeg, which comes compiled without instrumentation, and it runs
in processes of its own; atheris would see nothing but Python that passes bytes on. So the mutations know
the containers instead. Half of them keep the outer structure that `media_structure` checks (box and element
sizes, sync bytes, continuity counters; Matroska is made without checksums), and reach FFmpeg's insides; the
others cut, insert, repeat and join.

File n of a seed is made from the same clip by the same mutations every time. A file that killed a worker,
took too long or too much memory, or raised what nobody foresaw is kept as the message that it came in,
because encoders do not promise the same bytes twice. Exit status 1 if a worker is killed or an unforeseen
error raised; the service's own process must not die at all.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import media

from streamer.config import DecodeConfig, SampleConfig
from streamer.decode_pool import DecodePool
from streamer.errors import DecodeError
from streamer.messages import VideoChunk, decode_chunk, encode_chunk

MAX_BYTES = 1 << 24
KEPT_REASONS = ("decoder_crashed", "decoder_timeout", "decoder_out_of_memory", "decoder_error")
FAULTS = ("decoder_crashed", "decoder_error")
SIZES = ((128, 96), (322, 182))
ODD_NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)

Range = tuple[int, int]
"""Bytes [start, end) of a file."""


@dataclass(frozen=True)
class Clip:
    """An intact file, and where its bytes may change without its outer structure changing."""

    name: str
    data: bytes
    init: bytes | None
    inner: list[Range]


def clips() -> list[Clip]:
    """Every container and codec, whole and in CMAF segments, in two sizes."""
    made = []
    for width, height in SIZES:
        size = {"width": width, "height": height, "frames": 12, "gop": 6}
        for container, codec in media.FORMATS:
            plain = {"write_crc32": "0"} if container in ("matroska", "webm") else {}
            data = media.encode(container, codec, muxer_options=plain, **size)
            made.append(Clip(f"{container} {codec}", data, None, inner_ranges(data, container)))
        for codec in media.FRAGMENTED:
            init, segments = media.fragmented(codec, **size)
            made.append(Clip(f"cmaf {codec}", segments[0], init, inner_ranges(segments[0], "mp4")))
    return made


def inner_ranges(data: bytes, container: str) -> list[Range]:
    """Where a change leaves sizes, sync bytes and counters as they are."""
    if container == "mpegts":
        return [(at + 4, at + 188) for at in range(0, len(data), 188)]
    if container == "mp4":
        return list(mp4_leaves(data, 0, len(data)))
    return list(matroska_leaves(data, 0, len(data)))


def mp4_leaves(data: bytes, start: int, end: int) -> Iterator[Range]:
    """Contents of boxes that hold no boxes."""
    parents = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"mvex", b"moof", b"traf", b"edts", b"dinf")
    while start + 8 <= end:
        size, kind = struct.unpack_from("!I4s", data, start)
        if kind in parents:
            yield from mp4_leaves(data, start + 8, start + size)
        else:
            yield start + 8, start + size
        start += size


def matroska_leaves(data: bytes, start: int, end: int) -> Iterator[Range]:
    """Contents of the elements within the segment and its clusters, and of the head."""
    while start < end:
        id_length = 9 - data[start].bit_length()
        element = int.from_bytes(data[start : start + id_length], "big")
        start += id_length
        size_length = 9 - data[start].bit_length()
        size = int.from_bytes(data[start : start + size_length], "big") - (1 << 7 * size_length)
        start += size_length
        unknown = size == (1 << 7 * size_length) - 1
        stop = end if unknown else start + size
        if element in (0x18538067, 0x1F43B675):  # segment, cluster
            yield from matroska_leaves(data, start, stop)
        elif stop > start:
            yield start, stop
        start = stop


def change_inside(clip: Clip, rng: random.Random) -> bytes:
    """One to eight places changed, sizes and structure kept. Small elements, such as heads, are hit as often
    as large ones."""
    changed = bytearray(clip.data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        start, end = rng.choice([r for r in clip.inner if r[0] < r[1]])
        at = rng.randrange(start, end)
        left = end - at
        match rng.randrange(5):
            case 0:
                changed[at] ^= 1 << rng.randrange(8)
            case 1:
                size = min(left, rng.choice((1, 2, 4, 16, 64)))
                changed[at : at + size] = rng.randbytes(size)
            case 2:
                width = min(left, rng.choice((1, 2, 4, 8)))
                number = rng.choice(ODD_NUMBERS) + rng.choice((-1, 0, 0, 1))
                number %= 1 << 8 * width
                changed[at : at + width] = number.to_bytes(width, rng.choice(("big", "little")))
            case 3:
                size = min(left, rng.choice((4, 32, 256)))
                changed[at : at + size] = bytes([rng.choice((0, 0xFF))]) * size
            case 4:
                size = min(left, rng.choice((4, 16, 64)))
                source = rng.randrange(len(changed) - size)
                changed[at : at + size] = changed[source : source + size]
    assert len(changed) == len(clip.data)
    return bytes(changed)


def cut(clip: Clip, rng: random.Random) -> bytes:
    """The end is missing."""
    return clip.data[: rng.randrange(1, len(clip.data))]


def delete(clip: Clip, rng: random.Random) -> bytes:
    """A piece is missing."""
    at, size = rng.randrange(len(clip.data)), rng.choice((1, 4, 188, 188 * 5, 2000))
    return clip.data[:at] + clip.data[at + size :]


def insert(clip: Clip, rng: random.Random) -> bytes:
    """Noise, or a piece of the file itself, where it does not belong."""
    at, size = rng.randrange(len(clip.data)), rng.choice((1, 4, 188, 188 * 5, 2000))
    source = rng.randrange(len(clip.data))
    piece = rng.choice((rng.randbytes(size), clip.data[source : source + size]))
    return clip.data[:at] + piece + clip.data[at:]


def scramble(clip: Clip, rng: random.Random) -> bytes:
    """One byte in so many is noise, anywhere."""
    changed, one_in = bytearray(clip.data), rng.choice((10, 100, 1000))
    for at in range(len(changed)):
        if rng.randrange(one_in) == 0:
            changed[at] = rng.randrange(256)
    return bytes(changed)


OUTER: tuple[Callable[[Clip, random.Random], bytes], ...] = (cut, delete, insert, scramble)


def damaged(all_clips: list[Clip], seed: int, number: int) -> tuple[str, VideoChunk, SampleConfig]:
    """File `number`: its name, itself, and how it is sampled."""
    rng = random.Random(f"{seed} {number}")
    clip = rng.choice(all_clips)
    init, data = clip.init, clip.data
    while (init, data) == (clip.init, clip.data):  # a change may have changed nothing
        if clip.init and rng.randrange(3) == 0:
            whole = Clip("", clip.init, None, inner_ranges(clip.init, "mp4"))
            init = rng.choice((change_inside, change_inside, *OUTER))(whole, rng) or None
        match rng.randrange(10):
            case 0 | 1 | 2 | 3 | 4:
                data = change_inside(clip, rng)
            case 5:  # the head of one file, the rest of another
                other = rng.choice(all_clips).data
                data = clip.data[: rng.randrange(len(clip.data))] + other[rng.randrange(len(other)) :]
            case _:
                data = rng.choice(OUTER)(clip, rng)
    sample = SampleConfig(frames_per_second=rng.choice((4, 1000)))
    return clip.name, VideoChunk(video_id=clip.name, seq=number, data=data, init=init), sample


async def outcome(pool: DecodePool, chunk: VideoChunk, sample: SampleConfig) -> str:
    """`decoded`, or the reason of the refusal."""
    try:
        async for _ in pool.decode(chunk, sample):
            pass
    except DecodeError as error:
        if error.reason in FAULTS or error.reason == "decoder_timeout":
            print(f"{chunk.seq} {chunk.video_id}: {error.reason}: {error}", flush=True)
        return error.reason
    return "decoded"


async def fuzz(first: int, files: int, seed: int, keep: Path) -> Counter[str]:
    """Files [first, first + files), one worker for each core."""
    all_clips = clips()
    by_outcome: Counter[str] = Counter()
    by_clip: dict[str, Counter[str]] = {clip.name: Counter() for clip in all_clips}
    numbers = iter(range(first, first + files))
    slowest = (0.0, first)  # seconds, file
    me, started = psutil.Process(), time.monotonic()
    before = set(me.children())
    pool = DecodePool(DecodeConfig())
    await pool.start()

    async def work() -> None:
        nonlocal slowest
        for number in numbers:
            name, chunk, sample = damaged(all_clips, seed, number)
            asked = time.monotonic()
            reason = await outcome(pool, chunk, sample)
            slowest = max(slowest, (time.monotonic() - asked, number))
            by_outcome[reason] += 1
            by_clip[name][reason] += 1
            if reason in KEPT_REASONS:
                (keep / f"{number}-{reason}.msgpack").write_bytes(encode_chunk(chunk))
            if by_outcome.total() % 10_000 == 0:
                print(f"{by_outcome.total()} files, {time.monotonic() - started:.0f} s", flush=True)

    await asyncio.gather(*(work() for _ in range(pool.size)))
    for clip in all_clips:  # the pool still does its work
        intact = VideoChunk(video_id=clip.name, seq=0, data=clip.data, init=clip.init)
        assert await outcome(pool, intact, SampleConfig()) == "decoded", clip.name
    print(f"workers replaced: {dict(pool.restarts)}; slowest: file {slowest[1]}, {slowest[0]:.1f} s")
    print(f"our memory: {me.memory_info().rss >> 20} MiB")
    await pool.close()
    assert not set(me.children()) - before, "worker processes are left"
    for name, counts in by_clip.items():
        print(f"{name:22} {', '.join(f'{reason} {n}' for reason, n in counts.most_common())}")
    print(f"all {by_outcome.total()}: {', '.join(f'{reason} {n}' for reason, n in by_outcome.most_common())}")
    return by_outcome


async def again(file: Path) -> Counter[str]:
    """One kept file, with both ways of sampling."""
    chunk = decode_chunk(file.read_bytes(), None, (), offset=0, max_bytes=MAX_BYTES)  # noqa: ASYNC240
    pool = DecodePool(DecodeConfig())
    await pool.start()
    outcomes = Counter([await outcome(pool, chunk, SampleConfig(frames_per_second=n)) for n in (4, 1000)])
    await pool.close()
    print(dict(outcomes))
    return outcomes


def main() -> int:
    """Exit status: see the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, default=Path("kept"))
    parser.add_argument("--again", type=Path, metavar="FILE")
    asked = parser.parse_args()
    asked.keep.mkdir(parents=True, exist_ok=True)
    work = again(asked.again) if asked.again else fuzz(asked.first, asked.files, asked.seed, asked.keep)
    outcomes = asyncio.run(work)
    return int(any(outcomes[reason] for reason in FAULTS))


if __name__ == "__main__":
    sys.exit(main())

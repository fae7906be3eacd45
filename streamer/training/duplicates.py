"""Items that are copies of each other, or cannot be decoded: found, taken out, reported.

Exact copies by SHA-256. Copies that were recompressed or resized by a perceptual hash: the lowest frequencies
of the discrete cosine transform, above or below their median (Zauner, Implementation and Benchmarking of
Perceptual Image Hash Functions, 2010), here 16x16 of them, for 8x8 cannot tell portraits apart.

Items that are related, as a fake and its original, two fakes of one original or of copies of it, or one video
in several compressions, look alike on purpose and are not judged by their looks. They share a split anyway.
"""

from __future__ import annotations

import dataclasses
import json
import multiprocessing.util
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from streamer.config import DecodeConfig
from streamer.errors import DecodeError
from streamer.manifest import sha256_of
from streamer.training.frames import FrameReader, Wanted
from streamer.training.sources import name_of
from streamer.training.split import DisjointSets
from streamer.training.types import REAL, Item, Split
from streamer.training.workers import Progress, in_processes
from streamer.types import UInt8Array

HASH_SIDE = 16
HASH_BYTES = HASH_SIDE**2 // 8

MAX_DISTANCE = 40
"""Differing bits of 256 up to which two pictures are one. Of 5,000 photographs of faces at 256 px, copies at
0.6 of the size, JPEG quality 40 and 1.1 times the contrast differed in 6 bits (median; 99 %: 14, most: 34);
among the photographs themselves true copies differed in at most 8, a swapped face from its original in 38,
different pictures of one scene in 56 and more. Of eight videos, copies at half the size and CRF 38 differed
in 20 at most, strangers in 104 and more."""

FRAMES = 3
"""Compared of a video, spread over it; each must be within MAX_DISTANCE."""

_FLAT = 4.0  # standard deviation, grey levels, below which a picture shows nothing: titles, black frames
_BLOCK = 256  # rows compared at once: 256 x 100,000 hashes take 0.8 GB
_PRIORITY = ("test", "validation", "train")

Kind = Literal["exact", "perceptual", "altered", "contradictory"]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What is compared of one item, a line of the store."""

    item: str
    """Name by `sources.name_of`."""
    bytes: int
    modified_ns: int
    """Size and time of the file when it was looked at."""
    sha256: str
    hashes: tuple[str, ...]
    """Of its frames, 64 hex digits each; none if a frame shows nothing."""
    reason: str = ""
    """Why it cannot be decoded, a DecodeError's, or `missing` or `unreadable`."""
    text: str = ""


@dataclass(frozen=True, slots=True)
class Removal:
    """An item taken out because of another."""

    item: str
    kept: str
    """The other."""
    kind: Kind
    """`exact`: the same file. `perceptual`: it looks the same. `altered`: it looks the same and has the other
    label, hence one is made from the other, and it was in another split. `contradictory`: the same file with
    the other label; neither is kept."""


@dataclass(frozen=True, slots=True)
class DuplicateReport:
    """What was taken out, and why."""

    items: int
    kept: int
    removed: tuple[Removal, ...]
    undecodable: tuple[Fingerprint, ...]

    def to_json(self) -> str:
        """For a file beside the cache."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def remove_duplicates(
    items: Sequence[Item],
    *,
    roots: Mapping[str, Path],
    store: Path,
    config: DecodeConfig,
    workers: int = 1,
    progress: Progress = lambda done, total: None,
) -> tuple[list[Item], DuplicateReport]:
    """The items without copies and undecodable ones, in their order.

    items: after `split.assign_splits`. Of copies in different splits the one in training goes, and with it
    what shares its original; of copies in one split the first stays, and so does every original of a fake,
    which has no other picture of just the same frames. roots: see `sources.name_of`. store: a file that keeps
    what was found out about each item, so that it is looked at once. workers: processes. Blocks. Raises
    TrainingError.
    """
    names = [name_of(item.path, roots) for item in items]
    known = _fingerprints(items, names, store, config, workers, progress)
    prints = [known[name] for name in names]
    sound = [k for k, each in enumerate(prints) if not each.reason]
    removed = find_removals([items[k] for k in sound], [prints[k] for k in sound])
    gone = {removal.item for removal in removed}
    kept = [items[k] for k in sound if names[k] not in gone]
    undecodable = tuple(each for each in prints if each.reason)
    return kept, DuplicateReport(len(items), len(kept), tuple(removed), undecodable)


def find_removals(items: Sequence[Item], prints: Sequence[Fingerprint]) -> list[Removal]:
    """Which decodable items go; pure. `prints` in the order of the items."""
    rank = [(_PRIORITY.index(item.split or "train"), k) for k, item in enumerate(items)]
    gone: dict[int, Removal] = {}

    def remove(index: int, other: int, kind: Kind) -> None:
        gone.setdefault(index, Removal(prints[index].item, prints[other].item, kind))

    # 1. what nobody can learn from
    same = _same_content(prints)
    for members in same:
        first = members[0]
        if contrary := [k for k in members if items[k].label != items[first].label]:
            for k in members:
                remove(k, contrary[0] if k not in contrary else first, "contradictory")
    pairs = sorted(
        (*_exact(items, same, rank), *_alike(items, prints, rank)), key=lambda p: (rank[p[1]], rank[p[0]])
    )
    # 2. what is in two splits, with all that is made from it
    relatives: dict[tuple[Split | None, Path], list[int]] = {}
    for k, item in enumerate(items):
        relatives.setdefault((item.split, item.original or item.path), []).append(k)
    for early, late, kind in pairs:
        if items[early].split != items[late].split and early not in gone and late not in gone:
            for k in relatives[items[late].split, items[late].original or items[late].path]:
                remove(k, early, kind)
    # 3. what repeats within a split, but for families: originals, and all fakes of copies of one
    origins = DisjointSets()
    for early, late, _ in pairs:
        if items[early].label == items[late].label == REAL:
            origins.unite(items[early].path, items[late].path)
    needed = {item.original for k, item in enumerate(items) if k not in gone}
    for early, late, kind in pairs:
        if items[early].split != items[late].split or kind == "altered" or early in gone:
            continue
        if items[late].path in needed:
            continue
        a, b = items[early].original, items[late].original
        if kind == "exact" or a is None or b is None or origins.find(a) != origins.find(b):
            remove(late, early, kind)
    return [gone[k] for k in sorted(gone)]


Pair = tuple[int, int, Kind]
"""Two items; the first stays if one of them goes."""


def _same_content(prints: Sequence[Fingerprint]) -> list[list[int]]:
    """Items that are the same file, two or more each."""
    by_content: dict[str, list[int]] = {}
    for k, each in enumerate(prints):
        if each.sha256:
            by_content.setdefault(each.sha256, []).append(k)
    return [members for members in by_content.values() if len(members) > 1]


def _exact(
    items: Sequence[Item], same: Sequence[list[int]], rank: Sequence[tuple[int, int]]
) -> Iterator[Pair]:
    for members in same:
        first, *others = sorted(members, key=rank.__getitem__)
        yield from ((first, other, "exact") for other in others)


def _alike(
    items: Sequence[Item], prints: Sequence[Fingerprint], rank: Sequence[tuple[int, int]]
) -> Iterator[Pair]:
    """Items of no common group that look the same."""
    for media, frames in sorted({(item.media, len(p.hashes)) for item, p in zip(items, prints, strict=True)}):
        rows = [
            k for k, p in enumerate(prints) if items[k].media == media and len(p.hashes) == frames and frames
        ]
        words = [[np.frombuffer(bytes.fromhex(h), np.uint64) for h in prints[k].hashes] for k in rows]
        for i, j in near_pairs(np.array(words, np.uint64).reshape(len(rows), frames, HASH_BYTES // 8)):
            early, late = sorted((rows[i], rows[j]), key=rank.__getitem__)
            if not set(items[early].groups) & set(items[late].groups):
                alike = items[early].label == items[late].label
                yield early, late, "perceptual" if alike else "altered"


def near_pairs(hashes: NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """Pairs i < j of which every frame is within MAX_DISTANCE.

    hashes: (n, frames, HASH_BYTES / 8) uint64.
    """
    for start in range(0, len(hashes), _BLOCK):
        block = hashes[start : start + _BLOCK]
        first = block[:, None, 0] ^ hashes[None, start:, 0]  # (block, n - start, words)
        near = np.argwhere(np.bitwise_count(first).sum(axis=2, dtype=np.uint16) <= MAX_DISTANCE)
        for i, j in (near[near[:, 0] < near[:, 1]] + start).tolist():
            if (np.bitwise_count(hashes[i] ^ hashes[j]).sum(axis=1, dtype=np.uint16) <= MAX_DISTANCE).all():
                yield i, j


def perceptual_hash(rgb: UInt8Array) -> bytes | None:
    """Hash of a picture, HASH_BYTES long; None if it shows nothing. rgb: (height, width, 3) uint8."""
    side = 4 * HASH_SIDE
    grey = cv2.resize(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), (side, side), interpolation=cv2.INTER_AREA)
    if grey.std() < _FLAT:
        return None
    lowest = cv2.dct(grey.astype(np.float32))[:HASH_SIDE, :HASH_SIDE]
    return np.packbits(lowest > np.median(lowest)).tobytes()


@dataclass(frozen=True, slots=True)
class _Job:
    name: str
    item: Item
    bytes: int
    modified_ns: int
    hash_file: bool

    def is_told_by(self, known: Fingerprint) -> bool:
        """Whether a fingerprint from the store is that of the file as it is now, and says enough."""
        same = (known.bytes, known.modified_ns) == (self.bytes, self.modified_ns) and self.bytes >= 0
        return (
            same and known.reason != "unreadable" and bool(known.sha256 or known.reason or not self.hash_file)
        )


def _fingerprints(
    items: Sequence[Item],
    names: Sequence[str],
    store: Path,
    config: DecodeConfig,
    workers: int,
    progress: Progress,
) -> dict[str, Fingerprint]:
    """Of all items by name; those that are in the store and whose files have not changed come from there."""
    stats = [_stat(item.path) for item in items]
    sizes = Counter(size for size, _ in stats)
    jobs = [
        _Job(name, item, size, modified_ns, hash_file=sizes[size] > 1)
        for name, item, (size, modified_ns) in zip(names, items, stats, strict=True)
    ]
    known = _read_store(store)
    found = {
        job.name: known[job.name] for job in jobs if job.name in known and job.is_told_by(known[job.name])
    }
    missing = [job for job in jobs if job.name not in found]
    progress(len(found), len(jobs))
    store.parent.mkdir(parents=True, exist_ok=True)
    with store.open("a") as file:
        for each in in_processes(_work, missing, workers=workers, start=_start_worker, arguments=(config,)):
            found[each.item] = each
            file.write(json.dumps(dataclasses.asdict(each)) + "\n")
            file.flush()
            progress(len(found), len(jobs))
    return found


def _stat(path: Path) -> tuple[int, int]:
    """Size and time of change; (-1, 0) if there is no file."""
    try:
        found = path.stat()
    except OSError:
        return -1, 0
    return found.st_size, found.st_mtime_ns


def _read_store(path: Path) -> dict[str, Fingerprint]:
    """The latest of each item; a line cut off by the end of a run counts for nothing."""
    known: dict[str, Fingerprint] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            fields = json.loads(line)
            known[fields["item"]] = Fingerprint(**fields | {"hashes": tuple(fields["hashes"])})
        except (ValueError, TypeError, KeyError):
            continue
    return known


_reader: FrameReader | None = None


def _start_worker(config: DecodeConfig) -> None:
    global _reader
    _reader = FrameReader(config)
    multiprocessing.util.Finalize(_reader, _reader.close, exitpriority=1)


def _work(job: _Job) -> Fingerprint:
    """Look at one file."""
    assert _reader is not None
    nothing = Fingerprint(job.name, job.bytes, job.modified_ns, "", ())
    try:
        sha256 = sha256_of(job.item.path) if job.hash_file else ""
        # The same seed for all, so that the same moments of two copies are compared.
        hashes = _reader.look(job.item, Wanted(FRAMES, seed=0), lambda frame: perceptual_hash(frame.rgb))
    except FileNotFoundError as error:
        return dataclasses.replace(nothing, reason="missing", text=error.strerror or str(error))
    except OSError as error:
        return dataclasses.replace(nothing, reason="unreadable", text=error.strerror or str(error))
    except DecodeError as error:
        return dataclasses.replace(nothing, reason=error.reason, text=str(error))
    shown = tuple(each.hex() for each in hashes if each is not None)
    return dataclasses.replace(nothing, sha256=sha256, hashes=shown if len(shown) == len(hashes) else ())

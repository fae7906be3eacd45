from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from moving import write_clip
from PIL import Image

from streamer.config import DecodeConfig
from streamer.training.duplicates import (
    HASH_BYTES,
    MAX_DISTANCE,
    DuplicateReport,
    Fingerprint,
    Removal,
    find_removals,
    near_pairs,
    perceptual_hash,
    remove_duplicates,
)
from streamer.training.split import check_no_leak
from streamer.training.types import FAKE, REAL, Item
from streamer.types import UInt8Array


def photo(x: int = 0, y: int = 0, side: int = 256) -> UInt8Array:
    return np.ascontiguousarray(skimage.data.astronaut()[y : y + side, x : x + side])


def distance(a: UInt8Array, b: UInt8Array) -> int:
    hashes = [perceptual_hash(each) for each in (a, b)]
    assert all(each is not None and len(each) == HASH_BYTES for each in hashes)
    words = [np.frombuffer(each, np.uint8) for each in hashes if each is not None]
    return int(np.bitwise_count(words[0] ^ words[1]).sum())


# the hash


def test_copies_are_near() -> None:
    original = photo(90)
    small = cv2.resize(original, (150, 150), interpolation=cv2.INTER_AREA)
    compressed = cv2.imdecode(
        cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 30])[1], cv2.IMREAD_COLOR
    )
    brighter = np.clip(original * 1.15 + 8, 0, 255).astype(np.uint8)
    for copy in (small, compressed, brighter):
        assert distance(original, np.asarray(copy, np.uint8)) < MAX_DISTANCE / 2


def test_other_pictures_are_far() -> None:
    original = photo(90)
    others = [photo(0, 200), photo(150, 40), photo(90)[:, ::-1].copy(), skimage.data.cat()]
    for other in others:
        assert distance(original, other) > 1.5 * MAX_DISTANCE


def test_what_shows_nothing_has_no_hash() -> None:
    assert perceptual_hash(np.zeros((90, 160, 3), np.uint8)) is None
    assert perceptual_hash(np.full((90, 160, 3), 255, np.uint8)) is None


def test_near_pairs_as_by_hand() -> None:
    rng = np.random.default_rng(1)
    hashes = rng.integers(0, 2**64, (700, 2, HASH_BYTES // 8), np.uint64)  # several blocks
    flips = {(3, 5): 0, (10, 699): MAX_DISTANCE, (300, 301): MAX_DISTANCE + 1}
    for (i, j), bits in flips.items():
        hashes[j] = hashes[i]
        flat = np.unpackbits(hashes[j, 1].view(np.uint8))
        flat[:bits] ^= 1
        hashes[j, 1] = np.packbits(flat).view(np.uint64)
    hashes[20, 0] = hashes[21, 0]  # one of two frames
    assert list(near_pairs(hashes)) == [(3, 5), (10, 699)]
    assert list(near_pairs(hashes[:0])) == []


# who goes: fingerprints made by hand

LOOKS = [np.random.default_rng(k).bytes(HASH_BYTES).hex() for k in range(10)]
"""Far from each other."""


def item(name: str, split: str = "train", label: int = REAL, **more: object) -> Item:
    fields = {"generator": "x", "source": "folder", "groups": (name,), "media": "image"} | more
    return Item(path=Path(name), label=label, split=split, **fields)  # type: ignore[arg-type]


def look(item: Item, look: int, *, content: str = "") -> Fingerprint:
    return Fingerprint(item.path.name, 1, 1, content, (LOOKS[look],))


def removed(*entries: tuple[Item, int] | tuple[Item, int, str]) -> dict[str, tuple[str, str]]:
    items = [entry[0] for entry in entries]
    prints = [look(entry[0], entry[1], content=entry[2] if len(entry) > 2 else "") for entry in entries]
    found = find_removals(items, prints)
    assert len({removal.item for removal in found}) == len(found)
    return {removal.item: (removal.kept, removal.kind) for removal in found}


def test_nothing_alike() -> None:
    assert removed((item("a"), 1), (item("b"), 2)) == {}
    assert removed() == {}


def test_in_one_split_the_first_stays() -> None:
    found = removed((item("a"), 1), (item("b"), 1), (item("c"), 1), (item("d"), 2))
    assert found == {"b": ("a", "perceptual"), "c": ("a", "perceptual")}


@pytest.mark.parametrize("other", ["validation", "test"])
def test_across_splits_the_one_in_training_goes(other: str) -> None:
    assert removed((item("a"), 1), (item("b", other), 1)) == {"a": ("b", "perceptual")}
    assert removed((item("b", other), 1), (item("a"), 1)) == {"a": ("b", "perceptual")}
    assert removed((item("v", "validation"), 1), (item("t", "test"), 1)) == {"v": ("t", "perceptual")}


def test_with_it_goes_what_is_made_from_the_same() -> None:
    a = item("a", groups=("g",))
    fakes = [item(f"f{k}", label=FAKE, groups=("g",), original=a.path) for k in range(2)]
    stranger = item("s", groups=("g",))
    found = removed((a, 1), (fakes[0], 1), (fakes[1], 2), (stranger, 3), (item("v", "validation"), 1))
    assert found == dict.fromkeys(("a", "f0", "f1"), ("v", "perceptual"))
    # and if it is the fake that was seen again
    found = removed((a, 1), (fakes[0], 2), (fakes[1], 3), (item("v", "test", FAKE), 2))
    assert found == dict.fromkeys(("a", "f0", "f1"), ("v", "perceptual"))


def test_a_real_and_its_fake_are_no_duplicates() -> None:
    real = item("r", groups=("g",))
    fakes = [item(f"f{k}", label=FAKE, groups=("g",), original=real.path) for k in range(3)]
    assert removed((real, 1), *((fake, 1) for fake in fakes)) == {}
    # nor where nobody says that they belong together
    assert removed((item("r"), 1), (item("f", label=FAKE), 1)) == {}


def test_a_real_and_its_fake_in_two_splits() -> None:
    assert removed((item("r"), 1), (item("f", "validation", FAKE), 1)) == {"r": ("f", "altered")}
    assert removed((item("r", "validation"), 1), (item("f", "train", FAKE), 1)) == {"f": ("r", "altered")}


def test_fakes_of_copies_stay_with_their_originals() -> None:
    """Each fake has the one original of just its own frames."""
    a, b = item("a"), item("b")
    of_a, of_b = item("fa", label=FAKE, original=a.path), item("fb", label=FAKE, original=b.path)
    assert removed((a, 1), (b, 1), (of_a, 1), (of_b, 1)) == {}
    assert removed((a, 1), (b, 2), (of_a, 1), (of_b, 1)) == {"fb": ("fa", "perceptual")}
    assert removed((a, 1), (b, 1), (of_a, 1)) == {"b": ("a", "perceptual")}


def test_the_same_file() -> None:
    assert removed((item("a"), 1, "x"), (item("b"), 1, "x")) == {"b": ("a", "exact")}
    # also within a group
    found = removed((item("a", groups=("g",)), 1, "x"), (item("b", groups=("g",)), 1, "x"))
    assert found == {"b": ("a", "exact")}
    assert removed((item("a"), 1, "x"), (item("b", "test"), 1, "x")) == {"a": ("b", "exact")}


def test_the_same_file_with_both_labels() -> None:
    found = removed(
        (item("a"), 1, "x"), (item("b", label=FAKE), 1, "x"), (item("c"), 1, "x"), (item("d"), 2, "y")
    )
    assert found == dict.fromkeys(("a", "c"), ("b", "contradictory")) | {"b": ("a", "contradictory")}


def test_a_video_is_no_picture() -> None:
    assert removed((item("a"), 1), (item("b", media="video"), 1)) == {}


def test_without_a_hash_only_the_file_counts() -> None:
    items = [item("a"), item("b")]
    blank = [dataclasses.replace(look(each, 0), hashes=()) for each in items]
    assert find_removals(items, blank) == []
    same = [dataclasses.replace(each, sha256="x") for each in blank]
    assert find_removals(items, same) == [Removal("b", "a", "exact")]


# real files


def make_data(root: Path) -> list[Item]:
    root.mkdir()
    Image.fromarray(photo(90)).save(root / "a.png")
    Image.fromarray(photo(90)).resize((180, 180)).save(root / "small.jpg", quality=60)
    shutil.copy(root / "a.png", root / "same.png")
    Image.fromarray(photo(0, 200)).save(root / "other.png")
    (root / "half.png").write_bytes((root / "a.png").read_bytes()[:5000])
    write_clip(root / "clip.mp4", photo(90, 0), crf="20", g="10")
    write_clip(root / "recoded.mp4", cv2.resize(photo(90, 0), (180, 180)), crf="38", g="250")
    write_clip(root / "turned.mp4", photo(90, 0)[:, ::-1], crf="20", g="10")
    items = [
        item(str(path), "validation" if path.name == "small.jpg" else "train", groups=(path.name,))
        for path in sorted(root.iterdir())
    ]
    items = [dataclasses.replace(i, media="video" if i.path.suffix == ".mp4" else "image") for i in items]
    return [*items, item(str(root / "gone.png"), groups=("gone",))]


def run(items: list[Item], root: Path, store: Path, **more: object) -> tuple[list[Item], DuplicateReport]:
    return remove_duplicates(items, roots={"set": root}, store=store, config=DecodeConfig(), **more)  # type: ignore[arg-type]


def test_files(tmp_path: Path) -> None:
    root, store = tmp_path / "data", tmp_path / "new" / "fingerprints.jsonl"
    items = make_data(root)
    steps: list[int] = []
    kept, report = run(items, root, store, progress=lambda done, total: steps.append(done))
    assert [each.path.name for each in kept] == ["clip.mp4", "other.png", "small.jpg", "turned.mp4"]
    check_no_leak(kept)
    assert {removal.item: (removal.kept, removal.kind) for removal in report.removed} == {
        "set/a.png": ("set/small.jpg", "perceptual"),
        "set/same.png": ("set/small.jpg", "perceptual"),
        "set/recoded.mp4": ("set/clip.mp4", "perceptual"),
    }
    assert {each.item: each.reason for each in report.undecodable} == {
        "set/half.png": "damaged",
        "set/gone.png": "missing",
    }
    assert (report.items, report.kept) == (len(items), 4)
    assert json.loads(report.to_json())["removed"][0]["kind"] == "perceptual"
    assert steps == list(range(len(items) + 1))
    _looks_once(items, root, store, report)


def _looks_once(items: list[Item], root: Path, store: Path, report: DuplicateReport) -> None:
    """Again from the store, but for what changed, and for a line that was cut off."""
    with store.open("a") as file:
        file.write('{"item": "set/a.p')
    (root / "half.png").unlink()
    shutil.copy(root / "other.png", root / "half.png")
    steps: list[int] = []
    _, again = run(items, root, store, progress=lambda done, total: steps.append(done))
    assert steps[0] >= len(items) - 3  # half.png is new, other.png has a twin now, gone.png may be there
    assert Removal("set/other.png", "set/half.png", "exact") in again.removed
    assert {each.item for each in again.undecodable} == {"set/gone.png"}
    assert set(report.removed) < set(again.removed)

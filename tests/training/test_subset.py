"""A part of the records is a fair one: of every generator, with the originals of the fakes."""

from __future__ import annotations

from collections import Counter

from records import record_of

from streamer.training.subset import subset
from streamer.training.types import FAKE, REAL, CropRecord


def crop(item: str, frame: int, generator: str, original: str | None = None) -> CropRecord:
    label = REAL if generator == "real" else FAKE
    time = float(frame)
    return record_of(
        item, frame=frame, time_seconds=time, label=label, generator=generator, original=original
    )


def test_a_subset_keeps_few_videos_whole_in_number_and_a_fair_choice_of_pictures() -> None:
    frames = [crop("v", frame, "swap") for frame in (4, 3, 2, 1, 0)]
    few = [crop("w", 0, "swap"), crop("w", 7, "swap")]
    pictures = [crop(f"r{k}", 0, "real") for k in range(40)]
    rare = [crop(f"g{k}", 0, "gan") for k in range(3)]
    records = frames + pictures + few + rare

    kept = subset(records, crops_per_video=3, videos=2, pictures=10, seed=1)
    assert [r.frame for r in kept if r.item == "v"] == [4, 2, 0], "evenly, in the records' order"
    assert [r.frame for r in kept if r.item == "w"] == [0, 7]
    assert Counter(r.generator for r in kept if r.item not in ("v", "w")) == {"real": 7, "gan": 3}
    assert [records.index(r) for r in kept] == sorted(records.index(r) for r in kept)

    assert kept == subset(records, crops_per_video=3, videos=9, pictures=10, seed=1)
    assert kept != subset(records, crops_per_video=3, videos=2, pictures=10, seed=2)
    assert subset(records, crops_per_video=5, videos=2, pictures=43, seed=1) == records, "what there is"


def test_a_subset_draws_videos_fairly_and_leaves_pairs_together() -> None:
    records = []
    for k in range(20):  # as in DFDC: several fakes of each original, by one generator
        items = {f"real{k}": ("real", None), f"rare{k // 10}": ("rare", f"real{k // 10}")}
        items |= {f"fake{k}{letter}": ("DFDC", f"real{k}") for letter in "abcde"}
        for item, (generator, original) in items.items():
            records += [crop(item, frame, generator, original) for frame in range(2)]

    kept = subset(records, crops_per_video=1, videos=14, pictures=1, seed=1)
    assert Counter(r.generator for r in kept) == {"real": 6, "DFDC": 6, "rare": 2}
    real = {r.item for r in kept if r.generator == "real"}
    assert {r.original for r in kept if r.generator == "DFDC"} == real, "one of each original, all with it"
    assert [records.index(r) for r in kept] == sorted(records.index(r) for r in kept)
    assert kept == subset(records, crops_per_video=1, videos=14, pictures=1, seed=1)
    assert kept != subset(records, crops_per_video=1, videos=14, pictures=1, seed=2)
    assert subset(records, crops_per_video=40, videos=122, pictures=1, seed=1) == records

"""Part of the records, for a measurement on a slow machine. Pure."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from streamer.training.types import CropRecord


def subset(
    records: Sequence[CropRecord], *, crops_per_video: int, videos: int, pictures: int, seed: int
) -> list[CropRecord]:
    """Fewer records, in their order, for a measurement on a slow machine.

    Of the items with several crops at most `videos` stay, with at most `crops_per_video` of these, evenly
    over the frames; of those with a single crop at most `pictures`. Both are drawn with the seed, as many of
    each generator as of the others as far as it has them; videos in the same order of originals for every
    generator, so that pairs stay together. All counts at least 1.
    """
    by_item: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        by_item[record.item].append(index)
    singles: dict[tuple[str, str], list[int]] = defaultdict(list)
    several: dict[tuple[str, str], list[int]] = defaultdict(list)
    for first, *more in by_item.values():
        kind = several if more else singles
        kind[records[first].source, records[first].generator].append(first)
    rng = np.random.default_rng(seed)
    drawn = {generator: rng.permutation(own).tolist() for generator, own in sorted(singles.items())}
    kept = _in_turn(drawn, pictures)
    drawn = {generator: rng.permutation(own).tolist() for generator, own in sorted(several.items())}
    for first in _in_turn(_by_original(drawn, records), videos):
        indices = sorted(by_item[records[first].item], key=lambda index: records[index].frame)
        places = np.linspace(0, len(indices) - 1, min(len(indices), crops_per_video)).round().astype(int)
        kept += [indices[place] for place in places]
    return [records[index] for index in sorted(kept)]


def _by_original(
    videos: Mapping[tuple[str, str], Sequence[int]], records: Sequence[CropRecord]
) -> dict[tuple[str, str], list[int]]:
    """Each generator's videos: one of every original, then their second ones, ...; originals in one order for
    all generators, that in which they come first."""
    order: dict[str, int] = {}
    result = {}
    for generator, own in videos.items():
        earlier: Counter[str] = Counter()
        places = []
        for index in own:
            original = records[index].original or records[index].item
            places.append((earlier[original], order.setdefault(original, len(order)), index))
            earlier[original] += 1
        result[generator] = [index for *_, index in sorted(places)]
    return result


def _in_turn(drawn: Mapping[tuple[str, str], Sequence[int]], most: int) -> list[int]:
    """At most so many, the generators taking turns."""
    turns = [(turn, generator, index) for generator, own in drawn.items() for turn, index in enumerate(own)]
    return [index for _, _, index in sorted(turns)[:most]]

"""Which items train, which validate: whole groups of people at a time. Pure."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from types import MappingProxyType

from streamer.errors import TrainingError
from streamer.training.sources import name_of
from streamer.training.types import SPLITS, CropRecord, Item, Split

ALL_TRAIN: Mapping[Split, float] = MappingProxyType({"train": 1.0, "validation": 0.0, "test": 0.0})
"""Where what validates is named."""

FRACTIONS: Mapping[Split, float] = MappingProxyType({"train": 0.8, "validation": 0.2, "test": 0.0})
"""Of groups; of DFDC's 50 folders that makes 40 and 10."""

_NAMED = 5  # culprits that an error lists


def hold_out(items: Sequence[Item], patterns: Sequence[str], roots: Mapping[str, Path]) -> list[Item]:
    """Fix items to the split `validation` by name; `assign_splits` takes all that belongs to them there, for
    what the data set says of the split of those does not hold.

    patterns: as of shells, matched with `NAME/PATH-BELOW-THE-DATA-SET'S-FOLDER`. roots: data set's name ->
    its folder. Raises TrainingError for a pattern that matches nothing.
    """
    names = {id(item): name_of(item.path, roots) for item in items}
    for pattern in patterns:
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            example = min(names.values(), default="no file")
            raise TrainingError(f"--validation {pattern!r} matches nothing; there is, for example, {example}")
    splits = {id(item): item.split for item in items}
    for cluster in _connect(items).values():
        matched = [item for item in cluster if any(fnmatchcase(names[id(item)], each) for each in patterns)]
        if matched:
            splits |= dict.fromkeys(map(id, cluster))
            splits |= dict.fromkeys(map(id, matched), "validation")
    return [dataclasses.replace(item, split=splits[id(item)]) for item in items]


def assign_splits(
    items: Sequence[Item], *, seed: int, fractions: Mapping[Split, float] = FRACTIONS
) -> list[Item]:
    """The items in their order, each with a split and, in place of its groups, one name for all connected.

    Items are connected that share a group, or of which one is the other's original. A split that the data set
    fixes for one of them holds for all. Of the rest, each data set's groups are put in the order of a seeded
    hash of their names and dealt out by `fractions`, which must sum to 1; a data set of two groups or more
    gives at least one to validation, unless its fraction is 0. Raises TrainingError where fixed splits
    contradict each other.
    """
    if abs(sum(fractions.values()) - 1) > 1e-6 or min(fractions.values()) < 0:
        raise TrainingError(f"fractions of the splits must sum to 1, got {dict(fractions)}")
    clusters = _connect(items)
    fixed = {name: _fixed_split(name, members) for name, members in clusters.items()}
    splits: dict[str, Split] = {name: split for name, split in fixed.items() if split is not None}
    free: dict[str, list[str]] = {}
    for name, members in clusters.items():
        if fixed[name] is None:
            free.setdefault(members[0].source, []).append(name)
    for names in free.values():
        splits |= _deal(names, seed, fractions)
    assigned = {
        id(item): dataclasses.replace(item, groups=(name,), split=splits[name])
        for name, members in clusters.items()
        for item in members
    }
    return [assigned[id(item)] for item in items]


def _connect(items: Sequence[Item]) -> dict[str, list[Item]]:
    """Items by cluster, which is called after the first of its groups in alphabetical order."""
    sets = DisjointSets()
    for item in items:
        sets.unite(("path", item.path), *(("group", group) for group in item.groups))
        if item.original is not None:
            sets.unite(("path", item.path), ("path", item.original))
    members: dict[Hashable, list[Item]] = {}
    for item in items:
        members.setdefault(sets.find(("path", item.path)), []).append(item)
    return {min(group for item in cluster for group in item.groups): cluster for cluster in members.values()}


class DisjointSets:
    """Union-find with path halving (Tarjan and van Leeuwen 1984)."""

    def __init__(self) -> None:
        self._parent: dict[Hashable, Hashable] = {}

    def find(self, key: Hashable) -> Hashable:
        """The same for all keys that were united."""
        parent = self._parent
        parent.setdefault(key, key)
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    def unite(self, first: Hashable, *others: Hashable) -> None:
        """Put keys into one set, and the sets that they were in."""
        for other in others:
            self._parent[self.find(other)] = self.find(first)


def _fixed_split(name: str, members: Sequence[Item]) -> Split | None:
    by_split: dict[Split, Item] = {}
    for item in members:
        if item.split is not None:
            by_split.setdefault(item.split, item)
    if len(by_split) > 1:
        found = ", ".join(f"{split}: {item.path}" for split, item in by_split.items())
        raise TrainingError(
            f"group {name} is fixed to several splits ({found}). If these files only happen to have the same "
            f"name, give --group-by file; else move them into one split"
        )
    return next(iter(by_split), None)


def _deal(names: Sequence[str], seed: int, fractions: Mapping[Split, float]) -> dict[str, Split]:
    def drawn(name: str) -> bytes:  # groups are called after files, whose names need be no UTF-8
        return hashlib.blake2b(f"{seed} {name}".encode("utf-8", "surrogatepass")).digest()

    ranked = sorted(names, key=drawn)
    count = len(ranked)
    validation = round(fractions.get("validation", 0) * count)
    if fractions.get("validation", 0) > 0 and count > 1:
        validation = max(validation, 1)
    test = min(round(fractions.get("test", 0) * count), count - validation)
    bounds: tuple[tuple[Split, int], ...] = (
        ("validation", validation),
        ("test", validation + test),
        ("train", count),
    )
    return {name: next(split for split, end in bounds if rank < end) for rank, name in enumerate(ranked)}


def check_shares(
    items: Sequence[Item], assigned: Sequence[Item], fractions: Mapping[Split, float] = FRACTIONS
) -> None:
    """Raise TrainingError, saying why, where a split that should get a part of the items has nothing.

    items, assigned: what `assign_splits` was given and gave. Where the data set fixes all, that is its will.
    """
    filled = {item.split for item in assigned}
    empty = [split for split in SPLITS if fractions.get(split, 0) > 0 and split not in filled]
    if empty and any(item.split is None for item in items):
        groups = sorted({group for item in assigned for group in item.groups})
        more = ", ..." if len(groups) > _NAMED else ""
        raise TrainingError(
            f"nothing is left for {' and '.join(empty)}: files that share people, an original or a folder "
            f"stay together (groups: {', '.join(groups[:_NAMED])}{more}). Add data of other people; or, only "
            f"to measure on these files, hold out all of them: --validation '*'"
        )


def check_no_leak(items: Iterable[Item]) -> None:
    """Raise TrainingError, naming what crosses, unless every group, file and original is in one split."""
    places: dict[str, set[Split | None]] = {}
    for item in items:
        originals = () if item.original is None else (f"file {item.original}",)
        for key in (f"file {item.path}", *originals, *(f"group {group}" for group in item.groups)):
            places.setdefault(key, set()).add(item.split)
    _refuse(places)


def check_no_leak_in_records(records: Iterable[CropRecord]) -> None:
    """The same of crops: every group, item and original is in one split. Raises TrainingError."""
    places: dict[str, set[Split | None]] = {}
    for record in records:
        originals = () if record.original is None else (f"item {record.original}",)
        for key in (f"item {record.item}", *originals, f"group {record.group}"):
            places.setdefault(key, set()).add(record.split)
    _refuse(places)


def _refuse(places: Mapping[str, set[Split | None]]) -> None:
    crossing = {key: splits for key, splits in places.items() if len(splits) > 1}
    if None in set().union(*places.values()):
        raise TrainingError("there are items without a split; call assign_splits first")
    if crossing:
        order = (*SPLITS, None)
        named = "; ".join(
            f"{key}: {', '.join(str(split) for split in sorted(splits, key=order.index))}"
            for key, splits in sorted(crossing.items())[:_NAMED]
        )
        more = f" and {len(crossing) - _NAMED} more" if len(crossing) > _NAMED else ""
        raise TrainingError(f"in more than one split: {named}{more}; training would see what validates it")

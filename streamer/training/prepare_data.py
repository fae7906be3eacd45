"""Folders of data sets -> a cache of face crops, split by people and without duplicates."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from streamer.config import Config
from streamer.errors import ConfigError
from streamer.terminal import count
from streamer.training.duplicates import DuplicateReport, remove_duplicates
from streamer.training.prepare import PrepareReport, prepare
from streamer.training.sources import check_official_split, read_data
from streamer.training.split import (
    ALL_TRAIN,
    FRACTIONS,
    assign_splits,
    check_no_leak,
    check_shares,
    hold_out,
)
from streamer.training.types import Item
from streamer.training.workers import Progress

FINGERPRINTS, DUPLICATES, PREPARED = "fingerprints.jsonl", "duplicates.json", "prepared.json"
"""Files of a cache: what is known of each item's content, and the reports."""

Bar = Callable[[str], AbstractContextManager[Progress]]
"""What is done, in words -> how far it is can be told inside."""


@dataclass(frozen=True, slots=True)
class Selection:
    """Which data, and how it is split; see the options of `streamer train prepare`."""

    folders: Sequence[Path]
    layouts: Sequence[str]
    """`dfdc`, `faceforensics` or `folder`: of all folders, or of each."""
    group_by: str
    """`stem` or `file`; see `sources.read_folder`."""
    compressions: Sequence[str] | None
    """Of FaceForensics++, like `methods` and `official_split`; see `sources.read_faceforensics`."""
    methods: Sequence[str] | None
    official_split: bool
    validation: Sequence[str]
    """Patterns of what is held out; empty: a share of the people, at random."""
    seed: int
    """Of the split and the choice of frames."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What a cache was filled with, and what was left out."""

    cache: Path
    crops: PrepareReport
    duplicates: DuplicateReport

    def in_lines(self) -> Iterator[str]:
        """The crops of each split, then what gave none."""
        for split, generators in self.crops.by_split.items():
            yield f"{split}: " + ", ".join(
                f"{count(n, 'crop')} {name}" for name, n in sorted(generators.items())
            )
        duplicates = self.duplicates
        yield (
            f"{len(duplicates.removed)} duplicates and {len(duplicates.undecodable)} undecodable files left "
            f"out, {len(self.crops.problems)} gave no face: see {self.cache / DUPLICATES}, "
            f"{self.cache / PREPARED}"
        )


def prepare_data(
    selection: Selection,
    *,
    cache: Path,
    config: Config,
    frames_per_real: int,
    frames_per_fake: int,
    workers: int,
    bar: Bar,
) -> Prepared:
    """Fill a cache with the faces of data sets, or go on where an earlier call was.

    frames_per_real, frames_per_fake: of a video. workers: processes. Blocks. Raises ConfigError,
    TrainingError, ModelError.
    """
    # 1. what there is, and which of it trains and validates
    items, roots = _read_split(selection)
    # 2. without copies, which could be on both sides
    with bar("looking for duplicates") as progress:
        items, duplicates = remove_duplicates(
            items,
            roots=roots,
            store=cache / FINGERPRINTS,
            config=config.decode,
            workers=workers,
            progress=progress,
        )
    (cache / DUPLICATES).write_text(duplicates.to_json())
    check_no_leak(items)
    # 3. the faces
    with bar("finding faces") as progress:
        crops = prepare(
            items,
            roots=roots,
            cache=cache,
            config=config,
            seed=selection.seed,
            frames_per_real=frames_per_real,
            frames_per_fake=frames_per_fake,
            workers=workers,
            progress=progress,
        )
    (cache / PREPARED).write_text(crops.to_json())
    return Prepared(cache, crops, duplicates)


def _read_split(selection: Selection) -> tuple[list[Item], dict[str, Path]]:
    """Items of all folders, each with its split, and the folder of each data set by its name."""
    layouts = _layout_of_each(selection)
    if "faceforensics" not in layouts and (
        selection.compressions or selection.methods or not selection.official_split
    ):
        raise ConfigError("--compression, --method and --no-official-split are for --source faceforensics")
    items, roots = read_data(
        selection.folders,
        layouts,
        group_by=selection.group_by,
        compressions=selection.compressions,
        methods=selection.methods,
        official_split=selection.official_split,
    )
    if "faceforensics" in layouts and selection.official_split and not selection.validation:
        check_official_split(items, roots["faceforensics"])
    held_out = hold_out(items, selection.validation, roots)
    fractions = ALL_TRAIN if selection.validation else FRACTIONS
    items = assign_splits(held_out, seed=selection.seed, fractions=fractions)
    check_shares(held_out, items, fractions)
    return items, roots


def _layout_of_each(selection: Selection) -> list[str]:
    layouts, folders = list(selection.layouts), selection.folders
    if len(layouts) not in (1, len(folders)):
        raise ConfigError(
            f"--source is given once for all folders or once for each, not {len(layouts)} times"
        )
    return layouts * len(folders) if len(layouts) == 1 else layouts

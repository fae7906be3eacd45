"""Readers of data sets: a folder as its publisher lays it out -> items. Nothing is decoded.

An item whose file is missing stays in the list; whoever opens it reports it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import structlog

from streamer.errors import TrainingError
from streamer.training.types import FAKE, REAL, Item, Split

PICTURES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
VIDEOS = frozenset({".mp4", ".mkv", ".webm", ".mov", ".m4v", ".avi", ".ts", ".mpg", ".mpeg", ".flv"})
"""Suffixes, lower case; other files of a folder are passed over."""

METHODS = ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter", "DeepFakeDetection")
"""Of FaceForensics++; the last one is Google's, with actors for originals and no official split."""

COMPRESSIONS: Mapping[str, tuple[str, ...]] = {"c0": ("raw", "c0"), "c23": ("c23",), "c40": ("c40",)}
"""Of FaceForensics++, x264's constant rate factor -> the folders it is in."""

Grouping = Literal["stem", "file"]

_ACTED = "DeepFakeDetection"
_USUAL = ("c23", "c40")  # c0 is several times their size
_SPLIT_FILES: Mapping[Split, str] = {"train": "train.json", "validation": "val.json", "test": "test.json"}
_SPLIT_FOLDERS: Mapping[str, Split] = {
    "train": "train",
    "val": "validation",
    "validation": "validation",
    "test": "test",
}
_REAL_FOLDERS, _FAKE_FOLDERS = ("real", "original"), ("fake", "swapped")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def name_of(path: Path, roots: Mapping[str, Path]) -> str:
    """What an item is called in caches and reports: `NAME/PATH-BELOW-ITS-DATA-SET'S-FOLDER`.

    Bytes of the path that are no UTF-8 are written as `\\xff`, for reports are UTF-8. roots: data set's name
    -> its folder. Raises TrainingError if the path lies in none of them.
    """
    for name, root in roots.items():
        if path.is_relative_to(root):
            below = os.fsencode(path.relative_to(root)).decode("utf-8", "backslashreplace")
            return f"{name}/{below}"
    known = ", ".join(f"{name}: {root}" for name, root in roots.items())
    raise TrainingError(f"{path}: lies in none of the data sets' folders ({known})")


def read_data(
    folders: Sequence[Path],
    layouts: Sequence[str],
    *,
    group_by: str,
    compressions: Collection[str] | None,
    methods: Collection[str] | None,
    official_split: bool,
) -> tuple[list[Item], dict[str, Path]]:
    """Items of several data sets, and the folder of each by its name: the layout's, or a plain folder's own.

    layouts: `dfdc`, `faceforensics` or `folder`, of each folder. compressions, methods, official_split: see
    read_faceforensics. Raises TrainingError.
    """
    items: list[Item] = []
    roots: dict[str, Path] = {}
    for folder, layout in zip(folders, layouts, strict=True):
        name = folder.resolve().name if layout == "folder" else layout
        if name in roots:
            raise TrainingError(f"{roots[name]} and {folder} would both be called {name}: rename one")
        roots[name] = folder
        if layout == "dfdc":
            items += read_dfdc(folder)
        elif layout == "faceforensics":
            items += read_faceforensics(
                folder, compressions=compressions, methods=methods, official_split=official_split
            )
        else:
            items += read_folder(folder, group_by="file" if group_by == "file" else "stem", name=name)
    return items, roots


def read_dfdc(root: Path) -> list[Item]:
    """DeepFake Detection Challenge (Dolhansky et al. 2020): folders `dfdc_train_part_N` with metadata.json.

    root: holds the parts, as many as there are; or is one itself. Videos and their originals are those that
    metadata.json names. Groups: the original, and the folder, for people appear in many videos of one folder
    and in no other; of one part alone, which could not be split then, the original only, with a warning.
    Raises TrainingError.
    """
    parts = [root] if (root / "metadata.json").is_file() else _dfdc_parts(root)
    alone = len(parts) == 1
    if alone:
        log.warning(
            "one folder of DFDC alone is split by original: the same people may train and validate, and the "
            "figures flatter; with two folders or more each goes whole to one split",
            folder=str(parts[0]),
        )
    return [item for part in parts for item in _read_dfdc_part(part, alone=alone)]


def _dfdc_parts(root: Path) -> list[Path]:
    numbered = [
        (int(match[1]), path)
        for path in _entries(root)
        if (match := re.fullmatch(r"dfdc_train_part_(\d+)", path.name)) and path.is_dir()
    ]
    if not numbered:
        raise TrainingError(
            f"{root}: no folders dfdc_train_part_0, dfdc_train_part_1, ... nor metadata.json in it"
        )
    return [path for _, path in sorted(numbered)]


def _read_dfdc_part(part: Path, *, alone: bool) -> Iterator[Item]:
    path = part / "metadata.json"
    metadata = _read_json(path)
    if not isinstance(metadata, dict):
        raise TrainingError(f"{path}: expected an object with a key for each video")
    for name, about in sorted(metadata.items()):
        label = about.get("label") if isinstance(about, dict) else None
        if label not in ("REAL", "FAKE") or Path(name).name != name:
            raise TrainingError(f"{path}: {name!r} should have label REAL or FAKE, it has {about!r:.100}")
        named = about.get("original") if label == "FAKE" else None
        origin = named if isinstance(named, str) and named else name
        group = f"{part.name}/{origin}"
        yield Item(
            path=part / name,
            media="video",
            label=FAKE if label == "FAKE" else REAL,
            generator="DFDC" if label == "FAKE" else "real",
            source="dfdc",
            groups=(group,) if alone else (group, part.name),
            original=part / origin if origin != name and origin in metadata else None,
        )


def read_faceforensics(
    root: Path,
    *,
    compressions: Collection[str] | None = None,
    methods: Collection[str] | None = None,
    official_split: bool = True,
) -> list[Item]:
    """FaceForensics++ (Rössler et al. 2019) as its download script leaves it.

    root: holds original_sequences/ and manipulated_sequences/, and, there or in splits/ or dataset/splits/,
    the official train.json, val.json and test.json; without these three, or not official_split, the split is
    left open. compressions: of COMPRESSIONS; None: c23 and c40, as far as they are there. methods: of
    METHODS; None: those that are there. Groups: both people. Raises TrainingError, also where a method or a
    compression asked for is missing.
    """
    _refuse_unknown(compressions or (), COMPRESSIONS)
    _refuse_unknown(methods or (), METHODS)
    splits = _read_official_split(root) if official_split else {}
    rates = [rate for rate in COMPRESSIONS if rate in (_USUAL if compressions is None else compressions)]
    wanted = [method for method in METHODS if methods is None or method in methods]
    items: list[Item] = []
    sequences: list[Path] = []
    for people, of_people in (
        ("youtube", [method for method in wanted if method != _ACTED]),
        ("actors", [method for method in wanted if method == _ACTED]),
    ):
        if of_people:
            sequences.append(root / "original_sequences" / people)
            originals = _ff_videos(sequences[-1], rates)
            items += [_ff_real(path, people, splits) for path in originals]
        for method in of_people:
            sequences.append(root / "manipulated_sequences" / method)
            fakes = _ff_videos(sequences[-1], rates)
            if methods is not None and not fakes:
                missing = f"{sequences[-1]}/{_braces(rates)}/videos"
                others = _other_compressions(sequences[-1:])
                raise TrainingError(f"{missing}: no videos of {method} there{others}")
            items += [_ff_fake(root, path, people, splits) for path in fakes]
    found = {item.path.parts[-3] for item in items}
    absent = [rate for rate in rates if found.isdisjoint(COMPRESSIONS[rate])]
    if not items or (compressions is not None and absent):
        missing = f"{root}/{{original,manipulated}}_sequences/*/{_braces(absent)}/videos"
        raise TrainingError(f"{missing}: no videos there{_other_compressions(sequences)}")
    return items


def _braces(compressions: Iterable[str]) -> str:
    return "{" + ",".join(folder for rate in compressions for folder in COMPRESSIONS[rate]) + "}"


def _other_compressions(sequences: Sequence[Path]) -> str:
    """What follows on `no videos there`: the compressions that are there, and how to ask for them."""
    there = [rate for rate in COMPRESSIONS if any(_ff_videos(folder, [rate]) for folder in sequences)]
    options = " ".join(f"--compression {rate}" for rate in there)
    return f", but of {' and '.join(there)}: give {options}" if there else ""


def check_official_split(items: Iterable[Item], root: Path) -> None:
    """Raise TrainingError if there are YouTube videos of FaceForensics++ in `root`, but no split files."""
    videos = [
        item for item in items if any(group.startswith("faceforensics/youtube/") for group in item.groups)
    ]
    if videos and all(item.split is None for item in videos):
        raise TrainingError(
            f"{root}: {', '.join(_SPLIT_FILES.values())} are missing, the official split of FaceForensics++, "
            f"without which no figures compare with published ones. They are in dataset/splits of "
            f"https://github.com/ondyari/FaceForensics: put all three into {root / 'splits'}. To split at "
            f"random by people instead, give --no-official-split"
        )


def _refuse_unknown(names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise TrainingError(f"FaceForensics++ has no {name!r}; there are {', '.join(known)}")


def _ff_videos(sequences: Path, compressions: Iterable[str]) -> list[Path]:
    return [
        path
        for compression in compressions
        for folder in COMPRESSIONS[compression]
        for path in sorted((sequences / folder / "videos").glob("*.mp4"))
        if not path.name.startswith(".")
    ]


def _read_official_split(root: Path) -> dict[str, Split]:
    """Number of a YouTube video -> its split; empty if there are no split files."""
    for folder in (root, root / "splits", root / "dataset" / "splits"):
        paths = {split: folder / file for split, file in _SPLIT_FILES.items()}
        missing = [path.name for path in paths.values() if not path.is_file()]
        if len(missing) == len(paths):
            continue
        if missing:
            raise TrainingError(f"{folder}: {missing[0]} is missing beside the other split files")
        splits: dict[str, Split] = {}
        for split, path in paths.items():
            pairs = _read_json(path)
            if not isinstance(pairs, list) or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
                raise TrainingError(f"{path}: expected a list of pairs of numbers")
            for number in (str(number) for pair in pairs for number in pair):
                if splits.setdefault(number, split) != split:
                    raise TrainingError(f"{path}: {number} is in {splits[number]} too")
        return splits
    return {}


def _ff_fake(root: Path, path: Path, people: str, splits: Mapping[str, Split]) -> Item:
    """`METHOD/c23/videos/000_003.mp4`: the face of 003 in video 000; actors: `01_02__SCENE__ID.mp4`."""
    method, folder = path.parts[-4], path.parts[-3]
    pattern = r"(\d+)_(\d+)__(.+)__\w+" if people == "actors" else r"(\d+)_(\d+)"
    match = re.fullmatch(pattern, path.stem)
    if match is None:
        example = "01_02__scene__A1B2C3D4.mp4" if people == "actors" else "000_003.mp4"
        raise TrainingError(f"{path}: expected a name like {example}")
    target, source = match[1], match[2]
    split = splits.get(target) if people == "youtube" else None
    if people == "youtube" and splits.get(source) != split:
        raise TrainingError(
            f"{path}: {target} is in {split}, {source} in {splits.get(source)}, by the split files; "
            f"are they those of FaceForensics++?"
        )
    stem = f"{target}__{match[3]}" if people == "actors" else target
    original = root / "original_sequences" / people / folder / "videos" / f"{stem}.mp4"
    return Item(
        path=path,
        media="video",
        label=FAKE,
        generator=method,
        source="faceforensics",
        groups=tuple(f"faceforensics/{people}/{number}" for number in dict.fromkeys((target, source))),
        original=original if original.is_file() else None,
        split=split,
    )


def _ff_real(path: Path, people: str, splits: Mapping[str, Split]) -> Item:
    number = path.stem.split("__")[0]
    return Item(
        path=path,
        media="video",
        label=REAL,
        generator="real",
        source="faceforensics",
        groups=(f"faceforensics/{people}/{number}",),
        split=splits.get(number) if people == "youtube" else None,
    )


def read_folder(root: Path, *, group_by: Grouping = "stem", name: str | None = None) -> list[Item]:
    """A plain folder: `real/` and `fake/`, or `original/` and `swapped/`, of videos or pictures, any depth.

    root: holds them, or holds train/, val/ (or validation/) and test/ which do. A folder of `fake/` names the
    generator of what is in it: fake/GENERATOR/.... A swapped file is made from the original of the same name.
    group_by: `stem`: files of the same name but for the suffix show the same people, whatever folder they are
    in; `file`: each real or fake file stands for itself, as in collections of numbered pictures. name: of the
    data set, for its source and groups; None: the folder's. Raises TrainingError.
    """
    if group_by not in get_args(Grouping):
        raise TrainingError(f"no grouping {group_by!r}; there are {', '.join(get_args(Grouping))}")
    folders = {folder: split for folder, split in _SPLIT_FOLDERS.items() if (root / folder).is_dir()}
    places: list[tuple[Path, Split | None]] = [(root / folder, split) for folder, split in folders.items()]
    data_set = root.name if name is None else name
    items: list[Item] = []
    for place, split in places or [(root, None)]:
        originals = _by_stem(place / "original")
        for folder in (*_REAL_FOLDERS, *_FAKE_FOLDERS):
            for path in _media(place / folder):
                in_pairs = folder in ("original", "swapped")
                about = path.stem if in_pairs or group_by == "stem" else path.relative_to(root).as_posix()
                is_fake = folder in _FAKE_FOLDERS
                items.append(
                    Item(
                        path=path,
                        media="video" if path.suffix.lower() in VIDEOS else "image",
                        label=FAKE if is_fake else REAL,
                        generator=_generator(path.relative_to(place)) if is_fake else "real",
                        source=data_set,
                        groups=(f"{data_set}/{about}",),
                        original=originals.get(path.stem) if folder == "swapped" else None,
                        split=split,
                    )
                )
    if not items:
        raise TrainingError(
            f"{root}: no videos or pictures in {' or '.join(_REAL_FOLDERS + _FAKE_FOLDERS)}, nor in those "
            f"below {', '.join(_SPLIT_FOLDERS)}; suffixes: {', '.join(sorted(VIDEOS | PICTURES))}"
        )
    return items


def _generator(path: Path) -> str:
    """`fake/GENERATOR/...` -> GENERATOR; `fake/FILE` -> `fake`."""
    return path.parts[1] if len(path.parts) > 2 else path.parts[0]


def _by_stem(folder: Path) -> dict[str, Path]:
    """Files by name without suffix; names that stand for several files are left out."""
    found: dict[str, list[Path]] = {}
    for path in _media(folder):
        found.setdefault(path.stem, []).append(path)
    return {stem: paths[0] for stem, paths in found.items() if len(paths) == 1}


def _media(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in VIDEOS | PICTURES
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise TrainingError(f"{folder}: cannot read the folder: {error.strerror}") from error


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise TrainingError(f"{path}: cannot read it: {error.strerror}") from error
    except ValueError as error:
        raise TrainingError(f"{path}: no JSON: {error}") from error

"""Small trees of the true layouts; the files in them are empty, readers open no media."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from streamer.errors import TrainingError
from streamer.training.sources import (
    check_official_split,
    name_of,
    read_data,
    read_dfdc,
    read_faceforensics,
    read_folder,
)
from streamer.training.types import FAKE, REAL, Item


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def by_name(items: Iterable[Item], root: Path) -> dict[str, Item]:
    items = list(items)
    named = {item.path.relative_to(root).as_posix(): item for item in items}
    assert len(named) == len(items)
    return named


# DFDC


def write_part(root: Path, number: int, metadata: dict[str, Any]) -> Path:
    part = root / f"dfdc_train_part_{number}"
    part.mkdir(parents=True)
    (part / "metadata.json").write_text(json.dumps(metadata))
    return part


def test_dfdc(tmp_path: Path) -> None:
    part = {
        "aaa.mp4": {"label": "REAL", "split": "train"},
        "bbb.mp4": {"label": "FAKE", "split": "train", "original": "aaa.mp4"},
        "ccc.mp4": {"label": "FAKE", "split": "train", "original": "zzz.mp4"},
        "ddd.mp4": {"label": "REAL", "split": "train", "original": None},
    }
    for number in (0, 10, 2):
        write_part(tmp_path, number, part)
    (tmp_path / "dfdc_train_part_3.zip").touch()
    (tmp_path / "somewhere_else").mkdir()
    items = read_dfdc(tmp_path)
    # parts in the order of their numbers, 10 after 2
    assert [item.path.parent.name[16:] for item in items[::4]] == ["0", "2", "10"]
    real, fake, orphan, other = items[:4]
    folder = tmp_path / "dfdc_train_part_0"
    assert (real.path, real.label, real.generator, real.original) == (folder / "aaa.mp4", REAL, "real", None)
    assert real.groups == ("dfdc_train_part_0/aaa.mp4", "dfdc_train_part_0")
    assert (fake.label, fake.generator, fake.original) == (FAKE, "DFDC", folder / "aaa.mp4")
    assert fake.groups == real.groups
    # its original is no video of this part: the group keeps the name
    assert orphan.original is None
    assert orphan.groups == ("dfdc_train_part_0/zzz.mp4", "dfdc_train_part_0")
    assert other.label == REAL
    assert {(item.source, item.media, item.split) for item in items} == {("dfdc", "video", None)}


def test_dfdc_keeps_what_metadata_names_and_the_folder_lacks(tmp_path: Path) -> None:
    part = write_part(tmp_path, 0, {"gone.mp4": {"label": "REAL", "split": "train"}})
    touch(part, "unnamed.mp4")
    assert [item.path.name for item in read_dfdc(tmp_path)] == ["gone.mp4"]


def test_dfdc_one_part_alone(tmp_path: Path) -> None:
    metadata = {
        "a.mp4": {"label": "REAL"},
        "b.mp4": {"label": "FAKE", "original": "a.mp4"},
        "c.mp4": {"label": "FAKE", "original": "z.mp4"},
    }
    part = write_part(tmp_path, 7, metadata)
    with capture_logs() as logs:
        items = read_dfdc(part)
    assert items == read_dfdc(tmp_path)
    # the folder would hold all together
    assert [item.groups for item in items] == [(f"{part.name}/{name}.mp4",) for name in "aaz"]
    (line,) = logs
    assert (line["log_level"], line["folder"]) == ("warning", str(part))
    assert "split by original" in line["event"]
    write_part(tmp_path, 8, metadata)
    with capture_logs() as logs:
        assert all(item.path.parent.name in item.groups for item in read_dfdc(tmp_path))
    assert not logs


def test_dfdc_sample_of_kaggle(tmp_path: Path) -> None:
    part = write_part(tmp_path, 0, {"a.mp4": {"label": "REAL"}}).rename(tmp_path / "train_sample_videos")
    assert [item.groups for item in read_dfdc(part)] == [("train_sample_videos/a.mp4",)]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "no JSON"),
        ("[]", "object"),
        ('{"a.mp4": {"label": "MAYBE"}}', "'a.mp4'"),
        ('{"a.mp4": {}}', "'a.mp4'"),
        ('{"a.mp4": "REAL"}', "'a.mp4'"),
        ('{"../a.mp4": {"label": "REAL"}}', "'../a.mp4'"),
    ],
)
def test_dfdc_says_which_metadata_is_wrong(tmp_path: Path, content: str, says: str) -> None:
    part = write_part(tmp_path, 0, {})
    (part / "metadata.json").write_text(content)
    with pytest.raises(TrainingError, match=says) as error:
        read_dfdc(tmp_path)
    assert str(part / "metadata.json") in str(error.value)


def test_dfdc_part_without_metadata(tmp_path: Path) -> None:
    (tmp_path / "dfdc_train_part_0").mkdir()
    with pytest.raises(TrainingError, match=r"dfdc_train_part_0/metadata\.json: .*No such file"):
        read_dfdc(tmp_path)


@pytest.mark.parametrize("name", ["", "nowhere"])
def test_dfdc_elsewhere(tmp_path: Path, name: str) -> None:
    with pytest.raises(TrainingError, match=r"dfdc_train_part_0|cannot read the folder"):
        read_dfdc(tmp_path / name)


# FaceForensics++


def make_faceforensics(root: Path, *, splits_in: str = "splits") -> Path:
    for folder in ("raw", "c23", "c40"):
        touch(
            root / f"original_sequences/youtube/{folder}/videos", "000.mp4", "003.mp4", "071.mp4", "054.mp4"
        )
        touch(root / f"original_sequences/actors/{folder}/videos", "01__exit.mp4", "02__exit.mp4")
        for method in ("Deepfakes", "Face2Face", "FaceSwap", "NeuralTextures", "FaceShifter"):
            touch(root / f"manipulated_sequences/{method}/{folder}/videos", "000_003.mp4", "071_054.mp4")
        touch(
            root / f"manipulated_sequences/DeepFakeDetection/{folder}/videos",
            "01_02__exit__YVGY8LOK.mp4",
            "02_09__walk_down__0ABCDEF1.mp4",
        )
    touch(root / "manipulated_sequences/Deepfakes/c23/masks/videos", "000_003.mp4")
    if splits_in:
        write_splits(root / splits_in, train=[["000", "003"]], val=[["071", "054"]], test=[["1", "2"]])
    return root


def write_splits(folder: Path, **splits: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, pairs in splits.items():
        (folder / f"{name}.json").write_text(json.dumps(pairs))


def test_faceforensics(tmp_path: Path) -> None:
    root = make_faceforensics(tmp_path)
    items = by_name(read_faceforensics(root), root)
    assert len(items) == 2 * (4 + 2 + 5 * 2 + 2)  # c23 and c40
    assert not any("/raw/" in name or "masks" in name for name in items)
    real = items["original_sequences/youtube/c40/videos/071.mp4"]
    assert (real.label, real.generator, real.split, real.original) == (REAL, "real", "validation", None)
    assert real.groups == ("faceforensics/youtube/071",)
    fake = items["manipulated_sequences/NeuralTextures/c40/videos/071_054.mp4"]
    assert (fake.label, fake.generator, fake.split) == (FAKE, "NeuralTextures", "validation")
    assert fake.groups == ("faceforensics/youtube/071", "faceforensics/youtube/054")
    assert fake.original == real.path  # the target's, in the same compression
    assert items["manipulated_sequences/FaceSwap/c23/videos/000_003.mp4"].split == "train"


def test_faceforensics_actors(tmp_path: Path) -> None:
    root = make_faceforensics(tmp_path)
    items = by_name(read_faceforensics(root, methods=["DeepFakeDetection"], compressions=["c23"]), root)
    assert len(items) == 4
    fake = items["manipulated_sequences/DeepFakeDetection/c23/videos/01_02__exit__YVGY8LOK.mp4"]
    assert fake.original == root / "original_sequences/actors/c23/videos/01__exit.mp4"
    assert fake.groups == ("faceforensics/actors/01", "faceforensics/actors/02")
    other = items["manipulated_sequences/DeepFakeDetection/c23/videos/02_09__walk_down__0ABCDEF1.mp4"]
    assert other.original is None  # not there
    assert items["original_sequences/actors/c23/videos/02__exit.mp4"].groups == ("faceforensics/actors/02",)
    assert {item.split for item in items.values()} == {None}  # the official files know no actors


@pytest.mark.parametrize("folder", ["raw", "c0"])
def test_faceforensics_c0(tmp_path: Path, folder: str) -> None:
    touch(tmp_path / f"original_sequences/youtube/{folder}/videos", "000.mp4")
    touch(tmp_path / f"manipulated_sequences/FaceSwap/{folder}/videos", "000_003.mp4")
    items = read_faceforensics(tmp_path, methods=["FaceSwap"], compressions=["c0"])
    assert [item.label for item in items] == [REAL, FAKE]
    assert items[1].original == items[0].path


@pytest.mark.parametrize(
    ("splits_in", "split"),
    [("", None), (".", "train"), ("splits", "train"), ("dataset/splits", "train")],
)
def test_faceforensics_split_files(tmp_path: Path, splits_in: str, split: str | None) -> None:
    root = make_faceforensics(tmp_path, splits_in=splits_in)
    assert read_faceforensics(root, methods=["Deepfakes"], compressions=["c23"])[0].split == split


def test_faceforensics_split_files_can_be_left_aside(tmp_path: Path) -> None:
    items = read_faceforensics(make_faceforensics(tmp_path), official_split=False)
    assert {item.split for item in items} == {None}


def test_faceforensics_without_split_files(tmp_path: Path) -> None:
    root = make_faceforensics(tmp_path, splits_in="")
    with pytest.raises(TrainingError) as error:
        check_official_split(read_faceforensics(root), root)
    for said in (
        "train.json, val.json, test.json are missing",
        "dataset/splits of https://github.com/ondyari/FaceForensics",
        f"into {root / 'splits'}.",
        "--no-official-split",
    ):
        assert said in str(error.value)
    # actors have none
    check_official_split(read_faceforensics(root, methods=["DeepFakeDetection"]), root)
    write_splits(root, train=[["000", "003"]], val=[["071", "054"]], test=[])
    check_official_split(read_faceforensics(root), root)


def test_faceforensics_takes_the_methods_that_are_there(tmp_path: Path) -> None:
    touch(tmp_path / "original_sequences/youtube/c40/videos", "000.mp4")
    touch(tmp_path / "manipulated_sequences/FaceSwap/c40/videos", "000_003.mp4")
    assert {item.generator for item in read_faceforensics(tmp_path)} == {"real", "FaceSwap"}
    with pytest.raises(TrainingError, match=r"Deepfakes/\{c23,c40\}/videos: no videos of Deepfakes"):
        read_faceforensics(tmp_path, methods=["FaceSwap", "Deepfakes"])
    with pytest.raises(TrainingError, match=r"\{raw,c0\}/videos: no videos there, but of c40: give --comp"):
        read_faceforensics(tmp_path, compressions=["c0"])


def test_faceforensics_says_which_compressions_are_there(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"\{c23,c40\}/videos: no videos there$"):
        read_faceforensics(tmp_path)
    touch(tmp_path / "original_sequences/youtube/raw/videos", "000.mp4")
    touch(tmp_path / "manipulated_sequences/FaceSwap/raw/videos", "000_003.mp4")
    with pytest.raises(TrainingError, match=r"no videos there, but of c0: give --compression c0$"):
        read_faceforensics(tmp_path)
    with pytest.raises(
        TrainingError, match=r"no videos of FaceSwap there, but of c0: give --compression c0$"
    ):
        read_faceforensics(tmp_path, methods=["FaceSwap"])
    # of those asked for none may be missing
    with pytest.raises(TrainingError, match=r"/\{c40\}/videos: no videos there, but of c0: give"):
        read_faceforensics(tmp_path, compressions=["c0", "c40"])


def test_faceforensics_twice_the_same(tmp_path: Path) -> None:
    root = make_faceforensics(tmp_path)
    once = read_faceforensics(root, methods=["FaceSwap"], compressions=["c40"])
    assert read_faceforensics(root, methods=["FaceSwap"] * 2, compressions=["c40"] * 2) == once


def test_data_passes_on_what_is_wanted_of_faceforensics(tmp_path: Path) -> None:
    root = make_faceforensics(tmp_path)
    items, roots = read_data(
        [root],
        ["faceforensics"],
        group_by="stem",
        compressions=["c0"],
        methods=["FaceSwap"],
        official_split=False,
    )
    assert roots == {"faceforensics": root}
    assert items == read_faceforensics(root, compressions=["c0"], methods=["FaceSwap"], official_split=False)


@pytest.mark.parametrize("wanted", [{"methods": ["DeepFakes"]}, {"compressions": ["c24"]}])
def test_faceforensics_names_what_it_does_not_know(tmp_path: Path, wanted: dict[str, Any]) -> None:
    with pytest.raises(TrainingError, match=r"'(DeepFakes|c24)'; there are .*(Deepfakes|c23)"):
        read_faceforensics(tmp_path, **wanted)


@pytest.mark.parametrize(
    ("splits", "says"),
    [
        ({"train": [["000", "003"]], "val": []}, r"test\.json is missing"),
        ({"train": {"000": "003"}, "val": [], "test": []}, r"train\.json: expected a list of pairs"),
        ({"train": [["000", "003"]], "val": [["000", "071"]], "test": []}, "000 is in train too"),
        (
            {"train": [["000", "071"]], "val": [["003", "054"]], "test": []},
            "000 is in train, 003 in validation",
        ),
    ],
)
def test_faceforensics_split_files_that_contradict(tmp_path: Path, splits: dict[str, Any], says: str) -> None:
    root = make_faceforensics(tmp_path, splits_in="")
    write_splits(root, **splits)
    with pytest.raises(TrainingError, match=says):
        read_faceforensics(root)


def test_faceforensics_other_names(tmp_path: Path) -> None:
    touch(tmp_path / "manipulated_sequences/FaceSwap/c40/videos", "holiday.mp4")
    with pytest.raises(TrainingError, match=r"holiday\.mp4: expected a name like 000_003\.mp4"):
        read_faceforensics(tmp_path)


# plain folders


def test_folder_real_and_fake(tmp_path: Path) -> None:
    touch(tmp_path, "real/a.mp4", "real/people/b.JPG", "fake/c.png", "fake/gan/deep/a.mkv", "notes/d.mp4")
    touch(tmp_path, "real/readme.txt", "real/.hidden.mp4", "real/.cache/e.jpg")
    items = by_name(read_folder(tmp_path, name="set"), tmp_path)
    about = {
        name: (item.label, item.generator, item.media, item.groups, item.original)
        for name, item in items.items()
    }
    assert about == {
        "real/a.mp4": (REAL, "real", "video", ("set/a",), None),
        "real/people/b.JPG": (REAL, "real", "image", ("set/b",), None),
        "fake/c.png": (FAKE, "fake", "image", ("set/c",), None),
        "fake/gan/deep/a.mkv": (FAKE, "gan", "video", ("set/a",), None),
    }
    assert {(item.source, item.split) for item in items.values()} == {("set", None)}


def test_folder_original_and_swapped(tmp_path: Path) -> None:
    touch(tmp_path, "original/a.mp4", "original/b.mp4", "original/sub/b.mp4")
    touch(tmp_path, "swapped/a.mkv", "swapped/b.mp4", "swapped/c.mp4")
    for group_by in ("stem", "file"):  # pairs are pairs
        items = by_name(read_folder(tmp_path, group_by=group_by), tmp_path)  # type: ignore[arg-type]
        assert items["swapped/a.mkv"].original == tmp_path / "original/a.mp4"
        assert items["swapped/a.mkv"].groups == items["original/a.mp4"].groups == (f"{tmp_path.name}/a",)
        assert items["swapped/a.mkv"].generator == "swapped"
        assert items["swapped/b.mp4"].original is None  # of which?
        assert items["swapped/c.mp4"].original is None


def test_folder_each_file_for_itself(tmp_path: Path) -> None:
    touch(tmp_path, "train/real/0.jpg", "train/fake/0.jpg", "val/real/0.jpg")
    items = by_name(read_folder(tmp_path, group_by="file", name="x"), tmp_path)
    assert {name: item.groups for name, item in items.items()} == {name: (f"x/{name}",) for name in items}


def test_folder_with_splits(tmp_path: Path) -> None:
    touch(tmp_path, "train/real/a.jpg", "val/real/b.jpg", "validation/fake/c.jpg", "test/fake/gan/d.jpg")
    touch(tmp_path, "real/above.jpg")
    items = read_folder(tmp_path)
    assert {item.path.stem: item.split for item in items} == {
        "a": "train",
        "b": "validation",
        "c": "validation",
        "d": "test",
    }
    assert {item.path.stem: item.generator for item in items}["d"] == "gan"


def test_folder_of_something_else(tmp_path: Path) -> None:
    touch(tmp_path, "faces/a.jpg")
    with pytest.raises(TrainingError, match="no videos or pictures in real or original or fake or swapped"):
        read_folder(tmp_path)
    with pytest.raises(TrainingError, match="no grouping 'people'; there are stem, file"):
        read_folder(tmp_path, group_by="people")  # type: ignore[arg-type]


def test_name_of(tmp_path: Path) -> None:
    roots = {"a": tmp_path / "one", "b": tmp_path / "two"}
    assert name_of(tmp_path / "two" / "x" / "y.mp4", roots) == "b/x/y.mp4"
    assert name_of(tmp_path / "two" / "é\udcff.mp4", roots) == r"b/é\xff.mp4"
    with pytest.raises(TrainingError, match="lies in none"):
        name_of(tmp_path / "y.mp4", roots)

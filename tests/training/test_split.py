from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from records import record_of

from streamer.errors import TrainingError
from streamer.training.sources import read_dfdc
from streamer.training.split import (
    ALL_TRAIN,
    assign_splits,
    check_no_leak,
    check_no_leak_in_records,
    check_shares,
    hold_out,
)
from streamer.training.types import Item, Split


def item(name: str, *groups: str, **more: object) -> Item:
    fields = {"media": "video", "label": 0, "generator": "real", "source": "folder"} | more
    return Item(path=Path(name), groups=groups or (name,), **fields)  # type: ignore[arg-type]


def splits_of(items: list[Item]) -> dict[str, str | None]:
    return {str(each.path): each.split for each in items}


@given(
    st.lists(st.sets(st.sampled_from("abcdefghij"), min_size=1, max_size=3), min_size=1, max_size=30),
    st.integers(0, 2**32),
)
def test_nothing_crosses(groups: list[set[str]], seed: int) -> None:
    items = [item(f"{k}.mp4", *sorted(names)) for k, names in enumerate(groups)]
    assigned = assign_splits(items, seed=seed, fractions={"train": 0.5, "validation": 0.3, "test": 0.2})
    check_no_leak(assigned)
    assert [each.path for each in assigned] == [each.path for each in items]
    for split_item, given_item in zip(assigned, items, strict=True):
        (name,) = split_item.groups
        assert name <= min(given_item.groups)
    # also by the groups that they had before
    check_no_leak(
        dataclasses.replace(each, groups=before.groups) for each, before in zip(assigned, items, strict=True)
    )


def test_connected_over_others() -> None:
    items = [item("1", "b"), item("2", "b", "a"), item("3", "c", "a"), item("4", "d")]
    assigned = assign_splits(items, seed=0)
    assert [each.groups for each in assigned] == [("a",), ("a",), ("a",), ("d",)]


def test_a_fake_goes_where_its_original_goes() -> None:
    """Also where the groups do not tell."""
    for seed in range(20):
        items = [item(f"{k}", label=0) for k in range(10)]
        items += [item(f"f{k}", label=1, original=Path(f"{k}")) for k in range(10)]
        splits = splits_of(assign_splits(items, seed=seed))
        assert all(splits[f"{k}"] == splits[f"f{k}"] for k in range(10))


def test_dfdc_40_and_10_folders(tmp_path: Path) -> None:
    for number in range(50):
        part = tmp_path / f"dfdc_train_part_{number}"
        part.mkdir()
        content = {
            "r.mp4": {"label": "REAL"},
            "f.mp4": {"label": "FAKE", "original": "r.mp4"},
            "x.mp4": {"label": "REAL"},
        }
        (part / "metadata.json").write_text(json.dumps(content))
    assigned = assign_splits(read_dfdc(tmp_path), seed=1)
    folders = {(each.path.parent.name, each.split) for each in assigned}
    assert len(folders) == 50  # each whole
    assert Counter(split for _, split in folders) == {"train": 40, "validation": 10}
    assert {each.groups for each in assigned} == {(name,) for name, _ in folders}


def test_each_data_set_gives_its_share() -> None:
    items = [item(f"{source}{k}", source=source) for source in ("dfdc", "folder") for k in range(20)]
    fractions: dict[Split, float] = {"train": 0.7, "validation": 0.2, "test": 0.1}
    assigned = assign_splits(items, seed=3, fractions=fractions)
    for source in ("dfdc", "folder"):
        counts = Counter(each.split for each in assigned if each.source == source)
        assert counts == {"train": 14, "validation": 4, "test": 2}


def test_seed_decides_and_order_does_not() -> None:
    items = [item(f"{k}") for k in range(40)]
    first = splits_of(assign_splits(items, seed=1))
    assert splits_of(assign_splits(items[::-1], seed=1)) == first
    assert splits_of(assign_splits(items, seed=2)) != first


@pytest.mark.parametrize(("count", "validation"), [(1, 0), (2, 1), (3, 1), (8, 2)])
def test_few_groups(count: int, validation: int) -> None:
    assigned = assign_splits([item(f"{k}") for k in range(count)], seed=0)
    assert Counter(each.split for each in assigned)["validation"] == validation


def test_groups_are_called_after_files_of_any_name() -> None:
    items = [item(f"{k}.mp4", f"set/{k}\udcff") for k in range(10)]
    assert Counter(splits_of(assign_splits(items, seed=1)).values()) == {"train": 8, "validation": 2}


def test_a_split_that_gets_nothing() -> None:
    one = [item("1", "a", "b"), item("2", "b")]
    with pytest.raises(TrainingError, match=r"nothing is left for validation: .* \(groups: a\)"):
        check_shares(one, assign_splits(one, seed=0))
    # a name that takes all with it
    held_out = [dataclasses.replace(one[0], split="validation"), one[1]]
    with pytest.raises(TrainingError, match=r"nothing is left for train: .* --validation '\*'"):
        check_shares(held_out, assign_splits(held_out, seed=0, fractions=ALL_TRAIN), ALL_TRAIN)
    two = [*one, item("3", "c")]
    check_shares(two, assign_splits(two, seed=0))
    thirds: dict[Split, float] = {"train": 0.4, "validation": 0.3, "test": 0.3}
    with pytest.raises(TrainingError, match=r"nothing is left for train: .* \(groups: a, c\)"):
        check_shares(two, assign_splits(two, seed=0, fractions=thirds), thirds)
    # somebody wanted it so
    fixed = [dataclasses.replace(each, split="test") for each in one]
    check_shares(fixed, assign_splits(fixed, seed=0))
    check_shares([], [])


@pytest.mark.parametrize("parts", [1, 2, 3, 4])
def test_few_parts_of_dfdc(tmp_path: Path, parts: int) -> None:
    content = {f"{k}.mp4": {"label": "REAL"} for k in range(5)}
    content |= {f"f{k}.mp4": {"label": "FAKE", "original": f"{k}.mp4"} for k in range(5)}
    for number in range(parts):
        (tmp_path / f"dfdc_train_part_{number}").mkdir()
        (tmp_path / f"dfdc_train_part_{number}" / "metadata.json").write_text(json.dumps(content))
    items = read_dfdc(tmp_path)
    assigned = assign_splits(items, seed=1)
    check_shares(items, assigned)
    groups = {(*each.groups, each.split) for each in assigned}
    # of one part one original, with its fake; of several a whole part
    assert Counter(split for _, split in groups) == {
        "validation": 1,
        "train": (parts if parts > 1 else 5) - 1,
    }


def test_fixed_splits_hold_for_all_connected() -> None:
    items = [item("1", "a", split="test"), item("2", "a", "b"), item("3", "b"), item("4", "c", split="train")]
    assert list(splits_of(assign_splits(items, seed=0)).values()) == ["test", "test", "test", "train"]


def test_contradictory_fixed_splits() -> None:
    items = [item("x/0.jpg", "0", split="train"), item("y/0.jpg", "0", split="validation")]
    with pytest.raises(
        TrainingError, match=r"group 0 .*train: x/0\.jpg, validation: y/0\.jpg.*--group-by file"
    ):
        assign_splits(items, seed=0)


@pytest.mark.parametrize("fractions", [{"train": 0.8, "validation": 0.3}, {"train": 1.2, "validation": -0.2}])
def test_fractions_must_be_shares_of_one(fractions: dict[Split, float]) -> None:
    with pytest.raises(TrainingError, match="sum to 1"):
        assign_splits([item("a")], seed=0, fractions=fractions)


def test_a_split_whose_fraction_is_none_gets_nothing() -> None:
    items = [item(f"{k}") for k in range(4)]
    no_validation: dict[Split, float] = {"train": 0.5, "test": 0.5}
    assert Counter(splits_of(assign_splits(items, seed=0, fractions=no_validation)).values()) == {
        "train": 2,
        "test": 2,
    }
    halves: dict[Split, float] = {"validation": 0.5, "test": 0.5}
    three = splits_of(assign_splits(items[:3], seed=0, fractions=halves))  # both would round up to two
    assert Counter(three.values()) == {"validation": 2, "test": 1}


def test_leaks_are_named() -> None:
    train, validation = item("1", "a", "b", split="train"), item("2", "b", "c", split="validation")
    check_no_leak([train, dataclasses.replace(validation, groups=("c",))])
    with pytest.raises(TrainingError, match="group b: train, validation"):
        check_no_leak([train, validation])
    fake = item("3", "d", split="validation", original=Path("1"))
    with pytest.raises(TrainingError, match="file 1: train, validation"):
        check_no_leak([train, fake])
    many = [item(f"{split}{k}", f"{k}", split=split) for k in range(7) for split in ("train", "test")]
    with pytest.raises(TrainingError, match="group 4: train, test and 2 more; training would"):
        check_no_leak(many)
    with pytest.raises(TrainingError, match="assign_splits first"):
        check_no_leak([item("1")])
    check_no_leak([])


def test_leaks_in_records() -> None:
    one = record_of("set/a.mp4", group="g")
    other = dataclasses.replace(one, item="set/b.mp4", group="h", split="test")
    check_no_leak_in_records([one, other])
    with pytest.raises(TrainingError, match="group g: train, test"):
        check_no_leak_in_records([one, dataclasses.replace(other, group="g")])
    with pytest.raises(TrainingError, match=r"item set/a\.mp4: train, test"):
        check_no_leak_in_records([one, dataclasses.replace(other, original="set/a.mp4")])


def test_named_files_validate_with_all_that_belongs_to_them() -> None:
    names = ("real/ann.mp4", "real/bob.mp4", "fake/ann.mp4", "fake/bob.mp4")
    items = [item(f"/data/{name}", name.split("/")[1]) for name in names]
    held_out = hold_out(items, ["set/real/a*"], {"set": Path("/data")})
    assert splits_of(assign_splits(held_out, seed=1, fractions=ALL_TRAIN)) == {
        "/data/real/ann.mp4": "validation",
        "/data/real/bob.mp4": "train",
        "/data/fake/ann.mp4": "validation",
        "/data/fake/bob.mp4": "train",
    }
    assert hold_out(items, (), {"set": Path("/data")}) == items


def test_what_is_held_out_wins_over_the_split_of_the_data_set() -> None:
    """FaceForensics++'s, of which one pair is named by one of its people: the other must not train."""
    items = [
        item("/data/0.mp4", "0", split="train"),
        item("/data/1.mp4", "1", split="train"),
        item("/data/0_1.mp4", "0", "1", split="train"),
        item("/data/2.mp4", "2", split="train"),
        item("/data/3.mp4", "3", split="test"),
    ]
    held_out = hold_out(items, ["set/0.mp4"], {"set": Path("/data")})
    assert [each.split for each in assign_splits(held_out, seed=1, fractions=ALL_TRAIN)] == [
        "validation",
        "validation",
        "validation",
        "train",
        "test",
    ]


def test_a_pattern_that_matches_nothing() -> None:
    with pytest.raises(
        TrainingError, match=r"'set/eve\*' matches nothing; there is, for example, set/ann.mp4"
    ):
        hold_out([item("/data/ann.mp4")], ["set/eve*"], {"set": Path("/data")})

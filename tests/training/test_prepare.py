"""Small data sets, prepared in real worker processes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import media
import numpy as np
import pytest
import skimage.data
from moving import write_clip
from PIL import Image

from streamer.config import ClassifyConfig, Config, FacesConfig
from streamer.errors import TrainingError
from streamer.training.crops import INDEX, ITEMS, read_crop, read_index, read_landmarks
from streamer.training.prepare import PrepareReport, prepare
from streamer.training.sources import read_folder
from streamer.training.split import assign_splits, check_no_leak_in_records
from streamer.training.types import Item

ROOT = Path(__file__).parents[2]
CONFIG = Config(classify=ClassifyConfig(engines=ROOT / "engines"))
SEED = 5


def make_data(root: Path) -> Path:
    """Two clips that are a pair, pictures with one face, two and none, and files that are no media."""
    for folder in ("original", "swapped", "real", "fake/gan"):
        (root / folder).mkdir(parents=True)
    astronaut = skimage.data.astronaut()
    write_clip(root / "original" / "clip.mp4", astronaut[:256, 96:352])
    write_clip(root / "swapped" / "clip.mp4", astronaut[:256, 96:352, ::-1])
    Image.fromarray(astronaut).save(root / "real" / "one.png")
    two = np.concatenate([cv2.resize(astronaut, None, fx=0.5, fy=0.5), astronaut[:256]], axis=1)
    Image.fromarray(two).save(root / "fake" / "gan" / "two.jpg", quality=95)
    Image.fromarray(skimage.data.coffee()).save(root / "real" / "none.jpg")
    whole = (root / "fake" / "gan" / "two.jpg").read_bytes()
    (root / "real" / "half.jpg").write_bytes(whole[: len(whole) // 2])
    (root / "fake" / "faceless.mp4").write_bytes(media.encode("mp4", frames=60))
    (root / "fake" / "broken.mp4").write_bytes(b"no video")
    return root


def items_of(root: Path) -> list[Item]:
    items = read_folder(root, name="data")
    gone = dataclasses.replace(items[0], path=root / "real" / "gone.mp4", groups=("data/gone",))
    return assign_splits([*items, gone], seed=SEED)


@dataclass(frozen=True)
class Prepared:
    root: Path
    items: list[Item]
    cache: Path
    report: PrepareReport
    steps: list[tuple[int, int]]


def run(items: list[Item], root: Path, cache: Path, **changes: object) -> PrepareReport:
    settings = {"config": CONFIG, "seed": SEED, "frames_per_real": 4, "frames_per_fake": 2} | changes
    return prepare(items, roots={"set": root}, cache=cache, **settings)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    root = make_data(tmp_path_factory.mktemp("data") / "set")
    cache = tmp_path_factory.mktemp("cache") / "new"
    items, steps = items_of(root), []
    report = run(items, root, cache, progress=lambda done, total: steps.append((done, total)))
    return Prepared(root, items, cache, report, steps)


@pytest.fixture
def copied(prepared: Prepared, tmp_path: Path) -> Callable[[], Path]:
    """Copies of the cache."""
    return lambda: Path(shutil.copytree(prepared.cache, tmp_path / "cache"))


def test_report(prepared: Prepared) -> None:
    report = prepared.report
    problems = {problem.item: problem.reason for problem in report.problems}
    assert problems == {
        "set/real/none.jpg": "no_face",
        "set/real/half.jpg": "damaged",
        "set/real/gone.mp4": "missing",
        "set/fake/faceless.mp4": "no_face",
        "set/fake/broken.mp4": "not_media",
    }
    assert (report.items, report.crops, report.frames_without_face) == (9, 4 + 2 + 1 + 1, 1 + 2)
    crops: dict[str, int] = {}
    for of_split in report.by_split.values():
        for generator, count in of_split.items():
            crops[generator] = crops.get(generator, 0) + count
    assert crops == {"real": 5, "swapped": 2, "gan": 1}
    assert report.crops_without_landmarks == 0
    assert json.loads(report.to_json())["problems"][0]["text"]


def test_progress(prepared: Prepared) -> None:
    assert prepared.steps == [(k, 9) for k in range(10)]


def test_records(prepared: Prepared) -> None:
    records = read_index(prepared.cache)
    check_no_leak_in_records(records)
    by_item: dict[str, list[int]] = {}
    for record in records:
        by_item.setdefault(record.item, []).append(record.frame)
    assert by_item == {
        "set/real/one.png": [0],
        "set/original/clip.mp4": [0, 1, 2, 3],
        "set/fake/gan/two.jpg": [0],
        "set/swapped/clip.mp4": [0, 1],
    }
    fake = next(record for record in records if record.generator == "swapped")
    real = next(record for record in records if record.item == "set/original/clip.mp4")
    assert fake.original == real.item
    assert (fake.label, fake.source, fake.group) == (1, "data", "data/clip")
    assert (fake.group, fake.split) == (real.group, real.split)
    times = [record.time_seconds for record in records if record.item == real.item]
    assert times == sorted(times)
    assert times[0] < times[-1] / 2
    assert {record.time_seconds for record in records if record.generator == "swapped"} <= set(times)
    assert all(record.square for record in records)


def test_crops_hold_a_face_where_the_record_says(prepared: Prepared) -> None:
    for record in read_index(prepared.cache):
        crop, landmarks = read_crop(prepared.cache, record), read_landmarks(prepared.cache, record)
        side = crop.shape[0]
        x_min, y_min, x_max, y_max = record.box
        assert max(x_max - x_min, y_max - y_min) == pytest.approx(side / 2.2, abs=1.5)
        centre = np.array([x_min + x_max, y_min + y_max]) / 2
        np.testing.assert_allclose(centre, side / 2, atol=1.5)
        # the mesh's eyes, nose and mouth are the detector's
        mesh = np.stack(
            [landmarks[[a, b]].mean(axis=0) for a, b in ((33, 133), (362, 263), (1, 1), (13, 14))]
        )
        assert np.abs(mesh - np.array(record.keypoints[:4])).max() < 0.1 * side


def test_the_larger_of_two_faces(prepared: Prepared) -> None:
    (record,) = (record for record in read_index(prepared.cache) if record.generator == "gan")
    assert read_crop(prepared.cache, record).shape[0] > 150  # 104 would be the other


def contents(cache: Path) -> dict[str, bytes]:
    return {str(path.relative_to(cache)): path.read_bytes() for path in cache.rglob("*") if path.is_file()}


def test_again_does_nothing(prepared: Prepared, copied: Callable[[], Path]) -> None:
    cache = copied()
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")}
    assert run(prepared.items, prepared.root, cache) == prepared.report
    assert contents(cache) == contents(prepared.cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")} == before


class StoppedError(Exception):
    pass


def test_interrupted_and_resumed(prepared: Prepared, tmp_path: Path) -> None:
    """With other workers the second time; also after an end in the middle of a line."""

    def stop(done: int, total: int) -> None:
        if done == 4:
            raise StoppedError

    cache = tmp_path / "cache"
    with pytest.raises(StoppedError):
        run(prepared.items, prepared.root, cache, progress=stop)
    assert len((cache / ITEMS).read_text().splitlines()) == 4
    for name in (INDEX, ITEMS):
        with (cache / name).open("a") as file:
            file.write((prepared.cache / name).read_text().splitlines()[-1][:40])
    steps: list[int] = []
    report = run(prepared.items, prepared.root, cache, workers=2, progress=lambda done, _: steps.append(done))
    assert steps[0] in (3, 4)  # one of them may be the missing file, which is tried again
    assert report == prepared.report
    assert contents(cache) == contents(prepared.cache)


def test_what_was_lost_is_made_again(prepared: Prepared, copied: Callable[[], Path]) -> None:
    cache = copied()
    next(cache.rglob("*one.png*.npy")).unlink()
    next((cache / "crops" / "set" / "swapped").glob("*.png")).unlink()
    lines = (cache / INDEX).read_text().splitlines(keepends=True)
    lost = next(k for k, line in enumerate(lines) if '"set/original/clip.mp4"' in line)
    (cache / INDEX).write_text("".join(lines[:lost] + lines[lost + 1 :]))
    run(prepared.items, prepared.root, cache)
    assert contents(cache) == contents(prepared.cache)


def test_the_index_holds_the_items_as_they_are_now(prepared: Prepared, copied: Callable[[], Path]) -> None:
    cache = copied()
    items = [dataclasses.replace(item, split="test") for item in prepared.items if item.media == "image"]
    report = run(items, prepared.root, cache)
    assert {(record.item, record.split) for record in read_index(cache)} == {
        ("set/real/one.png", "test"),
        ("set/fake/gan/two.jpg", "test"),
    }
    assert report.by_split == {"test": {"real": 1, "gan": 1}}


def test_what_is_not_asked_for_this_time_is_kept(prepared: Prepared, copied: Callable[[], Path]) -> None:
    cache = copied()
    pictures = [item for item in prepared.items if item.media == "image"]
    run(pictures, prepared.root, cache)
    run([item for item in pictures if item.path.name == "one.png"], prepared.root, cache)
    assert len(read_index(cache)) == 1
    before = {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")}
    steps: list[int] = []
    report = run(prepared.items, prepared.root, cache, progress=lambda done, _: steps.append(done))
    assert steps == [8, 9]  # the missing file alone is tried again
    assert report == prepared.report
    assert contents(cache) == contents(prepared.cache)
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.png")} == before


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"seed": 6}, "seed = 5, now it is 6"),
        ({"frames_per_real": 3}, "frames_per_real"),
        ({"config": Config(classify=CONFIG.classify, faces=FacesConfig(min_score=0.5))}, "min_score"),
    ],
)
def test_other_settings_need_another_cache(
    prepared: Prepared, copied: Callable[[], Path], changes: dict[str, object], key: str
) -> None:
    cache = copied()
    with pytest.raises(TrainingError, match=key):
        run(prepared.items, prepared.root, cache, **changes)
    assert contents(cache) == contents(prepared.cache)


def test_items_must_have_a_split(tmp_path: Path, prepared: Prepared) -> None:
    with pytest.raises(TrainingError, match="assign_splits first"):
        run(read_folder(prepared.root), prepared.root, tmp_path)


def test_items_must_be_told_apart(tmp_path: Path, prepared: Prepared) -> None:
    with pytest.raises(TrainingError, match="listed more than once"):
        run([*prepared.items, prepared.items[0]], prepared.root, tmp_path)
    with pytest.raises(TrainingError, match="lies in none"):
        run(prepared.items, prepared.root / "real", tmp_path)

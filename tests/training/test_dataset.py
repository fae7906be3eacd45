"""Batches: pairs, balance, and the same whatever prepares them."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import record_of
from toy import BOX, draw_face, make_cache, toy_config

from streamer.errors import TrainingError
from streamer.training.alignment import find_partner
from streamer.training.augment_config import AugmentConfig
from streamer.training.crops import read_crop
from streamer.training.types import FAKE, REAL, CropRecord, Sample

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")


def record(number: int, **changes: Any) -> CropRecord:
    own = {"item": f"v{number}", "file": f"{number}.png", "group": f"g{number}", "box": BOX}
    return record_of(**own | changes)


def test_every_step_draws_its_own_and_the_same_again(tmp_path: Path) -> None:
    from streamer.training.dataset import TrainBatches

    records = make_cache(tmp_path)
    config = toy_config(mixture={"self_blended": 1, "cross_blended": 1})
    batches = TrainBatches(records, tmp_path, config)
    again = TrainBatches(records, tmp_path, config)
    assert len(batches) == config.steps
    for ours, theirs in zip(batches[3], again[3], strict=True):
        assert torch.equal(ours, theirs)
    others = [TrainBatches(records, tmp_path, toy_config(seed=2))[3], batches[4]]
    others.append(TrainBatches(records, tmp_path, config, rank=1, world=2)[3])
    assert all(not torch.equal(other.images[:4], batches[3].images[:4]) for other in others)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 2 worker processes")
def test_workers_change_nothing(tmp_path: Path) -> None:
    from streamer.training.dataset import TrainBatches, loader

    config = toy_config(augment=AugmentConfig().model_dump(), mixture={"self_blended": 1, "cross_blended": 1})
    dataset = TrainBatches(make_cache(tmp_path), tmp_path, config)
    alone = list(loader(dataset, range(2, 7), workers=0))
    shared = list(loader(dataset, range(2, 7), workers=2))
    for one, other in zip(alone, shared, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("kind", ["self_blended", "cross_blended"])
def test_a_blend_comes_with_its_untouched_face(tmp_path: Path, kind: str) -> None:
    """Without augmentation: where the mask is 0 the two are equal, where it is not they differ."""
    from streamer.training.dataset import TrainBatches

    config = toy_config(
        mixture={"self_blended": 0, "dataset_fake": 0, kind: 1}, blend={"ratios": [1.0], "jitter_target": 0.0}
    )
    dataset = TrainBatches(make_cache(tmp_path), tmp_path, config)
    differing = 0.0
    for number in range(8):
        fake, real = dataset.pair(np.random.default_rng(number))
        assert (fake.label, real.label) == (FAKE, REAL)
        assert fake.mask is not None
        assert real.mask is not None
        assert real.mask.max() == 0
        off = np.abs(fake.rgb.astype(int) - real.rgb).max(axis=2)
        assert off[fake.mask == 0].max() <= 1
        differing += off[fake.mask > 0.5].mean() if (fake.mask > 0.5).any() else 0
    assert differing > 8


def decoding(cache: Path) -> dict[str, Any]:
    """A mixture of decoded blends alone; the network behind them is untrained, its faces grey."""
    from streamer.training.autoencoder import FaceAutoencoder, save_autoencoder

    path = cache / "autoencoder.pt"
    save_autoencoder(path, FaceAutoencoder(), {})
    return {"self_blended": 0, "dataset_fake": 0, "decoded": 1, "autoencoder": str(path)}


def test_a_decoded_blend_comes_with_its_untouched_face(tmp_path: Path) -> None:
    from streamer.training.dataset import TrainBatches

    config = toy_config(mixture=decoding(tmp_path), blend={"cross_ratios": [1.0]})
    dataset = TrainBatches(make_cache(tmp_path), tmp_path, config)
    for number in range(8):
        fake, real = dataset.pair(np.random.default_rng(number))
        assert (fake.label, real.label) == (FAKE, REAL)
        assert fake.mask is not None
        off = np.abs(fake.rgb.astype(int) - real.rgb).max(axis=2)
        assert off[fake.mask == 0].max() <= 1
        assert off.max() > 8


def test_what_cannot_be_read_is_not_passed_over(tmp_path: Path) -> None:
    """Only faces that cannot be blended are."""
    from streamer.training.dataset import TrainBatches

    records = [record for record in make_cache(tmp_path, people=2, frames=1) if record.label == REAL]
    (tmp_path / records[0].file).unlink()
    dataset = TrainBatches(records[:1], tmp_path, toy_config(mixture={"self_blended": 1, "dataset_fake": 0}))
    with pytest.raises(TrainingError, match=r"^\S+000\.png: cannot read the crop"):
        dataset.pair(np.random.default_rng(0))
    gone = decoding(tmp_path) | {"autoencoder": str(tmp_path / "gone.pt")}
    with pytest.raises(TrainingError, match=r"^\S+gone\.pt: cannot read the autoencoder"):
        TrainBatches(records[1:], tmp_path, toy_config(mixture=gone))


def test_a_fake_comes_with_the_same_frame_of_its_original(tmp_path: Path) -> None:
    from streamer.training.dataset import TrainBatches

    records = make_cache(tmp_path, people=3, frames=2)
    config = toy_config(augment=AugmentConfig().only("flip", "shift", "brightness").model_dump())
    dataset = TrainBatches(records, tmp_path, config)
    for number in range(6):
        fake, real = dataset.pair(np.random.default_rng(number))
        assert fake.mask is None
        same = np.abs(fake.rgb.astype(int) - real.rgb).max(axis=2) <= 1
        assert 0.8 < same.mean() < 0.99  # all but the square


def test_a_fake_and_its_original_tell_what_was_altered(tmp_path: Path) -> None:
    """Where it is known where the crops lie, and if they are of the same frame."""
    from streamer.training.dataset import TrainBatches

    square = (100.0, 50.0, 96.0)
    records = [replace(record, square=square) for record in make_cache(tmp_path, people=3, frames=2)]
    later = [
        replace(record, time_seconds=record.time_seconds + 0.04) if record.label == REAL else record
        for record in records
    ]
    config = toy_config(augment=AugmentConfig().only("flip", "shift").model_dump())
    for number in range(6):
        fake, real = TrainBatches(records, tmp_path, config).pair(np.random.default_rng(number))
        differs = np.abs(fake.rgb.astype(int) - real.rgb).max(axis=2) > 40
        assert fake.mask is not None
        assert real.mask is not None
        assert fake.mask[differs].mean() > 0.9
        assert fake.mask.mean() < 0.2
        assert real.mask.max() == 0
        fake, _ = TrainBatches(later, tmp_path, config).pair(np.random.default_rng(number))
        assert fake.mask is None


def test_the_frame_of_the_original_nearest_in_time(tmp_path: Path) -> None:
    """Whatever number it has among the sampled ones."""
    from streamer.training.dataset import TrainBatches

    records = make_cache(tmp_path, people=3, frames=4)
    few = [replace(r, frame=0) for r in records if r.label == FAKE and r.frame == 2]
    real = [replace(r, frame=r.frame + 5) for r in records if r.label == REAL]
    dataset = TrainBatches([*few, *real], tmp_path, toy_config())
    for number in range(6):
        one, other = dataset.pair(np.random.default_rng(number))
        same = np.abs(one.rgb.astype(int) - other.rgb).max(axis=2) <= 1
        assert 0.8 < same.mean() < 0.99


def test_a_fake_without_original_comes_with_any_face(tmp_path: Path) -> None:
    from streamer.training.dataset import TrainBatches

    records = [replace(r, original=None) for r in make_cache(tmp_path, people=3)]
    dataset = TrainBatches(records, tmp_path, toy_config())
    pairs = [dataset.pair(np.random.default_rng(number)) for number in range(6)]
    equal = [np.abs(fake.rgb.astype(int) - real.rgb).max(axis=2).mean() < 20 for fake, real in pairs]
    assert not all(equal)
    assert [real.label for _, real in pairs] == [REAL] * 6


def test_a_cross_blend_takes_another_person_turned_alike() -> None:
    upright = ((39.0, 42.0), (57.0, 42.0), (48.0, 51.0), (48.0, 60.0), (29.0, 45.0), (67.0, 45.0))
    turned = ((35.0, 42.0), (45.0, 42.0), (34.0, 51.0), (38.0, 60.0), (34.0, 45.0), (67.0, 45.0))
    records = [
        record(n, group=f"g{n // 2}", keypoints=upright if n % 2 else turned, item=f"v{n}") for n in range(12)
    ]
    rng = np.random.default_rng(1)
    drawn = [find_partner(records[1], lambda: records[int(rng.integers(12))]) for _ in range(20)]
    assert all(partner.group != "g0" for partner in drawn)
    assert sum(partner.keypoints == upright for partner in drawn) >= 19
    assert len({partner.item for partner in drawn}) > 2


@pytest.mark.parametrize(("evenness", "share"), [(0.0, 0.1), (0.5, 0.25), (1.0, 0.5)])
def test_balance_of_generators(evenness: float, share: float) -> None:
    """Nine groups of one generator, one of another; its share is 1 / (1 + 9 ** (1 - evenness))."""
    from streamer.training.dataset import Balance

    records = [record(n, label=FAKE, generator="a") for n in range(9)]
    records += [record(9, label=FAKE, generator="b"), record(10)]
    balance = Balance(records, FAKE, evenness)
    assert balance.shares.tolist() == pytest.approx([1 - share, share])
    rng = np.random.default_rng(0)
    drawn = Counter(balance.draw(rng) for _ in range(4000))
    assert set(drawn) == set(range(10))
    assert drawn[9] / 4000 == pytest.approx(share, abs=0.03)


def test_balance_of_people_videos_and_frames() -> None:
    """Half the draws go to each group, within it half to each video, however many frames it has."""
    from streamer.training.dataset import Balance

    records = [record(n, item="long", group="a") for n in range(10)]
    records += [record(10, item="short", group="a"), record(11, item="other", group="b")]
    rng = np.random.default_rng(0)
    balance = Balance(records, REAL, 0.5)
    drawn = Counter(records[balance.draw(rng)].item for _ in range(4000))
    assert drawn["other"] / 4000 == pytest.approx(0.5, abs=0.03)
    assert drawn["long"] / 4000 == pytest.approx(0.25, abs=0.03)
    assert not Balance(records, FAKE, 0.5)


def test_mixture_as_asked(tmp_path: Path) -> None:
    from streamer.training.dataset import TrainBatches

    config = toy_config(mixture={"self_blended": 1, "dataset_fake": 3}, batch=80)
    batch = TrainBatches(make_cache(tmp_path), tmp_path, config)[0]
    fake_known = batch.known[batch.labels == FAKE]
    assert batch.labels.mean() == 0.5
    assert float(fake_known.mean()) == pytest.approx(0.25, abs=0.2)
    assert bool((batch.known[batch.labels == REAL] == 1).all())


def test_batch_layout() -> None:
    from streamer.training.dataset import collate

    rgb = draw_face(np.random.default_rng(0))
    mask = np.zeros((96, 96), np.float32)
    mask[:16, :8] = 1
    batch = collate([Sample(rgb, FAKE, mask), Sample(rgb, FAKE, None)])
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (2, 96, 96, 3)
    assert batch.labels.tolist() == [[1.0], [1.0]]
    assert batch.masks.shape == (2, 1, 6, 6)
    assert batch.masks[0, 0, 0, 0] == 0.5
    assert batch.masks.sum() == 0.5
    assert batch.known.tolist() == [[1.0], [0.0]]


@pytest.mark.parametrize(
    ("changes", "keep", "message"),
    [
        ({}, lambda r: r.label == REAL, "dataset_fake is above 0, but no training crop is fake"),
        ({}, lambda r: r.label == FAKE, "no real faces"),
        ({"mixture": {"cross_blended": 1}}, lambda r: r.group == "train/0", "all real .* of one group"),
    ],
)
def test_data_that_cannot_give_the_mixture(
    tmp_path: Path, changes: dict[str, Any], keep: Any, message: str
) -> None:
    from streamer.training.dataset import TrainBatches

    records = [r for r in make_cache(tmp_path) if keep(r)]
    with pytest.raises(TrainingError, match=message):
        TrainBatches(records, tmp_path, toy_config(**changes))


def test_processes_share_in_pairs(tmp_path: Path) -> None:
    from streamer.training.dataset import TrainBatches

    records = make_cache(tmp_path)
    assert len(TrainBatches(records, tmp_path, toy_config(), rank=1, world=2)[0].images) == 4
    with pytest.raises(TrainingError, match="batch 8 cannot be shared by 3 processes"):
        TrainBatches(records, tmp_path, toy_config(), world=3)


def test_a_face_that_cannot_be_blended_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamer.training import dataset
    from streamer.training.dataset import TrainBatches

    real, calls = dataset.self_blend, []

    def sometimes(*args: Any) -> Any:
        calls.append(1)
        if len(calls) % 3:
            raise TrainingError("outside its picture")
        return real(*args)

    monkeypatch.setattr(dataset, "self_blend", sometimes)
    config = toy_config(mixture={"self_blended": 1, "dataset_fake": 0})
    assert len(TrainBatches(make_cache(tmp_path), tmp_path, config)[0].images) == 8
    assert len(calls) == 12
    monkeypatch.setattr(dataset, "self_blend", lambda *_: (_ for _ in ()).throw(TrainingError("outside")))
    with pytest.raises(TrainingError, match=r"\.png, the last of 10 tried: outside"):
        TrainBatches(make_cache(tmp_path), tmp_path, config)[0]


def test_a_damaged_crop_stops(tmp_path: Path) -> None:
    from streamer.training.dataset import TrainBatches, loader

    records = make_cache(tmp_path, people=2, frames=1)
    for r in records:
        (tmp_path / r.file).write_bytes(b"no picture")
    with pytest.raises(TrainingError, match=r"damaged"):
        read_crop(tmp_path, records[0])
    with pytest.raises(TrainingError, match=r"damaged"):
        TrainBatches(records, tmp_path, toy_config(mixture={"self_blended": 1}))[0]
    with pytest.raises(TrainingError, match=rf"^{tmp_path}.*damaged; delete it and prepare again$"):
        next(loader(TrainBatches(records, tmp_path, toy_config()), range(1), workers=1))


def test_packed_records() -> None:
    from streamer.training.dataset import PackedRecords

    records = [record(number) for number in range(3)]
    assert list(PackedRecords(records)) == records  # type: ignore[call-overload]
    assert len(PackedRecords(records)) == 3


class SlowlyStarted:
    """A dataset whose worker comes up only when its parent is gone."""

    def __getitem__(self, index: int) -> int:
        return index

    def __setstate__(self, state: object) -> None:
        parent = os.getppid()
        print("starting", flush=True)
        while os.getppid() == parent:
            time.sleep(0.05)

    def __getstate__(self) -> str:
        return "something, for __setstate__ to be called"


def wait_for_a_batch() -> None:
    from streamer.training.dataset import loader

    next(loader(SlowlyStarted(), [0], workers=1))  # type: ignore[arg-type]


def test_a_worker_ends_whose_parent_was_killed_before_it_came_up() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", "from test_dataset import *\nif __name__ == '__main__': wait_for_a_batch()"],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout
    assert parent.stdout.readline() == "starting\n"
    parent.kill()
    assert parent.communicate(timeout=60)[0] == ""  # the worker, too, has let go of its output

"""The loop: it learns, repeats itself, goes on after kill -9 as if nothing had been, stops early."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from toy import make_cache, toy_config

from streamer.errors import TrainingError
from streamer.training.augment_config import AugmentConfig
from streamer.training.config import TrainConfig
from streamer.training.crops import INDEX, to_lines
from streamer.training.types import CropRecord

if TYPE_CHECKING:
    from streamer.training.checkpoint import Checkpoint

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")

SCRIPT = Path(__file__).parent / "run_toy.py"


class Stop(Exception):  # noqa: N818
    """Raised by a test in the middle of a run."""


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def records(cache: Path) -> list[CropRecord]:
    made = make_cache(cache, people=8) + make_cache(cache, people=4, split="validation", seed=1)
    (cache / INDEX).write_text(to_lines(made))
    return made


def run_once(
    config: TrainConfig, records: Sequence[CropRecord], cache: Path, run: Path, **more: Any
) -> Checkpoint:
    """Train; returns the last checkpoint."""
    from streamer.training.checkpoint import load_checkpoint
    from streamer.training.train import train

    best = train(config, records, cache=cache, run=run, **more)
    assert best == run / "best.pt"
    assert best.is_file()
    return load_checkpoint(run / "last.pt")


def assert_same(one: Checkpoint, other: Checkpoint) -> None:
    assert (one.step, one.best, one.since_best, one.metrics) == (
        other.step,
        other.best,
        other.since_best,
        other.metrics,
    )
    for ours, theirs in ((one.weights, other.weights), (one.average, other.average)):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    for ours, theirs in zip(one.optimiser["state"].values(), other.optimiser["state"].values(), strict=True):
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_it_learns(records: list[CropRecord], cache: Path, tmp_path: Path) -> None:
    from streamer.training.checkpoint import load_checkpoint

    told: list[Any] = []
    config = toy_config(steps=64, validation={"every": 16}, log_every=8)
    run_once(config, records, cache, tmp_path / "run", report=told.append)
    best = load_checkpoint(tmp_path / "run" / "best.pt")
    assert best.metrics["videos"] >= 0.9
    assert best.metrics["metric"] == best.best
    assert told[-1].losses["label"] < 0.7 * told[0].losses["label"]
    assert [progress.step for progress in told] == [8, 16, 24, 32, 40, 48, 56, 64]
    assert [bool(progress.metrics) for progress in told] == [False, True] * 4
    assert told[-1].done == 1
    assert told[-1].seconds_left == 0
    assert all(progress.images_per_second > 0 for progress in told)


@pytest.mark.parametrize(("share", "batches"), [(0.0, 0), (0.5, 4), (1.0, 8)])
def test_batches_give_statistics_in_the_first_share_alone(
    share: float, batches: int, records: list[CropRecord], cache: Path, tmp_path: Path
) -> None:
    config = toy_config(model={"batch_statistics": share})
    last = run_once(config, records, cache, tmp_path / "run")
    assert last.step == 8
    counted = {int(value) for name, value in last.weights.items() if name.endswith("num_batches_tracked")}
    assert counted == {batches}


@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_interrupted_or_not_gives_the_same(
    records: list[CropRecord], cache: Path, tmp_path: Path, precision: str
) -> None:
    """With dropout and all augmentations, which draw random numbers."""
    config = toy_config(
        model={"dropout": 0.3},
        mixture={"self_blended": 1, "cross_blended": 1},
        augment=AugmentConfig().model_dump(),
        checkpoint_every=2,
        log_every=1,
        precision=precision,
    )
    whole = run_once(config, records, cache, tmp_path / "whole")

    def stop_after_5(progress: Any) -> None:
        if progress.step == 5:
            raise Stop

    with pytest.raises(Stop):
        run_once(config, records, cache, tmp_path / "cut", report=stop_after_5)
    assert_same(run_once(config, records, cache, tmp_path / "cut", resume=True), whole)
    # A finished one is left alone.
    assert_same(run_once(config, records, cache, tmp_path / "cut", resume=True), whole)
    assert whole.config.precision == precision
    other = run_once(config.model_copy(update={"seed": 2}), records, cache, tmp_path / "other")
    assert not torch.equal(
        other.weights["network.classifier.weight"], whole.weights["network.classifier.weight"]
    )


def test_a_checkpoint_says_which_precision_was_chosen(
    records: list[CropRecord], cache: Path, tmp_path: Path
) -> None:
    last = run_once(toy_config(steps=1, precision="auto"), records, cache, tmp_path / "run")
    assert last.config.precision in ("f32", "bf16")


def test_killed_and_resumed_gives_the_same(records: list[CropRecord], cache: Path, tmp_path: Path) -> None:
    """By signal 9, whenever it hits after the first checkpoint; with workers, which must not outlive it."""
    config = toy_config(model={"dropout": 0.3}, steps=24, checkpoint_every=3, workers=1)
    config = config.model_copy(update={"validation": config.validation.model_copy(update={"every": 8})})
    whole = run_once(config.model_copy(update={"workers": 0}), records, cache, tmp_path / "whole")
    (tmp_path / "config.json").write_text(config.model_dump_json())
    command = [sys.executable, str(SCRIPT), str(cache), str(tmp_path / "run"), str(tmp_path / "config.json")]
    killed = subprocess.Popen(command, start_new_session=True)
    last = tmp_path / "run" / "last.pt"
    while not last.exists() and killed.poll() is None:
        time.sleep(0.01)
    killed.send_signal(signal.SIGKILL)
    assert killed.wait() == -signal.SIGKILL
    assert_gone(killed.pid)
    from streamer.training.checkpoint import load_checkpoint

    assert 0 < load_checkpoint(last).step < 24
    subprocess.run(command, check=True, timeout=120)
    assert_same(load_checkpoint(last), whole)


def assert_gone(session: int) -> None:
    """No process of a session is left, after a while."""
    for _ in range(100):
        left = [
            path.parent.name for path in Path("/proc").glob("[0-9]*/stat") if _session_of(path) == session
        ]
        if not left:
            return
        time.sleep(0.1)
    os.killpg(session, signal.SIGKILL)
    raise AssertionError(f"left over: {left}")


def _session_of(stat: Path) -> int | None:
    try:
        state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
    except OSError:
        return None
    return None if state == "Z" else int(session)


def test_it_stops_when_it_gets_no_better(records: list[CropRecord], cache: Path, tmp_path: Path) -> None:
    """With a learning rate of almost nothing, the first validation stays the best."""
    config = toy_config(
        steps=50,
        optimiser={"learning_rate": 1e-12, "ema_decay": 0},
        validation={"every": 2, "patience": 3},
        log_every=1000,
        model={"frozen_stages": 5},
    )
    last = run_once(config, records, cache, tmp_path / "run")
    assert (last.step, last.since_best) == (8, 3)
    again = run_once(config, records, cache, tmp_path / "run", resume=True)
    assert again.step == 8


def test_the_clock_ends_it(records: list[CropRecord], cache: Path, tmp_path: Path) -> None:
    config = toy_config(steps=10_000, max_minutes=0.03, validation={"every": 5000})
    last = run_once(config, records, cache, tmp_path / "run")
    assert 0 < last.step < 1000
    assert last.seconds >= 1.8
    assert last.best is not None


def test_a_teacher_is_resumed_with_its_projection(
    records: list[CropRecord], cache: Path, tmp_path: Path
) -> None:
    run_once(toy_config(steps=2), records, cache, tmp_path / "teacher")
    config = toy_config(
        model={"architecture": "efficientnet_lite0"},
        input={"size": 32},
        distillation={"teacher": tmp_path / "teacher" / "best.pt", "feature_weight": 0.5},
        steps=4,
        checkpoint_every=2,
        log_every=1,
    )

    def stop_after_3(progress: Any) -> None:
        assert {"label", "teacher", "features", "mask", "total"} == set(progress.losses)
        if progress.step == 3:
            raise Stop

    whole = run_once(config, records, cache, tmp_path / "whole")
    with pytest.raises(Stop):
        run_once(config, records, cache, tmp_path / "cut", report=stop_after_3)
    assert_same(run_once(config, records, cache, tmp_path / "cut", resume=True), whole)


def test_a_run_is_not_overwritten(records: list[CropRecord], cache: Path, tmp_path: Path) -> None:
    run_once(toy_config(steps=2), records, cache, tmp_path / "run")
    with pytest.raises(TrainingError, match="holds a run already: resume it"):
        run_once(toy_config(steps=2), records, cache, tmp_path / "run")
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot make the run's folder"):
        run_once(toy_config(steps=2), records, cache, tmp_path / "file" / "run")


def test_what_is_wrong_with_the_configuration_is_said_before_anything_is_prepared(
    records: list[CropRecord], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamer.training import train as module

    monkeypatch.setattr(module, "Validation", None)  # cuts thousands of pictures
    for changes in (
        {"model": {"start": tmp_path / "gone.pt"}},
        {"distillation": {"teacher": tmp_path / "gone.pt"}},
        {"mixture": {"decoded": 1, "autoencoder": tmp_path / "gone.pt"}},
    ):
        with pytest.raises(TrainingError, match=r"gone\.pt: cannot read"):
            run_once(toy_config(**changes), records, cache, tmp_path / "run")
    (tmp_path / "run" / "last.pt").touch()
    with pytest.raises(TrainingError, match="holds a run already"):
        run_once(toy_config(), records, cache, tmp_path / "run")


def test_a_loss_that_is_no_number_stops(records: list[CropRecord], cache: Path, tmp_path: Path) -> None:
    config = toy_config(optimiser={"learning_rate": 1e30, "gradient_clip": 1e30, "warm_up_steps": 0})
    with pytest.raises(TrainingError, match=r"step \d: the loss is not finite .*learning_rate"):
        run_once(config, records, cache, tmp_path / "run")
    assert not (tmp_path / "run" / "last.pt").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"precision": "fp16"}, "fp16 needs a CUDA device"), ({"device": "cuda"}, "torch finds no CUDA device")],
)
def test_without_a_gpu(
    records: list[CropRecord],
    cache: Path,
    tmp_path: Path,
    changes: dict[str, Any],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(TrainingError, match=message):
        run_once(toy_config(**changes), records, cache, tmp_path / "run")


def test_learning_rate() -> None:
    from streamer.training.config import OptimiserConfig
    from streamer.training.train import learning_rate

    settings = OptimiserConfig(learning_rate=1.0, final_share=0.1, warm_up_steps=9)
    assert learning_rate(settings, 0, 0.0) == pytest.approx(0.1)
    assert learning_rate(settings, 4, 0.0) == pytest.approx(0.5)
    assert learning_rate(settings, 9, 0.0) == pytest.approx(1.0)
    assert learning_rate(settings, 500, 0.5) == pytest.approx(0.55)
    assert learning_rate(settings, 999, 1.0) == pytest.approx(0.1)
    rates = [learning_rate(settings, 100, n / 20) for n in range(21)]
    assert rates == sorted(rates, reverse=True)
    assert all(math.isfinite(rate) for rate in rates)


def test_fingerprint_is_of_the_crops_not_their_order(records: list[CropRecord]) -> None:
    from streamer.training.train import fingerprint

    assert fingerprint(records) == fingerprint(records[::-1])
    assert fingerprint(records) != fingerprint(records[1:])

"""Two processes on CPUs, started by torchrun: one network, shared batches, one writer."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy import make_cache, toy_config

from streamer.training.crops import INDEX, to_lines

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")

SCRIPT = Path(__file__).parent / "run_toy.py"


def torchrun(*arguments: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launcher, str(SCRIPT), *map(str, arguments)], check=True, timeout=150)


def test_two_processes_train_one_network(tmp_path: Path) -> None:
    from streamer.training.checkpoint import load_checkpoint

    cache = tmp_path / "cache"
    records = make_cache(cache) + make_cache(cache, people=2, split="validation", seed=1)
    (cache / INDEX).write_text(to_lines(records))
    config = toy_config(
        steps=10_000,
        max_minutes=0.08,
        validation={"every": 2, "patience": 3},
        optimiser={"learning_rate": 1e-4},
    )
    (tmp_path / "config.json").write_text(config.model_dump_json())
    torchrun(cache, tmp_path / "run", tmp_path / "config.json")
    one, two = (json.loads((tmp_path / f"run.{rank}.json").read_text()) for rank in (0, 1))
    # Each has half of the batches, both the same weights, and both stop at the same step.
    assert len(one) == len(two) >= 2
    assert [step["weights"] for step in one] == [step["weights"] for step in two]
    assert len({step["weights"] for step in one}) == len(one)
    assert all(a["pixels"] != b["pixels"] for a, b in zip(one, two, strict=True))
    last = load_checkpoint(tmp_path / "run" / "last.pt")
    assert last.step == len(one)
    assert last.best is not None
    assert len(list((tmp_path / "run").glob("events.*"))) == 1


def test_the_documented_command_reaches_our_command_line() -> None:
    """Without the `--`, torchrun finds `--run` ambiguous among its own options."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "1"]
    ours = ["streamer", "train", "fit", "--run", "x", "--help"]
    ended = subprocess.run([*launcher, "-m", "--", *ours], capture_output=True, text=True, timeout=100)
    assert ended.returncode == 0, ended.stderr
    assert "Folder for checkpoints" in ended.stdout

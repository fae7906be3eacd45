"""Trains on a toy cache in a process of its own; started by tests, by torchrun too.

    run_toy.py CACHE RUN CONFIG.json

Beside the run, RUN.RANK.json tells of each process what it saw and came to, step by step.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch

from streamer.training import train as training
from streamer.training.config import parse_config
from streamer.training.crops import parse_record


def main(cache: Path, run: Path, config: Path) -> None:
    told: list[dict[str, float]] = []
    take_step = training.take_step

    def watched(state: Any, module: Any, batch: Any) -> dict[str, float]:
        losses = take_step(state, module, batch)
        weights = sum(float(p.detach().double().abs().sum()) for p in state.objective.parameters())
        told.append({"weights": weights, "pixels": float(batch.images.double().mean()), **losses})
        rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
        run.with_name(f"{run.name}.{rank}.json").write_text(json.dumps(told))
        return losses

    training.take_step = watched
    records = [parse_record(line) for line in (cache / "index.jsonl").read_text().splitlines()]
    training.train(
        parse_config(json.loads(config.read_text()), str(config)),
        records,
        cache=cache,
        run=run,
        resume=True,
    )


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))

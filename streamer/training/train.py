"""The training loop; reads from top to bottom.

One process, or several started by torchrun: each then trains on its share of every batch, and the first one
alone validates and writes. A run's folder holds

    last.pt     to resume from
    best.pt     the best by validation
    events.*    for TensorBoard
"""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from streamer.errors import TrainingError
from streamer.training.checkpoint import save_checkpoint
from streamer.training.config import OptimiserConfig, TrainConfig
from streamer.training.crops import to_lines
from streamer.training.dataset import Batch, TrainBatches, loader
from streamer.training.memory import keep_freed_memory
from streamer.training.precision import with_precision
from streamer.training.progress import Logbook, Report
from streamer.training.state import State
from streamer.training.types import CropRecord
from streamer.training.validate import Validation

LAST, BEST = "last.pt", "best.pt"

PATIENCE_OF_PROCESSES = timedelta(hours=2)
"""How long the others wait for the first one, which validates alone."""


def train(
    config: TrainConfig,
    records: Sequence[CropRecord],
    *,
    cache: Path,
    run: Path,
    resume: bool = False,
    report: Report = lambda _: None,
) -> Path:
    """Train one network; returns the path of its best checkpoint.

    records: of `cache`; those of the split `train` are trained on, those of `validation` decide which
    checkpoint is the best and when to stop. run: folder of this run alone, made if need be. resume: go on
    from its last checkpoint, if there is one. Raises TrainingError.
    """
    began = time.monotonic()
    with _processes(config) as place:
        config = with_precision(config, place.device)

        # 1. Data.
        training = [record for record in records if record.split == "train"]
        dataset = TrainBatches(training, cache, config, rank=place.rank, world=place.world)

        # 2. Network, its average, optimiser: at the start, or where they were left.
        going_on = _open(run, resume=resume)
        state = State.start(config, fingerprint(training), place.device)
        if going_on:
            state.restore(run / LAST)
        began -= state.seconds
        module: nn.Module = state.objective
        if place.world > 1:
            module = DistributedDataParallel(module)
        if config.compile:
            module.compile()

        # 3. Steps. The pictures that validate take minutes to prepare: when all else is known to be right.
        held_out = [record for record in records if record.split == "validation"]
        validation = Validation(held_out, cache, config) if place.rank == 0 else None
        steps = range(state.step, config.steps)
        batches: Iterator[Batch] = loader(
            dataset, steps, workers=config.workers, pin=place.device.type == "cuda"
        )
        logbook = Logbook(run, report, state) if place.rank == 0 else None
        while not state.ended:
            batch = next(batches).to(place.device)
            seed_step(config.seed, state.step, place.rank)
            losses = take_step(state, module, batch)
            state.step += 1
            state.seconds = place.agreed(time.monotonic() - began)
            if logbook:
                logbook.add(losses)

            # 4. Validation: is it better than all before?
            validate = state.step % config.validation.every == 0 or state.done == 1
            if validate:
                state.metrics = validation.measure(state.average, place.device) if validation else {}
                better = state.judge(place.agreed(state.metrics.get("metric", 0.0)))
                if better and place.rank == 0:
                    save_checkpoint(run / BEST, state.checkpoint())

            # 5. Checkpoint and report. After best.pt, lest a kill leave a last.pt that claims a lost best.
            if place.rank == 0 and (validate or state.step % config.checkpoint_every == 0):
                save_checkpoint(run / LAST, state.checkpoint())
            if logbook and (validate or state.step % config.log_every == 0):
                logbook.tell(state, validated=validate)
        if logbook:
            logbook.close()
        # DDP must not be the last to hold the group of processes: its destructor keeps Python's lock while
        # it waits for a thread of the group, which may want that lock. Torch 2.11 now and then hung so.
        del module
    return run / BEST


def take_step(state: State, module: nn.Module, batch: Batch) -> dict[str, float]:
    """Forward, backward, clip, change the weights and their average; returns the losses.

    module: the state's objective, or what wraps it. Raises TrainingError if a loss is not finite.
    """
    config = state.config
    for group in state.optimiser.param_groups:
        group["lr"] = learning_rate(config.optimiser, state.step, state.done)
    state.objective.student.train()
    if state.done >= config.model.batch_statistics:
        state.objective.student.fix_statistics()
    losses: dict[str, torch.Tensor] = module(batch)
    values = {name: float(loss.detach()) for name, loss in losses.items()}
    if not all(map(math.isfinite, values.values())):
        raise TrainingError(
            f"step {state.step}: the loss is not finite ({values}); begin another run with a lower "
            f"optimiser.learning_rate, or with precision f32; model.start=RUN/{BEST} begins with what this "
            f"one has learned"
        )
    state.optimiser.zero_grad()
    state.scaler.scale(losses["total"]).backward()
    state.scaler.unscale_(state.optimiser)
    nn.utils.clip_grad_norm_(state.objective.parameters(), config.optimiser.gradient_clip)
    state.scaler.step(state.optimiser)
    state.scaler.update()
    state.update_average()
    return values


def learning_rate(optimiser: OptimiserConfig, step: int, done: float) -> float:
    """Of a step: half a cosine over the schedule, times a linear warm-up.

    step: finished ones. done: share of the schedule, [0, 1].
    """
    warm_up = min(1.0, (step + 1) / (optimiser.warm_up_steps + 1))
    cosine = 0.5 * (1 + math.cos(math.pi * done))
    return optimiser.learning_rate * warm_up * (optimiser.final_share + (1 - optimiser.final_share) * cosine)


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch (dropout) for a step: what is drawn in it depends on nothing before it."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1))


def fingerprint(records: Sequence[CropRecord]) -> str:
    """SHA-256 of all that is known of the crops, whatever their order."""
    return hashlib.sha256("".join(sorted(to_lines(records).splitlines(keepends=True))).encode()).hexdigest()


def _open(run: Path, *, resume: bool) -> bool:
    """Make the folder; returns whether there is something to resume. Raises TrainingError."""
    if (run / LAST).is_file():
        if not resume:
            raise TrainingError(f"{run} holds a run already: resume it, or name another folder")
        return True
    try:
        run.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{run}: cannot make the run's folder: {error.strerror}") from error
    return False


@dataclass(frozen=True)
class Place:
    """This process among those that train together."""

    device: torch.device
    rank: int = 0
    world: int = 1

    def agreed(self, value: float) -> float:
        """The first process's value, in all of them."""
        if self.world == 1:
            return value
        tensor = torch.tensor(value, dtype=torch.float64, device=self.device)
        distributed.broadcast(tensor, 0)
        return float(tensor)


@contextmanager
def _processes(config: TrainConfig) -> Iterator[Place]:
    """Join the other processes, if torchrun started several. Raises TrainingError for a missing device."""
    cuda = torch.cuda.is_available() if config.device == "auto" else config.device == "cuda"
    if cuda and not torch.cuda.is_available():
        raise TrainingError("device is cuda, but torch finds no CUDA device")
    if config.precision == "fp16" and not cuda:
        raise TrainingError("precision fp16 needs a CUDA device; bf16 works on CPUs too")
    if not cuda:
        keep_freed_memory()
    if config.threads:
        torch.set_num_threads(config.threads)
    world = int(os.environ.get("WORLD_SIZE", "1"))  # torchrun's variables
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if cuda else torch.device("cpu")
    if world == 1:
        yield Place(device)
        return
    distributed.init_process_group("nccl" if cuda else "gloo", timeout=PATIENCE_OF_PROCESSES)
    try:
        yield Place(device, distributed.get_rank(), world)
    finally:
        distributed.destroy_process_group()

"""Checkpoints: everything to go on from, or to use the network, in one file that holds no code."""

from __future__ import annotations

import dataclasses
import json
import os
import pickle
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from streamer.errors import TrainingError
from streamer.models.classifiers import Classifier, build_classifier
from streamer.training.config import TrainConfig, parse_config
from streamer.whole_file import whole_file

FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A run after `step` steps.

    There is no state of random generators in it: those of a step are seeded by the run's seed and the step.
    Nor one of the schedule, which follows from step and seconds.
    """

    config: TrainConfig
    data: str
    """Fingerprint of the training crops, see `train.fingerprint`."""
    step: int
    """Finished steps."""
    seconds: float
    """On the clock, over all parts of an interrupted run."""
    weights: dict[str, torch.Tensor]
    average: dict[str, torch.Tensor]
    """Moving average of the weights: what is validated and shipped."""
    projections: dict[str, torch.Tensor]
    """Of feature distillation; empty without."""
    optimiser: dict[str, Any]
    scaler: dict[str, Any]
    """Of fp16's gradients; empty without."""
    best: float | None
    """Best validation metric so far; None: not validated yet."""
    since_best: int
    """Validations since then."""
    metrics: dict[str, float]
    """Of the last validation."""
    files: dict[str, str] = field(default_factory=dict)
    """SHA-256 of each of the configuration's files; empty: written before they were noted."""

    def __repr__(self) -> str:
        return f"Checkpoint({self.config.model.architecture} after {self.step} steps, best {self.best})"


def save_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write it whole or not at all, whenever the process or the machine stops. Raises TrainingError."""
    values = {each.name: getattr(checkpoint, each.name) for each in dataclasses.fields(checkpoint)}
    values |= {"format": FORMAT, "config": checkpoint.config.model_dump_json()}
    try:
        with whole_file(path) as file:
            torch.save(values, file)
            file.flush()
            os.fsync(file.fileno())
    except (OSError, RuntimeError) as error:
        # torch then closes its archive, which fails with an error of its own
        cause = error if isinstance(error, OSError) else error.__context__
        if not isinstance(cause, OSError):
            raise
        raise TrainingError(f"{path}: cannot write the checkpoint: {cause.strerror}") from error


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint to the CPU's memory; never runs code out of it. Raises TrainingError."""
    try:
        with path.open("rb") as file:
            if not zipfile.is_zipfile(file):  # torch would try to read it as an old format, and fail anyhow
                raise TrainingError(f"{path}: not a checkpoint, or cut short")
            file.seek(0)
            values = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TrainingError(f"{path}: cannot read the checkpoint: {error.strerror}") from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path}: not a checkpoint, or damaged: {error}") from error
    names = {each.name for each in dataclasses.fields(Checkpoint)}
    if (
        not isinstance(values, dict)
        or values.pop("format", None) != FORMAT
        or values.keys() | {"files"} != names
    ):
        raise TrainingError(f"{path}: not a checkpoint of this version of streamer")
    values["config"] = parse_config(json.loads(values["config"]), str(path))
    return Checkpoint(**values)


def load_model(path: Path) -> Classifier:
    """The network of a checkpoint: averaged weights, evaluation mode, on the CPU. Raises TrainingError."""
    checkpoint = load_checkpoint(path)
    model = build_classifier(
        checkpoint.config.model.architecture,
        pretrained=False,
        dropout=checkpoint.config.model.dropout,
        mask_head=checkpoint.config.model.mask_head,
    )
    model.load_state_dict(checkpoint.average)
    model.eval()
    return model

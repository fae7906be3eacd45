"""What changes in the course of a run, and how it goes into a checkpoint and comes back."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from streamer.errors import TrainingError
from streamer.manifest import sha256_of
from streamer.models.classifiers import Classifier, build_classifier, graft
from streamer.training.checkpoint import Checkpoint, load_checkpoint, load_model
from streamer.training.config import TrainConfig, differences
from streamer.training.loss import Objective
from streamer.training.member_start import load_member, member_network

BETAS = (0.9, 0.999)
"""AdamW's, as in its paper."""


@dataclass
class State:
    """A run that is going on."""

    config: TrainConfig
    data: str
    """Fingerprint of the training crops."""
    files: dict[str, str]
    """As in `Checkpoint`."""
    objective: Objective
    average: Classifier
    """Moving average of the network and of the weights that it began with, in evaluation mode."""
    first: dict[str, torch.Tensor]
    """Those weights."""
    optimiser: torch.optim.Optimizer
    scaler: torch.GradScaler
    step: int = 0
    """Finished steps."""
    seconds: float = 0.0
    """On the clock, over all parts of an interrupted run."""
    best: float | None = None
    since_best: int = 0
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def start(cls, config: TrainConfig, data: str, device: torch.device) -> State:
        """Before the first step. Raises TrainingError."""
        torch.manual_seed(config.seed)
        student = _start_model(config)
        student.freeze(config.model.frozen_stages)
        objective = Objective(student, config, _teacher(config, device))
        _place(objective, device)
        return cls(
            config,
            data,
            {str(path): sha256_of(path) for path in config.files},
            objective,
            average=copy.deepcopy(student).eval().requires_grad_(False),
            first=copy.deepcopy(student.state_dict()),
            optimiser=torch.optim.AdamW(_parameter_groups(objective, config), betas=BETAS),
            scaler=torch.GradScaler(device.type, enabled=config.precision == "fp16"),
        )

    @property
    def done(self) -> float:
        """Share of the schedule behind us, [0, 1]."""
        by_steps = self.step / self.config.steps
        by_clock = self.seconds / (60 * self.config.max_minutes) if self.config.max_minutes else 0.0
        return min(1.0, max(by_steps, by_clock))

    @property
    def ended(self) -> bool:
        """Whether the schedule is over, or the validation does not get better any more."""
        return self.done == 1 or self.since_best >= self.config.validation.patience

    def judge(self, metric: float) -> bool:
        """Take note of a validation; returns whether it is the best so far."""
        better = self.best is None or metric > self.best
        self.best = metric if better else self.best
        self.since_best = 0 if better else self.since_best + 1
        return better

    def update_average(self) -> None:
        """Let the average follow the weights, which have just changed, but for the share that it keeps."""
        decay = min(self.config.optimiser.ema_decay, (1 + self.step) / (10 + self.step))
        ours, theirs = self.average.state_dict(), self.objective.student.state_dict()
        with torch.no_grad():
            for name, value in ours.items():
                if value.is_floating_point():
                    goal = theirs[name].lerp(self.first[name], self.config.optimiser.start_share)
                    value.lerp_(goal, 1 - decay)
                else:
                    value.copy_(theirs[name])

    def checkpoint(self) -> Checkpoint:
        """Everything to go on from. The tensors are those in use, not copies."""
        return Checkpoint(
            config=self.config,
            data=self.data,
            step=self.step,
            seconds=self.seconds,
            weights=self.objective.student.state_dict(),
            average=self.average.state_dict(),
            projections=self.objective.projections.state_dict(),
            optimiser=self.optimiser.state_dict(),
            scaler=self.scaler.state_dict(),
            best=self.best,
            since_best=self.since_best,
            metrics=self.metrics,
            files=self.files,
        )

    def restore(self, path: Path) -> None:
        """Go on from a checkpoint of the same configuration and data. Raises TrainingError."""
        checkpoint = load_checkpoint(path)
        if changed := differences(checkpoint.config, self.config):
            raise TrainingError(f"{path} cannot be resumed with another configuration: {'; '.join(changed)}")
        if checkpoint.data != self.data:
            raise TrainingError(
                f"{path} cannot be resumed: the training crops are not those it was trained on"
            )
        if other := [name for name, digest in checkpoint.files.items() if self.files[name] != digest]:
            raise TrainingError(
                f"{path} cannot be resumed: {', '.join(other)}: no longer as it was when the run began"
            )
        self.objective.student.load_state_dict(checkpoint.weights)
        self.average.load_state_dict(checkpoint.average)
        self.objective.projections.load_state_dict(checkpoint.projections)
        self.optimiser.load_state_dict(checkpoint.optimiser)
        self.scaler.load_state_dict(checkpoint.scaler)
        self.step, self.seconds = checkpoint.step, checkpoint.seconds
        self.best, self.since_best, self.metrics = checkpoint.best, checkpoint.since_best, checkpoint.metrics


def _start_model(config: TrainConfig) -> Classifier:
    wanted = config.model
    model = build_classifier(
        wanted.architecture,
        pretrained=wanted.pretrained and not wanted.start,
        dropout=wanted.dropout,
        mask_head=wanted.mask_head,
    )
    if wanted.start:
        starts = [_start_weights(copy.deepcopy(model), path, wanted.architecture) for path in wanted.start]
        model.load_state_dict(_mean(starts))
    return model


def _start_weights(model: Classifier, path: Path, architecture: str) -> dict[str, torch.Tensor]:
    """Those of a checkpoint or member; what it has none of, such as a new mask head, as `model` has it.

    model: of that architecture; changed.
    """
    weights: dict[str, torch.Tensor] = model.state_dict()
    if path.suffix == ".json":
        load_member(model, path)
        return weights
    other = load_checkpoint(path)
    if other.config.model.architecture == model.architecture.grafted_on:
        graft(model.network, load_model(path).network, model.architecture)
        return weights
    if other.config.model.architecture != architecture:
        raise TrainingError(
            f"{path}: a {other.config.model.architecture}, but model.architecture is {architecture}"
        )
    return weights | {name: value for name, value in other.average.items() if name in weights}


def _mean(states: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """Of every weight and statistic; counts as in the first."""
    return {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }


def _teacher(config: TrainConfig, device: torch.device) -> Classifier | None:
    if (path := config.distillation.teacher) is None:
        return None
    if path.suffix == ".json":
        teacher = member_network(path)
    else:
        margin = load_checkpoint(path).config.input.margin
        if margin != config.input.margin:
            raise TrainingError(
                f"{path}: the teacher sees faces with margin {margin}, not {config.input.margin}"
            )
        teacher = load_model(path)
    teacher.requires_grad_(False)
    _place(teacher, device)
    return teacher


def _place(module: nn.Module, device: torch.device) -> None:
    """Move it; kernels with channels last in memory, twice as fast in bf16 on a CPU with AMX."""
    module.to(device)
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload,unused-ignore]


def _parameter_groups(module: nn.Module, config: TrainConfig) -> list[dict[str, Any]]:
    """What is trained: kernels and matrices with weight decay, biases and normalisations without."""
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    return [
        {
            "params": [parameter for parameter in trained if parameter.ndim > 1],
            "weight_decay": config.optimiser.weight_decay,
        },
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]

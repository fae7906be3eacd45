"""Training of the autoencoder that decoded blends need."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from streamer.errors import TrainingError
from streamer.training.autoencoder import (
    FORMAT,
    KEPT,
    SIDES,
    FaceAutoencoder,
    cut_square,
    dissimilarity,
    read_training,
    save_autoencoder,
)
from streamer.training.config import OptimiserConfig
from streamer.training.crops import read_crop
from streamer.training.dataset import PackedRecords, loader
from streamer.training.memory import keep_freed_memory
from streamer.training.precision import computes_bf16
from streamer.training.train import fingerprint, learning_rate, seed_step
from streamer.training.types import REAL, CropRecord
from streamer.whole_file import write_whole

BATCH_PIXELS = 64 * 64**2
"""Of a step, over all its faces."""
SCHEDULE = OptimiserConfig(learning_rate=1e-3, final_share=0.001, warm_up_steps=200)
ABSOLUTE_WEIGHT = 2.0
"""Of the absolute difference of levels beside `dissimilarity`, which DeepFaceLab, too, makes small."""
LARGEST_SHIFT = 0.06
"""Share of the square's side."""
SCALE = (0.9, 1.15)
TURN_DEGREES = 8.0
BRIGHTNESS = (0.85, 1.1)
"""Factors of red, green and blue, each on its own."""
KEEP_EVERY = 100
"""Steps between two files to go on from."""


class _Squares(Dataset[torch.Tensor]):
    """Batches of faces by step, (n, 3, s, s) float32 in [0, 1], of the sides by turns."""

    def __init__(self, records: Sequence[CropRecord], cache: Path, seed: int) -> None:
        self._records, self._cache, self._seed = PackedRecords(records), cache, seed

    def __getitem__(self, step: int) -> torch.Tensor:
        rng = np.random.default_rng((self._seed, step))
        side = SIDES[step % len(SIDES)]
        faces = []
        for index in rng.integers(len(self._records), size=BATCH_PIXELS // side**2):
            record = self._records[index]
            square, _ = cut_square(
                read_crop(self._cache, record), np.array(record.keypoints, np.float32), record.box, side
            )
            middle = (side - 1) / 2
            matrix = cv2.getRotationMatrix2D(
                (middle, middle), rng.uniform(-TURN_DEGREES, TURN_DEGREES), rng.uniform(*SCALE)
            )
            shift = rng.uniform(-LARGEST_SHIFT, LARGEST_SHIFT, (2, 1)) * side
            moved = cv2.warpAffine(
                square,
                matrix + np.pad(shift, ((0, 0), (2, 0))),
                (side, side),
                borderMode=cv2.BORDER_REFLECT_101,
            )
            faces.append(moved[:, ::-1] if rng.random() < 0.5 else moved)
        levels = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2).float() / 255
        factors = torch.from_numpy(rng.uniform(*BRIGHTNESS, (len(faces), 3, 1, 1)).astype(np.float32))
        return (levels * factors).clamp(0, 1)


def fit_autoencoder(
    records: Sequence[CropRecord],
    cache: Path,
    path: Path,
    *,
    steps: int,
    seed: int,
    workers: int,
    resume: bool = False,
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> float:
    """Train one on the real training faces of a cache, on CUDA if there is any, and write it.

    What is not finished is kept in a file beside it, `unfinished(path)`. workers: processes that prepare
    batches. resume: go on from that file, if there is one; what is finished is left as it is. progress:
    called with the steps done and all.
    Returns the dissimilarity of the last tenth of the steps, mean. Raises TrainingError.
    """
    real = [record for record in records if record.split == "train" and record.label == REAL]
    if not real:
        raise TrainingError(f"{cache}: no real faces among the training crops")
    settings = {"data": fingerprint(real), "steps": steps, "seed": seed}
    training = _Unfinished(unfinished(path), settings)
    if resume and path.exists() and not training.path.exists():
        return _finished(path, settings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    in_bf16 = computes_bf16(device)
    seed_step(seed, 0, 0)
    network = FaceAutoencoder().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), SCHEDULE.learning_rate, weight_decay=0.0)
    done, last = training.restore(network, optimiser) if training.exists(resume=resume) else (0, [])
    remaining = range(done, steps)
    batches: Iterator[torch.Tensor] = loader(_Squares(real, cache, seed), remaining, workers=workers)
    for step, batch in zip(remaining, batches, strict=True):
        if step % KEEP_EVERY == 0:
            training.keep(network, optimiser, step, last)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(SCHEDULE, step, step / steps)
        seed_step(seed, step, 0)
        faces = batch.to(device, memory_format=torch.channels_last)
        kept = torch.tensor(KEPT)[torch.randint(len(KEPT), (len(faces),))].to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=in_bf16):
            painted = network(faces, kept)
        unlike = dissimilarity(painted.float(), faces)
        loss = ABSOLUTE_WEIGHT * (painted.float() - faces).abs().mean() + unlike
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), SCHEDULE.gradient_clip)
        optimiser.step()
        if not np.isfinite(value := float(unlike.detach())):
            raise TrainingError(f"step {step}: the loss is not finite; try another seed")
        if step >= int(0.9 * steps):
            last.append(value)
        progress(step + 1, steps)
    unlike_at_last = float(np.mean(last))
    save_autoencoder(path, network.cpu(), settings | {"dissimilarity": unlike_at_last})
    training.path.unlink(missing_ok=True)
    return unlike_at_last


def _finished(path: Path, settings: dict[str, Any]) -> float:
    """What `fit_autoencoder` returned when it wrote this one. Raises TrainingError if it would be another."""
    made = read_training(path)
    if {name: made.get(name) for name in settings} != settings:
        raise TrainingError(
            f"{path}: made of other faces, steps or seed; train anew without --resume, or name another file"
        )
    return float(made["dissimilarity"])


def unfinished(path: Path) -> Path:
    """The file of a training that is to write an autoencoder to `path`."""
    return path.with_name(f"{path.name}.unfinished")


class _Unfinished:
    """A training that can go on: {"format": FORMAT, settings, "step", "last", "network", "optimiser"}."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        """settings: those without which it would be another training."""
        self.path = path
        self._settings = {"format": FORMAT} | settings

    def exists(self, *, resume: bool) -> bool:
        """Whether there is something to go on from. Raises TrainingError if that is not wanted."""
        if self.path.exists() and not resume:
            raise TrainingError(
                f"{self.path}: a training that is not finished: go on with --resume, or delete it"
            )
        return self.path.exists()

    def keep(
        self, network: FaceAutoencoder, optimiser: torch.optim.Optimizer, step: int, last: list[float]
    ) -> None:
        """Write it whole or not at all, before `step`. Raises TrainingError."""
        content = io.BytesIO()
        state = {"network": network.state_dict(), "optimiser": optimiser.state_dict()}
        torch.save(self._settings | state | {"step": step, "last": last}, content)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, content.getvalue())
        except OSError as error:
            raise TrainingError(f"{self.path}: cannot write the training: {error.strerror}") from error

    def restore(self, network: FaceAutoencoder, optimiser: torch.optim.Optimizer) -> tuple[int, list[float]]:
        """The steps done and `last`, as they were kept. Raises TrainingError."""
        try:
            values = torch.load(self.path, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = error.strerror if isinstance(error, OSError) else "damaged"
            raise TrainingError(
                f"{self.path}: cannot read the training: {reason}; delete it to begin anew"
            ) from error
        if (
            not isinstance(values, dict)
            or {name: values.get(name) for name in self._settings} != self._settings
        ):
            raise TrainingError(
                f"{self.path}: begun with other faces, steps or seed, or another version of streamer; "
                f"delete it to begin anew"
            )
        network.load_state_dict(values["network"])
        optimiser.load_state_dict(values["optimiser"])
        return values["step"], values["last"]

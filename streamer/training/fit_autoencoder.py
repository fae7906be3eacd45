"""Training of the autoencoder that decoded blends need."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset

from streamer.errors import TrainingError
from streamer.training.autoencoder import (
    KEPT,
    SIDES,
    FaceAutoencoder,
    cut_square,
    dissimilarity,
    save_autoencoder,
)
from streamer.training.config import OptimiserConfig
from streamer.training.crops import read_crop
from streamer.training.dataset import loader
from streamer.training.memory import keep_freed_memory
from streamer.training.precision import computes_bf16
from streamer.training.train import learning_rate, seed_step
from streamer.training.types import REAL, CropRecord

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


class _Squares(Dataset[torch.Tensor]):
    """Batches of faces by step, (n, 3, s, s) float32 in [0, 1], of the sides by turns."""

    def __init__(self, records: Sequence[CropRecord], cache: Path, seed: int) -> None:
        self._records, self._cache, self._seed = records, cache, seed

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
    progress: Callable[[int, int], None] = lambda _done, _all: None,
) -> float:
    """Train one on the real training faces of a cache, on CUDA if there is any, and write it.

    workers: processes that prepare batches. progress: called with the steps done and all. Returns the
    dissimilarity of the last tenth of the steps, mean. Raises TrainingError.
    """
    real = [record for record in records if record.split == "train" and record.label == REAL]
    if not real:
        raise TrainingError(f"{cache}: no real faces among the training crops")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        keep_freed_memory()
    in_bf16 = computes_bf16(device)
    seed_step(seed, 0, 0)
    network = FaceAutoencoder().to(device, memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), SCHEDULE.learning_rate, weight_decay=0.0)
    last: list[float] = []
    batches: Iterator[torch.Tensor] = loader(_Squares(real, cache, seed), range(steps), workers=workers)
    for step, batch in enumerate(batches):
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
    save_autoencoder(path, network.cpu())
    return float(np.mean(last))

"""What training makes small: cross-entropy of logits, pairs and masks, and the distance from a teacher."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional
from torch.nn.functional import binary_cross_entropy_with_logits as cross_entropy

from streamer.models.classifiers import Classifier, Features, normalised
from streamer.training.config import TrainConfig
from streamer.training.dataset import Batch
from streamer.training.precision import autocast


class Objective(nn.Module):
    """A network to be trained, and what it is told about a batch.

    The one module that a step calls, so that gradients of several processes are averaged in one place. The
    teacher, if there is one, is neither trained nor a part of it.
    """

    def __init__(self, student: Classifier, config: TrainConfig, teacher: Classifier | None) -> None:
        super().__init__()
        self.student = student
        self.projections = nn.ModuleList()
        self._config = config
        self._teacher = (teacher,)  # in a tuple, so that torch does not take it for a part of this module
        if teacher and config.distillation.feature_weight:
            ours, known = student.architecture, teacher.architecture
            self.projections.append(nn.Conv2d(ours.map_channels, known.map_channels, 1))
            self.projections.append(nn.Conv2d(ours.channels, known.channels, 1))

    def forward(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Losses by name, scalars, of which `total` is what to make small; the others are not weighted."""
        config = self._config
        images = normalised(batch.images)  # (n, 3, s, s)
        with autocast(config, images.device):
            features = self.student.features(images)
            logit, mask_logits = self.student.classify(features)
        smoothing = config.loss.label_smoothing
        targets = batch.labels * (1 - smoothing) + smoothing / 2
        losses = {"label": cross_entropy(logit.float(), targets)}
        total = losses["label"]
        if (teacher := self._teacher[0]) is not None:
            losses |= self._distances(teacher, images, features, logit.float())
            distillation = config.distillation
            total = (1 - distillation.weight) * total + distillation.weight * losses["teacher"]
            if "features" in losses:
                total = total + distillation.feature_weight * losses["features"]
        if config.loss.pair_weight:
            losses["pair"] = _pair_loss(logit.float())
            total = total + config.loss.pair_weight * losses["pair"]
        if mask_logits is not None:
            losses["mask"] = _mask_loss(mask_logits.float(), batch)
            total = total + config.loss.mask_weight * losses["mask"]
        return losses | {"total": total}

    def _distances(
        self, teacher: Classifier, images: torch.Tensor, features: Features, logit: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        config = self._config
        with torch.no_grad(), autocast(config, images.device):
            known = teacher.features(images)
            answer = teacher.classify(known)[0].float()
        temperature = config.distillation.temperature
        soft = torch.sigmoid(answer / temperature)
        losses = {"teacher": temperature**2 * cross_entropy(logit / temperature, soft)}
        if self.projections:
            distances = map(_distance, self.projections, features, known)
            losses["features"] = torch.stack(list(distances)).mean()
        return losses


def _distance(projection: nn.Module, ours: torch.Tensor, known: torch.Tensor) -> torch.Tensor:
    """Mean square of what a linear projection of our feature map lacks of the teacher's; 1 if it knows
    nothing.

    Every channel of the teacher's is first brought to mean 0 and variance 1 over the batch: the means, which
    any network learns at once, would drown what differs from image to image.
    """
    known = known.float()
    variance, mean = torch.var_mean(known, dim=(0, 2, 3), keepdim=True)
    target = (known - mean) / (variance + 1e-5).sqrt()
    return functional.mse_loss(projection(ours.float()), target)


def _pair_loss(logit: torch.Tensor) -> torch.Tensor:
    """Mean over the pairs of the cross-entropy of "the first one is the fake". logit: (n, 1)."""
    fake, real = logit[0::2], logit[1::2]
    return functional.softplus(real - fake).mean()


def _mask_loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
    """Mean over the cells of the images whose mask is known; 0 if there are none."""
    by_image = cross_entropy(logits, batch.masks, reduction="none").mean((1, 2, 3))  # (n,)
    known = batch.known[:, 0]
    return (by_image * known).sum() / known.sum().clamp(min=1)

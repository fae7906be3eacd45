"""Losses against formulas written out."""

from __future__ import annotations

import math
from typing import Any

import pytest
from toy import toy_config

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")


def student(**changes: Any) -> Any:
    from streamer.models.classifiers import build_classifier

    torch.manual_seed(0)
    settings = {"pretrained": False, "dropout": 0.0, "mask_head": True} | changes
    return build_classifier(settings.pop("architecture", "mobilenet_v2"), **settings)


def batch(known: list[float] | None = None) -> Any:
    from streamer.training.dataset import Batch

    generator = torch.Generator().manual_seed(0)
    return Batch(
        torch.randint(0, 256, (4, 64, 64, 3), dtype=torch.uint8, generator=generator),
        torch.tensor([[1.0], [0.0], [1.0], [0.0]]),
        torch.rand((4, 1, 4, 4), generator=generator),
        torch.tensor([[value] for value in known or [1.0, 1.0, 0.0, 1.0]]),
    )


def objective(model: Any, teacher: Any = None, **changes: Any) -> Any:
    from streamer.training.loss import Objective

    return Objective(model, toy_config(**changes), teacher)


def test_label_loss_with_smoothing() -> None:
    from streamer.models.classifiers import normalised

    model = student().eval()
    given = batch()
    losses = objective(model, loss={"label_smoothing": 0.2, "mask_weight": 0})(given)
    logits = model(normalised(given.images))[0][:, 0].tolist()
    targets = [0.9, 0.1, 0.9, 0.1]
    expected = [
        -t * math.log(1 / (1 + math.exp(-x))) - (1 - t) * math.log(1 - 1 / (1 + math.exp(-x)))
        for x, t in zip(logits, targets, strict=True)
    ]
    assert losses["label"].item() == pytest.approx(sum(expected) / 4, rel=1e-4)
    assert losses["total"].item() == losses["label"].item()


def test_mask_loss_over_known_masks_alone() -> None:
    model = student().eval()
    given = batch()
    losses = objective(model, loss={"mask_weight": 0.5})(given)
    changed = given._replace(masks=given.masks.clone())
    changed.masks[2] = 0  # not known
    assert objective(model)(changed)["mask"].item() == losses["mask"].item()
    changed.masks[1] = 0
    assert objective(model)(changed)["mask"].item() != losses["mask"].item()
    total = losses["label"].item() + 0.5 * losses["mask"].item()
    assert losses["total"].item() == pytest.approx(total, rel=1e-5)
    assert objective(model)(batch([0.0] * 4))["mask"].item() == 0


def test_pair_loss_sees_differences_alone() -> None:
    from streamer.models.classifiers import normalised

    model = student(mask_head=False).eval()
    given = batch()
    losses = objective(model, loss={"pair_weight": 0.25})(given)
    fake_1, real_1, fake_2, real_2 = model(normalised(given.images))[0][:, 0].tolist()
    expected = [math.log(1 + math.exp(real - fake)) for fake, real in ((fake_1, real_1), (fake_2, real_2))]
    assert losses["pair"].item() == pytest.approx(sum(expected) / 2, rel=1e-4)
    total = losses["label"].item() + 0.25 * losses["pair"].item()
    assert losses["total"].item() == pytest.approx(total, rel=1e-5)
    with torch.no_grad():
        model.get_submodule(f"network.{model.architecture.head}").bias += 3
    assert objective(model, loss={"pair_weight": 1})(given)["pair"].item() == pytest.approx(
        losses["pair"].item(), rel=1e-4
    )


def test_no_mask_head_no_mask_loss() -> None:
    assert set(objective(student(mask_head=False))(batch())) == {"label", "total"}


def test_teacher_that_is_the_student_is_matched() -> None:
    """Distance of the logits: the entropy of the answers; of the features: 0 through what brings each channel
    to mean 0 and variance 1."""
    from streamer.models.classifiers import normalised

    model = student(mask_head=False).eval()
    settings = {"weight": 0.25, "temperature": 3.0, "feature_weight": 0.5}
    made = objective(model, model, distillation=settings)
    features = model.features(normalised(batch().images))
    with torch.no_grad():
        for projection, known in zip(made.projections, features, strict=True):
            variance, mean = torch.var_mean(known, dim=(0, 2, 3))
            scale = (variance + 1e-5).rsqrt()
            projection.weight.copy_(torch.diag(scale)[:, :, None, None])
            projection.bias.copy_(-mean * scale)
        losses = {name: loss.item() for name, loss in made(batch()).items()}
    assert losses["features"] == pytest.approx(0, abs=1e-4)
    # logits near 0: entropy of a coin, times the temperature squared
    assert losses["teacher"] == pytest.approx(9 * math.log(2), rel=1e-2)
    total = 0.75 * losses["label"] + 0.25 * losses["teacher"] + 0.5 * losses["features"]
    assert losses["total"] == pytest.approx(total, rel=1e-5)


def test_learning_from_a_teacher_of_another_architecture() -> None:
    """Gradients reach the student and the projection, the teacher stays as it is and is no part."""
    teacher = student(architecture="efficientnet_lite0").eval().requires_grad_(False)
    model = student()
    made = objective(model, teacher, distillation={"feature_weight": 1.0})
    assert not any("eacher" in name for name in made.state_dict())
    before = {key: value.clone() for key, value in teacher.state_dict().items()}
    losses = made(batch())
    losses["total"].backward()
    assert set(losses) == {"label", "teacher", "features", "mask", "total"}
    assert all(parameter.grad is not None for parameter in made.parameters())
    assert all(torch.equal(value, before[key]) for key, value in teacher.state_dict().items())
    assert not teacher.training


def test_bf16_is_close_and_comes_out_as_f32() -> None:
    model = student().eval()
    exact = objective(model)(batch())
    rough = objective(model, precision="bf16")(batch())
    for name, loss in rough.items():
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(exact[name].item(), rel=0.05)

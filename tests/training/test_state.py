"""What changes in a run: averages, schedules' ends, parameter groups, where it starts from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from toy import toy_config

from streamer.errors import TrainingError

pytestmark = pytest.mark.needs_torch
ENGINES = Path(__file__).parents[2] / "engines"
torch = pytest.importorskip("torch")


def make_state(**changes: Any) -> Any:
    from streamer.training.state import State

    return State.start(toy_config(**changes), "data", torch.device("cpu"))


def save(path: Path, **changes: Any) -> Any:
    state = make_state(**changes)
    save_again(path, state)
    return state


def save_again(path: Path, state: Any) -> None:
    from streamer.training.checkpoint import save_checkpoint

    save_checkpoint(path, state.checkpoint())


def test_average_follows_by_its_decay() -> None:
    state = make_state(optimiser={"ema_decay": 0.9})
    weight = state.objective.student.network.classifier.weight
    average = state.average.network.classifier.weight
    with torch.no_grad():
        weight.fill_(1.0)
        average.fill_(0.0)
    state.step = 0
    state.update_average()  # decay 1/10 at first
    assert average[0, 0].item() == pytest.approx(0.9)
    state.step = 1000
    state.update_average()
    assert average[0, 0].item() == pytest.approx(0.9 * 0.9 + 0.1)


def test_average_keeps_a_share_of_the_first_weights(tmp_path: Path) -> None:
    optimiser = {"ema_decay": 0, "start_share": 0.75}
    interrupted, state = make_state(optimiser=optimiser), make_state(optimiser=optimiser)
    weight, average = (net.network.classifier.weight for net in (state.objective.student, state.average))
    first = weight.detach().clone()
    with torch.no_grad():
        interrupted.objective.student.network.classifier.weight.add_(1.0)
    interrupted.update_average()
    save_again(tmp_path / "last.pt", interrupted)
    state.restore(tmp_path / "last.pt")
    assert torch.allclose(average, first + 0.25)
    with torch.no_grad():
        weight.add_(1.0)
    for _ in range(2):
        state.update_average()
        assert torch.allclose(average, first + 0.5)


def test_average_counts_batches_and_averages_statistics() -> None:
    state = make_state()
    norm = state.objective.student.network.features[0][1]
    norm.running_mean.fill_(1.0)
    norm.num_batches_tracked.fill_(5)
    state.update_average()
    mine = state.average.network.features[0][1]
    assert mine.running_mean[0].item() == pytest.approx(0.9)
    assert mine.num_batches_tracked.item() == 5


def test_decay_spares_biases_and_normalisations() -> None:
    state = make_state(optimiser={"weight_decay": 0.3})
    decayed, spared = state.optimiser.param_groups
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)
    assert {p.ndim for p in decayed["params"]} == {2, 4}
    assert {p.ndim for p in spared["params"]} == {1}
    both = len(decayed["params"]) + len(spared["params"])
    assert both == len(list(state.objective.parameters()))
    frozen = make_state(model={"frozen_stages": 5})
    assert sum(len(group["params"]) for group in frozen.optimiser.param_groups) < 10  # mask head, last layer


def test_the_schedule_ends_by_steps_or_by_the_clock() -> None:
    state = make_state(steps=8, max_minutes=2)
    state.step, state.seconds = 2, 12.0
    assert state.done == 0.25
    state.seconds = 90.0
    assert state.done == 0.75
    assert not state.ended
    state.seconds = 121.0
    assert state.done == 1
    assert state.ended
    by_steps = make_state(steps=8)
    by_steps.step, by_steps.seconds = 8, 1e9
    assert by_steps.done == 1


def test_judging() -> None:
    state = make_state(validation={"patience": 2})
    assert [state.judge(metric) for metric in (0.5, 0.6, 0.6, 0.55)] == [True, True, False, False]
    assert state.best == 0.6
    assert state.ended
    assert state.judge(0.7)
    assert not state.ended


def test_fine_tuning_starts_from_the_average(tmp_path: Path) -> None:
    other = make_state(model={"mask_head": False}, seed=9)
    with torch.no_grad():
        other.average.network.classifier.weight.fill_(0.5)
    save_again(tmp_path / "start.pt", other)
    state = make_state(model={"start": tmp_path / "start.pt"})  # with a new mask head
    student = state.objective.student
    for key, value in other.average.state_dict().items():
        assert torch.equal(student.state_dict()[key], value)
    with pytest.raises(TrainingError, match=r"t\.pt: a mobilenet_v2, but model.architecture is densenet121"):
        make_state(model={"start": tmp_path / "start.pt", "architecture": "densenet121"})


def test_several_starts_are_averaged(tmp_path: Path) -> None:
    one, other = save(tmp_path / "one.pt", seed=9), save(tmp_path / "other.pt", seed=10)
    other.average.network.features[0][1].running_var.fill_(3.0)
    save_again(tmp_path / "other.pt", other)
    both = (tmp_path / "one.pt", tmp_path / "other.pt")
    mean = make_state(model={"start": both}).objective.student.state_dict()
    assert mean["network.features.0.1.running_var"][0].item() == 2.0
    for key, value in one.average.state_dict().items():
        if value.is_floating_point():
            assert torch.allclose(mean[key], (value + other.average.state_dict()[key]) / 2)
    assert mean["network.features.0.1.num_batches_tracked"].dtype == torch.int64
    save(tmp_path / "d.pt", model={"architecture": "densenet121"})
    with pytest.raises(TrainingError, match=r"d\.pt: a densenet121, but model\.architecture is mobilenet_v2"):
        make_state(model={"start": (*both, tmp_path / "d.pt")})


def test_a_grafted_network_starts_from_the_one_it_is_grafted_on(tmp_path: Path) -> None:
    save(tmp_path / "stem.pt", seed=9)
    stem = make_state(seed=9).average.network.features
    wanted = {"architecture": "resnext_mobilenet", "start": tmp_path / "stem.pt"}
    ours = make_state(model=wanted, seed=1).objective.student.network
    again = make_state(model=wanted, seed=2).objective.student.network
    for key, value in ours.features.state_dict().items():
        assert torch.equal(value, stem.state_dict()[key])
    assert not torch.equal(ours.fc.weight, again.fc.weight)  # the new stages are random
    with pytest.raises(
        TrainingError, match=r"stem\.pt: a mobilenet_v2, but model.architecture is densenet_eff"
    ):
        make_state(model=wanted | {"architecture": "densenet_efficientnet"})


def test_teacher(tmp_path: Path) -> None:
    save(tmp_path / "t.pt", model={"architecture": "efficientnet_lite0"}, input={"size": 96})
    teaching = {"teacher": tmp_path / "t.pt", "feature_weight": 1.0}
    state = make_state(distillation=teaching)
    shapes = [projection.weight.shape for projection in state.objective.projections]
    assert shapes == [(112, 96, 1, 1), (1280, 1280, 1, 1)]
    assert state.checkpoint().projections
    with pytest.raises(TrainingError, match=r"teacher sees faces with margin 0.3, not 0.2"):
        make_state(distillation=teaching, input={"margin": 0.2})
    member = make_state(distillation={"teacher": ENGINES / "mobilenet_v2.json", "feature_weight": 1.0})
    assert [projection.weight.shape[0] for projection in member.objective.projections] == [96, 1280]


@pytest.mark.parametrize("key", ["model.start", "distillation.teacher"])
def test_restoring_needs_the_files_as_they_were(tmp_path: Path, key: str) -> None:
    section, name = key.split(".")
    changes = {section: {name: tmp_path / "other.pt"}}
    save(tmp_path / "other.pt", seed=9)
    save(tmp_path / "a.pt", **changes)
    make_state(**changes).restore(tmp_path / "a.pt")
    save(tmp_path / "other.pt", seed=10)
    with pytest.raises(TrainingError, match=r"a\.pt cannot be resumed: \S+other\.pt: no longer as it was"):
        make_state(**changes).restore(tmp_path / "a.pt")


def test_restoring_needs_the_same_configuration_and_data(tmp_path: Path) -> None:
    save(tmp_path / "a.pt")
    make_state(workers=3).restore(tmp_path / "a.pt")
    with pytest.raises(TrainingError, match=r"another configuration: batch: 8 -> 16; seed: 1 -> 2"):
        make_state(batch=16, seed=2).restore(tmp_path / "a.pt")
    other = make_state()
    other.data = "other"
    with pytest.raises(TrainingError, match="training crops are not those"):
        other.restore(tmp_path / "a.pt")


def test_the_start_follows_from_the_seed() -> None:
    one, same, other = (make_state(seed=seed).average.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert not torch.equal(one["network.classifier.weight"], other["network.classifier.weight"])

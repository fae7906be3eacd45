"""A member's weights come back out of its ONNX file."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from streamer.errors import TrainingError
from streamer.manifest import Calibration

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.needs_torch

from streamer.models.classifiers import build_classifier  # noqa: E402
from streamer.training.export import MemberTexts, export_member  # noqa: E402
from streamer.training.member_start import load_member, member_network  # noqa: E402

ENGINES = Path(__file__).parents[2] / "engines"


def build(architecture: str, seed: int, *, mask_head: bool = True) -> Any:
    torch.manual_seed(seed)
    return build_classifier(architecture, pretrained=False, dropout=0.2, mask_head=mask_head).eval()


def exported(folder: Path, architecture: str, *, heat_map: bool = True) -> Path:
    return export_member(
        build(architecture, 1),
        folder,
        MemberTexts("member", "a test", "nothing"),
        size=64,
        crops=np.random.default_rng(0).integers(0, 256, (8, 64, 64, 3), np.uint8),
        calibration=Calibration(),
        heat_map=heat_map,
    ).path


@pytest.fixture(scope="module")
def member(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Manifest of a MobileNetV2."""
    return exported(tmp_path_factory.mktemp("member"), "mobilenet_v2")


def check(architecture: str, path: Path) -> None:
    model, source = build(architecture, 2), build(architecture, 1)
    load_member(model, path)
    for name, value in source.state_dict().items():
        got = model.state_dict()[name]
        assert got.dtype == value.dtype
        assert torch.equal(got, value.half().float() if value.ndim >= 2 else value), name


def test_the_weights_are_those_stored(member: Path, tmp_path: Path) -> None:
    check("mobilenet_v2", member)
    check("densenet121", exported(tmp_path, "densenet121"))


def test_a_mask_head_may_be_new_or_not_wanted(member: Path, tmp_path: Path) -> None:
    model = build("mobilenet_v2", 2)
    before = model.mask_head[0].weight.clone()
    load_member(model, exported(tmp_path, "mobilenet_v2", heat_map=False))
    assert torch.equal(model.mask_head[0].weight, before)
    load_member(build("mobilenet_v2", 2, mask_head=False), member)


def test_another_architecture(member: Path) -> None:
    with pytest.raises(TrainingError, match=r"a MobileNetV2, but model\.architecture is DenseNet-121"):
        load_member(build("densenet121", 2), member)


def test_networks_of_others_are_refused(member: Path, tmp_path: Path) -> None:
    """The file is another network's than the manifest says."""
    shutil.copytree(member.parent, tmp_path, dirs_exist_ok=True)
    path = tmp_path / member.name
    path.write_text(path.read_text().replace("MobileNetV2", "DenseNet-121"))
    with pytest.raises(TrainingError, match="not a member that `streamer train export` wrote"):
        load_member(build("densenet121", 2), path)


def test_the_network_of_a_member(member: Path) -> None:
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    expected = build("mobilenet_v2", 2)
    load_member(expected, member)
    network = member_network(member)
    assert not network.training
    assert torch.equal(network(images)[0], expected(images)[0])
    with pytest.raises(TrainingError, match=r"range\.json: BlazeFace.* is no network that can be trained"):
        member_network(ENGINES / "blazeface_short_range.json")

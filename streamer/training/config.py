"""TrainConfig: all that a training run can be told; read from a TOML recipe, kept in every checkpoint."""

from __future__ import annotations

import difflib
import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from streamer.config import PositiveFloat, PositiveInt
from streamer.errors import TrainingError
from streamer.load_config import keys_beside
from streamer.training.augment_config import AugmentConfig
from streamer.training.blend import BlendConfig
from streamer.training.ranges import NotNegative, Section

NonNegativeInt = Annotated[int, Field(ge=0)]
Processes = Annotated[int, Field(ge=0, le=1024)]
Share = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

Architecture = Literal[
    "resnext50_32x4d",
    "densenet121",
    "mobilenet_v2",
    "efficientnet_lite0",
    "resnext_mobilenet",
    "densenet_efficientnet",
]

NOT_PART_OF_THE_RESULT = frozenset({"workers", "log_every", "checkpoint_every"})
"""Keys that may differ when a run is resumed: the weights do not depend on them."""


def _several(value: object) -> object:
    """One path, as of several; None, as older checkpoints have it, as of none."""
    if value is None:
        return ()
    return (value,) if isinstance(value, str | Path) else value


class ModelConfig(Section):
    """The network."""

    architecture: Architecture
    pretrained: bool = True
    """Start from ImageNet weights; false: from random ones."""
    start: Annotated[tuple[Path, ...], BeforeValidator(_several)] = ()
    """Start from the weights of this checkpoint, or of the member with this manifest (NAME.json), of the same
    architecture instead: fine-tuning. Of several: from the mean of their weights, for networks that went on
    from the same one (model soups; Wortsman et al., ICML 2022). A grafted architecture may also start from a
    checkpoint of the one that it is grafted on, of which it takes the first three stages."""
    dropout: Fraction = 0.2
    """Before the last layer."""
    frozen_stages: Annotated[int, Field(ge=0, le=5)] = 0
    """So many of the five stages keep the weights they start with, which also makes a step cheaper."""
    batch_statistics: Share = 0.5
    """In this first share of the schedule batch normalisations use mean and variance of the batch, afterwards
    those that they have gathered, as when serving. Every batch holds a fake for each real picture, so that by
    its statistics a network tells which ones are more fake than the rest (such leaks: He et al., MoCo, CVPR
    2020, section 3.3), and has no zero of its own for a picture alone. 0: from the start, for a network that
    is trained already; 1: to the end."""
    mask_head: bool = True
    """Predict which pixels were altered, beside the logit."""


class InputConfig(Section):
    """What the network sees of a face."""

    size: Annotated[int, Field(gt=0, le=1024, multiple_of=32)] = 224
    """Side of the input, pixels."""
    margin: Annotated[float, Field(ge=0, le=0.6)] = 0.3
    """Share of the box's longer side that is added on every side; the same as `faces.margin` when serving."""


class MixtureConfig(Section):
    """What a batch is made of.

    A batch is made of pairs: a fake, and under the same random changes a real picture, so that neither
    labels nor augmentations are out of balance (Shiohara and Yamasaki, CVPR 2022, section 4.1). With a blend
    goes the untouched face that it was made of, with a fake of a data set the frame of its original that is
    nearest in time, in most cases the same frame, or any real face if the original is not in the cache. The
    weights say how often a pair is of each kind, in proportion.
    """

    self_blended: NotNegative = 1.0
    """A real face blended with a changed copy of itself."""
    cross_blended: NotNegative = 0.0
    """A real face into which another person's is blended."""
    dataset_fake: NotNegative = 0.0
    """A fake of the data sets."""
    decoded: NotNegative = 0.0
    """A real face into which the same is blended as a decoder network paints it."""
    autoencoder: Path | None = None
    """That decodes, as `streamer train autoencoder` makes it; needed if `decoded` is above 0."""
    evenness: Share = 0.5
    """Between the generators (and data sets) of one label. 0: each in proportion to the people in it;
    1: all alike, however few. Within one, every group of people is as likely as any other."""

    @model_validator(mode="after")
    def _possible(self) -> MixtureConfig:
        if self.self_blended + self.cross_blended + self.dataset_fake + self.decoded == 0:
            raise ValueError("at least one kind of pair needs a weight above 0")
        if self.decoded and self.autoencoder is None:
            raise ValueError(
                "decoded is above 0: name an autoencoder, which streamer train autoencoder makes"
            )
        return self


class OptimiserConfig(Section):
    """AdamW (Loshchilov and Hutter, ICLR 2019) on a cosine schedule."""

    learning_rate: PositiveFloat = 6e-4
    """After warm-up."""
    final_share: Share = 0.01
    """Of it at the end of the schedule."""
    warm_up_steps: NonNegativeInt = 100
    """Steps in which the learning rate grows linearly to its peak."""
    weight_decay: NotNegative = 0.01
    """Of weight matrices and kernels; never of biases and normalisations."""
    gradient_clip: PositiveFloat = 1.0
    """Largest norm of all gradients together."""
    ema_decay: Fraction = 0.999
    """Of the moving average of the weights, which is what is validated and shipped. Lower in the first steps:
    (1 + step) / (10 + step)."""
    start_share: Share = 0.0
    """Of the weights that the run began from in what is validated and shipped, the others being the moving
    average's: to learn something new and lose little of what a trained network knew (Wortsman et al., Robust
    fine-tuning of zero-shot models, CVPR 2022)."""


class LossConfig(Section):
    """What is made small: binary cross-entropy of the logit, and what is added to it."""

    label_smoothing: Share = 0.05
    """Targets are s/2 and 1 - s/2."""
    mask_weight: NotNegative = 0.5
    """Of the mask head's cross-entropy per cell, over the images whose altered pixels are known."""
    pair_weight: NotNegative = 0.0
    """Of the cross-entropy of the difference between the two logits of a pair: which of the two is the fake?
    What sets one person's pictures apart from another's cancels out in it, so that weak traces teach more
    (conditional logistic regression; Breslow and Day, Statistical Methods in Cancer Research, 1980)."""


class DistillationConfig(Section):
    """A trained network teaches this one: for networks that start from random weights."""

    teacher: Path | None = None
    """Its checkpoint, or the manifest of a member (NAME.json); None: no distillation."""
    weight: Share = 0.5
    """Of the teacher's answers; the labels keep 1 - weight."""
    temperature: PositiveFloat = 2.0
    """Both logits are divided by it (Hinton et al., 2015); the loss is multiplied by its square."""
    feature_weight: NotNegative = 0.0
    """Of the distance between the feature maps at strides 16 and 32, the student's through a linear
    projection that is thrown away afterwards (Romero et al., FitNets, ICLR 2015): mean square over the
    teacher's channels, brought to mean 0 and variance 1."""


class ValidationConfig(Section):
    """How the best checkpoint is found: by AUC over videos, every picture being a video of its own.

    The metric is the mean of two: that of real against fake videos, if there are both, and that of untouched
    faces against their self-blends.
    """

    every: PositiveInt = 500
    """Steps."""
    patience: PositiveInt = 10
    """Validations without a better one before training stops."""
    crops: NonNegativeInt = 2000
    """Most that are looked at as serving would see them, spread evenly over the videos; 0: only blends count,
    as for training on real faces alone with validation fakes of another kind."""
    blends: NonNegativeInt = 500
    """So many real crops at most are also measured against a self-blend of themselves, both under the default
    augmentations, whatever training uses, with a fixed seed."""


class TrainConfig(Section):
    """One training run. The same configuration, data and number of processes give the same weights on a CPU,
    interrupted or not, except under `max_minutes`."""

    model: ModelConfig
    input: InputConfig = InputConfig()
    mixture: MixtureConfig = MixtureConfig()
    augment: AugmentConfig = AugmentConfig()
    blend: BlendConfig = BlendConfig()
    optimiser: OptimiserConfig = OptimiserConfig()
    loss: LossConfig = LossConfig()
    distillation: DistillationConfig = DistillationConfig()
    validation: ValidationConfig = ValidationConfig()

    steps: Annotated[int, Field(gt=0, le=10**9)] = 20_000
    """Batches; the end of the schedule."""
    max_minutes: PositiveFloat | None = None
    """End of the schedule on the clock, if that comes before `steps`: its position is the larger of
    step / steps and minutes / max_minutes. The learning rate then depends on the machine's speed, so a second
    run gives other weights. The time before an interruption counts."""
    batch: Annotated[int, Field(gt=0, le=65_536, multiple_of=2)] = 32
    """Images of a step, over all processes."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 1

    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: CUDA if there is any."""
    precision: Literal["auto", "f32", "bf16", "fp16"] = "auto"
    """Of convolutions and matrix products; weights stay f32. fp16 needs CUDA. auto: bf16 where the device has
    instructions for it, else f32; checkpoints say which."""
    compile: bool = False
    """With torch.compile: needs a C++ compiler and minutes; on a CPU it gained nothing."""
    threads: Processes = 1
    """CPU threads of a training process; 0: torch's choice. Sums in another order round differently."""
    workers: Processes = 1
    """Processes of each training process that prepare batches; 0: prepared in between."""
    log_every: PositiveInt = 20
    """Steps between two reports of the loss."""
    checkpoint_every: PositiveInt = 200
    """Steps between two checkpoints to resume from; each validation writes one too."""

    @property
    def files(self) -> list[Path]:
        """What the run needs beside the cache: weights to start from, a teacher's, an autoencoder's."""
        others = (self.distillation.teacher, self.mixture.autoencoder if self.mixture.decoded else None)
        return [*self.model.start, *(path for path in others if path)]


def load_recipe(path: Path, overrides: dict[str, Any] | None = None) -> TrainConfig:
    """Read a TOML recipe. overrides: nested like it, win over it.

    Raises TrainingError that names the key, its value and, for an unknown key, the nearest valid one.
    """
    try:
        values = tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise TrainingError(f"{path}: cannot read the recipe: {error}") from error
    return parse_config(_merged(values, overrides or {}), str(path))


def parse_config(values: dict[str, Any], where: str) -> TrainConfig:
    """Check values. where: in whose name errors speak. Raises TrainingError."""
    try:
        return TrainConfig.model_validate(values)
    except ValidationError as error:
        raise TrainingError(
            "\n".join(
                f"{where}: {_explain(e['loc'], e['type'], e['msg'], e['input'])}" for e in error.errors()
            )
        ) from error


def differences(before: TrainConfig, now: TrainConfig) -> list[str]:
    """Keys on which the weights depend and which differ, as `section.key: 1 -> 2`."""
    return _differences(before.model_dump(mode="json"), now.model_dump(mode="json"), "")


def _differences(before: dict[str, Any], now: dict[str, Any], prefix: str) -> list[str]:
    found: list[str] = []
    for key, value in before.items():
        if isinstance(value, dict):
            found += _differences(value, now[key], f"{prefix}{key}.")
        elif value != now[key] and f"{prefix}{key}" not in NOT_PART_OF_THE_RESULT:
            found.append(f"{prefix}{key}: {value!r} -> {now[key]!r}")
    return found


def _merged(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in over.items():
        nested = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = _merged(merged[key], value) if nested else value
    return merged


def _explain(location: tuple[int | str, ...], kind: str, message: str, value: object) -> str:
    name = ".".join(map(str, location))
    if kind != "extra_forbidden":
        return f"{name or 'recipe'}: {message}, got {value!r}" if name else message
    near = difflib.get_close_matches(str(location[-1]), keys_beside(TrainConfig, location), n=1)
    return f"unknown key {name}" + (f"; did you mean {near[0]}?" if near else "")

"""Making networks: the untrained full-size members. Called by build_engines.py and by first runs."""

from __future__ import annotations

from pathlib import Path

from streamer.config import ClassifyConfig
from streamer.errors import ModelError, UntrainedError
from streamer.manifest import InputSpec, Manifest, sha256_of
from streamer.whole_file import write_whole

IMAGENET = InputSpec(
    layout="NCHW", height=224, width=224, mean=(123.675, 116.28, 103.53), std=(58.395, 57.12, 57.375)
)
"""Mean and standard deviation of ImageNet's training images, as torchvision's weights expect them."""

UNTRAINED = {"resnext50_32x4d": "ResNeXt-50 32x4d", "densenet121": "DenseNet-121"}
"""Name -> architecture."""

UNTRAINED_SEED = 20_200_331
"""Last day of the DeepFake Detection Challenge."""


def missing_untrained(config: ClassifyConfig) -> list[str]:
    """Untrained members that the configuration names and that are not made yet."""
    known = {f"untrained/{name}" for name in UNTRAINED}
    return [
        member
        for member in (*config.members, *config.shadow)
        if member in known and not (config.engines / f"{member}.json").is_file()
    ]


def ensure_untrained(config: ClassifyConfig) -> None:
    """Make those that are missing: a few seconds. They are random weights and are never shipped.

    Raises ModelError if they cannot be written.
    """
    for member in missing_untrained(config):
        make_untrained(config.engines / "untrained", member.removeprefix("untrained/"))


def prepare_members(config: ClassifyConfig) -> None:
    """Before the ensemble is loaded: make missing untrained members, if they are allowed.

    Raises UntrainedError if they are not, so that nothing is made in vain; ModelError if they cannot be made.
    """
    missing = missing_untrained(config)
    if missing and not config.allow_untrained:
        raise UntrainedError(
            f"{', '.join(missing)}: random weights, never trained, so their scores would mean nothing; name "
            f"trained members in classify.members, or pass --allow-untrained to try the plumbing"
        )
    ensure_untrained(config)


def make_untrained(folder: Path, name: str, *, again: bool = False) -> bool:
    """Write `folder/NAME.onnx` and `.json` with random weights, unless they are there.

    Whole files appear at once, the manifest last, so that processes may do this at the same time: all write
    the same bytes. Returns whether it wrote. Raises ModelError.
    """
    manifest_path = folder / f"{name}.json"
    if manifest_path.is_file() and not again:
        return False
    from streamer.models import untrained  # imports onnx

    if name == "resnext50_32x4d":
        model = untrained.resnext50_32x4d(untrained.random_weights(UNTRAINED_SEED, fan="out"))
    else:
        model = untrained.densenet121(untrained.random_weights(UNTRAINED_SEED, fan="in"))
    content = model.SerializeToString(deterministic=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        network = folder / f"{name}.onnx"
        write_whole(network, content)
        manifest = Manifest(
            name=name,
            kind="classifier",
            architecture=UNTRAINED[name],
            file=network.name,
            sha256=sha256_of(network),
            input=IMAGENET,
            outputs=("logit",),
            trained=False,
            licence="Apache-2.0",
            origin=f"python build_engines.py untrained: random He-normal weights, seed {UNTRAINED_SEED}",
            measured="nothing",
        )
        write_whole(manifest_path, (manifest.model_dump_json(indent=2) + "\n").encode())
    except OSError as error:
        raise ModelError(f"cannot write untrained members to {folder}: {error}") from error
    return True

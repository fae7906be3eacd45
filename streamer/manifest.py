"""The manifest beside every network in `engines/`: what it is, where it comes from, how to feed it.

`engines/NAME.json` describes `engines/NAME.onnx`. Nothing is loaded whose SHA-256 differs from its manifest.
"""

from __future__ import annotations

import difflib
import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streamer.errors import ManifestError


class InputSpec(BaseModel):
    """How an RGB uint8 image becomes the network's input: x = (image - mean) / std, channel by channel."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    layout: Literal["NHWC", "NCHW"]
    height: Annotated[int, Field(gt=0)]
    width: Annotated[int, Field(gt=0)]
    mean: tuple[float, float, float]
    """In units of [0, 255]; ImageNet: (123.675, 116.28, 103.53)."""
    std: tuple[float, float, float]
    """In units of [0, 255]; ImageNet: (58.395, 57.12, 57.375)."""


class Calibration(BaseModel):
    """A member's logit to a probability: sigmoid(logit / temperature + bias), fitted on validation data."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: Annotated[float, Field(gt=0)] = 1.0
    bias: float = 0.0


class Manifest(BaseModel):
    """What a network is, where it comes from, how to feed it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Unique among the networks in use, e.g. `resnext50_32x4d`."""
    kind: Literal["detector", "classifier", "landmarks"]
    architecture: str
    """e.g. `BlazeFace short range`, `ResNeXt-50 32x4d`."""
    file: str
    """File name of the network, beside the manifest."""
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    input: InputSpec
    outputs: tuple[str, ...]
    """Names of the outputs. Classifier: `logit`, (n, 1), of `fake`; it may have a second one, `mask`,
    (n, 1, h, w), share of each cell that was altered, in [0, 1]. Detector: regressors, classificators.
    Landmarks: landmarks (n, 468, 3), pixels of the input; presence, (n, 1) logit that there is a face."""
    trained: bool
    """False for a network with random weights: it is refused unless explicitly allowed."""
    calibration: Calibration = Calibration()
    licence: str
    origin: str
    """Where the weights come from: package and version, or the command and seed that trained them."""
    measured: str
    """What it was measured on and what came out, in words, or `nothing`."""

    def path(self, folder: Path) -> Path:
        """Path of the network's file in the folder of its manifest."""
        return folder / self.file


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(path: Path) -> Manifest:
    """Read `NAME.json` and verify the network's file beside it against its SHA-256.

    Raises ManifestError that names the file and what to do.
    """
    try:
        text = path.read_text()
    except OSError as error:
        hint = _what_is_there(path) if isinstance(error, FileNotFoundError) else ""
        raise ManifestError(f"{path}: cannot read the manifest: {error.strerror}{hint}") from error
    try:
        manifest = Manifest.model_validate_json(text)
    except ValidationError as error:
        raise ManifestError(f"{path}: not a valid manifest: {what_is_wrong(error)}") from error
    network = manifest.path(path.parent)
    if network.parent != path.parent:
        raise ManifestError(f"{path}: `file` must be a plain file name, got {manifest.file!r}")
    if not network.is_file():
        raise ManifestError(
            f"{network}: missing, though {path.name} describes it; restore it or build it again"
        )
    if (actual := sha256_of(network)) != manifest.sha256:
        raise ManifestError(
            f"{network}: SHA-256 is {actual}, but {path.name} says {manifest.sha256}; "
            f"the file was changed or damaged: restore it or build it again"
        )
    return manifest


def what_is_wrong(error: ValidationError) -> str:
    """The fields of a manifest that are not as they should be, in one line."""
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()[:5])


def _what_is_there(path: Path) -> str:
    """For an error: what there is in place of a manifest that is missing."""
    folder = path.parent
    if not folder.is_dir():
        return f"; nor is {folder.absolute()} a folder: set classify.engines to the folder of the networks"
    near = difflib.get_close_matches(path.stem, sorted(known.stem for known in folder.glob("*.json")), n=1)
    return f"; did you mean {near[0]}?" if near else f"; {folder.absolute()} has no network of that name"

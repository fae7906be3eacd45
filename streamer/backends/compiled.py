"""Quantised networks made by build_engines.py: `engines/compiled/openvino-int8/NAME.xml`, `.bin`, `.json`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streamer.errors import BackendError, ManifestError
from streamer.manifest import Manifest, sha256_of

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

INT8_FOLDER = Path("compiled") / "openvino-int8"


class CompiledManifest(BaseModel):
    """What a compiled network was made from, how, and how far it is from its source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Name of the member, as in its own manifest."""
    target: Literal["openvino"]
    precision: Literal["int8"]
    files: dict[str, Sha256]
    """File name, beside this manifest -> SHA-256; the first is the one to load."""
    source_sha256: Sha256
    """Of the network that was quantised."""
    calibration: str
    """Which images it was calibrated with, in words."""
    calibration_images: int
    check: str
    """Which images it was checked with, in words."""
    check_images: int
    max_difference: float
    """Largest difference of the probability to the f32 network, over the checked images."""
    max_ensemble_difference: float
    """The same for the mean over the members built together."""
    allowed_difference: float
    """Bound that the build was held to."""
    made_with: str
    """Libraries and versions."""


def int8_folder(manifest_path: Path) -> Path:
    """Folder for the int8 variant of a member: of `engines/`, also for members in a folder below it."""
    for folder in (manifest_path.parent, manifest_path.parent.parent):
        if (folder / INT8_FOLDER).is_dir():
            return folder / INT8_FOLDER
    return manifest_path.parent / INT8_FOLDER


def find_int8(manifest_path: Path, manifest: Manifest) -> Path:
    """The quantised variant of a network, verified. Raises BackendError with the command that makes it."""
    command = f"python build_engines.py --target openvino --precision int8 {manifest.name}"
    path = int8_folder(manifest_path) / f"{manifest.name}.json"
    if not path.is_file():
        raise BackendError(f"{manifest.name}: not quantised ({path} is missing); run: {command}")
    try:
        compiled = CompiledManifest.model_validate_json(path.read_text())
    except (OSError, ValidationError) as error:
        raise BackendError(f"{path}: not a valid manifest; run: {command}\n{error}") from error
    if compiled.source_sha256 != manifest.sha256:
        raise BackendError(f"{manifest.name}: its int8 variant is of another version of it; run: {command}")
    for name, expected in compiled.files.items():
        file = path.parent / name
        if file.parent != path.parent or not file.is_file() or sha256_of(file) != expected:
            raise ManifestError(
                f"{file}: missing or changed, though {path.name} describes it; run: {command}"
            )
    return path.parent / next(iter(compiled.files))

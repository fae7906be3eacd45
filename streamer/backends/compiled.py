"""Networks made for a machine by build_engines.py: `engines/compiled/VARIANT/NAME.*`, with a manifest
each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streamer.errors import BackendError, ManifestError
from streamer.manifest import Manifest, sha256_of, what_is_wrong

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

INT8_FOLDER = Path("compiled") / "openvino-int8"


def tensorrt_folder(precision: str, gpu: str) -> Path:
    """Where the engines of a kind of GPU lie, under `engines/`. gpu: its name."""
    return Path("compiled") / f"tensorrt-{precision}" / re.sub(r"[^a-z0-9]+", "-", gpu.lower()).strip("-")


class CompiledManifest(BaseModel):
    """What a compiled network was made from, how, for what, and how far it is from its source."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    """Name of the network, as in its own manifest."""
    target: Literal["openvino", "tensorrt"]
    precision: Literal["f32", "fp16", "bf16", "int8", "fp8"]
    files: Annotated[dict[str, Sha256], Field(min_length=1)]
    """File name, beside this manifest -> SHA-256; the first is the one to load."""
    source_sha256: Sha256
    """Of the network that it was made from."""
    made_for: dict[str, str] = {}
    """What must be the same where it is loaded: the GPU, versions."""
    max_batch: int | None = None
    """Most images that it takes at once; None: any number."""
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


def compiled_folder(manifest_path: Path, variant: Path) -> Path:
    """Folder for a variant of a network: of `engines/`, also for networks in a folder below it."""
    for folder in (manifest_path.parent, manifest_path.parent.parent):
        if (folder / variant).is_dir():
            return folder / variant
    return manifest_path.parent / variant


def find_int8(manifest_path: Path, manifest: Manifest) -> Path:
    """The quantised variant of a network, verified. Raises BackendError with the command that makes it."""
    crops = "--calibration CROPS " if manifest.trained else ""
    command = f"python build_engines.py --target openvino --precision int8 {crops}{manifest.name}"
    path, compiled = find_compiled(manifest_path, manifest, INT8_FOLDER, command)
    return path.parent / next(iter(compiled.files))


def find_compiled(
    manifest_path: Path,
    manifest: Manifest,
    variant: Path,
    command: str,
    made_for: Mapping[str, str] | None = None,
) -> tuple[Path, CompiledManifest]:
    """Manifest of a variant of a network, verified, and its path.

    variant: folder under `engines/`. command: what builds it, for errors. made_for: this machine's, which
    must be that of the build. Raises BackendError with the command that builds it (anew), ManifestError.
    """
    path = compiled_folder(manifest_path, variant) / f"{manifest.name}.json"
    if not path.is_file():
        raise BackendError(f"{manifest.name}: not built ({path} is missing); run: {command}")
    try:
        compiled = CompiledManifest.model_validate_json(path.read_text())
    except OSError as error:
        raise BackendError(f"{path}: cannot read the manifest: {error.strerror}") from error
    except ValidationError as error:
        raise BackendError(f"{path}: not a valid manifest: {what_is_wrong(error)}; run: {command}") from error
    if compiled.source_sha256 != manifest.sha256:
        raise BackendError(f"{manifest.name}: built from another version of it ({path}); run: {command}")
    if made_for is not None and (other := _differences(compiled.made_for, made_for)):
        raise BackendError(f"{manifest.name}: built for another machine ({other}); run: {command}")
    for name, expected in compiled.files.items():
        file = path.parent / name
        if file.parent != path.parent or not file.is_file() or sha256_of(file) != expected:
            raise ManifestError(
                f"{file}: missing or changed, though {path.name} describes it; run: {command}"
            )
    return path, compiled


def _differences(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    keys = sorted(before.keys() | now.keys())
    return ", ".join(
        f"{key} {before.get(key, 'unknown')}, here {now.get(key, 'unknown')}"
        for key in keys
        if before.get(key) != now.get(key)
    )

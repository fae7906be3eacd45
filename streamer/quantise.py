"""int8 variants of classifiers: calibrated by NNCF, checked against their f32 source, kept only if close.

Post-training quantisation after Jacob et al. (2018) as NNCF implements it: weights symmetric per channel,
activations with ranges from calibration images, biases corrected. NNCF is the extra `quantize`; for OpenVINO
models it needs no torch.
"""

from __future__ import annotations

import importlib.metadata
import logging
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from streamer.backends.compiled import INT8_FOLDER, CompiledManifest
from streamer.backends.images import normalise
from streamer.backends.load import load_network
from streamer.backends.openvino_backend import OpenVinoNetwork, shared_core
from streamer.classify import probability
from streamer.errors import BackendError, ModelError, missing_extra, one_line
from streamer.manifest import Manifest, read_manifest, sha256_of
from streamer.types import Float32Array, UInt8Array

CALIBRATION_IMAGES = 300
"""Most that calibration takes; NNCF's own default."""
CHECK_IMAGES = 100
"""Most that the check takes."""
MIN_IMAGES = 32
RANDOM_CALIBRATION, RANDOM_CHECK = 48, 16
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
SEED = 1

Report = Callable[[str], None]
"""Called with a line of text when a step begins."""


@dataclass(frozen=True, slots=True)
class CropSets:
    """Crops for calibration and, apart from them, for the check; each (n, size, size, 3) uint8 RGB."""

    calibration: UInt8Array
    check: UInt8Array
    origin: str
    """In words."""


def read_images(folder: Path, size: int) -> CropSets:
    """Crops from a folder and those below it, resized to (size, size); a quarter is kept for the check.

    Which go where depends on the sorted names alone. Raises ModelError.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if len(paths) < MIN_IMAGES:
        raise ModelError(
            f"{folder}: {len(paths)} images ({', '.join(SUFFIXES)}), at least {MIN_IMAGES} needed"
        )
    np.random.default_rng(SEED).shuffle(paths)
    for_check = min(CHECK_IMAGES, len(paths) // 4)
    paths = paths[: for_check + CALIBRATION_IMAGES]
    images = np.stack([_read_image(path, size) for path in paths])
    return CropSets(images[for_check:], images[:for_check], f"images of {folder.name}")


def random_images(size: int) -> CropSets:
    """Random blobs with noise: something to calibrate on where the weights are random too."""
    generator = np.random.default_rng(SEED)
    n = RANDOM_CALIBRATION + RANDOM_CHECK
    images = np.empty((n, size, size, 3), np.uint8)
    for image in images:
        cells = int(generator.integers(2, 24))
        blobs = generator.uniform(0, 255, (cells, cells, 3)).astype(np.float32)
        smooth = cv2.resize(blobs, (size, size), interpolation=cv2.INTER_CUBIC)
        noise = generator.normal(0, generator.uniform(0, 30), smooth.shape)
        image[:] = np.clip(smooth + noise, 0, 255).astype(np.uint8)
    return CropSets(images[RANDOM_CHECK:], images[:RANDOM_CHECK], f"random images, seed {SEED}")


def _read_image(path: Path, size: int) -> UInt8Array:
    image = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if image is None:
        raise ModelError(f"{path}: cannot be read as an image")
    rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return np.asarray(cv2.resize(rgb, (size, size), interpolation=cv2.INTER_AREA), np.uint8)


@dataclass(frozen=True, slots=True)
class Member:
    """A network to build."""

    path: Path
    """Of its manifest."""
    manifest: Manifest


def quantise(
    members: Sequence[Member],
    engines: Path,
    *,
    calibration: Path | None,
    max_difference: float,
    report: Report = lambda _: None,
) -> list[CompiledManifest]:
    """Make, check and install the int8 variants of `members` under `engines/compiled/openvino-int8`.

    calibration: folder of crops like those the members will see; None is allowed for untrained members only,
    which get random images. max_difference: bound on the difference of every member's probability to its f32
    source over the checked images. All are installed, or, on any error, none. Raises ModelError.
    """
    for member in members:
        if calibration is None and member.manifest.trained:
            raise ModelError(f"{member.manifest.name}: trained, so it needs --calibration with real crops")
    core = shared_core("int8")  # first: it settles the instruction set before NNCF imports openvino
    nncf = _import_nncf()
    target = engines / INT8_FOLDER
    target.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target, prefix=".building-") as temporary:
        work = Path(temporary)
        made: list[CompiledManifest] = []
        exact: list[Float32Array] = []
        approximate: list[Float32Array] = []
        for member in members:
            name, size = member.manifest.name, member.manifest.input.height
            images = read_images(calibration, size) if calibration else random_images(size)
            report(f"{name}: calibrating with {len(images.calibration)} {images.origin}")
            _quantise_one(core, nncf, member, images.calibration, work)
            report(f"{name}: comparing with f32 over {len(images.check)} images")
            exact.append(_run(load_network(member.path, backend="openvino", precision="f32"), images.check))
            network = OpenVinoNetwork(work / f"{name}.xml", member.manifest, precision="int8")
            approximate.append(_run(network, images.check))
            made.append(_describe(member, images, work, exact[-1], approximate[-1], max_difference))
        ensemble = difference(np.mean(exact, axis=0), np.mean(approximate, axis=0))
        made = [manifest.model_copy(update={"max_ensemble_difference": ensemble}) for manifest in made]
        refuse_if_far(made)
        for manifest in made:
            install(manifest, work, target)
    return made


def check_precision(member: Member, precision: str, *, calibration: Path | None) -> float:
    """Largest difference of the probability between OpenVINO in `precision` and the reference.

    Reference of f32: ONNX Runtime; of bf16: OpenVINO f32. Nothing is written: OpenVINO compiles both from the
    ONNX file when it loads it. Raises BackendError.
    """
    size = member.manifest.input.height
    images = (read_images(calibration, size) if calibration else random_images(size)).check
    reference = "onnxruntime" if precision == "f32" else "openvino"
    got = _run(load_network(member.path, backend="openvino", precision=precision), images)
    return difference(got, _run(load_network(member.path, backend=reference, precision="f32"), images))


def find_members(engines: Path, names: Sequence[str], kinds: Sequence[str] = ("classifier",)) -> list[Member]:
    """Networks of these kinds by name, or by path under `engines` without `.json`; all of them if no name is
    given.

    Raises ModelError that lists what there is.
    """
    found = find_networks(engines, kinds)
    if not names:
        return found
    chosen: list[Member] = []
    for name in names:
        hits = [
            member
            for member in found
            if name in (member.manifest.name, str(member.path.relative_to(engines).with_suffix("")))
        ]
        if len(hits) != 1:
            known = ", ".join(str(m.path.relative_to(engines).with_suffix("")) for m in found) or "none"
            problem = f"{'more than one' if hits else 'no'} {' or '.join(kinds)}"
            raise ModelError(f"{problem} called {name!r} under {engines}; there are: {known}")
        chosen.append(hits[0])
    return chosen


def find_networks(engines: Path, kinds: Sequence[str]) -> list[Member]:
    """All networks of these kinds, sorted by path."""
    compiled = engines / "compiled"
    paths = [path for path in sorted(engines.rglob("*.json")) if compiled not in path.parents]
    return [Member(path, manifest) for path in paths if (manifest := read_manifest(path)).kind in kinds]


def _import_nncf() -> Any:
    try:
        import nncf
    except ImportError as error:
        raise BackendError(f"int8 needs NNCF: {error}; {missing_extra('quantize')}") from error
    nncf.set_log_level(logging.ERROR)
    return nncf


def _quantise_one(core: Any, nncf: Any, member: Member, images: UInt8Array, folder: Path) -> None:
    import openvino

    manifest = member.manifest
    spec = manifest.input
    channels_first = spec.layout == "NCHW"
    shape = [1, 3, spec.height, spec.width] if channels_first else [1, spec.height, spec.width, 3]
    dataset = nncf.Dataset(range(len(images)), lambda i: normalise(images[i : i + 1], spec))
    mixed = nncf.QuantizationPreset.MIXED
    try:
        model = core.read_model(manifest.path(member.path.parent))
        model.reshape(shape)
        quantised = nncf.quantize(model, dataset, preset=mixed, subset_size=len(images))
    except Exception as error:  # their exceptions share no base class
        raise BackendError(f"{manifest.name}: cannot be quantised: {one_line(error)}") from error
    file = folder / f"{manifest.name}.xml"
    try:
        openvino.save_model(quantised, file, compress_to_fp16=False)
    except RuntimeError as error:
        raise ModelError(f"{file}: cannot be written, is there room?: {one_line(error)}") from error


def _run(network: Any, images: UInt8Array) -> Float32Array:
    """(n,) probabilities; closes the network."""
    try:
        logits, *_ = network.run(images)
    finally:
        network.close()
    if not np.isfinite(logits).all():
        raise ModelError(f"{network.manifest.name}: NaN or infinity in {network.device}")
    return probability(logits[:, 0], network.manifest.calibration)


def difference(a: Float32Array, b: Float32Array) -> float:
    """The largest."""
    return float(np.abs(a - b).max())


def _describe(
    member: Member, images: CropSets, work: Path, exact: Float32Array, got: Float32Array, allowed: float
) -> CompiledManifest:
    name = member.manifest.name
    files = [work / f"{name}.xml", work / f"{name}.bin"]
    versions = (f"{library} {importlib.metadata.version(library)}" for library in ("nncf", "openvino"))
    return CompiledManifest(
        name=name,
        target="openvino",
        precision="int8",
        files={file.name: sha256_of(file) for file in files},
        source_sha256=member.manifest.sha256,
        calibration=images.origin,
        calibration_images=len(images.calibration),
        check=f"{images.origin}, others than for calibration",
        check_images=len(images.check),
        max_difference=difference(exact, got),
        max_ensemble_difference=0.0,
        allowed_difference=allowed,
        made_with=", ".join(versions),
    )


def refuse_if_far(made: Sequence[CompiledManifest]) -> None:
    """Raise ModelError if a network is further from its source than allowed."""
    far = [m for m in made if not m.max_difference <= m.allowed_difference]
    if far:
        raise ModelError(
            f"not installed: {made[0].precision} differs too much from f32: "
            + ", ".join(f"{m.name} by {m.max_difference:.4f}" for m in far)
            + f" (allowed {far[0].allowed_difference:g}); use more crops like those to be scored for "
            "--calibration, or f32"
        )


def install(manifest: CompiledManifest, work: Path, target: Path) -> None:
    """Move a variant into place, its manifest last: no manifest may describe files that are not there."""
    described = work / f"{manifest.name}.json"
    described.write_text(manifest.model_dump_json(indent=2) + "\n")
    (target / described.name).unlink(missing_ok=True)
    for name in (*manifest.files, described.name):
        (work / name).replace(target / name)

"""A trained network -> `NAME.onnx` and its manifest, as the service loads them.

Weights are stored as float16 by default, which halves the file: they are rounded in torch first, and what
the rounding changes is measured on face crops. What is written must then agree with the rounded network in
torch, in ONNX Runtime and in OpenVINO, or nothing is installed.
"""

from __future__ import annotations

import copy
import io
import tempfile
import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from torch import nn

from streamer.backends.images import normalise
from streamer.backends.load import load_network
from streamer.classify import probability
from streamer.engines import IMAGENET, write_whole
from streamer.errors import ModelError, TrainingError
from streamer.manifest import Calibration, Manifest, read_manifest, sha256_of
from streamer.models.classifiers import ARCHITECTURES
from streamer.training.checkpoint import load_checkpoint, load_model
from streamer.training.onnx_graph import fold_constants, store_as_f16
from streamer.types import Float32Array, UInt8Array

Storage = Literal["f16", "f32"]

OPSET = 17
"""As of the other networks in `engines/`; every backend knows it."""

MAX_DIFFERENCE = 1e-4
"""Of a logit between torch and the inference libraries."""

MIN_CROPS = 8
"""Below it the comparison says little."""

LICENCE = "Apache-2.0"

LOGIT, MASK = "logit", "mask"


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written, and how close it is to the network in torch."""

    path: Path
    """Of the manifest."""
    manifest: Manifest
    file_bytes: int
    """Of the network's file."""
    crops: int
    """That the comparisons were made on."""
    largest_difference: float
    """Of a logit, between the inference libraries and torch with the same (rounded) weights."""
    largest_change: float
    """Of a probability, from rounding the weights; 0 if they were not rounded."""
    mean_change: float

    def in_words(self) -> str:
        """For a manifest."""
        rounding = (
            f"weights rounded to float16: probability changes by at most {self.largest_change:.1e}, "
            f"{self.mean_change:.1e} on average; "
            if self.largest_change
            else ""
        )
        return (
            f"{rounding}ONNX Runtime and OpenVINO give torch's logit within {self.largest_difference:.1e} "
            f"(on {self.crops} face crops)"
        )


def export_checkpoint(
    checkpoint: Path,
    folder: Path,
    *,
    name: str,
    crops: UInt8Array,
    origin: str,
    measured: str,
    calibration: Calibration,
    licence: str = LICENCE,
    storage: Storage = "f16",
    heat_map: bool = False,
) -> Exported:
    """Export the averaged weights of a checkpoint; see `export_member`."""
    config = load_checkpoint(checkpoint).config
    return export_member(
        load_model(checkpoint),
        folder,
        name=name,
        architecture=ARCHITECTURES[config.model.architecture].title,
        size=config.input.size,
        crops=crops,
        origin=origin,
        measured=measured,
        calibration=calibration,
        licence=licence,
        storage=storage,
        heat_map=heat_map,
    )


def export_member(
    model: nn.Module,
    folder: Path,
    *,
    name: str,
    architecture: str,
    size: int,
    crops: UInt8Array,
    origin: str,
    measured: str,
    calibration: Calibration,
    licence: str = LICENCE,
    storage: Storage = "f16",
    heat_map: bool = False,
) -> Exported:
    """Write `folder/NAME.onnx` and `NAME.json`, checked; an earlier member of that name is replaced.

    model: on the CPU, (n, 3, size, size) float32 normalised as ImageNet -> (logit (n, 1), mask logits or
    None); left as it is. crops: (n, size, size, 3) uint8 RGB faces to check on. origin, measured: see
    `Manifest`; what the checks found is added to `measured`. heat_map: a second output `mask`, (n, 1, size /
    16, size / 16), share altered of each cell in [0, 1]; serving does not ask for it. Raises ModelError if
    the outputs differ, TrainingError for unusable crops.
    """
    if crops.shape[1:] != (size, size, 3) or crops.dtype != np.uint8 or len(crops) < MIN_CROPS:
        raise TrainingError(
            f"{name}: at least {MIN_CROPS} crops ({size}, {size}, 3) uint8 needed to check the export, "
            f"got {crops.shape} {crops.dtype}"
        )
    # 1. the network as it will be stored
    model = copy.deepcopy(model).eval()
    exact = _in_torch(model, crops)
    if storage == "f16":
        _round_weights(model, name)
    rounded = _in_torch(model, crops)
    # 2. its graph
    graph = _to_onnx(model, size, heat_map)
    if storage == "f16":
        store_as_f16(graph)
    onnx.checker.check_model(graph)
    # 3. compared in a folder of its own
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".exporting-") as temporary:
        file = Path(temporary) / f"{name}.onnx"
        file.write_bytes(graph.SerializeToString(deterministic=True))
        manifest = Manifest(
            name=name,
            kind="classifier",
            architecture=architecture,
            file=file.name,
            sha256=sha256_of(file),
            input=IMAGENET.model_copy(update={"height": size, "width": size}),
            outputs=(LOGIT,),
            trained=True,
            calibration=calibration,
            licence=licence,
            origin=origin,
            measured=measured,
        )
        path = write_manifest(file.with_suffix(".json"), manifest)
        changes = np.abs(probability(rounded, calibration) - probability(exact, calibration))
        exported = Exported(
            path=folder / path.name,
            manifest=manifest,
            file_bytes=file.stat().st_size,
            crops=len(crops),
            largest_difference=_compare(path, crops, rounded),
            largest_change=float(changes.max()),
            mean_change=float(changes.mean()),
        )
        # 4. installed, the manifest last: none may describe a file that is not there
        manifest = manifest.model_copy(update={"measured": f"{measured}; {exported.in_words()}"})
        exported.path.unlink(missing_ok=True)
        file.replace(folder / file.name)
        write_manifest(exported.path, manifest)
    return replace(exported, manifest=manifest)


def write_manifest(path: Path, manifest: Manifest) -> Path:
    """Write a manifest whole or not at all; returns its path."""
    write_whole(path, (manifest.model_dump_json(indent=2) + "\n").encode())
    return path


def update_manifest(
    path: Path, *, measured: str | None = None, calibration: Calibration | None = None
) -> Manifest:
    """Say anew what a member was measured on, or calibrate it anew; the network's file stays.

    Raises ManifestError.
    """
    manifest = read_manifest(path)
    changes: dict[str, Any] = {"measured": measured, "calibration": calibration}
    manifest = manifest.model_copy(update={k: v for k, v in changes.items() if v is not None})
    write_manifest(path, manifest)
    return manifest


class _Outputs(nn.Module):
    """The outputs that are exported."""

    def __init__(self, model: nn.Module, heat_map: bool) -> None:
        super().__init__()
        self.model, self.heat_map = model, heat_map

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(n, 3, s, s) -> logit (n, 1) and, if wanted, mask (n, 1, s/16, s/16) in [0, 1]."""
        logit, mask = self.model(x)
        return (logit, mask.sigmoid()) if self.heat_map else (logit,)


def _to_onnx(model: nn.Module, size: int, heat_map: bool) -> onnx.ModelProto:
    """The graph, batch normalisations left as nodes so that every tensor is one of the state dict."""
    outputs = [LOGIT, MASK] if heat_map else [LOGIT]
    example = torch.zeros(2, 3, size, size)
    if heat_map and model(example)[1] is None:
        raise TrainingError("the network has no mask head, so it cannot export a heat map")
    buffer: Any = io.BytesIO()  # the stubs know files by name alone
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated; the newer one needs two more packages (onnxscript, onnx-ir),
        # and PRESERVE warns of what concerns networks in training mode.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            _Outputs(model, heat_map).eval(),
            (example,),
            buffer,
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=outputs,
            dynamic_axes={tensor: {0: "n"} for tensor in ("image", *outputs)},
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    graph = onnx.load_from_string(buffer.getvalue())
    fold_constants(graph)
    return graph


def _round_weights(model: nn.Module, name: str) -> None:
    """To what float16 can hold, those of two dimensions and more, in place."""
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if weight.ndim >= 2:
                weight.copy_(weight.half().float())
                if not torch.isfinite(weight).all():
                    raise ModelError(f"{name}: {key} is beyond float16; export it with storage f32")


def _in_torch(model: nn.Module, crops: UInt8Array) -> Float32Array:
    """(n,) float32 logits."""
    with torch.inference_mode():
        parts = [model(torch.from_numpy(normalise(crop[None], IMAGENET)))[0] for crop in crops]
    return np.asarray(torch.cat(parts)[:, 0].numpy(), np.float32)


def _compare(path: Path, crops: UInt8Array, expected: Float32Array) -> float:
    """Largest difference of a logit over the inference libraries. Raises ModelError beyond MAX_DIFFERENCE."""
    largest = 0.0
    for backend in ("onnxruntime", "openvino"):
        network = load_network(path, backend=backend, precision="f32")
        try:
            (logits,) = network.run(crops)
        finally:
            network.close()
        difference = float(np.abs(logits[:, 0] - expected).max())
        if not difference <= MAX_DIFFERENCE:
            raise ModelError(
                f"{path.stem}: not exported: its logit in {network.device} differs from torch's by "
                f"{difference:.2g} (allowed {MAX_DIFFERENCE:g})"
            )
        largest = max(largest, difference)
    return largest

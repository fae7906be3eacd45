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
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx
import torch
from torch import nn

from streamer.backends.images import normalise
from streamer.backends.load import load_network
from streamer.classify import MASK, probability
from streamer.engines import IMAGENET
from streamer.errors import ModelError, TrainingError
from streamer.manifest import Calibration, Manifest, sha256_of
from streamer.models.classifiers import Classifier
from streamer.models.onnx_graph import fold_constants, store_as_f16
from streamer.types import Float32Array, UInt8Array
from streamer.whole_file import write_whole

Storage = Literal["f16", "f32"]

OPSET = 17
"""As of the other networks in `engines/`; every backend knows it."""

MAX_DIFFERENCE = 1e-4
"""Of an output between torch and the inference libraries."""

MIN_CROPS = 8
"""Below it the comparison says little."""

LICENCE = "Apache-2.0"

LOGIT = "logit"


@dataclass(frozen=True, slots=True)
class MemberTexts:
    """What is said of a member, see `Manifest`."""

    name: str
    origin: str
    measured: str
    """What the checks of the export find is added."""
    licence: str = LICENCE


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
    """Of an output, between the inference libraries and torch with the same (rounded) weights."""
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
            f"{rounding}ONNX Runtime and OpenVINO give torch's outputs within {self.largest_difference:.1e} "
            f"(on {self.crops} face crops)"
        )


def export_member(
    model: Classifier,
    folder: Path,
    texts: MemberTexts,
    *,
    size: int,
    crops: UInt8Array,
    calibration: Calibration,
    storage: Storage = "f16",
    heat_map: bool = False,
) -> Exported:
    """Write `folder/NAME.onnx` and `NAME.json`, checked; an earlier member of that name is replaced.

    model: on the CPU; left as it is. size: of its input, pixels. crops: (n, size, size, 3) uint8 RGB faces
    to check on. heat_map: a second output `mask`, (n, 1, size / 16, size / 16), share altered of each cell
    in [0, 1], for evidence. Raises ModelError if the outputs differ, TrainingError for unusable crops.
    """
    name = texts.name
    _check_crops(crops, size, name)
    # 1. the network as it will be stored, and its graph
    network = _Outputs(copy.deepcopy(model), heat_map).eval()
    exact = _in_torch(network, crops)
    if storage == "f16":
        _round_weights(network, name)
    rounded = _in_torch(network, crops)
    changes = np.abs(probability(rounded[0], calibration) - probability(exact[0], calibration))
    graph = _to_onnx(network, size, storage)
    # 2. compared in a folder of its own
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".exporting-") as temporary:
        file = Path(temporary) / f"{name}.onnx"
        file.write_bytes(graph.SerializeToString(deterministic=True))
        manifest = Manifest(
            name=name,
            kind="classifier",
            architecture=model.architecture.title,
            file=file.name,
            sha256=sha256_of(file),
            input=IMAGENET.model_copy(update={"height": size, "width": size}),
            outputs=network.names,
            trained=True,
            calibration=calibration,
            licence=texts.licence,
            origin=texts.origin,
            measured=texts.measured,
        )
        expected = dict(zip(network.names, rounded, strict=True))
        exported = Exported(
            path=folder / f"{name}.json",
            manifest=manifest,
            file_bytes=file.stat().st_size,
            crops=len(crops),
            largest_difference=_compare(file, manifest, crops, expected),
            largest_change=float(changes.max()),
            mean_change=float(changes.mean()),
        )
        # 3. installed
        manifest = manifest.model_copy(update={"measured": f"{texts.measured}; {exported.in_words()}"})
        _install(file, exported.path, manifest)
    return replace(exported, manifest=manifest)


def write_manifest(path: Path, manifest: Manifest) -> Path:
    """Write a manifest whole or not at all; returns its path."""
    write_whole(path, (manifest.model_dump_json(indent=2) + "\n").encode())
    return path


class _Outputs(nn.Module):
    """The outputs that are exported."""

    def __init__(self, model: nn.Module, heat_map: bool) -> None:
        super().__init__()
        self.model = model
        self.names = (LOGIT, MASK) if heat_map else (LOGIT,)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """(n, 3, s, s) -> logit (n, 1) and, if wanted, mask (n, 1, s/16, s/16) in [0, 1]."""
        logit, mask = self.model(x)
        if MASK not in self.names:
            return (logit,)
        if mask is None:
            raise TrainingError("the network has no mask head, so it cannot export a heat map")
        return logit, mask.sigmoid()


def _check_crops(crops: UInt8Array, size: int, name: str) -> None:
    if crops.shape[1:] != (size, size, 3) or crops.dtype != np.uint8 or len(crops) < MIN_CROPS:
        raise TrainingError(
            f"{name}: at least {MIN_CROPS} crops ({size}, {size}, 3) uint8 needed to check the export, "
            f"got {crops.shape} {crops.dtype}"
        )


def _round_weights(network: nn.Module, name: str) -> None:
    """To what float16 can hold, those of two dimensions and more, in place."""
    with torch.no_grad():
        for key, weight in network.named_parameters():
            if weight.ndim >= 2:
                weight.copy_(weight.half().float())
                if not torch.isfinite(weight).all():
                    raise ModelError(f"{name}: {key} is beyond float16; export it with storage f32")


def _in_torch(network: _Outputs, crops: UInt8Array) -> list[Float32Array]:
    """The outputs, each (n, ...) float32."""
    with torch.inference_mode():
        rows = [network(torch.from_numpy(normalise(crop[None], IMAGENET))) for crop in crops]
    return [np.asarray(torch.cat(parts).numpy(), np.float32) for parts in zip(*rows, strict=True)]


def _to_onnx(network: _Outputs, size: int, storage: Storage) -> onnx.ModelProto:
    """The graph, batch normalisations left as nodes so that every tensor is one of the state dict."""
    buffer: Any = io.BytesIO()  # the stubs know files by name alone
    with warnings.catch_warnings():
        # The TorchScript exporter is deprecated; the newer one needs two more packages (onnxscript, onnx-ir),
        # and PRESERVE warns of what concerns networks in training mode.
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            (torch.zeros(2, 3, size, size),),
            buffer,
            dynamo=False,
            opset_version=OPSET,
            input_names=["image"],
            output_names=list(network.names),
            dynamic_axes={tensor: {0: "n"} for tensor in ("image", *network.names)},
            training=torch.onnx.TrainingMode.PRESERVE,
        )
    graph = onnx.load_from_string(buffer.getvalue())
    fold_constants(graph)
    if storage == "f16":
        store_as_f16(graph)
    onnx.checker.check_model(graph)
    return graph


def _compare(
    file: Path, manifest: Manifest, crops: UInt8Array, expected: Mapping[str, Float32Array]
) -> float:
    """Largest difference over libraries and outputs. Raises ModelError beyond MAX_DIFFERENCE."""
    path = write_manifest(file.with_suffix(".json"), manifest)
    largest = 0.0
    for backend in ("onnxruntime", "openvino"):
        network = load_network(path, backend=backend, precision="f32")
        try:
            outputs = network.run(crops)
        finally:
            network.close()
        for (name, wanted), output in zip(expected.items(), outputs, strict=True):
            difference = float(np.abs(output - wanted).max())
            if not difference <= MAX_DIFFERENCE:
                raise ModelError(
                    f"{manifest.name}: not exported: its {name} in {network.device} differs from torch's by "
                    f"{difference:.2g} (allowed {MAX_DIFFERENCE:g})"
                )
            largest = max(largest, difference)
    return largest


def _install(file: Path, path: Path, manifest: Manifest) -> None:
    """Move a network into place, its manifest last: none may describe what is not there."""
    path.unlink(missing_ok=True)
    file.replace(path.with_name(file.name))
    write_manifest(path, manifest)

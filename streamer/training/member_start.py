"""Networks out of members, whose checkpoints need not be at hand: `model.start`, `distillation.teacher`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import numpy_helper

from streamer.errors import TrainingError
from streamer.manifest import read_manifest
from streamer.models.classifiers import ARCHITECTURES, Classifier, build_classifier

PREFIX = "model."
"""Of the state dict's names in the graphs that `export` writes."""

MASK_HEAD = "mask_head."


def load_member(model: Classifier, manifest_path: Path) -> None:
    """Put a member's weights into a network of its architecture, in place.

    Those stored as float16 come as they are stored. A mask head that the member was exported without keeps
    its own weights. Raises ManifestError, TrainingError.
    """
    manifest = read_manifest(manifest_path)
    if manifest.architecture != model.architecture.title:
        raise TrainingError(
            f"{manifest_path}: a {manifest.architecture}, but model.architecture is "
            f"{model.architecture.title}"
        )
    graph = onnx.load(manifest.path(manifest_path.parent)).graph
    stored = {
        tensor.name.removeprefix(PREFIX): torch.from_numpy(np.array(numpy_helper.to_array(tensor)))
        for tensor in graph.initializer
        if tensor.name.startswith(PREFIX)
    }
    ours = model.state_dict()
    missing = [name for name in ours if name not in stored and not _may_be_missing(name)]
    wrong = [
        name
        for name, value in stored.items()
        if not name.startswith(MASK_HEAD) and (name not in ours or value.shape != ours[name].shape)
    ]
    if missing or wrong:
        raise TrainingError(
            f"{manifest_path}: not a member that `streamer train export` wrote: {(missing + wrong)[0]} is "
            f"missing or has another shape"
        )
    model.load_state_dict(ours | {name: value for name, value in stored.items() if name in ours})


def member_network(manifest_path: Path) -> Classifier:
    """The network of a member, evaluation mode, on the CPU. Raises ManifestError, TrainingError."""
    title = read_manifest(manifest_path).architecture
    name = next((name for name, known in ARCHITECTURES.items() if known.title == title), None)
    if name is None:
        raise TrainingError(f"{manifest_path}: {title} is no network that can be trained")
    model = build_classifier(name, pretrained=False, dropout=0.0, mask_head=True)
    load_member(model, manifest_path)
    model.eval()
    return model


def _may_be_missing(name: str) -> bool:
    return name.startswith(MASK_HEAD) or name.endswith(".num_batches_tracked")

"""Crops -> probability of `fake` by every member. Means are taken later, over members, faces and time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np

from streamer.backends.base import Network, start
from streamer.backends.images import is_uint8, known_image, stack
from streamer.backends.load import load_network
from streamer.config import ClassifyConfig
from streamer.errors import InferenceError, ManifestError, UntrainedError
from streamer.manifest import Calibration, Manifest, read_manifest
from streamer.types import Float32Array, Images, UInt8Array

MASK = "mask"
"""Name of a member's second output; see `Manifest.outputs`."""


class Ensemble:
    """All members, loaded. Safe to use from several threads at once."""

    def __init__(self, config: ClassifyConfig, *, device: str = "cuda:0") -> None:
        """Load the members named in the configuration.

        device: GPU for backend tensorrt, as PyTorch names it. Raises UntrainedError if one has random weights
        and `allow_untrained` is not set, ManifestError, BackendError.
        """
        paths = [config.engines / f"{member}.json" for member in config.members]
        manifests = [read_manifest(path) for path in paths]
        _check_members(manifests, paths, allow_untrained=config.allow_untrained)
        self.names: tuple[str, ...] = tuple(manifest.name for manifest in manifests)
        """Of the members, in the order of the columns of `classify`."""
        self.model_set: str = model_set_of(manifests)
        """12 hex digits that stand for the members' weights and calibration."""
        self.trained: bool = all(manifest.trained for manifest in manifests)
        """False: at least one member has random weights, and the probabilities mean nothing."""
        self.crop_size: int = max(manifest.input.height for manifest in manifests)
        """Height and width of the crops to give, pixels: the largest that a member takes."""
        self._networks: list[Network] = []
        try:
            for path in paths:
                self._networks.append(
                    load_network(
                        path,
                        backend=config.backend,
                        precision=config.precision,
                        threads=config.threads,
                        device=device,
                    )
                )
        except BaseException:
            self.close()
            raise

    @property
    def device(self) -> str:
        """Where and how it runs, for people."""
        return ", ".join(dict.fromkeys(network.device for network in self._networks))

    def classify(self, crops: Images) -> Float32Array:
        """Score crops.

        crops: (n, crop_size, crop_size, 3) uint8 RGB, n may be 0. Returns (n, members) float32, probability
        of `fake` in [0, 1]. Members with a smaller input get the crops shrunk by area averaging. On CPUs
        members run one after the other, each spreading its batch over all cores; on a GPU all at once.
        Blocks, releases the GIL. Raises InferenceError, also when a network gives NaN or infinity.
        """
        expected = (self.crop_size, self.crop_size, 3)
        if crops.ndim != 4 or tuple(crops.shape[1:]) != expected or not is_uint8(crops):
            raise InferenceError(
                f"crops must be (n, {', '.join(map(str, expected))}) uint8, "
                f"got {tuple(crops.shape)} {crops.dtype}"
            )
        probabilities = np.empty((len(crops), len(self._networks)), np.float32)
        if not len(crops):
            return probabilities
        started = [
            start(network, _shrink(crops, network.manifest.input.height)) for network in self._networks
        ]
        for column, (network, outputs) in enumerate(zip(self._networks, started, strict=True)):
            logits, *_ = outputs()
            probabilities[:, column] = _probabilities(logits, len(crops), network.manifest)
        return probabilities

    def classify_many(self, batch: Sequence[Images]) -> list[Float32Array]:
        """Score the crops of many callers at once: each (n_i, size, size, 3) -> (n_i, members)."""
        if not batch:
            return []
        scored = self.classify(stack(batch))
        return np.split(scored, np.cumsum([len(crops) for crops in batch])[:-1])

    def check(self) -> None:
        """Run every member on an image that it is known to take. Blocks. Raises InferenceError."""
        for network in self._networks:
            logits, *_ = network.run(known_image(network.manifest.input))
            _probabilities(logits, 1, network.manifest)

    def heat_maps(self, crops: UInt8Array) -> Float32Array | None:
        """Where members see alteration: mean over those that can tell, None if no member can.

        crops: (n, crop_size, crop_size, 3) uint8 RGB, n >= 1. Returns (n, crop_size, crop_size) float32 in
        [0, 1], enlarged from a sixteenth of that. Blocks, releases the GIL. Raises InferenceError.
        """
        maps = []
        for network in self._networks:
            if MASK in network.manifest.outputs:
                _, masks = network.run(_shrink(crops, network.manifest.input.height))
                maps.append([cv2.resize(mask[0], (self.crop_size, self.crop_size)) for mask in masks])
        return np.mean(maps, axis=0, dtype=np.float32) if maps else None

    def close(self) -> None:
        """Free the networks; idempotent."""
        for network in self._networks:
            network.close()


def shadow_of(config: ClassifyConfig) -> ClassifyConfig:
    """The configuration of the ensemble in `shadow`."""
    return config.model_copy(update={"members": config.shadow, "shadow": ()})


def probability(logits: Float32Array, calibration: Calibration) -> Float32Array:
    """sigmoid(logit / temperature + bias), any shape; without overflow for any finite logit."""
    scaled = logits.astype(np.float64) / calibration.temperature + calibration.bias
    return (0.5 * (1 + np.tanh(scaled / 2))).astype(np.float32)


def model_set_of(manifests: Sequence[Manifest]) -> str:
    """Hash over the members' weights and calibration, in their order: 12 hex digits."""
    identity = [[m.name, m.sha256, m.calibration.temperature, m.calibration.bias] for m in manifests]
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


def _probabilities(logits: Float32Array, n: int, manifest: Manifest) -> Float32Array:
    """(n, 1) logits -> (n,) probabilities, or InferenceError."""
    if logits.shape != (n, 1):
        raise InferenceError(f"{manifest.name}: logits must be ({n}, 1), got {logits.shape}")
    if not np.isfinite(logits).all():
        bad = int(np.count_nonzero(~np.isfinite(logits)))
        raise InferenceError(f"{manifest.name}: {bad} of {n} logits are NaN or infinite")
    return probability(logits[:, 0], manifest.calibration)


def _shrink(crops: Images, size: int) -> Images:
    if crops.shape[1] == size:
        return crops
    if not isinstance(crops, np.ndarray):
        from streamer.gpu.image import shrink

        return shrink(crops, size)
    small = np.empty((len(crops), size, size, 3), np.uint8)
    for crop, out in zip(crops, small, strict=True):
        cv2.resize(crop, (size, size), dst=out, interpolation=cv2.INTER_AREA)
    return small


def _check_members(manifests: list[Manifest], paths: list[Path], *, allow_untrained: bool) -> None:
    names: set[str] = set()
    for manifest, path in zip(manifests, paths, strict=True):
        if manifest.kind != "classifier" or manifest.outputs[1:] not in ((), (MASK,)):
            raise ManifestError(
                f"{path}: a classifier that gives a logit, and perhaps a {MASK}, is needed; this is a "
                f"{manifest.kind} with {', '.join(manifest.outputs)}"
            )
        if manifest.input.height != manifest.input.width:
            raise ManifestError(f"{path}: members take square crops")
        if manifest.name in names:
            raise ManifestError(f"{path}: two members are called {manifest.name!r}")
        names.add(manifest.name)
    untrained = [manifest.name for manifest in manifests if not manifest.trained]
    if untrained and not allow_untrained:
        raise UntrainedError(
            f"{', '.join(untrained)}: random weights, never trained, so their scores would mean nothing; "
            f"name trained members in classify.members, or set classify.allow_untrained "
            f"(--allow-untrained) to try the plumbing"
        )

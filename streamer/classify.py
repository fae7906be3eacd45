"""Crops -> probability of `fake` by every member. Means are taken later, over members, faces and time."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from streamer.backends.base import Network, start
from streamer.backends.images import is_uint8, known_image, stack
from streamer.backends.load import load_network
from streamer.config import ClassifyConfig
from streamer.errors import InferenceError, ManifestError, UntrainedError
from streamer.manifest import Calibration, Manifest, read_manifest
from streamer.types import Crops, Float32Array, UInt8Array

EIGHT_BITS = ("int8", "fp8")

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
        self.model_set: str = model_set_of(manifests, config.precision)
        """See `model_set_of`."""
        self.trained: bool = all(manifest.trained for manifest in manifests)
        """False: at least one member has random weights, and the probabilities mean nothing."""
        self.crop_sizes: tuple[int, ...] = tuple(sorted({m.input.height for m in manifests}, reverse=True))
        """Heights and widths of the crops to give, pixels: one for each that a member takes."""
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

    def classify(self, crops: Crops) -> Float32Array:
        """Score faces.

        crops: the same n faces at each of `crop_sizes`, n may be 0. Returns (n, members) float32, probability
        of `fake` in [0, 1]. On CPUs members run one after the other, each spreading its batch over all cores;
        on a GPU all at once. Blocks, releases the GIL. Raises InferenceError, also when a network gives NaN
        or infinity.
        """
        n = len(crops[0]) if crops else 0
        expected = [(n, size, size, 3) for size in self.crop_sizes]
        if [tuple(sized.shape) for sized in crops] != expected or not all(map(is_uint8, crops)):
            got = ", ".join(f"{tuple(sized.shape)} {sized.dtype}" for sized in crops) or "none"
            raise InferenceError(f"crops must be {', '.join(map(str, expected))} uint8, got {got}")
        probabilities = np.empty((n, len(self._networks)), np.float32)
        if not n:
            return probabilities
        by_size = dict(zip(self.crop_sizes, crops, strict=True))
        started = [start(network, by_size[network.manifest.input.height]) for network in self._networks]
        for column, (network, outputs) in enumerate(zip(self._networks, started, strict=True)):
            logits, *_ = outputs()
            probabilities[:, column] = _probabilities(logits, n, network.manifest)
        return probabilities

    def classify_many(self, batch: Sequence[Crops]) -> list[Float32Array]:
        """Score the faces of many callers at once: each n_i faces -> (n_i, members)."""
        if not batch:
            return []
        scored = self.classify(tuple(stack(sized) for sized in zip(*batch, strict=True)))
        return np.split(scored, np.cumsum([len(crops[0]) for crops in batch])[:-1])

    def check(self) -> None:
        """Run every member on an image that it is known to take. Blocks. Raises InferenceError."""
        for network in self._networks:
            logits, *_ = network.run(known_image(network.manifest.input))
            _probabilities(logits, 1, network.manifest)

    def heat_maps(self, crops: UInt8Array) -> Float32Array | None:
        """Where members see alteration: mean over those that can tell, None if no member can.

        crops: (n, size, size, 3) uint8 RGB of the largest of `crop_sizes`, n >= 1; members with a smaller
        input get them shrunk. Returns (n, size, size) float32 in [0, 1], enlarged from a sixteenth of that.
        Blocks, releases the GIL. Raises InferenceError.
        """
        maps = []
        side = (crops.shape[2], crops.shape[1])
        for network in self._networks:
            if MASK in network.manifest.outputs:
                _, masks = network.run(_shrink(crops, network.manifest.input.height))
                maps.append([cv2.resize(mask[0], side) for mask in masks])
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


def model_set_of(manifests: Sequence[Manifest], precision: str = "f32") -> str:
    """Hash over the members' weights and calibration, in their order: 12 hex digits.

    precision: 8 bits change a probability by more than some members differ by, so that members in them are
    others; 16 do not.
    """
    identity: list[Any] = [
        [m.name, m.sha256, m.calibration.temperature, m.calibration.bias] for m in manifests
    ]
    if precision in EIGHT_BITS:
        identity.append(precision)
    return hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:12]


def _probabilities(logits: Float32Array, n: int, manifest: Manifest) -> Float32Array:
    """(n, 1) logits -> (n,) probabilities, or InferenceError."""
    if logits.shape != (n, 1):
        raise InferenceError(f"{manifest.name}: logits must be ({n}, 1), got {logits.shape}")
    if not np.isfinite(logits).all():
        bad = int(np.count_nonzero(~np.isfinite(logits)))
        raise InferenceError(f"{manifest.name}: {bad} of {n} logits are NaN or infinite")
    return probability(logits[:, 0], manifest.calibration)


def _shrink(crops: UInt8Array, size: int) -> UInt8Array:
    if crops.shape[1] == size:
        return crops
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

"""What a network is fed: images checked against its manifest, and normalised where no graph does it."""

from __future__ import annotations

import numpy as np

from streamer.errors import InferenceError
from streamer.manifest import InputSpec, Manifest
from streamer.types import Float32Array, UInt8Array


def check_images(images: UInt8Array, manifest: Manifest) -> None:
    """Raise InferenceError unless images are (n, height, width, 3) uint8, n >= 1, as the manifest says."""
    expected = (manifest.input.height, manifest.input.width, 3)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1:] != expected or not len(images):
        raise InferenceError(
            f"{manifest.name}: expected (n, {', '.join(map(str, expected))}) uint8 with n >= 1, "
            f"got {images.shape} {images.dtype}"
        )


def normalise(images: UInt8Array, spec: InputSpec) -> Float32Array:
    """(n, h, w, 3) uint8 -> (image - mean) / std, float32, contiguous, in the layout of the network."""
    x = images.astype(np.float32)
    x -= np.asarray(spec.mean, np.float32)
    x /= np.asarray(spec.std, np.float32)
    return np.ascontiguousarray(x.transpose(0, 3, 1, 2)) if spec.layout == "NCHW" else x


def known_image(spec: InputSpec) -> UInt8Array:
    """(1, height, width, 3) uint8, noise, always the same: a network that fails on it is broken."""
    pixels = np.random.default_rng(0).integers(0, 256, (1, spec.height, spec.width, 3))
    return pixels.astype(np.uint8)

"""Images in memory or on a device: joined, shrunk, checked against a manifest, normalised."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from streamer.errors import InferenceError
from streamer.manifest import InputSpec, Manifest
from streamer.types import Float32Array, Images, UInt8Array


def is_uint8(images: Images) -> bool:
    """Of an array or a tensor."""
    return str(images.dtype).removeprefix("torch.") == "uint8"


def stack(parts: Sequence[Images]) -> Images:
    """Images of several sources in one batch; all in memory, or all on one device. At least one part."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(parts)


def to_array(images: Images) -> UInt8Array:
    """Images in memory, wherever they are; waits for a device."""
    return images if isinstance(images, np.ndarray) else np.asarray(images.cpu().numpy())


def thumbnails(images: Images, side: int) -> Images:
    """(n, h, w, 3) uint8 -> (n, side, side) uint8, mean grey of blocks. Does not wait for a device."""
    if isinstance(images, np.ndarray):
        small = [cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA) for image in images]
        return np.array(small, np.float32).reshape(-1, side, side, 3).mean(axis=3).round().astype(np.uint8)
    import torch

    grey = images.float().mean(dim=3)
    return torch.nn.functional.adaptive_avg_pool2d(grey, side).round().to(torch.uint8)


def check_images(images: Images, manifest: Manifest) -> None:
    """Raise InferenceError unless images are (n, height, width, 3) uint8, n >= 1, as the manifest says."""
    expected = (manifest.input.height, manifest.input.width, 3)
    if not is_uint8(images) or images.ndim != 4 or tuple(images.shape[1:]) != expected or not len(images):
        raise InferenceError(
            f"{manifest.name}: expected (n, {', '.join(map(str, expected))}) uint8 with n >= 1, "
            f"got {tuple(images.shape)} {images.dtype}"
        )


def in_memory(images: Images, manifest: Manifest) -> UInt8Array:
    """Checked images for a backend that computes in memory. Raises InferenceError, also for a tensor."""
    check_images(images, manifest)
    if not isinstance(images, np.ndarray):
        raise InferenceError(f"{manifest.name}: its backend takes arrays, not tensors")
    return images


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

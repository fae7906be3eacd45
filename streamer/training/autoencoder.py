"""Faces as a decoder network paints them: for fakes of the kind that face-swap programs make.

What a swap shows of a face came out of a small code, through a decoder: in Deepfakes of FaceForensics++, in
most of DFDC, in DeepFaceLab. Here one network codes and decodes everybody, so no person becomes another; what
differs from the original is what a decoder leaves out and puts in. A code cut to fewer channels gives a
poorer face, a larger square a better one.

    AUTOENCODER.pt      {"format": FORMAT, "weights": of `FaceAutoencoder`, "training": what it came of}
"""

from __future__ import annotations

import functools
import io
import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import nn
from torch.nn import functional

from streamer.errors import TrainingError
from streamer.training import image_ops as ops
from streamer.types import Float32Array, UInt8Array
from streamer.whole_file import write_whole

FORMAT = "streamer face autoencoder 1"

SIDES = (64, 96, 128)
"""Pixels of the square that is coded, each as likely. faceswap's original model has 64."""
CHANNELS = 64
"""Of a whole code; each has a cell for every 16x16 pixels."""
KEPT = (16, 32, CHANNELS, CHANNELS)
"""Channels of the code that are not set to 0, each as likely."""
REACH = 1.25
"""Side of the square, in longer sides of the face's box."""
SHARPENED = 0.35
"""Chance that the decoded square is sharpened, as face-swap programs offer to."""
SHARPEN = (0.3, 1.5)
"""Amounts of unsharp masking."""


class FaceAutoencoder(nn.Module):
    """Encoder and decoder of faceswap's original model: 5x5 convolutions of stride 2, up again by
    sub-pixel convolutions (Shi et al., CVPR 2016); without its dense layers, so that any side that is a
    multiple of 16 will do."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            _down(3, 32), _down(32, 64), _down(64, 128), _down(128, 128), nn.Conv2d(128, CHANNELS, 1)
        )
        self.decoder = nn.Sequential(
            _up(CHANNELS, 128), _up(128, 64), _up(64, 32), _up(32, 16), nn.Conv2d(16, 3, 5, padding=2)
        )

    def forward(self, faces: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        """faces: (n, 3, s, s) float in [0, 1]. kept: (n,) int, channels of each one's code. As faces."""
        code = self.encoder(faces)
        mask = torch.arange(CHANNELS, device=kept.device) < kept[:, None]
        return torch.sigmoid(self.decoder(code * mask[:, :, None, None].to(code.dtype)))


def _down(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, outside, 5, 2, padding=2), nn.LeakyReLU(0.1))


def _up(inside: int, outside: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inside, 4 * outside, 3, padding=1), nn.LeakyReLU(0.1), nn.PixelShuffle(2))


def save_autoencoder(path: Path, network: FaceAutoencoder, training: Mapping[str, Any]) -> None:
    """Write it whole or not at all. training: what it came of, plain values. Raises TrainingError."""
    content = io.BytesIO()
    values = {"format": FORMAT, "weights": network.state_dict(), "training": dict(training)}
    torch.save(values, content)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, content.getvalue())
    except OSError as error:
        raise TrainingError(f"{path}: cannot write the autoencoder: {error.strerror}") from error


@functools.cache
def load_autoencoder(path: Path) -> FaceAutoencoder:
    """Read one, evaluation mode, on the CPU; once per process. Raises TrainingError."""
    network = FaceAutoencoder()
    network.load_state_dict(_read(path)["weights"])
    network.eval()
    return network


def read_training(path: Path) -> dict[str, Any]:
    """What the autoencoder of a file came of; see `save_autoencoder`. Raises TrainingError."""
    training: dict[str, Any] = _read(path).get("training", {})
    return training


def _read(path: Path) -> dict[str, Any]:
    try:
        values = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise TrainingError(
            f"{path}: cannot read the autoencoder: {error.strerror}; make it with streamer train autoencoder"
        ) from error
    except (RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise TrainingError(f"{path}: not an autoencoder, or damaged: {error}") from error
    if not isinstance(values, dict) or values.get("format") != FORMAT:
        raise TrainingError(f"{path}: not an autoencoder of this version of streamer")
    return values


def cut_square(
    rgb: UInt8Array, keypoints: Float32Array, box: Sequence[float], side: int
) -> tuple[UInt8Array, Float32Array]:
    """The square around a face that is coded, upright, (side, side, 3) uint8, and the map to its pixels from
    those of the picture, (2, 3) float32. keypoints: (6, 2), box: (4,), pixels of the picture."""
    right_eye, left_eye, _, mouth = keypoints[:4]
    middle = (right_eye + left_eye) / 4 + mouth / 2
    length = max(1, round(REACH * max(box[2] - box[0], box[3] - box[1])))
    across = left_eye - right_eye
    angle = float(np.arctan2(across[1], across[0]))
    square = cv2.warpAffine(
        rgb,
        _upright(middle, angle, length, length),
        (length, length),
        flags=cv2.INTER_CUBIC,
        borderMode=cv2.BORDER_REFLECT_101,
    )
    resized = ops.resize(np.asarray(square, np.uint8), side, side, "area" if side < length else "linear")
    return resized, _upright(middle, angle, length, side)


def decode_face(
    rgb: UInt8Array,
    keypoints: Float32Array,
    box: Sequence[float],
    network: FaceAutoencoder,
    rng: np.random.Generator,
) -> tuple[UInt8Array, Float32Array]:
    """A picture whose face was coded and decoded, and where: (height, width, 3) uint8, (height, width)
    float32, 1 inside the square, falling to 0 at its edges. Arguments as of `cut_square`."""
    side, kept = (int(rng.choice(each)) for each in (SIDES, KEPT))
    square, matrix = cut_square(rgb, keypoints, box, side)
    faces = torch.from_numpy(square).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        (painted,) = network(faces, torch.tensor([kept]))
    levels = np.rint(255 * painted.permute(1, 2, 0).numpy()).astype(np.uint8)
    if rng.random() < SHARPENED:
        levels = ops.sharpen(levels, float(rng.uniform(*SHARPEN)))
    inside = np.zeros((side, side), np.float32)
    edge = side // 16
    inside[edge:-edge, edge:-edge] = 1
    inside = np.asarray(cv2.GaussianBlur(inside, (0, 0), side / 40), np.float32)
    kind = ops.ENLARGING[int(rng.integers(len(ops.ENLARGING)))]
    shape = rgb.shape[1::-1]
    back = ops.INTERPOLATIONS[kind] | cv2.WARP_INVERSE_MAP
    picture = cv2.warpAffine(levels, matrix, shape, flags=back, borderMode=cv2.BORDER_REFLECT_101)
    where = cv2.warpAffine(inside, matrix, shape, flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP)
    return np.asarray(picture, np.uint8), np.asarray(where, np.float32)


def dissimilarity(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """(1 - SSIM) / 2, mean over all 7x7 windows (Wang et al., 2004). Both (n, 3, s, s) float in [0, 1]."""

    def mean(values: torch.Tensor) -> torch.Tensor:
        return functional.avg_pool2d(values, 7, 1)

    a, b = mean(one), mean(other)
    variances = mean(one * one) - a * a + mean(other * other) - b * b
    covariance = mean(one * other) - a * b
    alike = (2 * a * b + 1e-4) * (2 * covariance + 9e-4) / ((a * a + b * b + 1e-4) * (variances + 9e-4))
    return ((1 - alike) / 2).mean()


def _upright(middle: Float32Array, angle: float, length: float, side: int) -> Float32Array:
    """Map to a square of `side` from one of `length` about a middle, turned by an angle; pixels."""
    scale = side / length
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    shift = (side - 1) / 2 - turn @ middle
    return np.concatenate([turn, shift[:, None]], axis=1).astype(np.float32)

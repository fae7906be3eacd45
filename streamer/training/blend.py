"""Fakes out of real pictures: a face, or a part of it, blended with a changed copy or with another face.

Self-blended images: Shiohara and Yamasaki, "Detecting deepfakes with self-blended images", CVPR 2022. One of
two copies of a picture gets another colour and sharpness; the source copy is warped a little and blended into
the target under a soft mask of random shape and strength. What is left to see is what every face swap leaves:
a border, and statistics inside it that differ from those outside. Beside the paper's mask over the whole face
there are masks of parts, since reenactment (Face2Face, NeuralTextures) alters little but the mouth.

`cross_blend` takes the source from another person's picture, as in Face X-ray (Li et al., CVPR 2020), aligned
by landmarks: the hard case of a good swap. `decoded_blend` takes it from an autoencoder: the same face as a
swap's decoder paints it.

The real picture returned beside a fake is its target, pixel for pixel the same where the mask is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import cv2
import numpy as np
from pydantic import Field, model_validator

from streamer.config import Probability
from streamer.errors import TrainingError
from streamer.training.alignment import FacePicture, align
from streamer.training.face_regions import REGIONS, Region, face_size_px, region_outline
from streamer.training.image_ops import Window, warp
from streamer.training.ranges import NotNegative, Range, Section, ShareRange, UpToOne
from streamer.training.source_changes import (
    FrequencyWeights,
    SourceChanges,
    change,
    change_frequency,
    draw_warp,
    match_colours,
)
from streamer.types import Float32Array, UInt8Array

Ratios = Annotated[tuple[UpToOne, ...], Field(min_length=1)]

OUTLINE_POINTS = 96
WAVES = 6
"""Highest number of bumps around an outline."""
SMALLEST_DEPTH_PX = 1.5
"""Of a mask: from its outline to its innermost pixel."""


class RegionWeights(Section):
    """How often each region is the one that is altered, in proportion to the others."""

    face: NotNegative = 0.25
    """The mesh's oval, up to the forehead."""
    jaw_to_brows: NotNegative = 0.25
    """What most swaps replace."""
    inner_face: NotNegative = 0.12
    """Brows to lips."""
    lower_half: NotNegative = 0.12
    mouth_and_chin: NotNegative = 0.1
    """What reenactment changes most."""
    mouth: NotNegative = 0.06
    eyes: NotNegative = 0.06
    nose: NotNegative = 0.04

    @model_validator(mode="after")
    def _not_all_zero(self) -> RegionWeights:
        if not sum(self.model_dump().values()) > 0:
            raise ValueError("at least one region needs a weight above 0")
        return self


class BlendConfig(Section):
    """How fakes are made. Sizes that are shares are of the face's width."""

    regions: RegionWeights = RegionWeights()
    ratios: Ratios = (0.25, 0.5, 0.75, 1.0, 1.0, 1.0)
    """Opacities of the source, each as likely; the paper's."""
    cross_ratios: Ratios = (0.75, 1.0, 1.0, 1.0)
    """The same for `cross_blend`, where below them two faces show at once, and for `decoded_blend`."""
    jitter_target: Probability = 0.5
    """Chance that the target, and so the real picture too, is the changed copy."""
    region_scale: Range = (0.85, 1.2)
    """Growth of the region's outline."""
    outline_noise: NotNegative = 0.05
    """Standard deviation of the outline's deformation, share of the region's size."""
    softness: Range = (0.008, 0.06)
    """Standard deviation of the blurs of the mask, drawn evenly in its logarithm."""
    poisson: Probability = 0.08
    """Chance that gradients are blended instead of colours (Pérez et al. 2003; OpenCV's seamlessClone)."""
    decoded_warp: Probability = 0.5
    """Chance that the decoded face is moved and deformed, as the source of a self-blend always is."""
    changes: SourceChanges = SourceChanges()
    colour_match: ShareRange = (0.6, 1.0)
    """`cross_blend`: how far the source takes on the colours of the target."""


PUBLISHED = BlendConfig(
    regions=RegionWeights(
        face=0.5, jaw_to_brows=0.5, inner_face=0, lower_half=0, mouth_and_chin=0, mouth=0, eyes=0, nose=0
    ),
    poisson=0,
    changes=SourceChanges(
        colour=1,
        shading=0,
        frequencies=FrequencyWeights(none=0, downscale=0.5, sharpen=0.5, blur=0, jpeg=0, noise=0, repaint=0),
        downscale=(0.25, 0.5),
        warp_strength=(1, 1),
        translation=(0.03, 0.015),
        rotation_degrees=0,
    ),
)
"""Near the paper's own, as far as its description was understood; never compared with its code. Whole faces,
always a change of sharpness: far easier to see than the default, which is for training."""


@dataclass(frozen=True, slots=True)
class Blended:
    """A fake and the real picture that it differs from only where the mask is above 0."""

    fake: UInt8Array
    """(height, width, 3) uint8 RGB."""
    real: UInt8Array
    """(height, width, 3) uint8 RGB."""
    mask: Float32Array
    """(height, width) float32 in [0, 1], share of the source in each pixel."""
    region: Region


def self_blend(
    rgb: UInt8Array,
    landmarks: Float32Array | None,
    keypoints: Float32Array,
    rng: np.random.Generator,
    config: BlendConfig,
) -> Blended:
    """A fake out of one real picture.

    rgb: (height, width, 3) uint8. landmarks: (468, 2) float32 pixels, MediaPipe's face mesh, or None: then
    the mask is an ellipse set by the keypoints, (6, 2) float32 pixels. Raises TrainingError if no part of the
    region lies in the picture.
    """
    region, mask = draw_mask(rgb.shape[:2], landmarks, keypoints, rng, config)
    changed = change(rgb, rng, config.changes)
    target, source = (changed, rgb) if rng.random() < config.jitter_target else (rgb, changed)
    place = draw_warp(rgb.shape[:2], face_size_px(keypoints), rng, config.changes)
    window = _window(mask)
    patch = warp(source, place, window)
    return _blend(patch, target, window, region, mask, config.ratios, config.poisson, rng)


def cross_blend(
    target: FacePicture, source: FacePicture, rng: np.random.Generator, config: BlendConfig
) -> Blended:
    """A fake that shows the face of `source` in the picture `target`, which is returned as the real one.

    Landmarks are used if both have them, else keypoints. Take pictures of a like pose: of a low
    `alignment.misfit`. Raises TrainingError as `self_blend` does.
    """
    region, mask = draw_mask(target.rgb.shape[:2], target.landmarks, target.keypoints, rng, config)
    window = _window(mask)
    patch = warp(*align(source, target), window)
    x, y, width, height = window
    inside = slice(y, y + height), slice(x, x + width)
    patch = match_colours(patch, target.rgb[inside], mask[inside], float(rng.uniform(*config.colour_match)))
    patch = change_frequency(patch, rng, config.changes)
    return _blend(patch, target.rgb, window, region, mask, config.cross_ratios, config.poisson, rng)


def decoded_blend(
    face: FacePicture,
    decoded: UInt8Array,
    where: Float32Array,
    rng: np.random.Generator,
    config: BlendConfig,
) -> Blended:
    """A fake that shows a face as a decoder painted it: `autoencoder.decode_face` gives `decoded`, `where`.

    Raises TrainingError as `self_blend` does.
    """
    region, mask = draw_mask(face.rgb.shape[:2], face.landmarks, face.keypoints, rng, config)
    mask = mask * where
    if not mask.max() > 0:
        raise TrainingError(f"region {region} of the face lies outside what was decoded")
    mask /= mask.max()
    window = _window(mask)
    x, y, width, height = window
    inside = slice(y, y + height), slice(x, x + width)
    patch = decoded[inside]
    if rng.random() < config.decoded_warp:
        place = draw_warp(face.rgb.shape[:2], face_size_px(face.keypoints), rng, config.changes)
        patch = warp(decoded, place, window)
    patch = match_colours(patch, face.rgb[inside], mask[inside], float(rng.uniform(0, 1)))
    return _blend(patch, face.rgb, window, region, mask, config.cross_ratios, config.poisson, rng)


def draw_mask(
    shape: tuple[int, ...],
    landmarks: Float32Array | None,
    keypoints: Float32Array,
    rng: np.random.Generator,
    config: BlendConfig,
) -> tuple[Region, Float32Array]:
    """A region, and its soft mask of random shape, (height, width) float32 with a largest value of 1.

    The paper's way: the convex hull is deformed, eroded, blurred and scaled to 1 again. Raises TrainingError.
    """
    weights = np.array([getattr(config.regions, region) for region in REGIONS])
    region = REGIONS[int(rng.choice(len(REGIONS), p=weights / weights.sum()))]
    face_px = face_size_px(keypoints)
    outline = _deformed(region_outline(region, landmarks, keypoints), rng, config)
    filled = np.zeros(shape[:2], np.uint8)
    cv2.fillPoly(filled, [np.rint(outline * 16).astype(np.int32)], 255, shift=4)
    # distance to the outline; the frame counts as one, so that no mask is cut off at the picture's edge
    depth = cv2.distanceTransform(cv2.copyMakeBorder(filled, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 3)
    depth = depth[1:-1, 1:-1]
    deepest = float(depth.max())
    if deepest < SMALLEST_DEPTH_PX:
        raise TrainingError(f"region {region} of the face lies outside its picture of {shape[1]}x{shape[0]}")
    sigma = face_px * float(np.exp(rng.uniform(*np.log(config.softness))))
    sigma = max(min(sigma, 0.3 * deepest), 0.3)
    eroded = (depth > min(sigma * rng.uniform(0, 3), 0.5 * deepest)).astype(np.float32)
    soft = cv2.GaussianBlur(eroded, (0, 0), sigma)
    return region, np.asarray(np.clip(soft / soft.max(), 0, 1), np.float32)


def _deformed(outline: Float32Array, rng: np.random.Generator, config: BlendConfig) -> Float32Array:
    """Outline scaled about its middle, with a few random waves."""
    steps = np.linalg.norm(np.roll(outline, -1, axis=0) - outline, axis=1)
    along = np.concatenate([[0], np.cumsum(steps)])
    at = np.linspace(0, along[-1], OUTLINE_POINTS, endpoint=False)
    closed = np.concatenate([outline, outline[:1]])
    points = np.stack([np.interp(at, along, closed[:, axis]) for axis in (0, 1)], axis=1)
    middle = points.mean(axis=0)
    angle = np.linspace(0, 2 * np.pi, OUTLINE_POINTS, endpoint=False)
    order = np.arange(1, WAVES + 1)
    height = rng.normal(0, config.outline_noise, WAVES) / np.sqrt(order)
    waves = (height * np.cos(order * angle[:, None] + rng.uniform(0, 2 * np.pi, WAVES))).sum(axis=1)
    growth = rng.uniform(*config.region_scale) * (1 + waves)
    return np.asarray(middle + (points - middle) * growth[:, None], np.float32)


def _window(mask: Float32Array) -> Window:
    """Smallest (x, y, width, height) around what the mask alters."""
    x, y, width, height = cv2.boundingRect((mask > 0).astype(np.uint8))
    return x, y, width, height


def _blend(
    patch: UInt8Array,
    target: UInt8Array,
    window: Window,
    region: Region,
    mask: Float32Array,
    ratios: Sequence[float],
    poisson: float,
    rng: np.random.Generator,
) -> Blended:
    """Put a patch into its window of the target."""
    x, y, width, height = window
    inside = slice(y, y + height), slice(x, x + width)
    ratio = ratios[int(rng.integers(len(ratios)))]
    below = target[inside]
    if rng.random() < poisson:
        patch = _poisson(patch, below, mask[inside])
    share = np.zeros_like(mask)
    share[inside] = ratio * mask[inside]
    mixed = below + (patch.astype(np.float32) - below) * share[inside][:, :, None]
    fake = target.copy()
    fake[inside] = np.rint(mixed).astype(np.uint8)
    return Blended(fake=fake, real=target, mask=share, region=region)


def _poisson(patch: UInt8Array, below: UInt8Array, mask: Float32Array) -> UInt8Array:
    """The patch, its colours shifted so that they meet those below along the mask's outline."""
    pad = 2  # seamlessClone wants the mask clear of the edges
    source, under = (
        cv2.copyMakeBorder(image, pad, pad, pad, pad, cv2.BORDER_REPLICATE) for image in (patch, below)
    )
    altered = (mask > 0).astype(np.uint8) * 255
    altered = np.asarray(cv2.copyMakeBorder(altered, pad, pad, pad, pad, cv2.BORDER_CONSTANT), np.uint8)
    x, y, width, height = cv2.boundingRect(altered)
    middle = (x + width // 2, y + height // 2)
    cloned = cv2.seamlessClone(source, under, altered, middle, cv2.NORMAL_CLONE)
    return np.asarray(cloned[pad:-pad, pad:-pad], np.uint8)

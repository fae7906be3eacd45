"""What sets the source of a blend apart from its target: colour, light, sharpness, place."""

from __future__ import annotations

from typing import Literal, get_args

import cv2
import numpy as np
from pydantic import model_validator

from streamer.config import Probability
from streamer.training import image_ops as ops
from streamer.training.compress import jpeg
from streamer.training.ranges import (
    Gamma,
    NotNegative,
    PixelRange,
    QualityRange,
    Range,
    Section,
    ShareRange,
    UpToOneRange,
)
from streamer.types import Float32Array, UInt8Array

Frequency = Literal["none", "downscale", "sharpen", "blur", "jpeg", "noise", "repaint"]
FREQUENCIES: tuple[Frequency, ...] = get_args(Frequency)

ELASTIC_CELLS = 8
"""Cells a side of the grid of random displacements, about a quarter of a face each."""

MOST_STRETCHED = 2.0
"""Of colours that are matched; beyond it noise would be all there is to see."""


class FrequencyWeights(Section):
    """How often each change of sharpness is the one made, in proportion to the others."""

    none: NotNegative = 0.1
    downscale: NotNegative = 0.3
    """Shrunk and enlarged again: swaps are made at 64 to 256 px and enlarged. The paper's, as is the next."""
    sharpen: NotNegative = 0.15
    blur: NotNegative = 0.1
    jpeg: NotNegative = 0.1
    noise: NotNegative = 0.1
    repaint: NotNegative = 0.15
    """What a decoder network paints: edges, but neither pores nor the camera's noise, sharpened or not."""

    @model_validator(mode="after")
    def _not_all_zero(self) -> FrequencyWeights:
        if not sum(self.model_dump().values()) > 0:
            raise ValueError("at least one change needs a weight above 0")
        return self


class SourceChanges(Section):
    """Ranges; what is one number is the largest change to either side. Shares are of the face's width."""

    colour: Probability = 0.9
    """Chance of a change of colour, its strength drawn from a tenth of the ranges below to all of them."""
    shift_levels: NotNegative = 20.0
    """Of red, green and blue, each on its own; the paper's."""
    brightness: NotNegative = 0.1
    contrast: NotNegative = 0.12
    gamma: Gamma = 0.2
    """Exponent exp(+-gamma)."""
    hue_degrees: NotNegative = 8.0
    saturation: NotNegative = 0.3
    shading: Probability = 0.3
    """Chance of light that falls off across the picture."""
    shading_levels: NotNegative = 18.0
    """At the picture's edges."""

    frequencies: FrequencyWeights = FrequencyWeights()
    downscale: UpToOneRange = (0.35, 0.95)
    sharpen: Range = (0.3, 1.0)
    blur_sigma_px: PixelRange = (0.4, 1.6)
    jpeg_quality: QualityRange = (30, 90)
    noise_levels: Range = (1.5, 6.0)
    repaint_levels: Range = (12.0, 35.0)
    """Contrast below which texture is taken away."""

    warp_strength: ShareRange = (0.15, 1.0)
    """Share of all of the following that a blend gets, lest every fake shows a second outline."""
    translation: tuple[NotNegative, NotNegative] = (0.05, 0.03)
    """x and y; the paper's 3 and 1.5 % of the picture."""
    scale: NotNegative = 0.05
    rotation_degrees: NotNegative = 2.0
    elastic: NotNegative = 0.012
    """Standard deviation of displacements that vary over the face."""


def change(rgb: UInt8Array, rng: np.random.Generator, config: SourceChanges) -> UInt8Array:
    """The picture, (height, width, 3) uint8, with other colours and another sharpness."""
    if rng.random() < config.colour:
        rgb = _change_colour(rgb, rng, config)
    if rng.random() < config.shading:
        rgb = _shade(rgb, rng, config.shading_levels)
    return change_frequency(rgb, rng, config)


def change_frequency(rgb: UInt8Array, rng: np.random.Generator, config: SourceChanges) -> UInt8Array:
    """The picture with another sharpness, texture or noise."""
    weights = np.array([getattr(config.frequencies, kind) for kind in FREQUENCIES])
    match FREQUENCIES[int(rng.choice(len(FREQUENCIES), p=weights / weights.sum()))]:
        case "downscale":
            shrinking, enlarging = ops.draw_interpolations(rng)
            return ops.reduce_resolution(rgb, float(rng.uniform(*config.downscale)), shrinking, enlarging)
        case "sharpen":
            return ops.sharpen(rgb, float(rng.uniform(*config.sharpen)))
        case "blur":
            return ops.blur(rgb, float(rng.uniform(*config.blur_sigma_px)))
        case "jpeg":
            low, high = config.jpeg_quality
            return jpeg(rgb, int(rng.integers(low, high + 1)))
        case "repaint":
            contrast, reach_px = float(rng.uniform(*config.repaint_levels)), float(rng.uniform(1.2, 2.2))
            smooth = cv2.bilateralFilter(rgb, 0, contrast, reach_px)
            return ops.sharpen(np.asarray(smooth, np.uint8), float(rng.uniform(0, 1)))
        case "noise":
            noise = ops.draw_noise(
                rgb.shape[:2], float(rng.uniform(*config.noise_levels)), float(rng.uniform(0, 1)), rng
            )
            return ops.add_levels(rgb, noise)
        case _:
            return rgb


def draw_warp(
    shape: tuple[int, ...], face_px: float, rng: np.random.Generator, config: SourceChanges
) -> ops.Placement:
    """A small shift, turn, growth and elastic deformation of a picture about its middle."""
    height, width = shape[:2]
    strength = rng.uniform(*config.warp_strength)
    angle = np.deg2rad(strength * rng.uniform(-1, 1) * config.rotation_degrees)
    scale = np.exp(strength * rng.uniform(-1, 1) * np.log1p(config.scale))
    cos, sin = scale * np.cos(angle), scale * np.sin(angle)
    centre = np.array([width / 2, height / 2])
    shift = strength * rng.uniform(-1, 1, 2) * config.translation * face_px
    turn = np.array([[cos, -sin], [sin, cos]])
    matrix = np.concatenate([turn, (centre + shift - turn @ centre)[:, None]], axis=1)
    displacement = rng.normal(0, strength * config.elastic * face_px, (ELASTIC_CELLS, ELASTIC_CELLS, 2))
    kind = ops.ENLARGING[int(rng.integers(len(ops.ENLARGING)))]
    return ops.Placement(matrix.astype(np.float32), displacement.astype(np.float32), (height, width), kind)


def match_colours(rgb: UInt8Array, like: UInt8Array, mask: Float32Array, strength: float) -> UInt8Array:
    """Give a picture the mean and deviation that `like` has under the mask, channel by channel in CIE Lab.

    Both (height, width, 3) uint8, the mask (height, width). strength: in [0, 1], 0 changes nothing. Reinhard
    et al., "Color transfer between images", 2001, in Lab as DeepFaceLab's `rct`.
    """
    lab, goal = (cv2.cvtColor(image, cv2.COLOR_RGB2LAB).astype(np.float32) for image in (rgb, like))
    weights = (mask > 0.5 * mask.max()).astype(np.uint8)
    (mean, std), (goal_mean, goal_std) = (
        [statistic.ravel() for statistic in cv2.meanStdDev(image, mask=weights)] for image in (lab, goal)
    )
    stretch = np.clip(goal_std / np.maximum(std, 1.0), 1 / MOST_STRETCHED, MOST_STRETCHED)
    matched = (lab - mean) * stretch + goal_mean
    mixed = np.rint(np.clip(lab + strength * (matched - lab), 0, 255)).astype(np.uint8)
    return np.asarray(cv2.cvtColor(mixed, cv2.COLOR_LAB2RGB), np.uint8)


def _change_colour(rgb: UInt8Array, rng: np.random.Generator, config: SourceChanges) -> UInt8Array:
    strength = rng.uniform(0.1, 1)
    brightness, contrast, gamma, hue, saturation, *shift = (strength * rng.uniform(-1, 1, 8)).tolist()
    rgb = ops.adjust_tones(
        rgb,
        brightness=brightness * config.brightness,
        contrast=contrast * config.contrast,
        gamma=float(np.exp(gamma * config.gamma)),
        shift=[config.shift_levels * each for each in shift],
    )
    return ops.adjust_colour(
        rgb, hue_degrees=hue * config.hue_degrees, saturation=saturation * config.saturation
    )


def _shade(rgb: UInt8Array, rng: np.random.Generator, levels: float) -> UInt8Array:
    """Brighter towards one side, darker towards the other."""
    height, width = rgb.shape[:2]
    angle, slope = rng.uniform(0, 2 * np.pi), rng.uniform(0.2, 1) * levels
    x = np.linspace(-1, 1, width, dtype=np.float32) * np.float32(slope * np.cos(angle))
    y = np.linspace(-1, 1, height, dtype=np.float32) * np.float32(slope * np.sin(angle))
    field = np.repeat((y[:, None] + x)[:, :, None], 3, axis=2)
    return ops.add_levels(rgb, field)

"""One view of a cached face crop: what a camera, an upload and a video site may make of it.

In the order in which things happen to a picture: where the face lies; light and colour; detail lost to
zoom, focus, motion and sensor; an upload's compression; another size; the video's compression, that of a
still; and last, the classifier's input size as serving makes it. All at the crop's native resolution, for a
codec acts on pixels.

Everything given in one call gets the same random changes, the noise included, so that a real picture and its
blend differ in the blend alone. Calls with generators of one state draw the same, whatever the shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

import cv2
import numpy as np

from streamer.errors import TrainingError
from streamer.faces.crop import crop_faces, crop_squares
from streamer.training import augment_config as settings_of
from streamer.training import image_ops as ops
from streamer.training.augment_config import AUGMENTATIONS, AugmentConfig
from streamer.training.compress import h264, jpeg
from streamer.types import Float32Array, UInt8Array

__all__ = ["AUGMENTATIONS", "AugmentConfig", "Box", "View", "make_views", "plain_view"]

Box: TypeAlias = Sequence[float]
"""x_min, y_min, x_max, y_max, pixels of the crop."""
View: TypeAlias = tuple[UInt8Array, Float32Array | None]
"""(size, size, 3) uint8 RGB, and its mask (size, size) float32 in [0, 1]."""
Image: TypeAlias = Any
"""A picture (height, width, 3) uint8 or a mask (height, width) float32; what comes back has the same type."""


def plain_view(image: UInt8Array, box: Box, *, margin: float, size: int) -> UInt8Array:
    """What serving would have cut out of the frame, (size, size, 3) uint8 RGB.

    image: cached crop, (height, width, 3) uint8 RGB. box: of the face in it. margin: as of `crop_faces`.
    """
    return np.asarray(crop_faces(image, np.array([box], np.float32), margin=margin, size=size)[0], np.uint8)


def make_views(
    images: Sequence[UInt8Array],
    masks: Sequence[Float32Array | None],
    box: Box,
    *,
    margin: float,
    size: int,
    rng: np.random.Generator,
    config: AugmentConfig,
) -> list[View]:
    """One augmented view of each image, all with the same random changes.

    images: cached crops of one shape, (height, width, 3) uint8 RGB. masks: of each, (height, width) float32
    in [0, 1], or None. box, margin, size: as of `plain_view`, which is what comes back if every augmentation
    is off. Raises TrainingError if the shapes do not agree or a codec fails.
    """
    _check(images, masks)
    cut = _draw_cut(box, margin, rng, config)
    views = [np.asarray(cut(image, cv2.INTER_CUBIC), np.uint8) for image in images]
    shares = [None if mask is None else cut(mask, cv2.INTER_LINEAR) for mask in masks]
    for name, change in _CHANGES.items():
        settings = getattr(config, name)
        if rng.random() < settings.probability:
            views = change(views, settings, views[0].shape[0] / (1 + 2 * margin), rng)
    return [
        (
            np.asarray(_to_size(view, size), np.uint8),
            None if share is None else np.clip(_to_size(share, size), 0, 1, dtype=np.float32),
        )
        for view, share in zip(views, shares, strict=True)
    ]


def _check(images: Sequence[UInt8Array], masks: Sequence[Float32Array | None]) -> None:
    shapes = {image.shape for image in images} | {(*mask.shape, 3) for mask in masks if mask is not None}
    if len(images) != len(masks) or len(shapes) != 1:
        raise TrainingError(
            f"one mask (or None) for each image, all of one size, needed; got {len(images)} images and "
            f"{len(masks)} masks of shapes {sorted(shapes)}"
        )


def _to_size(image: Image, size: int) -> Image:
    """As serving resizes: see `crop_faces`."""
    way = cv2.INTER_AREA if image.shape[0] > size else cv2.INTER_LINEAR
    return cv2.resize(image, (size, size), interpolation=way)


def _draw_cut(
    box: Box, margin: float, rng: np.random.Generator, config: AugmentConfig
) -> Callable[[Image, int], Image]:
    """Function that cuts the same square out of any picture; beyond the picture its edge is repeated."""
    shift, scale, rotation, flip = config.shift, config.scale, config.rotation, config.flip
    boxes = np.array([box], np.float32)
    square = crop_squares(boxes, margin)[0].astype(np.float64)
    centre, side = (square[:2] + square[2:]) / 2, square[2] - square[0]
    if rng.random() < shift.probability:
        centre += rng.uniform(-1, 1, 2) * shift.share * side / (1 + 2 * margin)
    if rng.random() < scale.probability:
        side *= np.exp(rng.uniform(*np.log(scale.factor)))
    x_min, y_min, x_max, y_max = np.rint([*(centre - side / 2), *(centre + side / 2)]).astype(int).tolist()
    pixels = max(1, x_max - x_min, y_max - y_min)
    degrees = rng.uniform(-1, 1) * rotation.degrees if rng.random() < rotation.probability else 0.0
    flipped = rng.random() < flip.probability

    def cut(image: Image, interpolation: int) -> Image:
        if degrees:
            turn = cv2.getRotationMatrix2D((float(centre[0]), float(centre[1])), degrees, 1.0)
            turn[:, 2] += (pixels - 1) / 2 - centre
            view = cv2.warpAffine(
                image, turn, (pixels, pixels), flags=interpolation, borderMode=cv2.BORDER_REPLICATE
            )
        else:
            rows = np.clip(np.arange(y_min, y_min + pixels), 0, image.shape[0] - 1)
            columns = np.clip(np.arange(x_min, x_min + pixels), 0, image.shape[1] - 1)
            view = image[rows[:, None], columns]
        return np.ascontiguousarray(view[:, ::-1]) if flipped else view

    return cut


def _change_brightness(
    views: list[UInt8Array], settings: settings_of.Brightness, face_px: float, rng: np.random.Generator
) -> list[UInt8Array]:
    brightness, contrast, gamma = rng.uniform(-1, 1, 3) * [
        settings.brightness,
        settings.contrast,
        settings.gamma,
    ]
    return [
        ops.adjust_tones(view, brightness=brightness, contrast=contrast, gamma=float(np.exp(gamma)))
        for view in views
    ]


def _change_colour(
    views: list[UInt8Array], settings: settings_of.Colour, face_px: float, rng: np.random.Generator
) -> list[UInt8Array]:
    shift = (rng.uniform(-1, 1, 3) * settings.shift_levels).tolist()
    hue, saturation = rng.uniform(-1, 1, 2) * [settings.hue_degrees, settings.saturation]
    return [
        ops.adjust_colour(ops.adjust_tones(view, shift=shift), hue_degrees=hue, saturation=saturation)
        for view in views
    ]


def _make_grey(
    views: list[UInt8Array], settings: settings_of.Grey, face_px: float, rng: np.random.Generator
) -> list[UInt8Array]:
    return [ops.adjust_colour(view, saturation=-1.0) for view in views]


def _reduce(
    views: list[UInt8Array], settings: settings_of.Reduction, face_px: float, rng: np.random.Generator
) -> list[UInt8Array]:
    factor = float(rng.uniform(*settings.factor))
    shrinking, enlarging = ops.draw_interpolations(rng)
    return [ops.reduce_resolution(view, factor, shrinking, enlarging) for view in views]


def _blur(
    views: list[UInt8Array], settings: settings_of.Blur, face_px: float, rng: np.random.Generator
) -> list[UInt8Array]:
    if rng.random() < settings.motion:
        length, angle = float(rng.uniform(*settings.motion_px)), float(rng.uniform(0, 180))
        return [ops.motion_blur(view, length, angle) for view in views]
    sigma = float(rng.uniform(*settings.sigma_px))
    return [ops.blur(view, sigma) for view in views]


def _dim(
    views: list[UInt8Array], settings: settings_of.LowLight, face_px: float, rng: np.random.Generator
) -> list[UInt8Array]:
    light, gamma, levels = (
        float(rng.uniform(*limits)) for limits in (settings.light, settings.gamma, settings.noise_levels)
    )
    return _with_noise([ops.dim(view, light, gamma) for view in views], levels, 0.0, rng)


def _add_noise(
    views: list[UInt8Array], settings: settings_of.Noise, face_px: float, rng: np.random.Generator
) -> list[UInt8Array]:
    levels, grain = float(rng.uniform(*settings.levels)), float(rng.uniform(0, settings.grain_px))
    return _with_noise(views, levels, grain, rng)


def _with_noise(
    views: list[UInt8Array], levels: float, grain_px: float, rng: np.random.Generator
) -> list[UInt8Array]:
    # By a generator of its own, for its draws are as many as the pixels.
    own = np.random.default_rng(int(rng.integers(2**63)))
    noise = ops.draw_noise(views[0].shape[:2], levels, grain_px, own)
    return [ops.add_levels(view, noise) for view in views]


def _smooth(
    views: list[UInt8Array], settings: settings_of.Smoothing, face_px: float, rng: np.random.Generator
) -> list[UInt8Array]:
    if rng.random() < settings.median:
        side = int(rng.choice((3, 5)))
        return [ops.median(view, side) for view in views]
    radius, levels = float(rng.uniform(*settings.radius)), float(rng.uniform(*settings.levels))
    return [ops.smooth(view, radius * face_px, levels) for view in views]


def _upload(
    views: list[UInt8Array], settings: settings_of.Upload, face_px: float, rng: np.random.Generator
) -> list[UInt8Array]:
    return h264(views, crf=float(rng.uniform(*settings.crf)), preset="veryfast", rng=rng)


def _resize(
    views: list[UInt8Array], settings: settings_of.Resize, face_px: float, rng: np.random.Generator
) -> list[UInt8Array]:
    goal = np.exp(rng.uniform(*np.log(settings.face_px)))
    factor = float(min(goal / face_px, settings.most_enlarged))
    shrinking, enlarging = ops.draw_interpolations(rng)
    side = round(views[0].shape[0] * factor)
    return [ops.resize(view, side, side, shrinking if factor < 1 else enlarging) for view in views]


def _compress_video(
    views: list[UInt8Array], settings: settings_of.Video, face_px: float, rng: np.random.Generator
) -> list[UInt8Array]:
    preset = settings.presets[int(rng.integers(len(settings.presets)))]
    return h264(views, crf=float(rng.uniform(*settings.crf)), preset=preset, rng=rng)


def _compress_still(
    views: list[UInt8Array], settings: settings_of.Still, face_px: float, rng: np.random.Generator
) -> list[UInt8Array]:
    low, high = settings.quality
    quality = int(rng.integers(low, high + 1))
    return [jpeg(view, quality) for view in views]


_CHANGES: MappingProxyType[str, Callable[..., list[UInt8Array]]] = MappingProxyType(
    {
        "brightness": _change_brightness,
        "colour": _change_colour,
        "grey": _make_grey,
        "reduction": _reduce,
        "blur": _blur,
        "low_light": _dim,
        "noise": _add_noise,
        "smoothing": _smooth,
        "upload": _upload,
        "resize": _resize,
        "h264": _compress_video,
        "jpeg": _compress_still,
    }
)
"""What follows the cut, in this order: (views, settings, longer side of the face's box, rng) -> views."""

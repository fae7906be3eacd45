"""Which augmentations there are, how often each happens and how strong it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from streamer.config import Probability
from streamer.errors import ConfigError
from streamer.training.compress import Preset
from streamer.training.ranges import (
    CrfRange,
    Gamma,
    NotNegative,
    PixelRange,
    QualityRange,
    Range,
    ScaleRange,
    Section,
    UpToOneRange,
)


class _Augmentation(Section):
    probability: Probability
    """0 switches it off."""


class Shift(_Augmentation):
    """Translation: detectors do not put their box at the same place twice."""

    probability: Probability = 1.0
    share: NotNegative = 0.08
    """Largest, in box sides, to each side."""


class Scale(_Augmentation):
    """A wider or narrower crop."""

    probability: Probability = 1.0
    factor: ScaleRange = (0.85, 1.2)
    """Of the crop's side."""


class Rotation(_Augmentation):
    """About the middle of the face."""

    probability: Probability = 0.4
    degrees: NotNegative = 12.0


class Flip(_Augmentation):
    """Left for right."""

    probability: Probability = 0.5


class Brightness(_Augmentation):
    """Brightness, contrast and gamma."""

    probability: Probability = 0.5
    brightness: NotNegative = 0.15
    """Largest, share of the full range, to either side."""
    contrast: NotNegative = 0.25
    gamma: Gamma = 0.25
    """Exponent exp(+-gamma)."""


class Colour(_Augmentation):
    """White balance, hue and saturation."""

    probability: Probability = 0.3
    shift_levels: NotNegative = 12.0
    hue_degrees: NotNegative = 8.0
    saturation: NotNegative = 0.35


class Grey(_Augmentation):
    """Black and white."""

    probability: Probability = 0.03


class Reduction(_Augmentation):
    """Resolution reduction: shrunk and enlarged again, as by zooming in on a distant face."""

    probability: Probability = 0.25
    factor: UpToOneRange = (0.3, 0.9)


class Blur(_Augmentation):
    """Out of focus, or moved."""

    probability: Probability = 0.15
    sigma_px: PixelRange = (0.4, 1.8)
    motion: Probability = 0.3
    """Share of these that are blurred along a line instead."""
    motion_px: PixelRange = (2.0, 7.0)


class LowLight(_Augmentation):
    """A dark room: less light, dark tones darker still, and the sensor's noise, which is more beside them."""

    probability: Probability = 0.0
    light: UpToOneRange = (0.35, 0.9)
    """Share of it that is left."""
    gamma: Range = (1.0, 1.7)
    """Exponent of the level in [0, 1]."""
    noise_levels: Range = (0.5, 4.0)


class Smoothing(_Augmentation):
    """Skin made smooth, or noise taken out, with edges kept: as by a beauty filter or a denoiser."""

    probability: Probability = 0.0
    median: Probability = 0.4
    """Share of these that are the median of 3 x 3 or 5 x 5 pixels; the others are a bilateral filter."""
    radius: Range = (0.004, 0.014)
    """Standard deviation of its weight by distance, in longer sides of the face's box."""
    levels: Range = (12.0, 45.0)
    """Standard deviation of its weight by difference."""


class Noise(_Augmentation):
    """Of the sensor: Gaussian, of a random grain."""

    probability: Probability = 0.2
    levels: Range = (1.0, 8.0)
    grain_px: Annotated[float, Field(ge=0, le=100)] = 1.2
    """Coarsest, standard deviation of its blur."""


class Upload(_Augmentation):
    """An earlier H.264 compression, at the first size: most videos are compressed twice."""

    probability: Probability = 0.15
    crf: CrfRange = (18.0, 30.0)


class Resize(_Augmentation):
    """To the size at which the video is compressed."""

    probability: Probability = 0.5
    face_px: Range = (60.0, 300.0)
    """Longer side of the face's box, drawn evenly in its logarithm."""
    most_enlarged: Annotated[float, Field(ge=1, le=10)] = 1.5


class Video(_Augmentation):
    """H.264 by libx264."""

    probability: Probability = 0.6
    crf: CrfRange = (18.0, 42.0)
    presets: Annotated[tuple[Preset, ...], Field(min_length=1)] = ("superfast", "veryfast", "medium")


class Still(_Augmentation):
    """JPEG."""

    probability: Probability = 0.25
    quality: QualityRange = (35, 95)


class AugmentConfig(Section):
    """What may happen to a view; the order is that in which it happens."""

    shift: Shift = Shift()
    scale: Scale = Scale()
    rotation: Rotation = Rotation()
    flip: Flip = Flip()
    brightness: Brightness = Brightness()
    colour: Colour = Colour()
    grey: Grey = Grey()
    reduction: Reduction = Reduction()
    blur: Blur = Blur()
    low_light: LowLight = LowLight()
    noise: Noise = Noise()
    smoothing: Smoothing = Smoothing()
    upload: Upload = Upload()
    resize: Resize = Resize()
    h264: Video = Video()
    jpeg: Still = Still()

    def without(self, *names: str) -> AugmentConfig:
        """The same with some augmentations switched off; for ablations. Raises ConfigError."""
        return self._with_probability(0.0, names)

    def only(self, *names: str) -> AugmentConfig:
        """Nothing but these, and these always. Raises ConfigError."""
        return self.without(*AUGMENTATIONS)._with_probability(1.0, names)

    def _with_probability(self, probability: float, names: Sequence[str]) -> AugmentConfig:
        if unknown := set(names) - set(AUGMENTATIONS):
            raise ConfigError(
                f"no augmentation {', '.join(sorted(unknown))}; there are {', '.join(AUGMENTATIONS)}"
            )
        changed = {
            name: getattr(self, name).model_copy(update={"probability": probability}) for name in names
        }
        return self.model_copy(update=changed)


AUGMENTATIONS: tuple[str, ...] = tuple(AugmentConfig.model_fields)

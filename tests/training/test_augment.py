"""Views of a crop: nothing is serving's own view; everything in one call changes alike."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from portraits import astronaut, sharpness
from pydantic import ValidationError

from streamer.errors import ConfigError, TrainingError
from streamer.faces.crop import crop_faces
from streamer.training import augment
from streamer.training.augment import AUGMENTATIONS, AugmentConfig, View, make_views, plain_view
from streamer.types import Float32Array, UInt8Array

MARGIN = 0.3
NOTHING = AugmentConfig().without(*AUGMENTATIONS)
GEOMETRY = ("shift", "scale", "rotation", "flip")


def views(
    images: list[UInt8Array],
    config: AugmentConfig,
    *,
    masks: list[Float32Array | None] | None = None,
    box: tuple[float, float, float, float] | None = None,
    size: int = 160,
    seed: int = 0,
) -> list[View]:
    return make_views(
        images,
        masks or [None] * len(images),
        box or astronaut().box,
        margin=MARGIN,
        size=size,
        rng=np.random.default_rng(seed),
        config=config,
    )


def view(config: AugmentConfig, *, seed: int = 0, size: int = 160) -> UInt8Array:
    ((rgb, _),) = views([astronaut().picture.rgb], config, seed=seed, size=size)
    return rgb


@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize("box", [None, (-40.0, 30.0, 80.0, 170.0), (150.0, 150.0, 260.0, 240.0)])
def test_nothing_gives_what_serving_cuts(box: tuple[float, float, float, float] | None, size: int) -> None:
    face = astronaut()
    rgb, box = face.picture.rgb, box or face.box
    expected = crop_faces(rgb, np.array([box], np.float32), margin=MARGIN, size=size)[0]
    mask = rgb[:, :, 0].astype(np.float32) / 255
    ((got, share),) = views([rgb], NOTHING, masks=[mask], box=box, size=size)
    np.testing.assert_array_equal(got, expected)
    np.testing.assert_array_equal(plain_view(rgb, box, margin=MARGIN, size=size), expected)
    assert share is not None
    assert share.dtype == np.float32
    assert np.abs(share * 255 - expected[:, :, 0]).max() <= 1


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_each_changes_the_view_and_both_of_a_pair_alike(name: str) -> None:
    rgb = astronaut().picture.rgb
    mask = np.zeros(rgb.shape[:2], np.float32)
    for seed in range(3):
        (one, share), (two, none) = views(
            [rgb, rgb], AugmentConfig().only(name), masks=[mask, None], seed=seed
        )
        np.testing.assert_array_equal(one, two)
        assert (one.shape, one.dtype) == ((160, 160, 3), np.uint8)
        assert share is not None
        assert share.shape == (160, 160)
        assert none is None
        assert not np.array_equal(one, view(NOTHING))


def test_pictures_of_two_shapes_suffer_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a fake of a data set and its original, which are cut out each by its own box."""
    drawn: list[float] = []

    def watched(images: list[UInt8Array], *, crf: float, **more: object) -> list[UInt8Array]:
        drawn.append(crf)
        return images

    monkeypatch.setattr(augment, "h264", watched)
    for side in (150, 170):
        picture = np.zeros((side, side, 3), np.uint8)
        box = (0.3 * side, 0.3 * side, 0.7 * side, 0.7 * side)
        views([picture], AugmentConfig().only("noise", "h264"), box=box)
    assert drawn[0] == drawn[1]


def test_same_seed_same_view() -> None:
    config = AugmentConfig()
    np.testing.assert_array_equal(view(config, seed=7), view(config, seed=7))
    assert len({view(config, seed=seed).tobytes() for seed in range(10)}) == 10


def test_all_together_keep_what_is_equal_in_a_pair_equal() -> None:
    """Where a pair is equal at the start it stays equal, but for what codecs carry over from nearby."""
    rgb = astronaut().picture.rgb
    other = rgb.copy()
    other[90:110, 90:110] = 255 - other[90:110, 90:110]
    mask = (other != rgb).any(axis=2).astype(np.float32)
    for seed in range(20):
        (one, _), (two, share) = views([rgb, other], AugmentConfig(), masks=[None, mask], seed=seed)
        assert share is not None
        difference = np.abs(one.astype(int) - two).mean(axis=2)
        away = cv2.dilate(share, np.ones((45, 45))) == 0
        assert difference[share > 0.9].mean() > 10 * difference[away].mean()


@pytest.mark.parametrize("name", GEOMETRY)
def test_the_mask_follows_the_picture(name: str) -> None:
    mask = np.zeros((208, 208), np.float32)
    mask[70:100, 85:140] = 1
    rgb = np.repeat((mask * 255).astype(np.uint8)[:, :, None], 3, axis=2)
    for seed in range(5):
        ((got, share),) = views([rgb], AugmentConfig().only(name), masks=[mask], seed=seed)
        assert share is not None
        assert share.sum() > 500
        assert 0 <= share.min() <= share.max() <= 1
        assert np.abs(share * 255 - got[:, :, 0]).mean() < 1


def test_no_black_edges() -> None:
    white = np.full((208, 208, 3), 255, np.uint8)
    for seed in range(10):
        config = AugmentConfig().only(*GEOMETRY, "reduction", "resize", "blur")
        ((got, _),) = views([white], config, box=(5.0, 120.0, 90.0, 205.0), seed=seed)
        assert got.min() >= 254


def test_geometry_is_within_its_ranges() -> None:
    """Where three dots of the crop are found in the views."""
    crop = np.zeros((208, 208, 3), np.uint8)
    for channel, (x, y) in enumerate(((84, 84), (124, 84), (104, 124))):
        cv2.circle(crop, (x, y), 6, tuple(255.0 * (c == channel) for c in range(3)), -1)
    box, config = (64.0, 64.0, 144.0, 144.0), AugmentConfig()
    sometimes = config.without(*AUGMENTATIONS[len(GEOMETRY) :])
    flipped = []
    for seed in range(40):
        ((got, _),) = views([crop], sometimes, box=box, size=128, seed=seed)
        weights = got.astype(float) / got.sum(axis=(0, 1))
        y, x = np.mgrid[:128, :128]
        dots = np.stack([(weights * x[..., None]).sum((0, 1)), (weights * y[..., None]).sum((0, 1))], axis=1)
        middle = dots.mean(axis=0)
        across = dots[1] - dots[0]
        flipped.append(across[0] < 0)
        across[0] = abs(across[0])
        assert abs(np.degrees(np.arctan2(across[1], across[0]))) < config.rotation.degrees + 1
        assert 1 / 1.22 < np.hypot(*across) / 40 < 1 / 0.83
        assert np.abs(middle - [64, 61]).max() < 128 * config.shift.share / 1.6 / 0.85 + 6
    assert 10 < sum(flipped) < 30


def test_grey_and_brightness() -> None:
    grey = view(AugmentConfig().only("grey")).astype(int)
    assert np.ptp(grey, axis=2).max() <= 2
    means = [view(AugmentConfig().only("brightness"), seed=seed).mean() for seed in range(8)]
    assert np.ptp(means) > 20


def test_low_light_is_darker_and_noisier() -> None:
    plain = np.full((60, 60, 3), 128, np.uint8)
    config = AugmentConfig.model_validate(
        {"low_light": {"light": [0.5, 0.5], "gamma": [1.5, 1.5], "noise_levels": [3.0, 3.0]}}
    )
    (dim, _), *_ = views([plain], config.only("low_light"), size=60)
    assert dim.mean() == pytest.approx(0.5 * 255 * (128 / 255) ** 1.5, abs=1)
    assert dim.std() > 1, "shrunk to the size of the view, so less than it was"


@pytest.mark.parametrize("name", ["reduction", "blur", "h264", "upload", "smoothing"])
def test_detail_is_lost(name: str) -> None:
    before = sharpness(view(NOTHING))
    after = [sharpness(view(AugmentConfig().only(name), seed=seed)) for seed in range(8)]
    assert max(after) < 1.02 * before
    assert np.mean(after) < 0.9 * before


def test_resize_sets_the_size_at_which_the_codec_works(monkeypatch: pytest.MonkeyPatch) -> None:
    sides = []

    def seen(images: list[UInt8Array], **settings: object) -> list[UInt8Array]:
        sides.append(images[0].shape[0])
        return images

    monkeypatch.setattr(augment, "h264", seen)
    for seed in range(30):
        view(AugmentConfig().only("resize", "h264"), seed=seed)
    native = 94 * (1 + 2 * MARGIN)
    assert 60 * (1 + 2 * MARGIN) - 2 <= min(sides) < native - 20
    assert native + 20 < max(sides) <= 1.5 * native + 2


def test_probability_is_how_often() -> None:
    config = NOTHING.model_copy(update={"grey": AugmentConfig().grey.model_copy(update={"probability": 0.3})})
    untouched = view(NOTHING, size=32)
    changed = sum(not np.array_equal(view(config, size=32, seed=seed), untouched) for seed in range(200))
    assert 40 < changed < 80


def test_switching() -> None:
    config = AugmentConfig()
    assert config.without("h264").h264.probability == 0
    assert config.without("h264").jpeg == config.jpeg
    only = config.only("h264", "jpeg")
    assert {name for name in AUGMENTATIONS if getattr(only, name).probability} == {"h264", "jpeg"}
    assert only.h264.crf == config.h264.crf
    with pytest.raises(ConfigError, match=r"no augmentation cutout; there are shift, scale, .*jpeg"):
        config.without("cutout")


def test_steps_are_those_of_the_configuration_in_its_order() -> None:
    assert (*GEOMETRY, *augment._CHANGES) == AUGMENTATIONS


@pytest.mark.parametrize(
    "wrong",
    [
        {"h264": {"crf": (40, 20)}},
        {"h264": {"probability": 1.5}},
        {"h264": {"presets": ("placebo",)}},
        {"jpeg": {"quality": (0, 50)}},
        {"cutout": {}},
        {"blur": {"sigma": 1}},
    ],
)
def test_wrong_configuration(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig.model_validate(wrong)


def test_shapes_must_agree() -> None:
    rgb = astronaut().picture.rgb
    with pytest.raises(TrainingError, match="got 2 images and 2 masks"):
        views([rgb, rgb[:100]], NOTHING)
    with pytest.raises(TrainingError, match="got 1 images and 1 masks"):
        views([rgb], NOTHING, masks=[np.zeros((10, 10), np.float32)])
    with pytest.raises(TrainingError, match="got 1 images and 2 masks"):
        views([rgb], NOTHING, masks=[None, None])

"""Blends: a fake differs from its real picture under the mask only, and as much as the mask says."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from portraits import astronaut, moved
from pydantic import ValidationError

from streamer.errors import TrainingError
from streamer.training import image_ops as ops
from streamer.training.augment import AugmentConfig, make_views
from streamer.training.blend import (
    BlendConfig,
    Blended,
    RegionWeights,
    cross_blend,
    decoded_blend,
    draw_mask,
    self_blend,
)
from streamer.training.face_regions import REGIONS, Region, region_outline
from streamer.training.source_changes import FREQUENCIES, FrequencyWeights, SourceChanges
from streamer.types import Float32Array

Make = Callable[[int, BlendConfig], Blended]
MOVE = np.array([[1.1, 0.1, -20], [-0.1, 1.1, 5]], np.float32)
UNCHANGED = SourceChanges(
    colour=0,
    shading=0,
    frequencies=FrequencyWeights(**{kind: kind == "none" for kind in FREQUENCIES}),
    warp_strength=(0, 0),
)


def only(region: Region) -> RegionWeights:
    return RegionWeights(**{each: float(each == region) for each in REGIONS})


def by_landmarks(seed: int, config: BlendConfig) -> Blended:
    picture = astronaut().picture
    return self_blend(picture.rgb, picture.landmarks, picture.keypoints, np.random.default_rng(seed), config)


def by_keypoints(seed: int, config: BlendConfig) -> Blended:
    picture = astronaut().picture
    return self_blend(picture.rgb, None, picture.keypoints, np.random.default_rng(seed), config)


def crossed(seed: int, config: BlendConfig) -> Blended:
    target = astronaut().picture
    source = moved(target, MOVE, 240)
    source = replace(source, rgb=np.ascontiguousarray(source.rgb[:, :, ::-1]))
    return cross_blend(target, source, np.random.default_rng(seed), config)


def decoded(seed: int, config: BlendConfig) -> Blended:
    """As if a decoder had painted a blurred face."""
    picture = astronaut().picture
    everywhere = np.ones(picture.rgb.shape[:2], np.float32)
    return decoded_blend(picture, ops.blur(picture.rgb, 2.0), everywhere, np.random.default_rng(seed), config)


MAKERS = pytest.mark.parametrize("make", [by_landmarks, by_keypoints, crossed, decoded])


@MAKERS
def test_the_pair_differs_under_the_mask_only(make: Make) -> None:
    regions = set()
    for seed in range(60):
        made = make(seed, BlendConfig(poisson=0.3))
        regions.add(made.region)
        assert made.fake.shape == made.real.shape == (208, 208, 3)
        assert made.fake.dtype == made.real.dtype == np.uint8
        assert (made.mask.shape, made.mask.dtype) == ((208, 208), np.float32)
        assert 0 == made.mask.min() < made.mask.max() <= 1
        off = np.abs(made.fake.astype(int) - made.real).max(axis=2)
        assert off[made.mask == 0].max() == 0
        assert off[made.mask > 0.5 * made.mask.max()].mean() > 0.5, "something is to be seen"
    assert len(regions) >= 6


@MAKERS
def test_same_seed_same_blend(make: Make) -> None:
    one, two = make(3, BlendConfig()), make(3, BlendConfig())
    np.testing.assert_array_equal(one.fake, two.fake)
    np.testing.assert_array_equal(one.mask, two.mask)
    assert len({make(seed, BlendConfig()).fake.tobytes() for seed in range(10)}) == 10


def test_real_is_the_picture_itself_or_its_changed_copy() -> None:
    rgb = astronaut().picture.rgb
    for seed in range(10):
        np.testing.assert_array_equal(by_landmarks(seed, BlendConfig(jitter_target=0)).real, rgb)
        np.testing.assert_array_equal(crossed(seed, BlendConfig()).real, rgb)
        np.testing.assert_array_equal(decoded(seed, BlendConfig()).real, rgb)
        changed = by_landmarks(seed, BlendConfig(jitter_target=1))
        assert not np.array_equal(changed.real, rgb)


def test_either_copy_may_be_the_changed_one() -> None:
    rgb = astronaut().picture.rgb
    changed = sum(not np.array_equal(by_landmarks(seed, BlendConfig()).real, rgb) for seed in range(60))
    assert 15 < changed < 45


def test_the_mask_is_the_share_of_the_source() -> None:
    """A source brighter by a constant: the difference is the mask times that."""
    rgb = (astronaut().picture.rgb // 2 + 40).astype(np.uint8)
    picture = astronaut().picture
    changes = UNCHANGED.model_copy(update={"colour": 1.0, "brightness": 0.25} | _NO_COLOUR)
    for seed in range(8):
        config = BlendConfig(changes=changes, jitter_target=0, poisson=0, ratios=(0.5,))
        made = self_blend(rgb, picture.landmarks, picture.keypoints, np.random.default_rng(seed), config)
        assert made.mask.max() == pytest.approx(0.5)
        off = made.fake.astype(float) - rgb
        full = off[made.mask > 0.499].mean() / 0.5
        np.testing.assert_allclose(off, (made.mask * full)[:, :, None].repeat(3, axis=2), atol=1.5)


_NO_COLOUR = {"shift_levels": 0.0, "contrast": 0.0, "gamma": 0.0, "hue_degrees": 0.0, "saturation": 0.0}


def test_an_unchanged_source_changes_nothing() -> None:
    """The warp and the blend add nothing of their own, so only the changes are there to be learnt."""
    for seed in range(8):
        made = by_landmarks(seed, BlendConfig(changes=UNCHANGED, poisson=0))
        np.testing.assert_array_equal(made.fake, made.real)


def test_ratios() -> None:
    highest = {round(float(by_landmarks(seed, BlendConfig()).mask.max()), 3) for seed in range(80)}
    assert highest == {0.25, 0.5, 0.75, 1.0}
    assert {round(float(crossed(seed, BlendConfig()).mask.max()), 3) for seed in range(40)} == {0.75, 1.0}


@pytest.mark.parametrize("region", REGIONS)
def test_the_mask_lies_on_its_region(region: Region) -> None:
    picture = astronaut().picture
    config = BlendConfig(regions=only(region))
    centre = region_outline(region, picture.landmarks, picture.keypoints).mean(axis=0)
    for seed in range(8):
        found, mask = draw_mask(
            (208, 208), picture.landmarks, picture.keypoints, np.random.default_rng(seed), config
        )
        assert found == region
        assert mask.max() == pytest.approx(1)
        y, x = np.mgrid[:208, :208]
        middle = np.array([(mask * x).sum(), (mask * y).sum()]) / mask.sum()
        assert np.linalg.norm(middle - centre) < 15


def test_masks_vary_in_shape_and_softness() -> None:
    picture = astronaut().picture

    def mask(seed: int, **changes: object) -> Float32Array:
        config = BlendConfig(regions=only("face")).model_copy(update=changes)
        return draw_mask((208, 208), None, picture.keypoints, np.random.default_rng(seed), config)[1]

    hard, soft = mask(0, softness=(0.005, 0.005)), mask(0, softness=(0.08, 0.08))
    steepest = [max(float(np.abs(np.diff(m, axis=axis)).max()) for axis in (0, 1)) for m in (hard, soft)]
    assert steepest[1] < 0.1 < steepest[0]
    areas = [mask(seed).sum() for seed in range(20)]
    assert max(areas) > 1.3 * min(areas)


def test_poisson_meets_the_target_at_the_border() -> None:
    changes = UNCHANGED.model_copy(update={"colour": 1.0})
    edge_off = {}
    for poisson in (0.0, 1.0):
        config = BlendConfig(
            changes=changes, poisson=poisson, jitter_target=0, ratios=(1.0,), regions=only("inner_face")
        )
        config = config.model_copy(update={"softness": (0.005, 0.005)})
        offs = []
        for seed in range(10):
            made = by_landmarks(seed, config)
            ring = (made.mask > 0.02) & (made.mask < 0.98)
            offs.append(np.abs(made.fake.astype(int) - made.real)[ring].mean())
        edge_off[poisson] = np.mean(offs)
    assert edge_off[1.0] < 0.5 * edge_off[0.0]


def test_a_cross_blend_is_aligned_and_takes_on_the_colours() -> None:
    """The same face, moved and with red and blue exchanged: laid over itself it almost fits again."""
    config = BlendConfig(
        changes=UNCHANGED, poisson=0, cross_ratios=(1.0,), regions=only("inner_face"), colour_match=(1.0, 1.0)
    )
    made = crossed(0, config)
    inside = made.mask > 0.9
    assert np.abs(made.fake.astype(int) - made.real)[inside].mean() < 14
    kept = made.fake[inside].astype(int).mean(axis=0) - made.real[inside].mean(axis=0)
    assert np.abs(kept).max() < 4
    unmatched = crossed(0, config.model_copy(update={"colour_match": (0.0, 0.0)}))
    assert np.abs(unmatched.fake.astype(int) - made.real)[inside].mean() > 25


def test_a_decoded_face_goes_no_further_than_its_square() -> None:
    picture = astronaut().picture
    where = np.zeros(picture.rgb.shape[:2], np.float32)
    where[:, :110] = 1  # ends on the nose
    inverted = np.asarray(255 - picture.rgb, np.uint8)
    for seed in range(10):
        rng = np.random.default_rng(seed)
        made = decoded_blend(picture, inverted, where, rng, BlendConfig(regions=only("face")))
        off = np.abs(made.fake.astype(int) - made.real).max(axis=2)
        assert off[:, 110:].max() == 0
        assert off.max() > 50
        assert made.mask.max() >= 0.75, "as strong as without the square"
    with pytest.raises(TrainingError, match="region face of the face lies outside what was decoded"):
        decoded_blend(picture, inverted, np.zeros_like(where), rng, BlendConfig(regions=only("face")))


def test_a_decoded_face_stays_where_it_is_or_is_moved() -> None:
    """Of the picture itself, put back where it was, nothing is to be seen."""
    picture = astronaut().picture
    everywhere = np.ones(picture.rgb.shape[:2], np.float32)

    def difference(chance: float) -> float:
        config = BlendConfig(decoded_warp=chance, poisson=0, regions=only("face"))
        rng = np.random.default_rng(0)
        made = [decoded_blend(picture, picture.rgb, everywhere, rng, config) for _ in range(5)]
        return float(np.mean([np.abs(each.fake.astype(int) - each.real).max() for each in made]))

    assert difference(0) <= 3  # the way through CIE Lab
    assert difference(1) > 20


def test_views_of_a_pair_differ_where_the_mask_is() -> None:
    face, made = astronaut(), by_landmarks(1, BlendConfig(regions=only("mouth"), ratios=(1.0,)))
    no_codec = AugmentConfig().without("h264", "upload", "jpeg", "blur", "reduction", "resize")
    (fake, mask), (real, _) = make_views(
        [made.fake, made.real],
        [made.mask, None],
        face.box,
        margin=0.3,
        size=160,
        rng=np.random.default_rng(5),
        config=no_codec,
    )
    assert mask is not None
    off = np.abs(fake.astype(int) - real).max(axis=2)
    assert off[mask > 0].mean() > 1
    assert off[mask == 0].max() <= 1


def test_inputs_stay_as_they_are() -> None:
    picture = astronaut().picture
    assert not picture.rgb.flags.writeable
    rgb = picture.rgb.copy()
    for seed in range(5):
        self_blend(rgb, picture.landmarks, picture.keypoints, np.random.default_rng(seed), BlendConfig())
    np.testing.assert_array_equal(rgb, picture.rgb)


def test_a_face_outside_its_picture() -> None:
    picture = astronaut().picture
    away = picture.keypoints + np.float32(400)
    with pytest.raises(TrainingError, match=r"region \w+ of the face lies outside its picture of 208x208"):
        self_blend(picture.rgb, None, away, np.random.default_rng(0), BlendConfig())
    for shift in (60, 90, -70):  # partly outside
        for seed in range(6):
            near = picture.keypoints + np.float32(shift)
            config = BlendConfig(regions=only("face"), poisson=0.5)
            made = self_blend(picture.rgb, None, near, np.random.default_rng(seed), config)
            assert made.mask.max() > 0.2


def test_keypoints_of_no_face() -> None:
    with pytest.raises(TrainingError, match="keypoints span a face"):
        self_blend(
            astronaut().picture.rgb,
            None,
            np.zeros((6, 2), np.float32),
            np.random.default_rng(0),
            BlendConfig(),
        )


@pytest.mark.parametrize(
    "wrong",
    [
        {"regions": dict.fromkeys(REGIONS, 0.0)},
        {"regions": {"ear": 1.0}},
        {"ratios": ()},
        {"ratios": (0.0, 1.0)},
        {"poisson": 2},
        {"softness": (0.06, 0.01)},
        {"changes": {"jpeg_quality": (90, 30)}},
        {"changes": {"downscale": (0.5, 1.5)}},
    ],
)
def test_wrong_configuration(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        BlendConfig.model_validate(wrong)

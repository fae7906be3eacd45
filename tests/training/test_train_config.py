"""Recipes: read whole or refused with the key that is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.errors import TrainingError
from streamer.training.config import TrainConfig, differences, load_recipe, parse_config

RECIPES = Path(__file__).parents[2] / "recipes"

MODEL = {"model": {"architecture": "mobilenet_v2"}}


def write(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text)
    return path


def test_recipe_with_overrides(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        'steps = 50\n[model]\narchitecture = "densenet121"\ndropout = 0.3\n[augment.h264]\nprobability = 1.0',
    )
    config = load_recipe(path, {"steps": 60, "model": {"pretrained": False}})
    assert (config.steps, config.model.architecture) == (60, "densenet121")
    assert (config.model.dropout, config.model.pretrained) == (0.3, False)
    assert config.augment.h264.probability == 1
    assert config.augment.without("h264").h264.probability == 0


def test_json_keeps_everything() -> None:
    config = parse_config(MODEL | {"distillation": {"teacher": "a/b.pt"}, "max_minutes": 5}, "x")
    assert TrainConfig.model_validate_json(config.model_dump_json()) == config


@pytest.mark.parametrize(
    ("start", "paths"), [(None, ()), ("a.pt", ("a.pt",)), (["a.pt", "b.json"], ("a.pt", "b.json"))]
)
def test_one_start_or_several(start: object, paths: tuple[str, ...]) -> None:
    config = parse_config({"model": {"architecture": "mobilenet_v2", "start": start}}, "x")
    assert config.model.start == tuple(map(Path, paths))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"model": {"architecture": "resnet18"}}, r"model.architecture: .*'resnet18'"),
        (MODEL | {"optimiser": {"learning_rat": 1}}, r"optimiser.learning_rat; did you mean learning_rate"),
        (MODEL | {"augment": {"h265": {}}}, r"augment.h265; did you mean h264"),
        (MODEL | {"step": 1}, r"unknown key step; did you mean steps"),
        (MODEL | {"batch": 7}, r"batch: .*multiple of 2"),
        (MODEL | {"input": {"size": 200}}, r"input.size: .*multiple of 32"),
        (MODEL | {"mixture": {"self_blended": 0}}, r"at least one kind of pair"),
        (MODEL | {"mixture": {"decoded": 1}}, r"decoded is above 0: name an autoencoder"),
        (MODEL | {"optimiser": {"gradient_clip": float("inf")}}, r"optimiser.gradient_clip: .*finite"),
        (MODEL | {"blend": {"outline_noise": float("inf")}}, r"blend.outline_noise: .*finite"),
        (MODEL | {"seed": 2**63}, r"seed: .*less than 9223372036854775808"),
        (MODEL | {"input": {"size": 320_000}}, r"input.size: .*less than or equal to 1024, got 320000"),
        (MODEL | {"workers": 10**6}, r"workers: .*less than or equal to 1024"),
        (MODEL | {"batch": 10**12}, r"batch: .*less than or equal to 65536"),
        (MODEL | {"steps": 10**30}, r"steps: .*less than or equal to 1000000000"),
        (MODEL | {"augment": {"scale": {"factor": [1, 1e9]}}}, r"scale.factor.1: .*equal to 10, got"),
        (MODEL | {"augment": {"blur": {"motion_px": [1, 1e9]}}}, r"motion_px.1: .*equal to 100, got"),
        (MODEL | {"augment": {"noise": {"grain_px": 1e9}}}, r"grain_px: .*equal to 100, got"),
        (MODEL | {"augment": {"brightness": {"gamma": 1e9}}}, r"gamma: .*equal to 5, got"),
        (MODEL | {"blend": {"changes": {"blur_sigma_px": [1, 1e9]}}}, r"sigma_px.1: .*equal to 100, got"),
        ({}, r"model: Field required"),
    ],
)
def test_what_is_wrong_is_named(values: dict[str, object], message: str) -> None:
    with pytest.raises(TrainingError, match=f"(?s)^here: .*{message}"):
        parse_config(values, "here")


def test_every_mistake_is_told(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"(?s)steps.*\n.*batch"):
        load_recipe(write(tmp_path, 'steps = 0\nbatch = 3\n[model]\narchitecture = "densenet121"'))


@pytest.mark.parametrize("text", ["steps = ", None])
def test_unreadable(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "none.toml" if text is None else write(tmp_path, text)
    with pytest.raises(TrainingError, match="cannot read the recipe"):
        load_recipe(path)


def test_differences_that_change_the_weights() -> None:
    before = parse_config(MODEL | {"workers": 1, "log_every": 5}, "x")
    now = parse_config(MODEL | {"workers": 3, "log_every": 9, "seed": 7, "loss": {"mask_weight": 0}}, "x")
    assert differences(before, now) == ["loss.mask_weight: 0.5 -> 0.0", "seed: 1 -> 7"]
    assert differences(before, before) == []


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.toml")), ids=lambda path: path.stem)
def test_recipes_of_the_repository_are_valid(recipe: Path) -> None:
    config = load_recipe(recipe)
    assert config.model.architecture == recipe.stem or recipe.stem in (
        "light",
        "light_compressed",
        "light_sharp",
        "light_start",
        "graft",
        "graft_start",
    )

"""`--set KEY=VALUE`, of settings and of recipes."""

from __future__ import annotations

import pytest

from streamer.errors import ConfigError
from streamer.overrides import parse_override, put, recipe_overrides


@pytest.mark.parametrize(
    "text", ["sample.x=1", "a.b.c = d=e", 'kafka.group_id="[x]"', "faces.windows=['matrix']"]
)
def test_a_setting(text: str) -> None:
    expected = {
        "sample.x=1": ("sample.x", "1"),
        "a.b.c = d=e": ("a.b.c", "d=e"),
        'kafka.group_id="[x]"': ("kafka.group_id", "[x]"),
        "faces.windows=['matrix']": ("faces.windows", ["matrix"]),
    }
    assert parse_override(text) == expected[text]


@pytest.mark.parametrize("text", ["", "=", "a=1", ".=1", "a.=1", ".b=1", "a.b"])
def test_no_setting(text: str) -> None:
    with pytest.raises(ConfigError, match=r"section\.key=value"):
        parse_override(text)


def test_put() -> None:
    tree: dict[str, object] = {}
    put(tree, "a.b", 1)
    put(tree, "a.c", 2)
    assert tree == {"a": {"b": 1, "c": 2}}
    with pytest.raises(ConfigError, match="b has a value"):
        put(tree, "a.b.d", 3)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], {}),
        (["steps=5"], {"steps": 5}),
        (
            ["model.dropout=0.3", "model.architecture=densenet121"],
            {"model": {"dropout": 0.3, "architecture": "densenet121"}},
        ),
        (["a.b=[1, 2]", "a.c = 'x=y'"], {"a": {"b": [1, 2], "c": "x=y"}}),
    ],
)
def test_of_a_recipe(texts: list[str], expected: dict[str, object]) -> None:
    assert recipe_overrides(texts) == expected


@pytest.mark.parametrize("texts", [["steps"], ["=5"], ["a..b=1"], ["model=1", "model.dropout=0"]])
def test_wrong_ones_of_a_recipe(texts: list[str]) -> None:
    with pytest.raises(ConfigError, match="--set"):
        recipe_overrides(texts)

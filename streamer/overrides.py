"""`--set KEY=VALUE`: of the service's settings, and of recipes for training."""

from __future__ import annotations

import tomllib
from collections.abc import Iterable
from typing import Any

from streamer.errors import ConfigError


def put(tree: dict[str, Any], key: str, value: Any) -> None:
    """Set `a.b.c` in nested dictionaries. Raises ConfigError if a part of it holds a value already."""
    *sections, name = key.split(".")
    for section in sections:
        tree = tree.setdefault(section, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"--set {key}: {section} has a value, it is no section")
    tree[name] = value


def parse_override(text: str) -> tuple[str, Any]:
    """`section.key=value`. Lists, tables and quoted strings are TOML; others stay as they are.

    Raises ConfigError.
    """
    key, value = _parts(text, "section.key=value, e.g. sample.frames_per_second=2", least=2)
    if value[:1] not in ("[", "{", '"', "'"):
        return key, value
    try:
        return key, _toml(value)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"--set {key}: not a TOML value: {value} ({error})") from error


def recipe_overrides(texts: Iterable[str]) -> dict[str, Any]:
    """`key=value` texts, nested like a recipe; values are TOML, other text stays as it is.

    Raises ConfigError.
    """
    tree: dict[str, Any] = {}
    for text in texts:
        key, value = _parts(text, "key=value, e.g. model.dropout=0.3", least=1)
        try:
            put(tree, key, _toml(value))
        except tomllib.TOMLDecodeError:
            put(tree, key, value)
    return tree


def _parts(text: str, form: str, *, least: int) -> tuple[str, str]:
    """Key and value. least: parts that the key must have."""
    key, equals, value = (part.strip() for part in text.partition("="))
    names = key.split(".")
    if not equals or not all(names) or len(names) < least:
        raise ConfigError(f"--set takes {form}; got {text!r}")
    return key, value


def _toml(value: str) -> Any:
    return tomllib.loads(f"value = {value}")["value"]

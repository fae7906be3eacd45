"""Writes config.toml, every setting with its default, values and meaning, from streamer/config.py.

    python scripts/make_config_toml.py

A meaning is the docstring below the key. A test fails when the file is not what this prints.
"""

from __future__ import annotations

import ast
import inspect
import json
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from streamer import config
from streamer.config import Config

OUTPUT = Path(__file__).parents[1] / "config.toml"

WIDTH = 120
LONGEST_SETTING = 40
"""Columns; the meaning of a longer one goes below it."""

HEAD = """\
# Configuration of `streamer`: every setting with its default. Written by scripts/make_config_toml.py.
#
# Each may be left out. What is set elsewhere wins over this file, in this order:
#   1. the command line:   streamer --set sample.frames_per_second=2 run
#   2. the environment:    STREAMER_SAMPLE__FRAMES_PER_SECOND=2  (two underscores; lists as JSON)
#   3. the file named by `--config`, or ./config.toml where there is one
# Settings without a default stand as comments. An unknown one is an error that names the nearest valid one.
# Secrets belong into the environment, and are never logged. `streamer doctor` checks what can be checked.
"""


def docstrings() -> dict[str, dict[str, str]]:
    """Class -> key -> the docstring below it, on one line."""
    found: dict[str, dict[str, str]] = {}
    for node in ast.parse(inspect.getsource(config)).body:
        if isinstance(node, ast.ClassDef):
            for field, below in zip(node.body, node.body[1:], strict=False):
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and isinstance(below, ast.Expr)
                    and isinstance(below.value, ast.Constant)
                ):
                    text = " ".join(str(below.value.value).split())
                    found.setdefault(node.name, {})[field.target.id] = text
    return found


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted name, class) of every section, in the order of the code."""
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield f"{prefix}{name}", type(field.default)
            yield from sections(type(field.default), f"{prefix}{name}.")


def values(schema: dict[str, Any]) -> str:
    """Those of a JSON Schema, if they can be listed."""
    for one in schema.get("anyOf", [schema]):
        if "enum" in one:
            *first, last = map(json.dumps, one["enum"])
            return f"{', '.join(first)} or {last}. "
    return ""


def settings(model: type[BaseModel]) -> Iterator[tuple[str, str]]:
    """(TOML, meaning) of every key of a section."""
    texts = docstrings().get(model.__name__, {})
    for name, schema in model.model_json_schema()["properties"].items():
        default = model.model_fields[name].default
        if isinstance(default, BaseModel):
            continue
        # what JSON and TOML write alike: text, numbers, booleans, lists of them
        value = '# {} = "..."' if default is None else "{} = " + json.dumps(schema["default"])
        yield value.format(name), values(schema) + texts.get(name, "")


def lines(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    """A section."""
    yield from ("", f"[{prefix}]")
    yield from textwrap.wrap(inspect.getdoc(model) or "", WIDTH, initial_indent="# ", subsequent_indent="# ")
    found = list(settings(model))
    column = 2 + max(len(toml) for toml, _ in found if len(toml) <= LONGEST_SETTING)
    for toml, meaning in found:
        about = textwrap.wrap(meaning, WIDTH - column - 2, break_on_hyphens=False)
        if len(toml) > LONGEST_SETTING:
            yield toml
            toml = ""
        for text in about:
            yield f"{toml:{column}}# {text}"
            toml = ""


def text() -> str:
    """What the file must hold."""
    return HEAD + "".join(f"{line}\n" for prefix, model in sections(Config) for line in lines(prefix, model))


if __name__ == "__main__":
    OUTPUT.write_text(text())
    print(OUTPUT)

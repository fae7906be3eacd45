"""Writes docs/configuration.md, every setting with type, default and meaning, from streamer/config.py.

    python scripts/make_configuration.py

A meaning is the docstring below the key, or its comment in config.toml. A test fails when the file is not
what this prints.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from streamer import config
from streamer.config import Config

ROOT = Path(__file__).parents[1]
OUTPUT = ROOT / "docs" / "configuration.md"

HEAD = """\
# Configuration

Written by `scripts/make_configuration.py` from [`streamer/config.py`](../streamer/config.py); do not edit.

Every setting may be left out. The first of these that has it is taken:

1. the command line: `streamer --set sample.frames_per_second=2 run`
2. the environment: `STREAMER_SAMPLE__FRAMES_PER_SECOND=2`, two underscores between levels; lists as JSON
3. the file named by `--config`, or `./config.toml` where there is one, like [this](../config.toml)

An unknown key is an error that names the nearest valid one. Secrets belong into the environment, and are
never logged. `streamer doctor` checks what can be checked.
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


def comments() -> dict[str, str]:
    """Dotted key -> its comment in config.toml."""
    found: dict[str, str] = {}
    section = ""
    for line in (ROOT / "config.toml").read_text().splitlines():
        if header := re.fullmatch(r"\[([\w.]+)\]", line):
            section = header[1]
        elif entry := re.fullmatch(r"(?:# )?(\w+) = (?:\[.*?\]|\"[^\"]*\"|[^#\s]+)\s*(?:#\s*(.*))?", line):
            found[f"{section}.{entry[1]}"] = entry[2] or ""
    return found


def sections(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, type[BaseModel]]]:
    """(dotted name, class) of every section, in the order of the code."""
    for name, field in model.model_fields.items():
        if isinstance(field.default, BaseModel):
            yield f"{prefix}{name}", type(field.default)
            yield from sections(type(field.default), f"{prefix}{name}.")


def kind(schema: dict[str, Any]) -> str:
    """A JSON Schema in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(kind(one) for one in schema["anyOf"] if one.get("type") != "null"))
    if "enum" in schema or "const" in schema:
        return ", ".join(f"`{value}`" for value in schema.get("enum", [schema.get("const")]))
    if schema.get("type") == "array":
        return f"list of {kind(schema['items'])}" if schema.get("items") else "list"
    bounds = [
        f"{sign} {schema[name]:g}"
        for name, sign in (
            ("exclusiveMinimum", ">"),
            ("minimum", "≥"),
            ("exclusiveMaximum", "<"),
            ("maximum", "≤"),
        )
        if name in schema
    ]
    formats = {"path": "path", "password": "secret", "ipvanynetwork": "network"}
    plain = {"integer": "whole number", "number": "number", "boolean": "`true`, `false`", "string": "text"}
    return " ".join([formats.get(schema.get("format", ""), plain[schema["type"]]), ", ".join(bounds)]).strip()


def rows(prefix: str, model: type[BaseModel]) -> Iterator[str]:
    """Lines of a section's table."""
    texts, short = docstrings().get(model.__name__, {}), comments()
    for name, schema in model.model_json_schema()["properties"].items():
        default = model.model_fields[name].default
        if isinstance(default, BaseModel):
            continue
        shown = "" if default is None else f"`{json.dumps(schema['default'], ensure_ascii=False)}`"
        text = texts.get(name) or short.get(f"{prefix}.{name}", "")
        if name not in texts and text.startswith(('"', "or ")):  # it only lists the values
            text = ""
        if text and f"`{text.split(':')[0]}`" not in kind(schema):
            text = text[0].upper() + text[1:]
        cells = [f"`{name}`", kind(schema), shown, text and f"{text.removesuffix('.')}."]
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def text() -> str:
    """What the file must hold."""
    parts = [HEAD]
    for prefix, model in sections(Config):
        about = inspect.getdoc(model) or ""
        parts += [f"\n## `[{prefix}]`\n\n{about}\n\n| key | value | default | meaning |\n|---|---|---|---|"]
        parts += ["\n" + row for row in rows(prefix, model)]
        parts += ["\n"]
    return "".join(parts)


if __name__ == "__main__":
    OUTPUT.parent.mkdir(exist_ok=True)
    OUTPUT.write_text(text())
    print(OUTPUT)

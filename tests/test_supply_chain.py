"""What is installed may be used, and nothing that is read can run code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = [*(ROOT / "streamer").rglob("*.py"), ROOT / "build_engines.py"]

RUN_CODE = ("cloudpickle", "dill", "joblib", "jsonpickle", "marshal", "pickle", "shelve")
"""Libraries whose files run code when they are read."""

ONLY_NAMES = ("UnpicklingError",)
"""What may be used of them: torch raises it, too, where it refuses a file."""


def readers_of_code(source: str) -> Iterator[str]:
    """Each place that could read pickled data."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.ImportFrom(module=str(module)) if module.split(".")[0] in RUN_CODE:
                yield f"line {node.lineno}: from {module} import"
            case ast.Import(names=names):
                for alias in names:
                    if alias.name.split(".")[0] in RUN_CODE and (alias.asname or alias.name != "pickle"):
                        yield f"line {node.lineno}: import {alias.name}"
            case ast.Attribute(value=ast.Name(id="pickle"), attr=attr) if attr not in ONLY_NAMES:
                yield f"line {node.lineno}: pickle.{attr}"
            case ast.Call(func=ast.Attribute(attr="load", value=ast.Name(id="torch"))):
                if _argument(node, "weights_only") is not True:
                    yield f"line {node.lineno}: torch.load without weights_only=True"
            case ast.Call() if _argument(node, "allow_pickle") not in (None, False):
                yield f"line {node.lineno}: allow_pickle"


def _argument(call: ast.Call, name: str) -> object:
    """Value of a named argument, which has to be written out; None: it is not given."""
    value = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
    return None if value is None else getattr(value, "value", "something computed")


def test_nothing_unpickles() -> None:
    found = [f"{path}: {place}" for path in SOURCES for place in readers_of_code(path.read_text())]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle\npickle.load(file)",
        "import pickle as p",
        "import dill",
        "from pickle import loads",
        "import torch\ntorch.load(file)",
        "import torch\ntorch.load(file, weights_only=False)",
        "import torch\ntorch.load(file, weights_only=flag)",
        "import numpy as np\nnp.load(file, allow_pickle=True)",
    ],
)
def test_the_reader_of_sources_reads(source: str) -> None:
    assert len(list(readers_of_code(source))) == 1


def test_licences_are_allowed_and_listed() -> None:
    """As `make licences` does; of this Python's packages, which may be fewer than all."""
    packages = re.findall(r"^([\w.-]+)==", (ROOT / "requirements.lock").read_text(), re.MULTILINE)
    command = [sys.executable, "-m", "piplicenses", "--packages", *packages]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = {cells(line) for line in done.stdout.splitlines()}
    assert len(found) > 30
    assert found <= {cells(line) for line in (ROOT / "docs/licences.md").read_text().splitlines()}


def test_another_licence_fails() -> None:
    command = [sys.executable, "-m", "piplicenses", "--packages", "numpy", "--allow-only", "MIT"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "numpy" in done.stderr


def cells(line: str) -> tuple[str, ...]:
    """Cells of a table's row, however it is set."""
    return tuple(cell.strip() for cell in line.split("|") if cell.strip("-| "))


def test_nobody_is_told_to_install_a_namesake() -> None:
    """PyPI's `streamer` is another package: an extra of ours comes from the repository, and is there."""
    known = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    pages = [ROOT / "README.md", ROOT / "config.toml", *(ROOT / "docs").glob("*.md")]
    for path in (*SOURCES, *pages):
        text = path.read_text()
        assert not re.search(r"pip install ['\"]?streamer\b", text), path
        named = re.findall(r"missing_extra\(['\"](\w+)['\"]\)|pip install -e '\.\[(\w+)\]'", text)
        assert {extra for pair in named for extra in pair if extra} <= known.keys(), path

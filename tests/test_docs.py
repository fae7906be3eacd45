"""Documents name what there is."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from pydantic import BaseModel

from streamer.cli import app
from streamer.config import Config
from streamer.messages import ScoreUpdate
from streamer.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "engines").glob("*.md"))]
COMMAND: Any = typer.main.get_command(app)
FILES = ("py", "md", "json", "toml", "yaml", "html", "csv", "mp4", "onnx", "txt")


def anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    lost = []
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        path, _, anchor = link.partition("#")
        if "://" in link:
            continue
        to = page.parent / path if path else page
        if not to.exists() or (anchor and anchor not in anchors(to)):
            lost.append(link)
    assert lost == []


def commands(text: str) -> Iterator[tuple[str, set[str]]]:
    """Each call of `streamer` that a page shows: the command's name, and its options that there are not."""
    for line in text.replace("\\\n", " ").splitlines():
        for said in re.findall(r"(?:^|[ `/])streamer ([a-z-][^`|#]*)", line):
            command, named, known, words = COMMAND, [], options_of(COMMAND), said.split()
            while words and hasattr(command, "commands"):
                word = words.pop(0)
                if word.startswith("--"):  # before the command, with its value
                    words = words if "=" in word else words[1:]
                elif (found := command.commands.get(word)) is not None:
                    command = found
                    named.append(word)
                    known |= options_of(command)
                else:
                    break
            if named and not hasattr(command, "commands"):
                used = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", said))
                yield " ".join(named), used - known


def options_of(command: Any) -> set[str]:
    return {"--help"} | {
        option for param in command.params for option in (*param.opts, *param.secondary_opts)
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_exist(page: Path) -> None:
    assert [(named, unknown) for named, unknown in commands(page.read_text()) if unknown] == []


def test_commands_are_found_in_pages() -> None:
    """Lest the test above look at nothing."""
    shown = {named for page in PAGES for named, _ in commands(page.read_text())}
    assert {"score", "publish", "run", "topics create", "train prepare", "train fit", "train export"} <= shown
    (wrong,) = commands("streamer --set a.b=1 publish --video-ids x clip.mp4 # --not-this")
    assert wrong == ("publish", {"--video-ids"})


def fields(model: type[BaseModel]) -> dict[str, type[BaseModel] | None]:
    """Keys of a section, with the section that each is, if it is one."""
    return {
        name: field.annotation
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
        else None
        for name, field in model.model_fields.items()
    }


def is_setting(key: str) -> bool:
    """Of ours, of a recipe, or a field of a message."""
    for root in (Config, TrainConfig, ScoreUpdate):
        section: type[BaseModel] | None = root
        for part in key.split("."):
            if section is None or part not in fields(section):
                break
            section = fields(section)[part]
        else:
            return True
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_settings_exist(page: Path) -> None:
    sections = {name for root in (Config, TrainConfig) for name, of in fields(root).items() if of is not None}
    named = {
        key
        for key in re.findall(r"(?:`|--set )([a-z_]+(?:\.[a-z_0-9]+)+)(?=[` =])", page.read_text())
        if key.split(".")[0] in sections and key.split(".")[-1] not in FILES
    }
    assert sorted(key for key in named if not is_setting(key)) == []
    assert page.name != "operating.md" or len(named) > 10  # lest it look at nothing


def test_modules_of_the_picture_exist() -> None:
    named = set(
        re.findall(r"\b(?:\w+/)?\w+\.py\b|\b\w+/(?=<br/>)", (ROOT / "docs" / "architecture.md").read_text())
    )
    assert len(named) > 20
    missing = [one for one in named if not ((ROOT / "streamer" / one).exists() or (ROOT / one).exists())]
    assert missing == []


def test_tests_that_pages_name_exist() -> None:
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    defined = set(re.findall(r"^(?:async )?def (test_\w+)", sources, re.MULTILINE))
    named = {test for page in PAGES for test in re.findall(r"`(test_\w+)`", page.read_text())}
    assert len(named) > 30
    assert named - defined == set()

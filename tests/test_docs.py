"""Documents name what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from streamer.cli import app

ROOT = Path(__file__).parents[1]
OURS = ("architecture.md", "faq.md", "producers.md")


@pytest.mark.parametrize("name", OURS)
def test_links_lead_somewhere(name: str) -> None:
    folder = ROOT / "docs"
    links = re.findall(r"\]\(([^)#]+)\)", (folder / name).read_text())
    assert links
    assert [link for link in links if "://" not in link and not (folder / link).exists()] == []


def test_modules_of_the_picture_exist() -> None:
    named = set(
        re.findall(r"\b(?:\w+/)?\w+\.py\b|\b\w+/(?=<br/>)", (ROOT / "docs" / "architecture.md").read_text())
    )
    assert len(named) > 20
    missing = [one for one in named if not ((ROOT / "streamer" / one).exists() or (ROOT / one).exists())]
    assert missing == []


def test_options_of_publish_exist() -> None:
    text = (ROOT / "docs" / "producers.md").read_text()
    options = {
        option
        for line in text.replace("\\\n", " ").splitlines()
        for option in re.findall(r"streamer publish [^`|]*", line)
        for option in re.findall(r"--[a-z-]+", option)
    }
    assert {"--dash", "--hls", "--input-option", "--video-id"} <= options
    usage = CliRunner().invoke(app, ["publish", "--help"], env={"COLUMNS": "200"}).stdout
    assert [option for option in options if option not in usage] == []

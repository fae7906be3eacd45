"""docs/ says what the code does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path.name for path in DOCS.glob("*.md"))


def test_configuration_is_what_the_script_writes() -> None:
    script = runpy.run_path(str(ROOT / "scripts" / "make_configuration.py"))
    written = (DOCS / "configuration.md").read_text()
    assert written == script["text"](), "run: python scripts/make_configuration.py"


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (DOCS / page).read_text()):
        assert (DOCS / target).exists(), target


@pytest.mark.parametrize("page", PAGES)
def test_settings_that_are_named_exist(page: str) -> None:
    """`section.key` in code type, for sections of the configuration."""
    known = set(re.findall(r"^## `\[([\w.]+)\]`", (DOCS / "configuration.md").read_text(), re.MULTILINE))
    keys = {
        f"{section}.{key}"
        for section, table in re.findall(
            r"^## `\[([\w.]+)\]`(.*?)(?=^## |\Z)", (DOCS / "configuration.md").read_text(), re.M | re.S
        )
        for key in re.findall(r"^\| `(\w+)`", table, re.M)
    }
    for section, key in re.findall(r"`(\w+(?:\.security)?)\.(\w+)(?: =[^`]*)?`", (DOCS / page).read_text()):
        if section in known:
            assert f"{section}.{key}" in keys | known, f"{section}.{key}"

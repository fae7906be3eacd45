"""What the cards of the members in the repository tell their readers to do."""

from __future__ import annotations

import shlex
from itertools import pairwise
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")
pytestmark = pytest.mark.needs_torch  # the extra `train`, to which both belong

from streamer.manifest import read_manifest  # noqa: E402
from streamer.models.classifiers import ARCHITECTURES  # noqa: E402
from streamer.overrides import recipe_overrides  # noqa: E402
from streamer.training.cards import RECIPES, fine_tuning  # noqa: E402
from streamer.training.config import load_recipe  # noqa: E402
from streamer.training.model_card import SHIPPED_WARNING  # noqa: E402

ROOT = Path(__file__).parents[2]
MEMBERS = [path.stem for path in sorted((ROOT / "engines").glob("*.md"))]


@pytest.mark.parametrize("member", MEMBERS)
def test_the_commands_that_fine_tune(member: str) -> None:
    """The checkpoint that they export is chosen by the validation fakes of the data set, too."""
    assert member in RECIPES
    card = (ROOT / "engines" / f"{member}.md").read_text()
    assert f"> {SHIPPED_WARNING}\n" in card
    manifest = read_manifest(ROOT / "engines" / f"{member}.json")
    title, size = manifest.architecture, manifest.input.height
    (architecture,) = (name for name, known in ARCHITECTURES.items() if known.title == title)
    ways = fine_tuning(member, architecture, size=size)
    assert len(ways) == 2
    for way in ways:
        assert f"{way.words}\n\n```\n{way.commands}\n```\n" in card
        fit = shlex.split(way.commands.splitlines()[1])
        settings = [after for option, after in pairwise(fit) if option == "--set"]
        config = load_recipe(ROOT / fit[3], recipe_overrides(settings))
        assert config.model.start == (Path(f"engines/{member}.json"),)
        assert config.model.architecture == architecture
        assert config.input.size == size
        assert config.mixture.dataset_fake >= config.mixture.self_blended
        assert config.validation.crops > 0
        assert config.validation.patience * config.validation.every <= 10_000

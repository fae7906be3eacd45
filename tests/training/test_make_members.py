"""scripts/make_members.sh: that each of its runs could start, without running any."""

from __future__ import annotations

import subprocess
from itertools import pairwise
from pathlib import Path

import pytest

from streamer.manifest import read_manifest
from streamer.overrides import recipe_overrides
from streamer.training.config import TrainConfig, load_recipe

ROOT = Path(__file__).parents[2]

Fits = dict[str, TrainConfig]
"""Folder of a run -> its configuration, in the script's order."""


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> tuple[Fits, dict[str, str]]:
    """What the script tells `streamer`: its runs, and member -> checkpoint that it is exported from."""
    folder = tmp_path_factory.mktemp("told")
    program = folder / "streamer"
    program.write_text(
        f"#!/bin/sh\nfor word; do printf '%s\\0' \"$word\"; done >> {folder}/said\n"
        f"printf '\\n' >> {folder}/said\n"
    )
    program.chmod(0o755)
    subprocess.run(
        [ROOT / "scripts" / "make_members.sh", "CACHE", "--set", "workers=3"],
        env={"STREAMER": str(program), "PATH": "/usr/bin:/bin"},
        check=True,
    )
    fits: Fits = {}
    exports = {}
    autoencoders = {None}
    for line in (folder / "said").read_text().splitlines():
        _, command, subject, *options = line.rstrip("\0").split("\0")
        if command == "autoencoder":
            autoencoders.add(Path(options[options.index("--output") + 1]))
            continue
        if command == "fit":
            settings = [after for option, after in pairwise(options) if option == "--set"]
            config = load_recipe(ROOT / subject, recipe_overrides(settings))
            assert fits.setdefault(options[options.index("--run") + 1], config) is config, line
            assert config.mixture.autoencoder in autoencoders, line
        else:
            exports[options[options.index("--name") + 1]] = subject
    return fits, exports


def test_what_a_run_needs_was_made_before(told: tuple[Fits, dict[str, str]]) -> None:
    fits, exports = told
    made: set[str] = set()
    for run, config in fits.items():
        teacher = [config.distillation.teacher] if config.distillation.teacher else []
        assert {str(path.parent) for path in (*config.model.start, *teacher)} <= made, run
        assert config.workers == 3
        made.add(run)
    assert {str(Path(checkpoint).parent) for checkpoint in exports.values()} <= made


def test_the_members_are_those_in_the_repository(told: tuple[Fits, dict[str, str]]) -> None:
    fits, exports = told
    manifests = [read_manifest(path) for path in sorted((ROOT / "engines").glob("*.json"))]
    classifiers = {manifest.name: manifest for manifest in manifests if manifest.kind == "classifier"}
    assert set(exports) == set(classifiers)
    for name, manifest in classifiers.items():
        config = fits[f"runs/{name}"]
        assert f"seed {config.seed}; {config.steps:,} steps of {config.batch} images" in manifest.origin
        assert f"({config.input.size} px)" in manifest.origin
        assert f"learning rate {config.optimiser.learning_rate:g}," in manifest.origin

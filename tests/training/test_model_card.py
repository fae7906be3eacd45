"""A card says what a reader must know before using a member, in valid Markdown."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from evaluations import both_classes, evaluation, scorer
from toy import toy_config

pytest.importorskip("jinja2")
pytest.importorskip("matplotlib")

from streamer.errors import TrainingError
from streamer.manifest import Calibration, InputSpec, Manifest
from streamer.training.model_card import FineTuning, TrainingFacts, model_card, write_model_card

FACTS = TrainingFacts(
    data=("3,000 photographs of real faces", "1,200 face swaps from a collection"),
    licence_of_data="The photographs are not redistributed.",
    command="streamer train fit recipes/first.toml --cache CACHE --run RUN",
    config=toy_config(seed=7),
    steps=12_000,
    seconds=5_400,
    device="one H100",
    validation="AUC 0.95 on self-blends",
    file="weights rounded to float16",
)
FINE_TUNE = (
    FineTuning("On DFDC:", "streamer train prepare DFDC --source dfdc --cache CACHE\nstreamer train fit ..."),
    FineTuning("On FaceForensics++:", "streamer train prepare FF --source faceforensics --cache CACHE"),
)


def manifest(name: str = "first") -> Manifest:
    return Manifest(
        name=name,
        kind="classifier",
        architecture="DenseNet-121",
        file=f"{name}.onnx",
        sha256="0" * 64,
        input=InputSpec(layout="NCHW", height=224, width=224, mean=(0, 0, 0), std=(1, 1, 1)),
        outputs=("logit",),
        trained=True,
        calibration=Calibration(temperature=1.25, bias=-0.5),
        licence="Apache-2.0",
        origin="by hand",
        measured="nothing",
    )


def card(**changes: Any) -> str:
    return model_card(manifest(), evaluation(**changes), FACTS, FINE_TUNE)


def test_says_what_a_reader_must_know() -> None:
    text = card()
    for expected in (
        "# first\n",
        "> **Measure it on data of your own before anyone relies on it.**",
        "- 3,000 photographs of real faces\n- 1,200 face swaps",
        "Seed 7, 12,000 steps of 8 images, 90 min on one H100.",
        "AUC 0.95 on self-blends",
        '"architecture": "mobilenet_v2"',
        "streamer train prepare DFDC --source dfdc --cache CACHE\nstreamer train fit ...",
        "temperature 1.250, bias -0.500",
        "The file: weights rounded to float16.",
        "wholly synthetic faces",
        "Apache-2.0 (these weights). The photographs are not redistributed.",
        "H.264 (CRF): 0.910 undegraded, 0.910 at 23, 0.710 at 40",
    ):
        assert expected in text, expected


def test_its_own_figures_beside_those_of_the_ensemble() -> None:
    row = "| swaps | 4 + 4 | 4 | 0.910 | 0.860–0.930 | 0.880 | 88 % | 6.4 % | 0.960 |"
    assert row in card().splitlines()
    assert "The ensemble is the mean of first, second." in card().splitlines()
    assert "| real clips | 4 + 0 | 4 | – | – | – | – | 6.4 % | – |" in card().splitlines()


def test_a_member_alone_has_no_ensemble_beside_it() -> None:
    alone = card(
        members=evaluation().members[:1], sets=(both_classes(scorers=(scorer("first", 0.91),)),), curves=()
    )
    assert "| swaps | 4 + 4 | 4 | 0.910 | 0.860–0.930 | 0.880 | 88 % | 6.4 % |" in alone.splitlines()
    assert "ensemble |" not in alone
    assert "The ensemble is" not in alone
    assert "degraded before" not in alone


def test_markdown_holds_together() -> None:
    text = card()
    assert text.count("```") % 2 == 0
    assert "\n\n\n" not in text
    assert text.endswith("redistributed.\n")
    assert not re.search(r"[ \t]$", text, re.MULTILINE)
    lines = text.splitlines()
    tables = [line for line in lines if line.startswith("|")]
    assert len({line.count("|") for line in tables}) == 1
    first = lines.index(tables[0])
    assert lines[first : first + len(tables)] == tables
    assert re.fullmatch(r"\|(-{3}:?\|)+", tables[1])
    for index, line in enumerate(lines):
        if line.startswith("#"):
            assert lines[index + 1] == ""
            assert index == 0 or lines[index - 1] == ""


def test_without_metrics_of_training() -> None:
    text = model_card(manifest(), evaluation(), replace(FACTS, validation=""), FINE_TUNE)
    assert "validation of training" not in text


def test_a_member_that_was_not_measured_gets_no_card() -> None:
    with pytest.raises(TrainingError, match="swaps: no figures of 'other'"):
        model_card(manifest("other"), evaluation(), FACTS, FINE_TUNE)


def test_written_beside_the_manifest(tmp_path: Path) -> None:
    path = write_model_card(card(), tmp_path / "first.json")
    assert path == tmp_path / "first.md"
    assert path.read_text() == card()

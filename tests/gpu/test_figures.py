"""bench/figures.py: what was found is kept, whatever comes after it."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

from figures import Figures


def test_a_figure_is_printed_and_kept_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "figures.json"
    say = Figures(file, "a device", "f32").part("pipeline")
    say("frames_per_second", 123.456)
    expected = {"device": "a device", "precision": "f32", "failed": {}}
    assert json.loads(file.read_text()) == {**expected, "pipeline": {"frames_per_second": 123.456}}
    say("decoders", {"cpu": 3})
    assert json.loads(file.read_text())["pipeline"]["decoders"] == {"cpu": 3}
    assert capsys.readouterr().out.splitlines() == [
        "a device, f32",
        "pipeline: frames_per_second: 123.5",
        "pipeline: decoders: {'cpu': 3}",
    ]


def test_a_failure_is_one_of_the_figures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = Figures(tmp_path / "figures.json", "a device", "f32")
    with figures.attempt("pipeline"):
        raise OSError("no such library")
    with figures.attempt("scores"):
        figures.part("scores")("largest_difference", 0.5)
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["failed"] == {"pipeline": "OSError: no such library"}
    assert found["scores"] == {"largest_difference": 0.5}
    printed = capsys.readouterr()
    assert "pipeline: FAILED: OSError: no such library\n" in printed.out
    assert "Traceback" in printed.err


def test_a_part_that_is_interrupted_keeps_what_it_found(tmp_path: Path) -> None:
    figures = Figures(tmp_path / "figures.json", "a device", "f32")

    def measure() -> None:
        with figures.attempt("pipeline"):
            figures.part("pipeline")("frames_per_second", 1.5)
            raise KeyboardInterrupt  # what `timeout --signal=INT` makes of it

    with pytest.raises(KeyboardInterrupt):
        measure()
    found = json.loads((tmp_path / "figures.json").read_text())
    assert found["pipeline"] == {"frames_per_second": 1.5}
    assert found["failed"] == {}


def test_without_a_file_figures_are_printed_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Figures(None, "a device", "f32").part("pipeline")("frames_per_second", 1.5)
    assert list(tmp_path.iterdir()) == []

"""What is measured of a cache: on which part a threshold is chosen, and what a quick look leaves out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import pytest
from scorers import green_scorer, score_records
from toy import make_cache, toy_config

from streamer.config import Config
from streamer.errors import TrainingError
from streamer.training import measure as module
from streamer.training import metrics
from streamer.training.crops import INDEX, to_lines
from streamer.training.evaluate import Options
from streamer.training.figures import Evaluation, MemberFacts
from streamer.training.measure import measure
from streamer.training.types import FAKE, REAL, CropRecord, Split

SCORER = green_scorer(noise=3.0)

Measure = Callable[..., Evaluation]


@pytest.fixture
def measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Measure:
    """Measures a scorer by hand on a cache of these records."""
    facts = MemberFacts(name="green", architecture="", size=48, calibration=SCORER.calibration, origin="")
    monkeypatch.setattr(module, "_opened", lambda *_: nullcontext(([SCORER], [facts])))
    monkeypatch.setattr(module, "Options", partial(Options, bootstrap=0))  # which takes long

    def run(records: list[CropRecord], split: Split, *, quick: bool = False) -> Evaluation:
        (tmp_path / INDEX).write_text(to_lines(records))
        return measure(
            ["green"],
            cache=tmp_path,
            split=split,
            config=Config(),
            curves=False,
            quick=quick,
            workers=1,
            report=lambda _: None,
        )

    return run


def thresholds(evaluation: Evaluation) -> dict[str, float]:
    """By where they come from; the same on every set."""
    first, *others = (part.scorer("green").video.rates for part in evaluation.sets)
    found = {name: rates.threshold for name, rates in first.items()}
    for rates in others:
        assert {name: r.threshold for name, r in rates.items()} == found
    return found


@pytest.mark.parametrize("split", ["validation", "test"])
def test_the_threshold_is_chosen_on_the_validation_part(
    tmp_path: Path, measured: Measure, split: Split
) -> None:
    validation = make_cache(tmp_path, people=3, split="validation")
    tests = make_cache(tmp_path, people=2, split="test", seed=1)
    scores = score_records(SCORER, validation, cache=tmp_path)
    videos = metrics.by_video(scores, metrics.probabilities(scores, SCORER.calibration))

    found = measured(validation + tests, split)
    assert [part.name for part in found.sets] == [split, "self-blends", "hard self-blends", "cross-blends"]
    chosen = thresholds(found)["chosen on validation"]
    assert chosen == metrics.youden_threshold(videos.labels, videos.probabilities)


@pytest.mark.parametrize("label", [REAL, FAKE])
@pytest.mark.parametrize("split", ["validation", "test"])
def test_of_one_kind_alone_no_threshold_is_chosen(
    tmp_path: Path, measured: Measure, split: Split, label: int
) -> None:
    validation = [r for r in make_cache(tmp_path, split="validation") if r.label == label]
    found = measured(validation + make_cache(tmp_path, split="test"), split)
    assert list(thresholds(found)) == ["0.5", "alert.raise_at, 0.8"]


def test_quick_takes_a_part_of_what_is_measured_and_of_what_chooses(
    tmp_path: Path, measured: Measure, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = {"crops_per_video": 1, "videos": 4, "pictures": 1}
    monkeypatch.setattr(module, "QUICK", few)
    scored = []
    faces = module.RecordFaces
    monkeypatch.setattr(
        module, "RecordFaces", lambda records, cache: scored.append(len(records)) or faces(records, cache)
    )
    records = make_cache(tmp_path, split="validation") + make_cache(tmp_path, people=3, split="test")
    found = measured(records, "test", quick=True).sets[0]
    assert (found.real_videos, found.fake_videos, found.frames) == (2, 2, 4)
    assert scored == [4, 4]


@pytest.mark.needs_torch
@pytest.mark.parametrize("name", ["random", "constant", "ensemble"])
def test_a_run_that_is_called_as_a_row_of_the_report(name: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from streamer.training.checkpoint import save_checkpoint
    from streamer.training.state import State

    (tmp_path / INDEX).write_text(to_lines(make_cache(tmp_path, split="validation")))
    path = tmp_path / name / "best.pt"
    path.parent.mkdir()
    save_checkpoint(path, State.start(toy_config(), "data", torch.device("cpu")).checkpoint())
    with pytest.raises(TrainingError, match=f"another scorer is called {name} already"):
        measure(
            [str(path)],
            cache=tmp_path,
            split="validation",
            config=Config(),
            curves=False,
            quick=False,
            workers=1,
            report=lambda _: None,
        )

"""Figures of whole sets: right names and numbers, baselines, gains, pairs, curves; written and read again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scorers import green_scorer, score_records
from toy import make_cache

from streamer.errors import TrainingError
from streamer.manifest import Calibration
from streamer.training import metrics
from streamer.training.evaluate import (
    QUICK_DEGRADATIONS,
    EvaluationSet,
    Options,
    evaluate,
    originals_of,
)
from streamer.training.figures import Evaluation, MemberFacts, SetFigures, read_evaluation
from streamer.training.robustness import DEGRADATIONS, Degradation
from streamer.training.scoring import Blends, RecordFaces, Scorer
from streamer.training.types import FAKE, REAL

DARKER = Degradation("darker", "share", (0.5, 0.05), lambda rgb, level, rng: (rgb * level).astype(np.uint8))
OPTIONS = Options(title="a trial", made_with="a test", bootstrap=50, repeats=5, degradations=(DARKER,))


def facts_of(scorers: list[Scorer]) -> list[MemberFacts]:
    return [
        MemberFacts(
            name=s.name, architecture="by hand", size=s.size, calibration=s.calibration, origin="tests"
        )
        for s in scorers
    ]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def measured(cache: Path) -> Evaluation:
    """Three noisy members on twelve videos of six people with five frames each, and on self-blends."""
    records = make_cache(cache, people=6, frames=5, split="validation")
    scorers = [green_scorer(f"member{k}", size=40 + 8 * k, noise=6.0, seed=k) for k in range(3)]
    sets = [
        EvaluationSet(
            "squares", "drawn faces", "no", RecordFaces(records, cache), originals_of(records), curves=True
        ),
        EvaluationSet("blends", "drawn faces against blends of them", "no", Blends(records, cache)),
    ]
    options = replace(OPTIONS, choose_on=sets[0])
    return evaluate(scorers, facts_of(scorers), sets, options, notes=["drawn"])


def squares(evaluation: Evaluation) -> SetFigures:
    return evaluation.sets[0]


def test_counts(measured: Evaluation) -> None:
    found = squares(measured)
    assert (found.real_videos, found.fake_videos, found.people, found.frames) == (6, 6, 6, 60)
    assert [g.generator for g in found.generators] == ["real", "square"]
    blends = measured.sets[1]
    assert (blends.real_videos, blends.fake_videos, blends.people, blends.frames) == (6, 6, 6, 60)
    assert [g.generator for g in blends.generators] == ["real", "self-blend"]


def test_members_then_ensemble_then_baselines(measured: Evaluation) -> None:
    names = [figures.name for figures in squares(measured).scorers]
    assert names == ["member0", "member1", "member2", "ensemble", "random", "constant"]
    assert squares(measured).best_name == "ensemble"
    with pytest.raises(TrainingError, match="squares: no figures of 'other'"):
        squares(measured).scorer("other")


def test_figures_are_those_of_the_metrics(cache: Path, measured: Evaluation) -> None:
    records = make_cache(cache, people=6, frames=5, split="validation")
    scorer = green_scorer("member2", size=56, noise=6.0, seed=2)
    alone = score_records(scorer, records, cache=cache)
    p = metrics.probabilities(alone, scorer.calibration)
    videos = metrics.by_video(alone, p)
    figures = squares(measured).scorer("member2")
    assert figures.frame.auc == metrics.auc(alone.labels, p)
    assert figures.video.auc == metrics.auc(videos.labels, videos.probabilities)
    assert figures.video.log_loss == metrics.log_loss(videos.labels, videos.probabilities)
    ensemble = squares(measured).scorer("ensemble").frame.auc
    members = [squares(measured).scorer(f"member{k}").frame.auc for k in range(3)]
    assert ensemble is not None
    assert ensemble > max(auc for auc in members if auc is not None)


def test_thresholds_are_named_by_where_they_come_from(measured: Evaluation) -> None:
    rates = squares(measured).scorer("ensemble").video.rates
    assert list(rates) == ["0.5", "alert.raise_at, 0.8", "chosen on squares"]
    chosen = rates["chosen on squares"]
    assert chosen.found is not None
    assert chosen.false_alarms is not None
    for other in rates.values():
        assert other.found is not None
        assert other.false_alarms is not None
        assert chosen.found - chosen.false_alarms >= other.found - other.false_alarms


def test_a_threshold_chosen_on_another_set_is_applied_without_figures_of_it(cache: Path) -> None:
    records = make_cache(cache, people=3, frames=2)
    others = make_cache(cache, people=3, frames=2, split="validation", seed=1)
    scorer = green_scorer(noise=3.0)
    alone = score_records(scorer, others, cache=cache)
    videos = metrics.by_video(alone, metrics.probabilities(alone, scorer.calibration))
    said: list[str] = []
    found = evaluate(
        [scorer],
        facts_of([scorer]),
        [EvaluationSet("squares", "drawn faces", "no", RecordFaces(records, cache))],
        replace(OPTIONS, choose_on=EvaluationSet("others", "", "", RecordFaces(others, cache))),
        report=said.append,
    )
    assert [part.name for part in found.sets] == ["squares"]
    rates = found.sets[0].scorer("green").video.rates["chosen on others"]
    assert rates.threshold == metrics.youden_threshold(videos.labels, videos.probabilities)
    assert said[-1] == "others: scoring 12 faces to choose a threshold"


def test_intervals_enclose_and_baselines_have_none(measured: Evaluation) -> None:
    for figures in (squares(measured).scorer("ensemble").frame, squares(measured).scorer("member1").video):
        assert figures.auc_interval is not None
        assert figures.auc is not None
        assert figures.auc_interval[0] <= figures.auc <= figures.auc_interval[1]
    constant = squares(measured).scorer("constant")
    assert (constant.video.auc, constant.video.auc_interval) == (0.5, None)
    assert constant.frame.log_loss == pytest.approx(np.log(2))
    assert squares(measured).scorer("random").frame.log_loss > np.log(2)


def test_gains_grow_and_end_at_the_figure_of_all(measured: Evaluation) -> None:
    found = squares(measured)
    assert [point.count for point in found.frames_gain] == [1, 2, 3, 5]
    assert [point.count for point in found.members_gain] == [1, 2, 3]
    for gain in (found.frames_gain, found.members_gain):
        assert gain[0].auc < gain[-1].auc
        assert gain[-1].auc == pytest.approx(found.scorer("ensemble").video.auc)


def test_pairs(measured: Evaluation) -> None:
    pairs = squares(measured).pairs
    assert [pair.swapped for pair in pairs] == [f"validation/fake/{i}.mp4" for i in range(6)]
    assert [pair.original for pair in pairs] == [f"validation/real/{i}.mp4" for i in range(6)]
    assert squares(measured).pairs_above >= 5
    assert measured.sets[1].pairs == ()


def test_curves_fall(measured: Evaluation) -> None:
    (curve,) = measured.curves
    assert (curve.degradation, curve.on) == ("darker", "squares")
    assert list(curve.undegraded) == ["member0", "member1", "member2", "ensemble"]
    assert curve.undegraded["ensemble"] == squares(measured).scorer("ensemble").video.auc
    assert curve.points[-1].aucs["ensemble"] < curve.undegraded["ensemble"]


def test_calibration_is_used_and_left_out_where_it_says_so(measured: Evaluation) -> None:
    found = squares(measured)
    assert sum(b.count for b in found.reliability) == 60
    assert found.reliability != found.reliability_uncalibrated


def test_written_and_read_again(measured: Evaluation, tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(measured.model_dump_json())
    assert read_evaluation(path) == measured
    path.write_text("{}")
    with pytest.raises(TrainingError, match=r"report\.json: not an evaluation"):
        read_evaluation(path)
    with pytest.raises(TrainingError, match="cannot read"):
        read_evaluation(tmp_path / "none.json")


def test_the_same_seed_gives_the_same_report(cache: Path, measured: Evaluation) -> None:
    records = make_cache(cache, people=6, frames=5, split="validation")
    scorers = [green_scorer(f"member{k}", size=40 + 8 * k, noise=6.0, seed=k) for k in range(3)]
    sets = [EvaluationSet("squares", "drawn faces", "no", RecordFaces(records, cache), originals_of(records))]
    again = evaluate(scorers, facts_of(scorers), sets, replace(OPTIONS, choose_on=sets[0]))
    assert again.sets[0] == squares(measured)


def test_real_videos_alone_give_false_alarms_and_no_auc(cache: Path) -> None:
    records = [r for r in make_cache(cache, people=4, frames=2) if r.label == REAL]
    scorer = green_scorer()
    found = evaluate(
        [scorer],
        facts_of([scorer]),
        [EvaluationSet("real", "real ones", "no", RecordFaces(records, cache))],
        OPTIONS,
    ).sets[0]
    figures = found.scorer("green").video
    assert (figures.auc, figures.auc_interval, figures.equal_error_rate) == (None, None, None)
    rates = figures.rates["0.5"]
    assert (rates.found, rates.false_alarms) == (None, 1 - rates.accuracy)
    assert (found.roc, found.frames_gain, found.members_gain, found.best_name) == ({}, (), (), "green")


def test_originals_are_those_among_the_records(tmp_path: Path) -> None:
    records = make_cache(tmp_path, people=2, frames=1)
    fake = next(r for r in records if r.label == FAKE)
    assert originals_of(records)[fake.item] == fake.original
    assert originals_of([r for r in records if r.label == FAKE]) == {}


def test_quick_degradations_are_levels_of_the_full_ones_where_they_have_them() -> None:
    full = {degradation.name: degradation for degradation in DEGRADATIONS}
    for quick in QUICK_DEGRADATIONS:
        assert set(quick.levels) <= set(full[quick.name].levels)
        assert quick.apply is full[quick.name].apply
    assert {quick.name for quick in QUICK_DEGRADATIONS} == {"H.264", "resolution", "blur", "noise"}


@pytest.mark.parametrize("degradation", DEGRADATIONS, ids=lambda d: d.name)
def test_degradations_get_worse_level_by_level(degradation: Degradation, tmp_path: Path) -> None:
    """Further from the picture at every level, at the picture's size again; shape kept or shrunk alike."""
    import cv2
    import skimage.data

    rgb = np.ascontiguousarray(skimage.data.astronaut()[20:220, 120:320])
    distances = []
    for level in degradation.levels:
        spoiled = degradation.at(level)(rgb, np.random.default_rng(0))
        assert spoiled.dtype == np.uint8
        assert spoiled.shape[0] == spoiled.shape[1] <= 200
        back = cv2.resize(spoiled, (200, 200), interpolation=cv2.INTER_LINEAR)
        distances.append(float(np.abs(back.astype(float) - rgb).mean()))
        np.testing.assert_array_equal(spoiled, degradation.at(level)(rgb, np.random.default_rng(0)))
    assert distances == sorted(distances)
    assert distances[0] > 0


def test_neutral_calibration_by_default() -> None:
    assert Scorer("a", 32, lambda images: images[:, 0, 0, 0]).calibration == Calibration()

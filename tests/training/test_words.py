"""Sentences say the figures, and nothing where there is none."""

from __future__ import annotations

import pytest
from evaluations import both_classes, evaluation, real_alone, scorer

from streamer.training.words import curve_in_words, number, percent, set_in_words, summary


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (None, "–"),
        (0.0, "0 %"),
        (1.0, "100 %"),
        (0.5, "50 %"),
        (0.0234, "2.3 %"),
        (0.987, "98.7 %"),
        (0.9996, "99.96 %"),
        (0.0004, "0.04 %"),
    ],
)
def test_percent_never_rounds_to_all_or_nothing(share: float | None, text: str) -> None:
    assert percent(share) == text


def test_number() -> None:
    assert (number(0.12345), number(2.0, 1), number(None)) == ("0.123", "2.0", "–")


def test_a_set_of_both_classes() -> None:
    assert set_in_words(both_classes()) == (
        "swaps (4 real and 4 fake videos, 4 groups of people, 80 frames): AUC 0.960 per video, 95 % interval "
        "0.910–0.980, per frame 0.930; 88 % of the fake ones and 6.4 % of the real ones score 0.5 or more; "
        "the swapped video is above its original in 1 of 2 pairs."
    )


def test_pictures_have_no_figure_per_frame() -> None:
    assert "per frame" not in set_in_words(both_classes(frames=8))


def test_real_videos_alone_say_what_alarms() -> None:
    text = (
        "real clips (4 real and 0 fake videos, 4 groups of people, 80 frames): 6.4 % of the real ones score"
    )
    assert set_in_words(real_alone()).startswith(text)


def test_curves() -> None:
    curve = evaluation().curves[0]
    assert curve_in_words(curve, "first") == "H.264 (CRF): 0.910 undegraded, 0.910 at 23, 0.710 at 40"


def test_a_summary_says_who_on_what() -> None:
    first, swaps, real, robust = summary(evaluation())
    assert first.startswith("The mean of 2 networks (first, second)")
    assert swaps.startswith("swaps (")
    assert real.startswith("real clips (")
    assert (
        robust == "swaps, degraded, AUC per video: H.264 (CRF): 0.960 undegraded, 0.960 at 23, 0.760 at 40."
    )


def test_one_member_alone() -> None:
    alone = evaluation(
        members=evaluation().members[:1],
        sets=(both_classes(scorers=(scorer("first", 0.9), scorer("random", 0.5))),),
        curves=(),
    )
    assert summary(alone)[0].startswith("One network (first)")
    assert "AUC 0.900" in summary(alone)[1]

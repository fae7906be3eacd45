"""bench/gpu_scores.py: when do scores count as those of the CPU?"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.append(str(Path(__file__).parents[2] / "bench"))

from gpu_scores import say_differences


def differences(here: dict[str, list[float]], on_cpu: dict[str, list[float]]) -> dict[str, Any]:
    said: dict[str, Any] = {}
    say_differences(here, on_cpu, said.__setitem__)
    return said


@pytest.mark.parametrize(("score", "within"), [(0.705, True), (0.695, True), (0.72, False), (0.68, False)])
def test_the_clip_that_differs_most_counts(score: float, within: bool) -> None:
    said = differences(
        {"one": [0.2], "two": [score, score], "three": [0.4]},
        {"one": [0.2], "two": [0.8, 0.6], "three": [0.4]},
    )
    assert said["two"] == {
        "score": pytest.approx(score),
        "score_on_cpu": pytest.approx(0.7),
        "faces": 2,
        "faces_on_cpu": 2,
    }
    assert said["largest_difference"] == pytest.approx(abs(score - 0.7))
    assert said["within_0.01_of_the_cpu"] is within


@pytest.mark.parametrize(("here", "on_cpu"), [([], [0.5]), ([0.5], []), ([], [])])
def test_a_clip_without_a_face_is_within_no_distance(here: list[float], on_cpu: list[float]) -> None:
    said = differences({"one": here, "two": [0.5]}, {"one": on_cpu, "two": [0.5]})
    assert math.isnan(said["largest_difference"])
    assert said["within_0.01_of_the_cpu"] is False

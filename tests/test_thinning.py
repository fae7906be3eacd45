from __future__ import annotations

from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.thinning import SHARES, Thinning


def shares(lags: Iterable[int], from_lag: int = 64) -> list[float]:
    thinning = Thinning(from_lag)
    found = []
    for lag in lags:
        before = thinning.share
        assert thinning.update(lag) == (thinning.share != before)
        found.append(thinning.share)
    return found


def test_begins_with_all() -> None:
    assert Thinning(64).share == 1.0


@pytest.mark.parametrize(
    ("lag", "share"),
    [(0, 1.0), (63, 1.0), (64, 0.5), (127, 0.5), (128, 0.25), (255, 0.25), (256, 0.125), (10**9, 0.125)],
)
def test_steps_from_the_top(lag: int, share: float) -> None:
    assert shares([lag]) == [share]


def test_goes_back_at_half_of_what_led_there() -> None:
    assert shares([64, 40, 32, 31, 40, 63, 64]) == [0.5, 0.5, 0.5, 1.0, 1.0, 1.0, 0.5]


def test_a_deep_step_is_left_one_by_one_or_at_once() -> None:
    assert shares([300, 128, 127, 64, 63, 31]) == [0.125, 0.125, 0.25, 0.25, 0.5, 1.0]
    assert shares([300, 0]) == [0.125, 1.0]


@given(st.integers(1, 1000), st.lists(st.integers(0, 10_000)), st.integers(0, 10_000))
def test_a_steady_lag_changes_nothing_after_its_first_time(
    from_lag: int, before: list[int], lag: int
) -> None:
    found = shares([*before, lag, lag, lag], from_lag)
    assert found[-1] == found[-3]
    assert set(found) <= set(SHARES)

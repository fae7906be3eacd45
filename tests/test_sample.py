from __future__ import annotations

import bisect
import math
import os
import random
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.config import SampleConfig
from streamer.sample import GivenTimes, Sampler, sampling_rate, sampling_seed

RATES = st.floats(0.05, 60)
SEEDS = st.integers(0, 2**64 - 1)


def taken_times(
    rate: float, seed: int, times: list[float], end: float, *, at_least_one: bool = False
) -> list[float]:
    """Times of the frames that are kept of those shown from `times` on."""
    sampler = Sampler(rate, seed, at_least_one=at_least_one)
    ends = [*times[1:], end]
    return [
        start
        for number, (start, stop) in enumerate(zip(times, ends, strict=True))
        if sampler.takes(start, stop, last=number == len(times) - 1)
    ]


@given(RATES, SEEDS, st.integers(1, 40))
def test_one_sample_in_each_cell_when_frames_are_dense(rate: float, seed: int, cells: int) -> None:
    frames_per_cell = 50
    times = [number / (rate * frames_per_cell) for number in range(cells * frames_per_cell)]
    kept = taken_times(rate, seed, times, cells / rate)
    assert [math.floor(time * rate + 1e-6) for time in kept] == list(range(cells))


@given(RATES, SEEDS, st.lists(st.floats(0.001, 3), min_size=1, max_size=100))
def test_never_more_samples_than_cells_nor_than_frames(rate: float, seed: int, gaps: list[float]) -> None:
    times = [sum(gaps[:number]) for number in range(len(gaps))]
    end = sum(gaps)
    kept = taken_times(rate, seed, times, end)
    assert len(kept) <= min(math.ceil(end * rate), len(times))
    assert kept == sorted(set(kept))


@given(RATES, SEEDS, st.lists(st.floats(0.001, 3), min_size=1, max_size=100))
def test_the_frame_shown_at_the_timestamp_is_kept(rate: float, seed: int, gaps: list[float]) -> None:
    times = [sum(gaps[:number]) for number in range(len(gaps))]
    end = sum(gaps)
    generator = random.Random(seed)
    timestamps = [(cell + generator.random()) / rate for cell in range(math.ceil(end * rate) + 1)]
    shown = {times[bisect.bisect_right(times, moment) - 1] for moment in timestamps if moment < end}
    assert taken_times(rate, seed, times, end) == sorted(shown)


def test_replay_gives_the_same_and_another_chunk_does_not() -> None:
    times = [number / 30 for number in range(300)]
    first = taken_times(4, sampling_seed("camera-1", 7), times, 10)
    assert taken_times(4, sampling_seed("camera-1", 7), times, 10) == first
    assert taken_times(4, sampling_seed("camera-1", 8), times, 10) != first
    assert taken_times(4, sampling_seed("camera-2", 7), times, 10) != first


@given(st.text(), st.text(), st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1))
def test_seed_tells_chunks_apart(video: str, other_video: str, seq: int, other_seq: int) -> None:
    same = (video, seq) == (other_video, other_seq)
    assert (sampling_seed(video, seq) == sampling_seed(other_video, other_seq)) is same


@pytest.mark.parametrize("hash_seed", ["0", "1", "random"])
def test_seed_does_not_depend_on_the_process(hash_seed: str) -> None:
    code = "from streamer.sample import *; print(sampling_seed('camera-1', 7), Sampler(4, 1)._timestamp)"
    outcome = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        capture_output=True,
        check=True,
        text=True,
    )
    assert outcome.stdout == f"{sampling_seed('camera-1', 7)} {Sampler(4, 1)._timestamp}\n"


def test_timestamps_are_uniform_within_their_cell() -> None:
    grid = [number / 100 for number in range(100)]
    firsts = [taken_times(1, seed, grid, 1)[0] for seed in range(2000)]
    for decile in range(10):
        share = sum(decile / 10 <= time < (decile + 1) / 10 for time in firsts) / len(firsts)
        assert share == pytest.approx(0.1, abs=0.03)  # 4.5 standard deviations


@pytest.mark.parametrize(
    ("duration", "cap", "rate"),
    [
        (None, 100, 4.0),
        (10.0, 100, 4.0),
        (25.0, 100, 4.0),
        (50.0, 100, 2.0),
        (100.0, 100, 1.0),
        (1000.0, 100, 1.0),
        (8.0, 4, 1.0),
        (1000.0, 0, 4.0),
    ],
)
def test_rate(duration: float | None, cap: int, rate: float) -> None:
    config = SampleConfig(frames_per_second=4, frames_per_video=cap)
    assert sampling_rate(config, duration) == pytest.approx(rate)


@given(st.floats(0.1, 10_000), st.integers(1, 200), SEEDS)
def test_a_finite_video_in_one_chunk_stays_below_the_cap(duration: float, cap: int, seed: int) -> None:
    """Or gets a sample a second."""
    rate = sampling_rate(SampleConfig(frames_per_second=30, frames_per_video=cap), duration)
    times = [number * duration / 1000 for number in range(1000)]
    assert len(taken_times(rate, seed, times, duration)) <= max(cap, math.ceil(duration))


def test_less_than_one_a_second_if_that_is_wanted() -> None:
    assert sampling_rate(SampleConfig(frames_per_second=0.5, frames_per_video=100), 1000.0) == 0.5


@given(SEEDS)
def test_first_chunk_of_a_video_gives_at_least_one_frame(seed: int) -> None:
    assert taken_times(0.01, seed, [0.0], 0.04, at_least_one=True) == [0.0]


@given(RATES, SEEDS)
def test_a_first_chunk_that_has_its_samples_gets_no_other(rate: float, seed: int) -> None:
    times = [number / (10 * rate) for number in range(21)]  # its first cell has frames
    plain = taken_times(rate, seed, times, 2.1 / rate)
    assert taken_times(rate, seed, times, 2.1 / rate, at_least_one=True) == plain


def test_short_chunks_give_frames_in_proportion() -> None:
    kept = sum(len(taken_times(1, seed, [0.0, 0.1], 0.2)) for seed in range(3000))
    assert kept / 3000 == pytest.approx(0.2, abs=0.03)


def test_rate_must_be_positive() -> None:
    with pytest.raises(ValueError, match="rate"):
        Sampler(0, 1)


@given(st.lists(st.floats(0, 100), max_size=20), st.lists(st.floats(0.001, 3), min_size=1, max_size=60))
def test_the_frames_shown_at_given_times(given_times: list[float], gaps: list[float]) -> None:
    starts = [sum(gaps[:number]) for number in range(len(gaps))]
    sampler = GivenTimes(sorted(given_times))
    kept = [
        start
        for number, start in enumerate(starts)
        if sampler.takes(start, start + gaps[number], last=number == len(starts) - 1)
    ]
    assert kept == sorted({starts[bisect.bisect_right(starts, moment) - 1] for moment in given_times})

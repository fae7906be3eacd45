from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.limits import MAX_KEYS, MINUTE_MS, VideoLimits

NOW = 1000 * MINUTE_MS + 30_000
HOT = b"hot"


def test_no_limit_remembers_nothing() -> None:
    limits = VideoLimits(0, 0)
    assert all(limits.take(HOT, 10**9, NOW, now_ms=NOW) is None for _ in range(1000))
    assert len(limits) == 0


def test_chunks_of_each_video_by_itself() -> None:
    limits = VideoLimits(3, 0)
    refusals = [limits.take(HOT, 1, NOW, now_ms=NOW) for _ in range(5)]
    assert refusals[:3] == [None] * 3
    for refusal in refusals[3:]:
        assert refusal is not None
        assert (refusal.stage, refusal.reason) == ("limit", "too_many_chunks_per_minute")
        assert "3 chunks" in str(refusal)
    assert limits.take(b"cold", 1, NOW, now_ms=NOW) is None


def test_bytes_and_what_fits_after_one_that_does_not() -> None:
    limits = VideoLimits(0, 100)
    assert limits.take(HOT, 60, NOW, now_ms=NOW) is None
    refusal = limits.take(HOT, 41, NOW, now_ms=NOW)
    assert refusal is not None
    assert refusal.reason == "too_many_bytes_per_minute"
    assert limits.take(HOT, 40, NOW, now_ms=NOW) is None
    assert limits.take(HOT, 1, NOW, now_ms=NOW) is not None


def test_the_next_minute_begins_anew() -> None:
    limits = VideoLimits(1, 0)
    assert limits.take(HOT, 1, NOW, now_ms=NOW) is None
    assert limits.take(HOT, 1, NOW + 29_999, now_ms=NOW + MINUTE_MS) is not None
    assert limits.take(HOT, 1, NOW + 30_000, now_ms=NOW + MINUTE_MS) is None


def test_records_without_a_timestamp_count_as_now() -> None:
    limits = VideoLimits(1, 0)
    taken = [limits.take(HOT, 1, -1, now_ms=now) is None for now in (NOW, NOW, NOW + MINUTE_MS)]
    assert taken == [True, False, True]


def test_a_backlog_is_counted_by_its_own_time() -> None:
    limits = VideoLimits(2, 0)
    stamps = [minute * MINUTE_MS + second for minute in range(50) for second in (0, 30_000)]
    assert all(limits.take(HOT, 1, stamp, now_ms=NOW) is None for stamp in stamps)


@pytest.mark.parametrize(
    "stamps", [range(NOW, NOW + 20 * MINUTE_MS, MINUTE_MS), [-1] * 20, range(NOW, 0, -NOW // 20)]
)
def test_made_up_timestamps_gain_nothing(stamps: list[int]) -> None:
    limits = VideoLimits(2, 0)
    taken = [limits.take(HOT, 1, stamp, now_ms=NOW) is None for stamp in stamps]
    assert sum(taken) == 2


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 300))), st.integers(1, 5), st.integers(1, 500))
def test_never_more_than_the_limits_in_a_minute(
    records: list[tuple[int, int]], most_chunks: int, most_bytes: int
) -> None:
    limits = VideoLimits(most_chunks, most_bytes)
    taken: dict[int, list[int]] = {}
    latest = 0
    for minute, size in records:
        latest = max(latest, minute)
        if limits.take(HOT, size, minute * MINUTE_MS, now_ms=NOW) is None:
            taken.setdefault(latest, []).append(size)
    for sizes in taken.values():
        assert len(sizes) <= most_chunks
        assert sum(sizes) <= most_bytes


def test_memory_is_bounded_and_a_hot_video_stays_counted() -> None:
    limits = VideoLimits(1, 0)
    assert limits.take(HOT, 1, NOW, now_ms=NOW) is None
    for n in range(2 * MAX_KEYS):
        limits.take(str(n).encode(), 1, NOW, now_ms=NOW)
        if n % 1000 == 0:
            assert limits.take(HOT, 1, NOW, now_ms=NOW) is not None
    assert len(limits) == MAX_KEYS
    assert limits.take(str(n).encode(), 1, NOW, now_ms=NOW) is not None  # the newest are counted, too

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.kafka.offsets import OffsetTracker


def test_nothing_finished_means_nothing_to_commit() -> None:
    tracker = OffsetTracker()
    assert tracker.committable is None
    tracker.start(5)
    assert tracker.committable is None
    assert tracker.unfinished == 1


def test_gap_holds_back_what_follows() -> None:
    tracker = OffsetTracker()
    for offset in (5, 6, 9):
        tracker.start(offset)
    tracker.finish(6)
    tracker.finish(9)
    assert tracker.committable is None
    tracker.finish(5)
    assert tracker.committable == 10
    assert tracker.unfinished == 0


def test_offsets_must_grow() -> None:
    tracker = OffsetTracker()
    tracker.start(5)
    with pytest.raises(ValueError, match="offset 5 was started after 5"):
        tracker.start(5)
    tracker.finish(5)
    with pytest.raises(ValueError, match="offset 5 was started after 5"):
        tracker.start(5)
    tracker.start(6)


@pytest.mark.parametrize("offset", [4, 6])
def test_only_what_is_under_way_can_finish(offset: int) -> None:
    tracker = OffsetTracker()
    tracker.start(4)
    tracker.start(5)
    tracker.finish(4)
    with pytest.raises(ValueError, match=f"offset {offset} is not under way"):
        tracker.finish(offset)


@given(st.data(), st.lists(st.integers(1, 5), min_size=1, max_size=30))
def test_commits_just_behind_the_contiguous_run(data: st.DataObject, steps: list[int]) -> None:
    """For any offsets, finished in any order while others start: all before the commit are finished."""
    offsets, at = [], 0
    for step in steps:
        at += step
        offsets.append(at)
    tracker, started, finished, last = OffsetTracker(), 0, set[int](), 0
    while len(finished) < len(offsets):
        under_way = [offset for offset in offsets[:started] if offset not in finished]
        may_start = started < len(offsets)
        if may_start and (not under_way or data.draw(st.booleans())):
            tracker.start(offsets[started])
            started += 1
        else:
            offset = data.draw(st.sampled_from(under_way))
            tracker.finish(offset)
            finished.add(offset)
        run = 0
        while run < started and offsets[run] in finished:
            run += 1
        assert tracker.committable == (offsets[run - 1] + 1 if run else None)
        assert (tracker.committable or 0) >= last
        last = tracker.committable or 0
        assert tracker.unfinished == started - run

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamer.kafka.intake import Intake, Switches


@pytest.fixture
def intake() -> Intake:
    intake = Intake(max_queued=4, max_bytes=1000)
    intake.assign([0, 1, 2])
    return intake


def test_nothing_assigned_nothing_open() -> None:
    intake = Intake(max_queued=4, max_bytes=1000)
    assert intake.open() == []
    assert intake.switches() == Switches()


def test_full_queue_closes_and_opens_at_half(intake: Intake) -> None:
    for _ in range(4):
        assert 1 in intake.open()
        intake.taken(1, 10)
    assert intake.open() == [2, 0]
    assert intake.switches() == Switches(pause=frozenset({1}))
    assert intake.paused == {1}
    intake.finished(1, 10)
    assert 1 not in intake.open()
    assert intake.switches() == Switches()
    intake.finished(1, 10)
    assert 1 in intake.open()
    assert intake.switches() == Switches(resume=frozenset({1}))
    assert intake.paused == frozenset()


def test_bytes_close_all_and_open_at_half(intake: Intake) -> None:
    intake.taken(0, 600)
    intake.taken(1, 600)
    assert intake.open() == []
    assert intake.switches() == Switches(pause=frozenset({0, 1, 2}))
    intake.finished(0, 600)
    assert intake.open() == []
    intake.finished(1, 600)
    assert sorted(intake.open()) == [0, 1, 2]
    assert intake.switches() == Switches(resume=frozenset({0, 1, 2}))


def test_one_record_beyond_all_limits_is_taken_alone(intake: Intake) -> None:
    intake.taken(0, 1_000_000)
    assert intake.open() == []
    intake.finished(0, 1_000_000)
    assert sorted(intake.open()) == [0, 1, 2]


def test_partitions_take_turns(intake: Intake) -> None:
    assert intake.open() == [0, 1, 2]
    intake.taken(1, 1)
    assert intake.open() == [2, 0, 1]


def test_queue_of_one() -> None:
    intake = Intake(max_queued=1, max_bytes=1000)
    intake.assign([0])
    intake.taken(0, 1)
    assert intake.open() == []
    intake.finished(0, 1)
    assert intake.open() == [0]


def test_revoked_partitions_free_their_bytes_when_they_finish(intake: Intake) -> None:
    intake.taken(0, 1200)
    intake.revoke([0])
    assert intake.partitions == {1, 2}
    assert intake.open() == []
    intake.finished(0, 1200)
    assert intake.bytes_in_flight == 0
    assert intake.open() == [1, 2]


def test_assigned_anew_begins_open_and_unpaused(intake: Intake) -> None:
    for _ in range(4):
        intake.taken(0, 1)
    intake.switches()
    intake.revoke([0])
    intake.assign([0])
    assert 0 in intake.open()
    assert intake.switches() == Switches()  # the client knows nothing of the old pause


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 500)), max_size=60), st.data())
def test_limits_hold_for_any_load(records: list[tuple[int, int]], data: st.DataObject) -> None:
    intake = Intake(max_queued=3, max_bytes=1000)
    intake.assign([0, 1, 2])
    under_way: list[tuple[int, int]] = []
    for partition, size in records:
        if partition in intake.open():
            assert intake.queued(partition) < 3
            assert intake.bytes_in_flight < 1000
            intake.taken(partition, size)
            under_way.append((partition, size))
        elif under_way:
            done = under_way.pop(data.draw(st.integers(0, len(under_way) - 1)))
            intake.finished(*done)
        assert intake.bytes_in_flight == sum(size for _, size in under_way)
    for done in under_way:
        intake.finished(*done)
    assert sorted(intake.open()) == [0, 1, 2]

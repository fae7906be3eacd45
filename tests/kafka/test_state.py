from __future__ import annotations

import pytest

from streamer.kafka.state import ParkedStates


@pytest.mark.parametrize(
    ("next_offset", "committed", "kept"),
    [
        (10, 10, True),  # nobody worked on it
        (10, 7, True),  # the last commit failed: 7 to 9 are read again and known by their seq
        (10, None, True),  # nothing was ever committed: all is read again
        (10, 11, False),  # somebody else has done 10
        (None, None, True),
        (None, 3, False),
    ],
)
def test_state_is_kept_unless_it_lacks_records(
    next_offset: int | None, committed: int | None, kept: bool
) -> None:
    parked: ParkedStates[str] = ParkedStates()
    parked.park(2, "state", next_offset)
    assert parked.take(2, committed) == ("state" if kept else None)
    assert parked.take(2, committed) is None


def test_clear_forgets_the_rest() -> None:
    parked: ParkedStates[str] = ParkedStates()
    parked.park(0, "a", 1)
    parked.park(1, "b", 1)
    assert parked.take(0, 1) == "a"
    assert len(parked) == 1
    parked.clear()
    assert parked.take(1, 1) is None

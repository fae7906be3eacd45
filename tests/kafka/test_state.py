from __future__ import annotations

from streamer.kafka.state import Parked, ParkedStates


def test_state_is_kept_unless_somebody_has_written() -> None:
    parked: ParkedStates[str] = ParkedStates()
    parked.park(2, Parked("state", 10, changelog_end=70))
    parked.park(3, Parked("other", None, changelog_end=0))
    assert parked.take(2, 72) is None
    assert parked.take(2, 70) is None  # once only
    assert parked.take(3, 0) == Parked("other", None, 0)
    assert parked.take(4, 0) is None


def test_clear_forgets_the_rest() -> None:
    parked: ParkedStates[str] = ParkedStates()
    parked.park(0, Parked("a", 1, 1))
    parked.park(1, Parked("b", 1, 1))
    assert parked.take(0, 1) == Parked("a", 1, 1)
    assert len(parked) == 1
    parked.clear()
    assert parked.take(1, 1) is None

from __future__ import annotations

from streamer.kafka.changelog import Term
from streamer.kafka.state import Parked, ParkedStates


def test_state_is_kept_for_the_next_generation_only() -> None:
    parked: ParkedStates[str] = ParkedStates()
    kept, old = Parked("kept", None, Term(3, 8)), Parked("old", 10, Term(3, 7))
    parked.park(2, old)
    parked.park(3, kept)
    assert parked.take(2, 9) is None  # another owner may have had it in generation 8
    assert parked.take(2, 8) is None  # once only
    assert parked.take(3, 9) is kept
    assert parked.take(4, 9) is None


def test_clear_forgets_the_rest() -> None:
    parked: ParkedStates[str] = ParkedStates()
    parked.park(0, Parked("a", 1, Term(1, 1)))
    parked.park(1, Parked("b", 1, Term(1, 1)))
    assert parked.take(0, 2) == Parked("a", 1, Term(1, 1))
    assert len(parked) == 1
    parked.clear()
    assert parked.take(1, 2) is None

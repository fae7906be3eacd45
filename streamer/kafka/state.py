"""Rolling state of partitions across rebalances.

The group protocol takes all partitions away from every member at each rebalance and mostly gives the same
ones back. State parked meanwhile is taken up again, without a restore, by who gets its partition back in the
very next generation of the group: nobody else can have had it in between.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

from streamer.kafka.changelog import Term

S = TypeVar("S")


@dataclass(frozen=True, slots=True)
class Parked(Generic[S]):
    """State of a partition that was taken away."""

    state: S
    next_offset: int | None
    """Of the first record that the state does not hold; None: it holds none, here or before."""
    term: Term
    """In which it came to this."""


class ParkedStates(Generic[S]):
    """States of partitions that were taken away, until it is known who got them. Holds no client."""

    def __init__(self) -> None:
        self._parked: dict[int, Parked[S]] = {}

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, partition: int, parked: Parked[S]) -> None:
        """Keep the state of a partition."""
        self._parked[partition] = parked

    def take(self, partition: int, generation: int) -> Parked[S] | None:
        """What to go on with in this generation of the group; None if others may have had the partition.

        So it is for a process that was frozen: it wakes, and parks what it had generations ago.
        """
        parked = self._parked.pop(partition, None)
        return parked if parked is not None and parked.term.generation + 1 == generation else None

    def clear(self) -> None:
        """Forget the rest: others have those partitions now."""
        self._parked.clear()

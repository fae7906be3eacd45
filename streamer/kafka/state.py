"""Rolling state of partitions across rebalances; the place where the changelog restore will be.

The group protocol takes all partitions away from every member at each rebalance and mostly gives the same
ones back. State parked meanwhile may be taken up again, if nobody else processed the partition in between.
"""

from __future__ import annotations

from typing import Generic, TypeVar

S = TypeVar("S")


class ParkedStates(Generic[S]):
    """States of partitions that were taken away, until it is known who got them. Holds no client."""

    def __init__(self) -> None:
        self._parked: dict[int, tuple[S, int | None]] = {}

    def __len__(self) -> int:
        return len(self._parked)

    def park(self, partition: int, state: S, next_offset: int | None) -> None:
        """Keep the state of a partition that holds every record before `next_offset` (None: none at all)."""
        self._parked[partition] = (state, next_offset)

    def take(self, partition: int, committed: int | None) -> S | None:
        """The state to go on with from the group's committed offset (None: nothing committed), if any.

        A commit beyond what the state holds was made by somebody else: the state lacks those records and is
        given up. A commit within it is fine: records read again are known by their seq.
        """
        if partition not in self._parked:
            return None
        state, next_offset = self._parked.pop(partition)
        return state if committed is None or committed <= (next_offset or 0) else None

    def clear(self) -> None:
        """Forget the rest: others have those partitions now."""
        self._parked.clear()

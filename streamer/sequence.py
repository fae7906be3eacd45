"""A set of sequence numbers that mostly arrive in order: memory for the gaps only."""

from __future__ import annotations

from bisect import bisect_right

MAX_RANGES = 1024
"""Gaps remembered. Beyond it the oldest gap is given up: a number in it that still arrives counts as seen."""


class SequenceSet:
    """Integers >= 0 as sorted, disjoint, non-adjacent half-open ranges [start, end)."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._given_up = 0

    def __contains__(self, number: int) -> bool:
        index = bisect_right(self._starts, number) - 1
        return index >= 0 and number < self._ends[index]

    def add(self, number: int) -> bool:
        """Add a number; False if it was in the set already."""
        if number in self:
            return False
        right = bisect_right(self._starts, number)
        joins_left = right > 0 and self._ends[right - 1] == number
        joins_right = right < len(self._starts) and self._starts[right] == number + 1
        if joins_left and joins_right:
            self._ends[right - 1] = self._ends.pop(right)
            del self._starts[right]
        elif joins_left:
            self._ends[right - 1] = number + 1
        elif joins_right:
            self._starts[right] = number
        else:
            self._starts.insert(right, number)
            self._ends.insert(right, number + 1)
            self._bound()
        return True

    def _bound(self) -> None:
        if len(self._starts) > MAX_RANGES:
            self._given_up += self._starts[1] - self._ends[0]
            del self._ends[0], self._starts[1]

    def pack(self) -> list[int]:
        """All that it holds, for `unpack`: numbers given up, then start and end of each range."""
        return [
            self._given_up,
            *(edge for pair in zip(self._starts, self._ends, strict=True) for edge in pair),
        ]

    @classmethod
    def unpack(cls, packed: list[int]) -> SequenceSet:
        """The set that `pack` was called on."""
        numbers = cls()
        numbers._given_up, numbers._starts, numbers._ends = packed[0], packed[1::2], packed[2::2]
        return numbers

    @property
    def missing(self) -> int:
        """Numbers skipped between the lowest and the highest."""
        gaps = sum(start - end for start, end in zip(self._starts[1:], self._ends[:-1], strict=True))
        return gaps + self._given_up

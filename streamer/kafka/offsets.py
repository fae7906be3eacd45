"""Which offset of a partition may be committed: the end of the contiguous run of finished chunks."""

from __future__ import annotations

from collections import deque


class OffsetTracker:
    """Offsets of one partition between fetch and commit. Holds no client.

    Offsets need not be dense (compaction and transaction markers leave gaps), so "contiguous" means: in the
    order in which they were started. `committable` never goes backwards.
    """

    def __init__(self) -> None:
        self._pending: deque[int] = deque()
        self._finished: set[int] = set()
        self._committable: int | None = None

    @property
    def committable(self) -> int | None:
        """Offset of the next record to read once all finished ones are committed; None: nothing finished."""
        return self._committable

    @property
    def unfinished(self) -> int:
        """How many offsets were started and do not lie behind `committable`."""
        return len(self._pending)

    def start(self, offset: int) -> None:
        """Note that the record at `offset` was taken. Raises ValueError unless offsets grow."""
        newest = self._pending[-1] if self._pending else (self._committable or 0) - 1
        if offset <= newest:
            raise ValueError(f"offset {offset} was started after {newest}")
        self._pending.append(offset)

    def finish(self, offset: int) -> None:
        """Note that the result of the record at `offset` was delivered.

        Raises ValueError if it was not started or is finished already.
        """
        if offset in self._finished or offset not in self._pending:
            raise ValueError(f"offset {offset} is not under way")
        self._finished.add(offset)
        while self._pending and self._pending[0] in self._finished:
            done = self._pending.popleft()
            self._finished.remove(done)
            self._committable = done + 1

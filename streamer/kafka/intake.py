"""How much may be taken from Kafka: back-pressure as decisions, without a client."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Queue:
    chunks: int = 0
    full: bool = False


@dataclass(frozen=True, slots=True)
class Switches:
    """Partitions to pause and to resume now."""

    pause: frozenset[int] = frozenset()
    resume: frozenset[int] = frozenset()


@dataclass(slots=True)
class Intake:
    """Decides which partitions may be read.

    A partition is closed when `max_queued` of its chunks are unfinished and opens again at half of that. All
    are closed when `max_bytes` of chunks are unfinished, and open again at half. One record is taken at a
    time, so the bytes exceed the limit by less than one record.
    """

    max_queued: int
    max_bytes: int
    bytes_in_flight: int = 0
    _queues: dict[int, _Queue] = field(default_factory=dict)
    _paused: set[int] = field(default_factory=set)
    _out_of_bytes: bool = False
    _last_served: int = -1

    @property
    def partitions(self) -> frozenset[int]:
        """Those that this process works on."""
        return frozenset(self._queues)

    @property
    def paused(self) -> frozenset[int]:
        """Those closed when `switches` was last asked."""
        return frozenset(self._paused)

    def queued(self, partition: int) -> int:
        """Unfinished chunks of a partition."""
        return self._queues[partition].chunks

    def assign(self, partitions: Iterable[int]) -> None:
        """Work on these from now on; Kafka's client has just forgotten what was paused."""
        for partition in partitions:
            self._queues[partition] = _Queue()
            self._paused.discard(partition)

    def revoke(self, partitions: Iterable[int]) -> None:
        """Take no more of these; what is unfinished still has to be reported by `finished`."""
        for partition in partitions:
            self._queues.pop(partition, None)
            self._paused.discard(partition)

    def taken(self, partition: int, size: int) -> None:
        """A record of `size` bytes was taken."""
        queue = self._queues[partition]
        queue.chunks += 1
        queue.full |= queue.chunks >= self.max_queued
        self.bytes_in_flight += size
        self._out_of_bytes |= self.bytes_in_flight >= self.max_bytes
        self._last_served = partition

    def finished(self, partition: int, size: int) -> None:
        """A record was finished or given up."""
        self.bytes_in_flight -= size
        self._out_of_bytes &= self.bytes_in_flight > self.max_bytes // 2
        if (queue := self._queues.get(partition)) is not None:
            queue.chunks -= 1
            queue.full &= queue.chunks > self.max_queued // 2

    def open(self) -> list[int]:
        """Partitions that may be read now, the one served last at the end."""
        if self._out_of_bytes:
            return []
        able = sorted(partition for partition, queue in self._queues.items() if not queue.full)
        return [p for p in able if p > self._last_served] + [p for p in able if p <= self._last_served]

    def switches(self) -> Switches:
        """What to tell Kafka's client: what changed since the last call."""
        closed = self._queues.keys() - set(self.open())
        switches = Switches(frozenset(closed - self._paused), frozenset(self._paused - closed))
        self._paused = set(closed)
        return switches

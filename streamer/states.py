"""State of partitions that come and go: our own while nobody else has written, else the changelog's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from streamer.kafka.changelog import Changelog
from streamer.kafka.state import Parked, ParkedStates
from streamer.metrics import Metrics
from streamer.partition import PartitionWorker
from streamer.rolling import RollingScores


@dataclass(frozen=True, slots=True)
class PartitionState:
    """What is known of one partition."""

    rolling: RollingScores
    next_offset: int | None
    """Of the first record that `rolling` does not hold; None: not known."""


class PartitionStates:
    """Where the states of newly assigned partitions come from, and where those taken away are kept."""

    def __init__(
        self, changelog: Changelog, new_rolling: Callable[[], RollingScores], metrics: Metrics
    ) -> None:
        """new_rolling: makes one that knows no video."""
        self._changelog = changelog
        self._new_rolling = new_rolling
        self._metrics = metrics
        self._parked: ParkedStates[RollingScores] = ParkedStates()

    async def take(self, partitions: frozenset[int]) -> dict[int, PartitionState]:
        """States to go on with. To be called once nobody else delivers for them. Raises BrokerError."""
        states: dict[int, PartitionState] = {}
        for partition, end in (await self._changelog.ends(partitions)).items():
            if (parked := self._parked.take(partition, end)) is not None:
                states[partition] = PartitionState(parked.state, parked.next_offset)
        self._parked.clear()
        started = time.monotonic()
        for partition, restored in (await self._changelog.restore(partitions - states.keys())).items():
            rolling = self._new_rolling()
            rolling.restore(restored.states, now_seconds=time.monotonic())
            states[partition] = PartitionState(rolling, restored.next_offset)
            self._metrics.restored_videos.inc(len(rolling))
        self._metrics.restore_seconds.set(time.monotonic() - started)
        return states

    async def park(self, workers: Mapping[int, PartitionWorker]) -> None:
        """Keep the states of halted workers: mostly the same partitions come back. Raises BrokerError."""
        for partition, end in (await self._changelog.ends(workers)).items():
            worker = workers[partition]
            if worker.is_consistent:
                self._parked.park(partition, Parked(worker.rolling, worker.next_offset, end))

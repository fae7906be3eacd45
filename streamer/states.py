"""State of partitions that come and go: our own while nobody else had them, else the changelog's."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog

from streamer.config import KafkaConfig
from streamer.kafka.changelog import Term, restore
from streamer.kafka.client import CONNECT_SECONDS
from streamer.kafka.state import Parked, ParkedStates
from streamer.metrics import Metrics
from streamer.partition import PartitionWorker
from streamer.rolling import RollingScores

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class PartitionState:
    """What is known of one partition."""

    rolling: RollingScores
    next_offset: int | None
    """Of the first record that `rolling` does not hold; None: not known."""
    term: Term
    """Ours, which begins."""
    restored: bool
    """From the state topic, and not kept while nobody else had the partition."""


class PartitionStates:
    """Where the states of newly assigned partitions come from, and where those taken away are kept."""

    def __init__(
        self,
        kafka: KafkaConfig,
        new_rolling: Callable[[], RollingScores],
        metrics: Metrics,
        *,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        """new_rolling: makes one that knows no video."""
        self._kafka = kafka
        self._new_rolling = new_rolling
        self._metrics = metrics
        self._connect_seconds = connect_seconds
        self._parked: ParkedStates[RollingScores] = ParkedStates()

    async def take(self, partitions: frozenset[int], generation: int) -> dict[int, PartitionState]:
        """States to go on with, as an owner in this generation of the group.

        To be called once nobody else may deliver for them. Raises BrokerError.
        """
        states: dict[int, PartitionState] = {}
        for partition in partitions:
            if (parked := self._parked.take(partition, generation)) is not None:
                term = parked.term.next(generation)
                states[partition] = PartitionState(parked.state, parked.next_offset, term, restored=False)
        self._parked.clear()
        started = time.monotonic()
        missing = partitions - states.keys()
        for partition, restored in (
            await restore(self._kafka, missing, connect_seconds=self._connect_seconds)
        ).items():
            rolling = self._new_rolling()
            rolling.restore(restored.states, now_seconds=time.monotonic())
            term = restored.term.next(generation)
            states[partition] = PartitionState(rolling, restored.next_offset, term, restored=True)
            self._metrics.restored_videos.inc(len(rolling))
            if restored.stale:
                log.warning("states of a former owner left out", partition=partition, records=restored.stale)
            if restored.foreign:
                log.warning(
                    "records of the state topic left out: nobody of ours wrote them",
                    partition=partition,
                    records=restored.foreign,
                )
            if restored.other_groups:
                log.warning(
                    "states of other groups left out, which may have replaced ours: give each group a state "
                    "topic of its own (kafka.state_topic)",
                    partition=partition,
                    groups=sorted(restored.other_groups),
                )
        self._metrics.restore_seconds.set(time.monotonic() - started)
        return states

    def park(self, workers: Mapping[int, PartitionWorker]) -> None:
        """Keep the states of halted workers: mostly the same partitions come back."""
        for partition, worker in workers.items():
            if worker.is_consistent:
                self._parked.park(partition, Parked(worker.rolling, worker.next_offset, worker.term))

"""The partitions that this process has: taken over, worked on, handed over. The group deals them.

All of them come and go together, as the group protocol has it: `take_over` after every rebalance, `hand_over`
before it, `finish` at the end of the service.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import structlog

from streamer.config import Config
from streamer.errors import BrokerError
from streamer.kafka.client import describe
from streamer.kafka.consume import OFFSETS_SECONDS, ChunkConsumer, Record
from streamer.kafka.deliver import Batch, Delivery
from streamer.kafka.intake import Intake
from streamer.limits import VideoLimits
from streamer.metrics import Metrics
from streamer.outcome import Outcome, Predict, process, refuse
from streamer.partition import PartitionWorker, Slot
from streamer.states import PartitionState, PartitionStates
from streamer.tasks import cancel_all
from streamer.thinning import Thinning
from streamer.tracing import Tracing
from streamer.turns import Turns

STUCK_SECONDS = 15.0
"""A delivery that takes longer is not ours to wait for in silence."""

FINAL_COMMIT_SECONDS = 5.0
"""For the last commit, on top of the drain budget."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Assignment:
    """A worker for each partition, and what they share."""

    def __init__(
        self,
        config: Config,
        metrics: Metrics,
        *,
        predict: Predict,
        consumer: ChunkConsumer,
        delivery: Delivery,
        states: PartitionStates,
        own: Callable[[Coroutine[Any, Any, Any], str], asyncio.Task[Any]],
        stop_now: Callable[[], Awaitable[object]],
        tracing: Tracing | None = None,
    ) -> None:
        """own: makes a task whose failure stops the service. stop_now: returns when draining must end."""
        self.intake = Intake(config.service.max_queued_per_partition, config.service.max_bytes_in_flight)
        self._config = config
        self._metrics = metrics
        self._predict = predict
        self._consumer = consumer
        self._delivery = delivery
        self._states = states
        self._own = own
        self._stop_now = stop_now
        self._tracing = tracing
        self._turns = Turns(config.service.max_chunks_in_flight)
        self._workers: dict[int, PartitionWorker] = {}
        self._worker_tasks: dict[int, asyncio.Task[None]] = {}
        self._committed: dict[int, int] = {}
        self._giving_up = asyncio.Lock()
        """The group may be dealt anew while we end: then both give the same workers up."""

    def begin(self, record: Record) -> None:
        """Start work on a record at the end of its partition's queue."""
        self.intake.taken(record.partition, record.size)
        self._metrics.chunk_bytes.inc(record.size)
        worker = self._workers[record.partition]
        worker.put(record, lambda slot: self._own(self._process(slot, worker.thinning), "chunk"))

    async def _process(self, slot: Slot, thinning: Thinning) -> Outcome:
        max_bytes = self._config.kafka.max_message_bytes
        if slot.refusal is not None:  # nothing is looked at, so it need not wait for a turn
            return refuse(slot.record, slot.refusal, max_bytes)
        async with self._turns.turn((slot.record.partition, slot.record.key)):
            slot.begun = True
            if slot.trace is not None:
                slot.trace.begun()
            slot.sampling_share = thinning.share
            with self._metrics.chunks_in_flight.track_inprogress():
                try:
                    return await process(slot.record, self._predict, max_bytes, slot.sampling_share)
                except Exception:
                    # The service ends; whoever has to step over a chunk for ever must know which.
                    record = slot.record
                    log.error(
                        "chunk not processed",
                        topic=record.topic,
                        partition=record.partition,
                        offset=record.offset,
                        key=record.key,
                    )
                    raise

    async def take_over(self, partitions: frozenset[int]) -> None:
        """Begin with these partitions where the last owner has left off. Raises BrokerError."""
        # 1. keep others from delivering; what they had open is undone
        await self._delivery.open(partitions)
        # 2. state: our own if nobody else has had the partition meanwhile, else from the changelog
        states = await self._states.take(partitions, self._consumer.generation)
        # 3. read on after the last record that the state holds
        service, sample = self._config.service, self._config.sample
        beginnings = await self._beginnings(partitions)
        for partition in sorted(partitions):
            state = states[partition]
            start = await self._start_of(partition, state)
            if start < (beginning := beginnings.get(partition, 0)):
                # Kept at once: as long as nothing new comes, nothing else would, and the next owner would
                # find the same loss.
                await self._delivery.deliver(Batch(partition, next_offset=beginning, term=state.term))
                self.note_lost(partition, start, beginning)
                start = beginning
            self._consumer.seek(partition, start)
            worker = PartitionWorker(
                partition,
                state.rolling,
                self._delivery,
                self._metrics,
                self._config.kafka,
                limits=VideoLimits(service.max_video_chunks_per_minute, service.max_video_bytes_per_minute),
                thinning=Thinning(sample.thin_from_lag),
                term=state.term,
                start_offset=start,
                on_finished=lambda record: self.intake.finished(record.partition, record.size),
                tracing=self._tracing,
            )
            self._workers[partition] = worker
            self._metrics.sampling_rate.labels(str(partition)).set(sample.frames_per_second)
            self._worker_tasks[partition] = self._own(worker.run(), f"partition {partition}")
        self.intake.assign(partitions)
        self._metrics.assigned_partitions.set(len(partitions))
        self._metrics.rebalances.inc()
        log.info("partitions assigned", partitions=sorted(partitions))

    async def _start_of(self, partition: int, state: PartitionState) -> int:
        """Where to read on. Raises BrokerError.

        Offset and state are committed together, so that where one is without the other it was lost.
        """
        committed = await self._consumer.committed(partition)
        if committed and state.next_offset is None:
            log.warning(
                "the state topic has nothing of this partition: its videos begin anew",
                partition=partition,
                read_on_at=committed,
            )
        if state.restored and state.next_offset and committed is None:
            log.warning(
                "the group has no offset of this partition, the state topic has; if the topic of chunks was "
                "made anew, the state topic must be, too; another group needs a state topic of its own",
                partition=partition,
                read_on_at=state.next_offset,
            )
        known = [offset for offset in (committed, state.next_offset) if offset is not None]
        return max(known) if known else await self._consumer.initial_offset(partition)

    async def _beginnings(self, partitions: frozenset[int]) -> dict[int, int]:
        """Where the partitions begin. Empty if Kafka does not say; a loss is then noticed in reading."""
        try:
            async with asyncio.timeout(OFFSETS_SECONDS):
                return await self._consumer.beginning_offsets(partitions)
        except (TimeoutError, BrokerError) as error:
            log.warning("beginnings not known", partitions=sorted(partitions), error=describe(error))
            return {}

    def note_lost(self, partition: int, offset: int, beginning: int) -> None:
        """Count what was to be read next, from `offset` on, and is not there: the partition begins later."""
        self._metrics.lost_chunks.inc(beginning - offset)
        log.warning(
            "chunks lost to retention",
            partition=partition,
            chunks=beginning - offset,
            next_offset=offset,
            beginning=beginning,
        )

    async def hand_over(self, partitions: frozenset[int]) -> None:
        """Finish what is under way within the budget, commit, give up the rest, let others have them."""
        if not self._workers:
            return
        log.info("partitions revoked", partitions=sorted(partitions))
        self.stop_intake()
        await self.drain()
        async with self._giving_up:
            await self._halt_workers()
            await self._commit_at_last()
            self._states.park(self._workers)
            await self._delivery.close()
            self._forget_workers()
            self._metrics.assigned_partitions.set(0)

    def stop_intake(self) -> None:
        """Take no more records of any partition."""
        self.intake.revoke(self.intake.partitions)

    async def finish(self) -> None:
        """Commit what is finished and give up the rest, at the end of the service."""
        async with self._giving_up:
            await self._halt_workers()
            await self._commit_at_last()
            self._forget_workers()

    async def drain(self) -> None:
        """Finish what has begun: within the budget, or until something fails or must end at once."""
        workers = list(self._workers.values())
        for worker in workers:
            await worker.give_up_waiting()

        async def drained() -> None:
            for worker in workers:
                await worker.drained()

        waiting = {asyncio.ensure_future(work) for work in (drained(), self._stop_now())}
        budget_seconds = self._config.service.drain_seconds
        try:
            await asyncio.wait(waiting, timeout=budget_seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await cancel_all(waiting)

    async def _halt_workers(self) -> None:
        """Cancel what is left, with a count; after this nothing of these partitions is published."""
        counts = await asyncio.gather(*(w.halt(self._worker_tasks[p]) for p, w in self._workers.items()))
        given_up = {p: count for p, count in zip(self._workers, counts, strict=True) if count}
        if given_up:
            self._metrics.cancelled_chunks.inc(sum(given_up.values()))
            log.warning("chunks given up; they will be done again", by_partition=given_up)

    def _forget_workers(self) -> None:
        for partition in self._workers:
            self._metrics.forget_partition(partition)
        self._workers.clear()
        self._worker_tasks.clear()
        self._committed.clear()

    async def commit(self) -> None:
        """Commit what has moved since the last commit, unless that was part of the deliveries."""
        if self._delivery.commits_offsets:
            return
        sent: dict[int, int] = {}

        def positions() -> dict[int, int]:
            for partition, worker in self._workers.items():
                offset = worker.committable
                if offset is not None and offset > self._committed.get(partition, -1):
                    sent[partition] = offset
            return sent

        if await self._consumer.commit(positions):
            self._committed.update({p: offset for p, offset in sent.items() if p in self._workers})

    async def _commit_at_last(self) -> None:
        """Commit before the partitions go; without it only work is lost."""
        try:
            async with asyncio.timeout(FINAL_COMMIT_SECONDS):
                await self.commit()
        except (TimeoutError, BrokerError) as error:
            log.warning(
                "offsets not committed; chunks since the last commit are done again", error=str(error)
            )

    async def measure_lag(self) -> None:
        """Update the gauges of what is published and not finished or not to be read yet, and the sampling."""
        if self._workers and not self._consumer.rebalancing:
            try:
                ends = await self._consumer.end_offsets(self._workers)
            except BrokerError as error:  # a broker that is away is `Presence`'s to judge
                log.warning("lag not measured", error=str(error))
                return
            for partition, end in ends.items():
                if (worker := self._workers.get(partition)) is not None:
                    # With nothing under way it is what was read that counts: behind the last chunk there may
                    # be a marker of a transaction, which is no chunk and is never finished.
                    position = await self._consumer.position(partition)
                    unfinished_from = worker.unfinished_from if len(worker) else None
                    lag = max(0, end - (position if unfinished_from is None else unfinished_from))
                    self._metrics.lag.labels(str(partition)).set(lag)
                    self._metrics.withheld.labels(str(partition)).set(self._consumer.withheld(partition))
                    if self._config.sample.lag_policy == "thin":
                        self._thin(partition, worker.thinning, lag)

    def _thin(self, partition: int, thinning: Thinning, lag: int) -> None:
        """Sample less of a partition that is behind, or more again."""
        if thinning.update(lag):
            frames_per_second = thinning.share * self._config.sample.frames_per_second
            self._metrics.sampling_rate.labels(str(partition)).set(frames_per_second)
            log.warning(
                "sampling rate changed by lag",
                partition=partition,
                lag=lag,
                frames_per_second=frames_per_second,
                share=thinning.share,
            )

    def _delivery_ages(self) -> dict[int, float]:
        """Seconds since a delivery began that is not acknowledged yet, by partition."""
        began = {partition: worker.delivery_began for partition, worker in self._workers.items()}
        return {p: time.monotonic() - then for p, then in began.items() if then is not None}

    def why_stuck(self) -> str | None:
        """None if results get out, else since when they do not."""
        partition, age = max(self._delivery_ages().items(), key=lambda item: item[1], default=(0, 0.0))
        if age <= STUCK_SECONDS:
            return None
        return f"results of partition {partition} have not been acknowledged for {age:.0f} s"

    def show_load(self) -> None:
        """Update the gauges of queues, bytes and deliveries."""
        self._metrics.delivery_age.set(max(self._delivery_ages().values(), default=0.0))
        metrics, intake, service = self._metrics, self.intake, self._config.service
        metrics.bytes_in_flight.set(intake.bytes_in_flight)
        metrics.bytes_fill.set(intake.bytes_in_flight / service.max_bytes_in_flight)
        metrics.paused_partitions.set(len(intake.paused))
        for partition, worker in self._workers.items():
            label = str(partition)
            metrics.queued.labels(label).set(len(worker))
            metrics.queue_fill.labels(label).set(len(worker) / service.max_queued_per_partition)
            metrics.videos.labels(label).set(len(worker.rolling))
            metrics.unusable_states.labels(label).set(worker.rolling.unusable_states)

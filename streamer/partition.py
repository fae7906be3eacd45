"""One partition's chunks: predicted side by side, counted in order, delivered in batches, then finished."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import structlog

from streamer.config import KafkaConfig
from streamer.errors import ChunkError, MessageError
from streamer.kafka.consume import Record
from streamer.kafka.deliver import Batch, Delivery
from streamer.kafka.offsets import OffsetTracker
from streamer.messages import DeadLetter, VideoChunk, decode_chunk
from streamer.metrics import Metrics
from streamer.rolling import Arrival, RollingScores
from streamer.tasks import cancel_all
from streamer.types import ChunkPrediction

DELIVERY_SECONDS = 5.0
"""For a delivery under way when the worker is to end."""

EXPIRY_SECONDS = 1.0
"""How often idle videos are looked for."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Scored:
    """A chunk that could be processed."""

    chunk: VideoChunk
    prediction: ChunkPrediction


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that becomes a dead letter; `chunk` is None if not even its message could be read."""

    chunk: VideoChunk | None
    error: ChunkError


Outcome: TypeAlias = Scored | Refused
Predict: TypeAlias = Callable[[VideoChunk], Awaitable[ChunkPrediction]]


async def process(record: Record, predict: Predict, max_bytes: int) -> Outcome:
    """Record -> outcome. Only a ChunkError is one; anything else that is raised means that we are broken."""
    chunk: VideoChunk | None = None
    try:
        if record.unreadable is not None:
            raise MessageError("unreadable_record", f"the record cannot be read: {record.unreadable}")
        chunk = decode_chunk(
            record.value, record.key, record.headers, offset=record.offset, max_bytes=max_bytes
        )
        return Scored(chunk, await predict(chunk))
    except ChunkError as error:
        return Refused(chunk, error)


@dataclass(slots=True)
class Slot:
    """A record in the queue of its partition."""

    record: Record
    begun: bool = False
    """Whether work on it has begun; until then it only waits for its turn."""
    work: asyncio.Task[Outcome] = field(init=False)


class PartitionWorker:
    """The queue of one partition. `run` empties it from the front; `put` adds at its end."""

    def __init__(
        self,
        partition: int,
        rolling: RollingScores,
        delivery: Delivery,
        metrics: Metrics,
        kafka: KafkaConfig,
        *,
        start_offset: int | None,
        on_finished: Callable[[Record], None],
    ) -> None:
        """start_offset: of the first record that is not in `rolling`, if it is known."""
        self.rolling = rolling
        self._partition = partition
        self._delivery = delivery
        self._metrics = metrics
        self._interval_seconds = kafka.commit_interval_ms / 1000
        self._max_chunks = kafka.max_commit_chunks
        self._start_offset = start_offset
        self._on_finished = on_finished
        self._tracker = OffsetTracker()
        self._slots: deque[Slot] = deque()
        self._changed = asyncio.Event()
        self._next_expiry = time.monotonic() + EXPIRY_SECONDS
        self._next_delivery = time.monotonic()
        self._draining = False
        self._delivering = False
        self._halting = False

    @property
    def next_offset(self) -> int | None:
        """Offset up to which everything is finished; None: nothing was, here or before."""
        committable = self._tracker.committable
        return self._start_offset if committable is None else committable

    @property
    def committable(self) -> int | None:
        """Offset to commit; None: nothing was finished here."""
        return self._tracker.committable

    @property
    def is_consistent(self) -> bool:
        """Whether the rolling state holds the records before `next_offset`: no delivery was cut short."""
        return not self._delivering

    def __len__(self) -> int:
        return len(self._slots)

    def put(self, record: Record, work: Callable[[Slot], asyncio.Task[Outcome]]) -> None:
        """Add a record; `work` starts the task that sets `begun` when it is its turn."""
        self._tracker.start(record.offset)
        slot = Slot(record)
        slot.work = work(slot)
        self._slots.append(slot)
        self._changed.set()

    async def run(self) -> None:
        """Deliver results in order until `halt`. Raises what `work` or the delivery raised."""
        while not self._halting:
            await self._wait_for_results()
            # 1. count all that is finished at the front; the state is ahead of what is delivered from here on
            self._delivering = True
            batch, records = self._count_finished()
            if batch is not None:
                # 2. deliver
                await self._delivery.deliver(batch)
                self._next_delivery = time.monotonic() + self._interval_seconds
            self._delivering = False
            # 3. let go of
            for record in records:
                self._tracker.finish(record.offset)
                self._slots.popleft()
                self._on_finished(record)
            self._changed.set()
            if batch is not None:
                self._measure(batch)

    async def give_up_waiting(self) -> None:
        """Drop the end of the queue on which no work has begun: whoever comes next does it as well."""
        self._draining = True
        dropped = []
        while self._slots and not self._slots[-1].begun:
            dropped.append(self._slots.pop())
        await self._drop(dropped)

    async def drained(self) -> None:
        """Return when the queue is empty."""
        while self._slots:
            self._changed.clear()
            await self._changed.wait()

    async def halt(self, run: asyncio.Task[None]) -> int:
        """End `run` and give up what is left; the number of chunks on which work had begun.

        A delivery that has begun is let through: otherwise nobody could tell whether it was published.
        """
        self._halting = True
        if self._delivering:
            await asyncio.wait({run}, timeout=DELIVERY_SECONDS)
        await cancel_all([run])
        slots = list(self._slots)
        self._slots.clear()
        await self._drop(slots)
        return sum(slot.begun for slot in slots)

    async def _drop(self, slots: Sequence[Slot]) -> None:
        await cancel_all([slot.work for slot in slots])
        for slot in slots:
            self._on_finished(slot.record)
        self._changed.set()

    async def _wait_for_results(self) -> None:
        """Return when the front of the queue is finished and a delivery is due, or an expiry is."""
        while not self._halting and (now := time.monotonic()) < self._next_expiry:
            front = self._slots[0].work if self._slots else None
            if front is not None and front.done():
                if self._draining or now >= self._next_delivery:
                    return
                until, waiting_for = min(self._next_delivery, self._next_expiry), set()
            else:
                until, waiting_for = self._next_expiry, {front} if front else set()
            self._changed.clear()
            changed = asyncio.create_task(self._changed.wait())
            try:
                await asyncio.wait(
                    {changed, *waiting_for}, timeout=until - now, return_when=asyncio.FIRST_COMPLETED
                )
            finally:
                changed.cancel()

    def _count_finished(self) -> tuple[Batch | None, list[Record]]:
        """Count the run of finished records at the front, and expire; None if there is nothing to deliver."""
        batch = Batch(self._partition)
        records: list[Record] = []
        for slot in self._slots:
            if not slot.work.done() or len(records) == self._max_chunks:
                break
            if slot.work.exception() is not None and records:
                break  # those before it are delivered first; the next round raises
            self._count(slot.record, slot.work.result(), batch)
            records.append(slot.record)
            batch.next_offset = slot.record.offset + 1
        if time.monotonic() >= self._next_expiry:
            self._next_expiry = time.monotonic() + EXPIRY_SECONDS
            batch.updates += self.rolling.expire(Arrival(time.monotonic(), round(1000 * time.time())))
        batch.states = self.rolling.take_changed()
        return (batch, records) if records or batch.updates or batch.states else (None, [])

    def _count(self, record: Record, outcome: Outcome, batch: Batch) -> None:
        """Count one record in the state, and add what is to be published of it."""
        chunk = outcome.chunk
        if chunk is not None and self.rolling.is_replay(chunk.video_id, chunk.seq, record.offset):
            self._metrics.replayed_chunks.inc()  # its results were delivered, and then the offset was lost
            return
        if isinstance(outcome, Scored):
            prediction = outcome.prediction
            arrival = _arrival(record, prediction.latency_ms)
            update = self.rolling.apply(prediction, last=outcome.chunk.last, arrival=arrival)
            if update.status != "duplicate":
                self._metrics.frames.inc(len(prediction.frames))
                self._metrics.faces.inc(sum(len(frame.faces) for frame in prediction.frames))
            batch.updates.append(update)
            return
        error, letter = outcome.error, _dead_letter(record, outcome)
        log.warning(
            "chunk refused",
            reason=error.reason,
            stage=error.stage,
            error=str(error),
            topic=record.topic,
            partition=record.partition,
            offset=record.offset,
            video_id=letter.video_id,
            seq=letter.seq,
        )
        batch.letters.append(letter)
        if chunk is not None:
            batch.updates.append(
                self.rolling.apply_undecodable(
                    chunk.video_id, chunk.seq, error.reason, last=chunk.last, arrival=_arrival(record, {})
                )
            )

    def _measure(self, batch: Batch) -> None:
        """Metrics of what was delivered."""
        for letter in batch.letters:
            self._metrics.dead_letter(letter.stage, letter.reason)
        for update in batch.updates:
            self._metrics.chunks.labels(update.status).inc()
            self._metrics.stages(update.latency_ms)
            if update.alert.changed and update.alert.state == "raised":
                self._metrics.alerts.inc()


def _arrival(record: Record, latency_ms: dict[str, float]) -> Arrival:
    now_ms = 1000 * time.time()
    total = {"total": max(0.0, now_ms - record.timestamp_ms)} if record.timestamp_ms >= 0 else {}
    return Arrival(time.monotonic(), round(now_ms), record.offset, {**latency_ms, **total})


def _dead_letter(record: Record, refused: Refused) -> DeadLetter:
    chunk, error = refused.chunk, refused.error
    return DeadLetter(
        value=record.value or b"",
        key=record.key,
        headers=[(name, content or b"") for name, content in record.headers],
        error=str(error),
        reason=error.reason,
        stage=error.stage,
        topic=record.topic,
        partition=record.partition,
        offset=record.offset,
        video_id=chunk.video_id if chunk else _text(record.key),
        seq=chunk.seq if chunk else None,
        failed_at_ms=round(1000 * time.time()),
    )


def _text(key: bytes | None) -> str | None:
    """The key as a video_id, if it can be one."""
    try:
        return key.decode() if key else None
    except UnicodeDecodeError:
        return None

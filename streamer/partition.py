"""One partition's chunks: predicted side by side, counted and published in order, then finished."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

import structlog

from streamer.errors import ChunkError, MessageError
from streamer.kafka.consume import Record
from streamer.kafka.offsets import OffsetTracker
from streamer.messages import DeadLetter, ScoreUpdate, VideoChunk, decode_chunk
from streamer.metrics import Metrics
from streamer.rolling import Arrival, RollingScores
from streamer.tasks import cancel_all
from streamer.types import ChunkPrediction

DELIVERY_SECONDS = 2.0
"""For one acknowledgement by the broker when the worker is to end."""

EXPIRY_SECONDS = 1.0
"""How often idle videos are looked for."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Output(Protocol):
    """Where results go; returns when they are safe there."""

    async def send_score(self, update: ScoreUpdate) -> None: ...

    async def send_dead_letter(self, letter: DeadLetter) -> None: ...


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
        rolling: RollingScores,
        output: Output,
        metrics: Metrics,
        *,
        start_offset: int | None,
        on_finished: Callable[[Record], None],
    ) -> None:
        """start_offset: the group's committed offset, if any."""
        self.rolling = rolling
        self._output = output
        self._metrics = metrics
        self._start_offset = start_offset
        self._on_finished = on_finished
        self._tracker = OffsetTracker()
        self._slots: deque[Slot] = deque()
        self._changed = asyncio.Event()
        self._next_expiry = time.monotonic() + EXPIRY_SECONDS
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
        """Deliver results in order until `halt`. Raises what `work` or the output raised."""
        while not self._halting:
            if time.monotonic() >= self._next_expiry:
                await self._expire()
            slot = self._slots[0] if self._slots else None
            if slot is None or not slot.work.done():
                await self._wait_for(slot.work if slot else None)
                continue
            await self._deliver(slot.record, slot.work.result())
            self._tracker.finish(slot.record.offset)
            self._slots.popleft()
            self._changed.set()
            self._on_finished(slot.record)

    async def give_up_waiting(self) -> None:
        """Drop the end of the queue on which no work has begun: whoever comes next does it as well."""
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

    async def _wait_for(self, work: asyncio.Task[Outcome] | None) -> None:
        """Wait for the front of the queue, or for a queue at all; not beyond the next expiry."""
        timeout = max(0.0, self._next_expiry - time.monotonic())
        if work is not None:
            await asyncio.wait({work}, timeout=timeout)
            return
        self._changed.clear()
        try:
            async with asyncio.timeout(timeout):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _deliver(self, record: Record, outcome: Outcome) -> None:
        """Count, publish, wait until it is safe."""
        self._delivering = True
        if isinstance(outcome, Scored):
            prediction = outcome.prediction
            arrival = _arrival(record, prediction.latency_ms)
            update = self.rolling.apply(prediction, last=outcome.chunk.last, arrival=arrival)
            if update.status != "duplicate":
                self._metrics.frames.inc(len(prediction.frames))
                self._metrics.faces.inc(sum(len(frame.faces) for frame in prediction.frames))
            await self._publish(update)
        else:
            await self._refuse(record, outcome)
        self._delivering = False

    async def _refuse(self, record: Record, refused: Refused) -> None:
        """Dead letter first: a chunk said to be undecodable can then always be looked at."""
        chunk, error = refused.chunk, refused.error
        letter = _dead_letter(record, refused)
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
        await self._output.send_dead_letter(letter)
        self._metrics.dead_letter(error.stage, error.reason)
        if chunk is not None:
            update = self.rolling.apply_undecodable(
                chunk.video_id, chunk.seq, error.reason, last=chunk.last, arrival=_arrival(record, {})
            )
            await self._publish(update)

    async def _publish(self, update: ScoreUpdate) -> None:
        await self._output.send_score(update)
        self._metrics.chunks.labels(update.status).inc()
        self._metrics.stages(update.latency_ms)
        if update.alert.changed and update.alert.state == "raised":
            self._metrics.alerts.inc()

    async def _expire(self) -> None:
        self._next_expiry = time.monotonic() + EXPIRY_SECONDS
        arrival = Arrival(time.monotonic(), round(1000 * time.time()))
        for update in self.rolling.expire(arrival):
            await self._publish(update)


def _arrival(record: Record, latency_ms: dict[str, float]) -> Arrival:
    now_ms = 1000 * time.time()
    total = {"total": max(0.0, now_ms - record.timestamp_ms)} if record.timestamp_ms >= 0 else {}
    return Arrival(time.monotonic(), round(now_ms), {**latency_ms, **total})


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

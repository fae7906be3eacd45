"""One partition's chunks: predicted side by side, counted in order per video, delivered in batches, finished.

Chunks of one video are counted in the order of their offsets, always. A video does not wait for the others:
what is finished of it is delivered while earlier chunks of other videos are still under way. Such a chunk is
ahead of the committed offset, so after a crash it is read again; the state, delivered with it, knows it. So
the offset still moves over contiguous runs only, and a chunk is still counted and published once.

How far ahead that can be is bounded by the queue, which is what was read of the partition and is not
finished: a video's chunk behind a long run of another one's has to be reached by reading first.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import structlog

from streamer.config import KafkaConfig
from streamer.errors import LimitError
from streamer.kafka.changelog import Term
from streamer.kafka.consume import Record
from streamer.kafka.deliver import Batch, Delivery
from streamer.kafka.offsets import OffsetTracker
from streamer.limits import VideoLimits
from streamer.messages import is_numbered
from streamer.metrics import Metrics
from streamer.outcome import Outcome, Refused, Scored, dead_letter
from streamer.rolling import Arrival, RollingScores
from streamer.suspects import ChunkEvidence
from streamer.tasks import cancel_all
from streamer.thinning import Thinning
from streamer.tracing import ChunkTrace, Tracing

DELIVERY_SECONDS = 5.0
"""For a delivery under way when the worker is to end."""

EXPIRY_SECONDS = 1.0
"""How often idle videos are looked for."""

MAX_EXPIRED = 200
"""Idle videos forgotten in one delivery. After a restart thousands may be due at once; all together they
would keep the process from its heartbeats."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True)
class Slot:
    """A record in the queue of its partition."""

    record: Record
    refusal: LimitError | None = None
    """Why it is not to be looked at."""
    begun: bool = False
    """Whether work on it has begun; until then it only waits for its turn."""
    sampling_share: float = 1.0
    """See `streamer.thinning`; set when work begins."""
    trace: ChunkTrace | None = None
    """Its span, if there are traces."""
    counted: bool = False
    """Whether it is in the rolling state; it stays in the queue while any before it is not."""
    work: asyncio.Task[Outcome] = field(init=False)

    @property
    def finished(self) -> bool:
        """Whether work on it has ended, be it with an error."""
        return self.work.done() and not self.work.cancelled()

    @property
    def is_of_a_video(self) -> bool:
        """Whether a finished record could be read; then its key is its video's id."""
        return self.work.exception() is None and self.work.result().chunk is not None


class PartitionWorker:
    """The queue of one partition. `put` adds at its end; `run` delivers what is finished."""

    def __init__(
        self,
        partition: int,
        rolling: RollingScores,
        delivery: Delivery,
        metrics: Metrics,
        kafka: KafkaConfig,
        *,
        limits: VideoLimits,
        thinning: Thinning,
        term: Term,
        start_offset: int | None,
        on_finished: Callable[[Record], None],
        tracing: Tracing | None = None,
    ) -> None:
        """start_offset: of the first record that is not in `rolling`, if it is known."""
        self.rolling = rolling
        self.term = term
        self.delivery_began: float | None = None
        """time.monotonic() at which the delivery under way began; None: none is."""
        self.thinning = thinning
        self._limits = limits
        self._epoch_seconds = time.time() - time.monotonic()  # wall clock without its later jumps
        self._partition = partition
        self._delivery = delivery
        self._metrics = metrics
        self._interval_seconds = kafka.commit_interval_ms / 1000
        self._max_chunks = kafka.max_commit_chunks
        self._start_offset = start_offset
        self._on_finished = on_finished
        self._tracing = tracing
        self._told_unusable = False
        self._traces: list[ChunkTrace] = []
        """Of chunks counted and not yet delivered."""
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
    def unfinished_from(self) -> int | None:
        """Offset where what is not finished begins; None: nothing was read, here or before."""
        next_offset = self.next_offset
        return self._slots[0].record.offset if next_offset is None and self._slots else next_offset

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
        now_ms = round(1000 * (self._epoch_seconds + time.monotonic()))
        slot = Slot(record, self._limits.take(record.key, record.size, record.timestamp_ms, now_ms=now_ms))
        if self._tracing is not None:
            slot.trace = self._tracing.begin(record.topic, record.partition, record.offset, record.headers)
        slot.work = work(slot)
        slot.work.add_done_callback(lambda _: self._changed.set())
        self._slots.append(slot)
        self._changed.set()

    async def run(self) -> None:
        """Deliver results until `halt`. Raises what `work` or the delivery raised."""
        while not self._halting:
            await self._wait_for_results()
            # 1. count all that is finished; the state is ahead of what is delivered from here on
            self._delivering = True
            self.delivery_began = time.monotonic()
            batch = self._count_finished()
            if batch is not None:
                # 2. deliver
                with self._metrics.delivery_seconds.time():
                    await self._delivery.deliver(batch)
                self._next_delivery = time.monotonic() + self._interval_seconds
            self._delivering = False
            self.delivery_began = None
            # 3. let go of the contiguous run at the front
            while self._slots and self._slots[0].counted:
                record = self._slots.popleft().record
                self._tracker.finish(record.offset)
                self._on_finished(record)
            self._changed.set()
            if batch is not None:
                self._report(batch)
            while self._traces:
                self._traces.pop().end()

    async def give_up_waiting(self) -> None:
        """Cancel what has not begun: whoever comes next does it as well. The offset stays before it."""
        self._draining = True
        await cancel_all([slot.work for slot in self._slots if not slot.begun])

    async def drained(self) -> None:
        """Return when all that has begun is delivered."""
        while self._delivering or any(not (slot.counted or slot.work.cancelled()) for slot in self._slots):
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
        await cancel_all([slot.work for slot in slots])
        for slot in slots:
            self._on_finished(slot.record)
        self._changed.set()
        return sum(slot.begun and not slot.counted for slot in slots)

    async def _wait_for_results(self) -> None:
        """Return when something can be counted and a delivery is due, or an expiry is."""
        while not self._halting and (now := time.monotonic()) < self._next_expiry:
            until = self._next_expiry
            if any(self._countable()):
                if self._draining or now >= self._next_delivery:
                    return
                until = min(until, self._next_delivery)
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(until - now):
                    await self._changed.wait()

    def _countable(self) -> Iterator[Slot]:
        """Finished records, in order, before which nothing else of their video is left uncounted.

        A record that is of no video waits for all before it: its dead letter would not be known again in a
        replay.
        """
        held: set[bytes | None] = set()
        for slot in self._slots:
            if slot.counted:
                continue
            key = slot.record.key
            may_overtake = key not in held and slot.finished and slot.is_of_a_video
            if may_overtake or (slot.finished and not held):
                yield slot
            else:
                held.add(key)

    def _count_finished(self) -> Batch | None:
        """Count what is finished, and expire; None if there is nothing to deliver."""
        nothing, batch = (Batch(self._partition, term=self.term) for _ in range(2))
        for slot in islice(self._countable(), self._max_chunks):
            if slot.work.exception() is not None and batch != nothing:
                break  # those before it are delivered first; the next round raises
            position = len(batch.updates)
            self._count(slot, batch)
            if slot.trace is not None:
                self._trace(slot.trace, slot.work.result(), batch, position)
            slot.counted = True
        for slot in self._slots:
            if not slot.counted:
                break
            batch.next_offset = slot.record.offset + 1
        if time.monotonic() >= self._next_expiry:
            videos = len(self.rolling)
            batch.updates += self.rolling.expire(
                Arrival(time.monotonic(), round(1000 * time.time())),
                at_most=MAX_EXPIRED,
                keep=self._videos_ahead(),
            )
            if videos - len(self.rolling) < MAX_EXPIRED:  # else more are due, in the next delivery
                self._next_expiry = time.monotonic() + EXPIRY_SECONDS
        batch.states = self.rolling.take_changed()
        return batch if batch != nothing else None

    def _videos_ahead(self) -> list[str]:
        """Videos with chunks counted ahead of the offset: a replay must find them in the state."""
        outcomes = [slot.work.result() for slot in self._slots if slot.counted]
        return [outcome.chunk.video_id for outcome in outcomes if outcome.chunk is not None]

    def _count(self, slot: Slot, batch: Batch) -> None:
        """Count one record in the state, and add what is to be published of it."""
        record, outcome = slot.record, slot.work.result()
        chunk = outcome.chunk
        if chunk is not None and self.rolling.is_replay(chunk.video_id, chunk.seq, record.offset):
            self._metrics.replayed_chunks.inc()  # its results were delivered, and then the offset was lost
            return
        if isinstance(outcome, Scored):
            prediction = outcome.prediction
            arrival = _arrival(record, prediction.latency_ms)
            chosen = ChunkEvidence(self.rolling.ensemble)
            update = self.rolling.apply(
                prediction,
                last=outcome.chunk.last,
                arrival=arrival,
                numbered=is_numbered(record.headers),
                on_face=chosen.add,
            )
            if (evidence := chosen.message(prediction.video_id, prediction.seq)) is not None:
                batch.evidence.append(evidence)
            if update.status != "duplicate":
                self._metrics.frames.inc(len(prediction.frames))
                self._metrics.faces.inc(sum(len(frame.faces) for frame in prediction.frames))
                self._metrics.thinned_chunks.inc(slot.sampling_share < 1)
            batch.updates.append(update)
            return
        error, letter = outcome.error, dead_letter(record, outcome)
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
                    chunk.video_id,
                    chunk.seq,
                    error.reason,
                    arrival=_arrival(record, {}),
                    numbered=is_numbered(record.headers),
                )
            )

    def _trace(self, trace: ChunkTrace, outcome: Outcome, batch: Batch, position: int) -> None:
        """Let a chunk's update, if it has one, at `position` carry its trace on."""
        self._traces.append(trace)
        if isinstance(outcome, Refused):
            trace.refused(outcome.error)
        for update in batch.updates[position:]:
            trace.counted(update)
            batch.update_headers[position] = trace.headers

    def _report(self, batch: Batch) -> None:
        """Metrics and log of what was delivered: every chunk at debug, changes of an alert at info."""
        if (why := self.rolling.why_unusable) and not self._told_unusable:
            self._told_unusable = True  # once for all videos: mostly all have the same reason
            log.warning(
                "stored states cannot be used; their videos begin anew", partition=self._partition, why=why
            )
        for letter in batch.letters:
            self._metrics.dead_letter(letter.stage, letter.reason)
        self._metrics.evidence_messages.inc(len(batch.evidence))
        self._metrics.evidence_crops.inc(sum(len(evidence.crops) for evidence in batch.evidence))
        for update in batch.updates:
            self._metrics.chunks.labels(update.status).inc()
            self._metrics.latency(update.latency_ms)
            about = {"partition": self._partition, "video_id": update.video_id, "seq": update.seq}
            scores = {"fake_score": update.fake_score, "window_score": update.window_score}
            if update.status != "undecodable":  # a refused chunk has its line
                log.debug("chunk counted", **about, **scores, status=update.status, ms=update.latency_ms)
            if update.alert.changed:
                if update.alert.state == "raised":
                    self._metrics.alerts.inc()
                event = "alert raised" if update.alert.state == "raised" else "alert cleared"
                log.info(event, **about, **scores, threshold=update.alert.threshold)


def _arrival(record: Record, latency_ms: dict[str, float]) -> Arrival:
    now_ms = 1000 * time.time()
    total = {"total": max(0.0, now_ms - record.timestamp_ms)} if record.timestamp_ms >= 0 else {}
    return Arrival(time.monotonic(), round(now_ms), record.offset, {**latency_ms, **total})

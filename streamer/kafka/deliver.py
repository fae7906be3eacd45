"""What comes of chunks, out to Kafka: in one transaction with their offsets, or before them.

Everything of one input partition goes through one `Batch` after the other. `ExactlyOnce` makes a batch
visible as a whole or not at all. `AtLeastOnce` writes in an order that loses nothing: results, then the
changelog, then (by the consumer, later) the offset. A crash in between repeats results; a chunk that the
changelog holds is known to have its result published.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import structlog
from aiokafka import TopicPartition

from streamer.config import KafkaConfig
from streamer.kafka.changelog import NO_TERM, Term, position_record, state_record
from streamer.kafka.client import CONNECT_SECONDS
from streamer.kafka.publish import OutRecord, Publisher, TooLargeError
from streamer.messages import (
    MAX_VIDEO_ID_BYTES,
    DeadLetter,
    Headers,
    ScoreUpdate,
    VideoEvidence,
    encode_dead_letter,
    encode_evidence,
    encode_score,
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True)
class Batch:
    """Results of consecutive records of one partition, and what they made of its state."""

    partition: int
    letters: list[DeadLetter] = field(default_factory=list)
    updates: list[ScoreUpdate] = field(default_factory=list)
    states: dict[str, bytes | None] = field(default_factory=dict)
    """Changed states by video_id; None: forgotten."""
    next_offset: int | None = None
    """After the last record; None: no record, only time has passed."""
    update_headers: dict[int, Headers] = field(default_factory=dict)
    """Record headers of some of `updates`, by position."""
    evidence: list[VideoEvidence] = field(default_factory=list)
    """Cleared by a delivery that had to leave it out."""
    term: Term = NO_TERM
    """In which this came about."""


class Delivery(Protocol):
    """A way to deliver; a context manager."""

    @property
    def commits_offsets(self) -> bool:
        """Whether offsets are committed with the results, or are left to the consumer."""
        ...

    async def __aenter__(self) -> Self: ...

    async def __aexit__(self, *_: object) -> None: ...

    async def open(self, partitions: Iterable[int]) -> None:
        """Become the only one to deliver results of these partitions. Raises BrokerError."""
        ...

    async def close(self) -> None:
        """Give the partitions up; what was not delivered is undone."""
        ...

    async def deliver(self, batch: Batch) -> None:
        """Return when the batch is safe. Raises FencedError, BrokerError."""
        ...


def make_delivery(kafka: KafkaConfig, *, connect_seconds: float = CONNECT_SECONDS) -> Delivery:
    """The way that the configuration asks for."""
    if kafka.delivery == "exactly_once":
        return ExactlyOnce(kafka, connect_seconds=connect_seconds)
    return AtLeastOnce(kafka, connect_seconds=connect_seconds)


class AtLeastOnce:
    """One idempotent producer for all partitions."""

    commits_offsets = False

    def __init__(self, kafka: KafkaConfig, *, connect_seconds: float = CONNECT_SECONDS) -> None:
        self._kafka = kafka
        self._publisher = Publisher(kafka, connect_seconds=connect_seconds)

    async def __aenter__(self) -> Self:
        """Connect. Raises BrokerError."""
        await self._publisher.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._publisher.__aexit__()

    async def open(self, partitions: Iterable[int]) -> None:
        """Nothing to do: another owner, if there still is one, is not kept out, but known by its `Term`."""

    async def close(self) -> None:
        """Nothing to do."""

    async def deliver(self, batch: Batch) -> None:
        """See `Delivery.deliver`."""
        try:
            await self._publisher.send(result_records(self._kafka, batch))
        except TooLargeError as error:
            await self._publisher.restart()
            await self._publisher.send(result_records(self._kafka, _without_bytes(batch, error)))
        await self._publisher.send(changelog_records(self._kafka, batch))


class ExactlyOnce:
    """One transactional producer for each partition.

    aiokafka commits offsets of a transaction without the generation of the group, so the group does not keep
    out a process that lost a partition and does not know it yet. The transactional id does.
    """

    commits_offsets = True

    def __init__(self, kafka: KafkaConfig, *, connect_seconds: float = CONNECT_SECONDS) -> None:
        self._kafka = kafka
        self._connect_seconds = connect_seconds
        self._publishers: dict[int, Publisher] = {}

    async def __aenter__(self) -> Self:
        """Find out whether the broker has transactions at all. Raises BrokerError."""
        async with self._publisher("probe"):
            return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def open(self, partitions: Iterable[int]) -> None:
        """See `Delivery.open`: transactions that others have open for them are aborted."""

        async def start(partition: int) -> None:
            self._publishers[partition] = await self._publisher(str(partition)).__aenter__()

        async with asyncio.TaskGroup() as group:
            for partition in partitions:
                group.create_task(start(partition))

    async def close(self) -> None:
        """See `Delivery.close`."""
        publishers = list(self._publishers.values())
        self._publishers.clear()
        await asyncio.gather(*(publisher.__aexit__() for publisher in publishers))

    async def deliver(self, batch: Batch) -> None:
        """See `Delivery.deliver`."""
        publisher = self._publishers[batch.partition]
        offsets: dict[TopicPartition, int] = {}
        if batch.next_offset is not None:
            offsets[TopicPartition(self._kafka.chunks_topic, batch.partition)] = batch.next_offset
        state = changelog_records(self._kafka, batch)
        try:
            await publisher.send_in_transaction(
                result_records(self._kafka, batch) + state, offsets, self._kafka.group_id
            )
        except TooLargeError as error:
            await publisher.restart()
            results = result_records(self._kafka, _without_bytes(batch, error))
            await publisher.send_in_transaction(results + state, offsets, self._kafka.group_id)

    def _publisher(self, suffix: str) -> Publisher:
        transactional_id = f"{self._kafka.group_id}-{self._kafka.chunks_topic}-{suffix}"
        return Publisher(
            self._kafka, transactional_id=transactional_id, connect_seconds=self._connect_seconds
        )


def result_records(kafka: KafkaConfig, batch: Batch) -> list[OutRecord]:
    """Dead letters under their record's key, then score updates and evidence under their video's."""
    letters = [
        OutRecord(kafka.dead_letters_topic, letter.key, encode_dead_letter(letter))
        for letter in batch.letters
    ]
    updates = [
        OutRecord(
            kafka.scores_topic,
            _key(update.video_id),
            encode_score(update, kafka.score_format),
            headers=batch.update_headers.get(position, ()),
        )
        for position, update in enumerate(batch.updates)
    ]
    evidence = [
        OutRecord(kafka.evidence_topic, _key(each.video_id), encode_evidence(each)) for each in batch.evidence
    ]
    return letters + updates + evidence


def changelog_records(kafka: KafkaConfig, batch: Batch) -> list[OutRecord]:
    """Changed states, then the position that they were reached at."""
    records = [
        state_record(kafka, batch.partition, batch.term, video_id, state)
        for video_id, state in batch.states.items()
    ]
    if batch.next_offset is not None:
        records.append(position_record(kafka, batch.partition, batch.term, batch.next_offset))
    return records


def _key(video_id: str) -> bytes:
    return video_id.encode("utf-8", "surrogatepass")


def _without_bytes(batch: Batch, error: TooLargeError) -> Batch:
    """The same without what can be too large for a topic that is not as `topics create` makes it.

    Dead letters only say where their bytes are: they fit their topic, but not ours. Evidence is left out.
    """
    if batch.evidence:
        log.warning("evidence left out", messages=len(batch.evidence), error=str(error))
        batch.evidence.clear()  # in the caller's batch, too: it was not published
    shorter = []
    for letter in batch.letters:
        where = f"{letter.topic} partition {letter.partition} offset {letter.offset}"
        log.warning("dead letter without its bytes", reason=letter.reason, where=where, error=str(error))
        left_out = f"{len(letter.value)} bytes left out: too large; they are in {where}"
        cut: dict[str, object] = {
            "value": b"",
            "key": letter.key and letter.key[:MAX_VIDEO_ID_BYTES],  # these may be what is too large
            "headers": [],
            "error": f"{letter.error} ({left_out})",
        }
        shorter.append(letter.model_copy(update=cut))
    return replace(batch, letters=shorter)

"""Chunks out of Kafka for a member of the group.

What aiokafka 0.14 does that shapes this module:
- `getmany` ignores its timeout while the group rebalances, and with records of several partitions in its
  buffer an unreadable one makes it lose the readable ones before it. So: timeout 0, which never suspends;
  one record at a time; and none of it between `on_partitions_revoked` and `on_partitions_assigned`.
- It hands out records of a new assignment before `on_partitions_assigned` has returned.
- It drops fetched records of a paused partition when it comes across them. So closed partitions are not only
  paused (no more fetching) but also left out of `getmany`.
- `on_partitions_revoked` runs before JoinGroup is sent, and the broker waits for that only as long as
  `rebalance_timeout_ms`, by default the session timeout. So it is set to more than the drain budget.
- Exceptions in the listener are logged and swallowed. So they are handed over by `on_error`.
- Where retention has deleted what was to be read next, it goes on elsewhere without a word. So it is told to
  raise an error (`auto_offset_reset="none"`), and where to read on is decided here.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, ConsumerRecord, TopicPartition
from aiokafka.errors import (
    CommitFailedError,
    IllegalStateError,
    KafkaError,
    OffsetOutOfRangeError,
    UnsupportedCodecError,
)
from aiokafka.errors import CorruptRecordException as CorruptRecordError

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.client import (
    CONNECT_SECONDS,
    READ_COMMITTED,
    client_arguments,
    describe,
    start_client,
    stop_consumer,
)
from streamer.kafka.intake import Switches
from streamer.messages import Headers

REBALANCE_SLACK_SECONDS = 5.0
"""What the broker grants for a rebalance beyond the drain budget: committing and joining."""

FETCH_BYTES = 32 * 1024 * 1024
"""Fetched ahead at most, unless a single record is larger."""

CAREFUL_SECONDS = 5.0
"""Partitions are read one by one for so long after a record that cannot be read."""

OFFSETS_SECONDS = 5.0
"""For an answer about where partitions begin, when work goes on without it."""

METADATA_SECONDS = 10.0
"""Between looks at the topic's partitions. With aiokafka's five minutes, a topic deleted and made anew within
seconds left us with no partitions for so long, ready and idle."""

UNREADABLE_TRIES = 3
"""A damaged batch is fetched again before its records are given up: the damage may be in the transfer."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Record:
    """A record of the chunks topic."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    """Unix time given by the producer or the broker, milliseconds; -1 if there is none."""
    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    unreadable: str | None = None
    """Why the client could not read it; key, value and headers are missing then."""

    @property
    def size(self) -> int:
        """Bytes of value, key and headers: what it holds of our memory."""
        headers = sum(len(name) + len(content or b"") for name, content in self.headers)
        return len(self.value or b"") + len(self.key or b"") + headers


class ChunkConsumer:
    """A member of the consumer group; reads, pauses, commits. Where it may read is `Intake`'s decision."""

    def __init__(
        self,
        kafka: KafkaConfig,
        *,
        drain_seconds: float,
        on_revoked: Callable[[frozenset[int]], Awaitable[None]],
        on_assigned: Callable[[frozenset[int]], Awaitable[None]],
        on_error: Callable[[BaseException], None],
        on_lost: Callable[[int, int, int], None],
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        """on_assigned: must `seek` every partition. on_lost: gets a partition, the offset that was to be read
        next and the one where it now begins."""
        rebalance_ms = max(kafka.session_timeout_ms, round(1000 * (drain_seconds + REBALANCE_SLACK_SECONDS)))
        self._kafka = kafka
        self._connect_seconds = connect_seconds
        self._on_lost = on_lost
        self._listener = _Listener(self, on_revoked, on_assigned, on_error)
        self._consumer = AIOKafkaConsumer(
            **client_arguments(kafka),
            group_id=kafka.group_id,
            enable_auto_commit=False,
            isolation_level=READ_COMMITTED,
            auto_offset_reset="none",
            session_timeout_ms=kafka.session_timeout_ms,
            heartbeat_interval_ms=kafka.heartbeat_interval_ms,
            max_poll_interval_ms=kafka.max_poll_interval_ms,
            metadata_max_age_ms=round(1000 * METADATA_SECONDS),
            rebalance_timeout_ms=rebalance_ms,
            # JoinGroup is answered when the slowest member is there.
            request_timeout_ms=max(40_000, rebalance_ms + 10_000),
            max_partition_fetch_bytes=kafka.max_message_bytes,
            fetch_max_bytes=max(kafka.max_message_bytes, FETCH_BYTES),
        )
        self._nowhere = TopicPartition(kafka.chunks_topic, -1)
        self._commit_lock = asyncio.Lock()
        self._careful_until = 0.0
        self._failed_reads: dict[tuple[int, int], int] = {}
        self.rebalancing = True
        """No partition may be read: not yet a member, or partitions are being dealt anew."""

    @property
    def generation(self) -> int:
        """Of the group, as of our last joining: one more with each rebalance; -1 when we are out of it."""
        generation: int = self._consumer._coordinator.generation
        return generation

    async def start(self) -> None:
        """Connect and subscribe; partitions follow by `on_assigned`. Raises BrokerError."""
        await start_client(self._consumer, self._kafka, connect_seconds=self._connect_seconds)
        self._consumer.subscribe([self._kafka.chunks_topic], listener=self._listener)

    async def stop(self) -> None:
        """Leave the group and disconnect. Does not commit."""
        await stop_consumer(self._consumer)

    async def take(self, partitions: Iterable[int]) -> list[Record]:
        """At most one record of each partition, out of what was fetched ahead; never waits.

        It counts as a poll even with no partitions. Not to be called while `rebalancing`. Raises BrokerError.
        """
        wanted = [TopicPartition(self._kafka.chunks_topic, partition) for partition in partitions]
        if time.monotonic() < self._careful_until:
            return await self._take_carefully(wanted)
        records: list[Record] = []
        while True:
            try:
                got = await self._get(wanted or [self._nowhere])
            except Exception as error:  # noqa: BLE001  # reading a record may raise anything
                self._raise_unless_a_records_fault(error)
                # The failure has dropped the partition's buffer, but moved no position: it comes again.
                self._careful_until = time.monotonic() + CAREFUL_SECONDS
                return records
            if not got:
                return records
            (taken_from, (raw,)) = next(iter(got.items()))
            records.append(_record(raw))
            wanted.remove(taken_from)
            if not wanted:
                return records

    async def _take_carefully(self, wanted: list[TopicPartition]) -> list[Record]:
        """Like `take`, partition by partition: a record that cannot be read is then known by its offset."""
        records: list[Record] = []
        for partition in wanted:
            offset = await self._consumer.position(partition)
            if self.rebalancing:  # the position was not known yet, and we had to wait for it
                break
            try:
                got = await self._get([partition])
            except Exception as error:  # noqa: BLE001  # as above
                self._raise_unless_a_records_fault(error)
                self._careful_until = time.monotonic() + CAREFUL_SECONDS
                at = (partition.partition, offset)
                tries = self._failed_reads.get(at, 0) + 1
                self._failed_reads = {at: tries}
                if tries >= UNREADABLE_TRIES:
                    self._consumer.seek(partition, offset + 1)
                    records.append(Record(partition.topic, *at, -1, None, None, unreadable=describe(error)))
            else:
                records += [_record(raw) for raw in got.get(partition, ())]
        return records

    async def _get(self, wanted: list[TopicPartition]) -> dict[TopicPartition, list[ConsumerRecord]]:
        """At most one record. Raises whatever reading it raises."""
        try:
            got: dict[TopicPartition, list[ConsumerRecord]] = await self._consumer.getmany(
                *wanted, timeout_ms=0, max_records=1
            )
        except OffsetOutOfRangeError as error:
            [[(partition, offset)]] = [dict(error.args[0]).items()]
            await self._read_on(partition, offset)
            return {}
        return got

    async def _read_on(self, partition: TopicPartition, offset: int) -> None:
        """Seek an offset that there is instead of one before the beginning, or after the end of a topic that
        was made anew. Does nothing if there is no answer: the client says it again.
        """
        number = partition.partition
        try:
            async with asyncio.timeout(OFFSETS_SECONDS):
                beginning = (await self.beginning_offsets([number]))[number]
                start = beginning if offset < beginning else await self.initial_offset(number)
        except (TimeoutError, BrokerError) as error:
            log.warning("beginning not known", partition=number, error=describe(error))
            return
        if self.rebalancing:
            return
        self._consumer.seek(partition, start)
        if offset < beginning:
            self._on_lost(number, offset, beginning)
        else:
            log.warning(
                "no such offset; if the topic was made anew, the state topic must be, too",
                partition=number,
                offset=offset,
                read_on_at=start,
            )

    def _raise_unless_a_records_fault(self, error: Exception) -> None:
        concerns_a_record = isinstance(error, CorruptRecordError | UnsupportedCodecError)
        if isinstance(error, KafkaError) and not concerns_a_record:
            raise self._broker_error("cannot read", error) from error

    async def wait_through_rebalance(self) -> None:
        """Poll without reading until partitions are assigned; a moment, if they are. Raises BrokerError."""
        try:
            await self._consumer.getmany(self._nowhere, timeout_ms=20)
        except KafkaError as error:
            raise self._broker_error("cannot join the group", error) from error

    def switch(self, switches: Switches) -> None:
        """Pause and resume fetching."""
        topic = self._kafka.chunks_topic
        self._consumer.pause(*(TopicPartition(topic, partition) for partition in switches.pause))
        self._consumer.resume(*(TopicPartition(topic, partition) for partition in switches.resume))

    async def commit(self, positions: Callable[[], Mapping[int, int]]) -> bool:
        """Commit the next offset to read by partition; False if the group no longer takes it from us.

        positions: asked when it is this commit's turn, so that an older commit cannot follow a newer one.
        Raises BrokerError; what can be tried again, aiokafka tries again.
        """
        async with self._commit_lock:
            topic = self._kafka.chunks_topic
            offsets = {TopicPartition(topic, p): offset for p, offset in positions().items()}
            if not offsets:
                return True
            try:
                await self._consumer.commit(offsets)
            except (CommitFailedError, IllegalStateError) as error:
                log.warning("the group has moved on; the offsets are not committed", error=describe(error))
                return False
            except KafkaError as error:
                raise self._broker_error("cannot commit", error) from error
            return True

    async def committed(self, partition: int) -> int | None:
        """The group's committed offset, None if there is none. Raises BrokerError."""
        try:
            found = await self._consumer.committed(TopicPartition(self._kafka.chunks_topic, partition))
        except KafkaError as error:
            raise self._broker_error("cannot read offsets", error) from error
        return None if found is None else int(found)

    def seek(self, partition: int, offset: int) -> None:
        """Go on reading there."""
        self._consumer.seek(TopicPartition(self._kafka.chunks_topic, partition), offset)

    async def initial_offset(self, partition: int) -> int:
        """Where to begin with nothing to go by: `auto_offset_reset`. Raises BrokerError."""
        earliest = self._kafka.auto_offset_reset == "earliest"
        return (await (self.beginning_offsets if earliest else self.end_offsets)([partition]))[partition]

    async def beginning_offsets(self, partitions: Iterable[int]) -> dict[int, int]:
        """Offset of the oldest record that is kept, by partition. Raises BrokerError."""
        return await self._offsets(self._consumer.beginning_offsets, partitions)

    async def end_offsets(self, partitions: Iterable[int]) -> dict[int, int]:
        """Offset after the newest record by partition. Raises BrokerError."""
        return await self._offsets(self._consumer.end_offsets, partitions)

    async def _offsets(
        self,
        ask: Callable[[list[TopicPartition]], Awaitable[dict[TopicPartition, int]]],
        partitions: Iterable[int],
    ) -> dict[int, int]:
        try:
            found = await ask([TopicPartition(self._kafka.chunks_topic, p) for p in partitions])
        except KafkaError as error:
            raise self._broker_error("cannot read offsets", error) from error
        return {partition.partition: offset for partition, offset in found.items()}

    async def topics(self) -> set[str]:
        """Names of all topics that we may see. Raises BrokerError."""
        try:
            found: set[str] = await self._consumer.topics()
        except KafkaError as error:
            raise self._broker_error("cannot read topics", error) from error
        return found

    async def position(self, partition: int) -> int:
        """Offset of the next record to be taken."""
        return int(await self._consumer.position(TopicPartition(self._kafka.chunks_topic, partition)))

    def withheld(self, partition: int) -> int:
        """Records not to be read yet, as of the last fetch: a producer's transaction before them is open."""
        topic_partition = TopicPartition(self._kafka.chunks_topic, partition)
        end = self._consumer.highwater(topic_partition)
        stable_end = self._consumer.last_stable_offset(topic_partition)
        return max(0, end - stable_end) if end is not None and (stable_end or -1) >= 0 else 0

    def _broker_error(self, what: str, error: KafkaError) -> BrokerError:
        return BrokerError(f"{what} (Kafka at {self._kafka.bootstrap_servers}): {describe(error)}")


def _record(raw: ConsumerRecord) -> Record:
    return Record(
        *(raw.topic, raw.partition, raw.offset, raw.timestamp, raw.key, raw.value), headers=raw.headers
    )


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """Sets `rebalancing` for exactly as long as the partitions are not ours to read."""

    def __init__(
        self,
        consumer: ChunkConsumer,
        on_revoked: Callable[[frozenset[int]], Awaitable[None]],
        on_assigned: Callable[[frozenset[int]], Awaitable[None]],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self._consumer = consumer
        self._on_revoked = on_revoked
        self._on_assigned = on_assigned
        self._on_error = on_error

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        self._consumer.rebalancing = True  # before anything is awaited: `take` must not run from here on
        await self._guarded(self._on_revoked, revoked)

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        if await self._guarded(self._on_assigned, assigned):
            self._consumer.rebalancing = False

    async def _guarded(
        self,
        callback: Callable[[frozenset[int]], Awaitable[None]],
        partitions: Iterable[TopicPartition],
    ) -> bool:
        try:
            await callback(frozenset(partition.partition for partition in partitions))
        except Exception as error:  # noqa: BLE001  # aiokafka would log and go on
            self._on_error(error)
            return False
        return True

"""The state topic: what each partition's videos have come to, and up to which record.

Compacted, with as many partitions as the chunks topic. Records of a partition: the state of a video under
its video_id, a tombstone when it is forgotten, and under POSITION_KEY the offset of the next chunk to count.
That is written together with the states, so that it fits them where the group's committed offset may be
older: some milliseconds after a transaction was committed, a broker may still answer with the old one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import msgpack
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.client import (
    CONNECT_SECONDS,
    client_arguments,
    describe,
    isolation,
    start_client,
    stop_consumer,
)
from streamer.kafka.publish import OutRecord

POSITION_KEY = b"\xffposition"
"""No video_id: 0xFF never occurs in UTF-8."""

FETCH_BYTES = 8 * 1024 * 1024
"""Of one partition at a time, while states are restored."""


def state_record(kafka: KafkaConfig, partition: int, video_id: str, state: bytes | None) -> OutRecord:
    """The state of a video; None: it is forgotten."""
    key = video_id.encode("utf-8", "surrogatepass")
    return OutRecord(kafka.state_topic, key, state, partition=partition)


def position_record(kafka: KafkaConfig, partition: int, next_offset: int) -> OutRecord:
    """The offset of the next chunk to count."""
    return OutRecord(kafka.state_topic, POSITION_KEY, msgpack.packb(next_offset), partition=partition)


@dataclass(slots=True)
class Restored:
    """What the changelog of one partition holds."""

    states: dict[str, bytes] = field(default_factory=dict)
    """By video_id, in the order of their last change."""
    next_offset: int | None = None
    """Of the chunks topic; None: nothing was counted yet."""

    def read(self, key: bytes | None, value: bytes | None) -> None:
        """Take note of one record."""
        if key is None:
            return
        if key == POSITION_KEY:
            self.next_offset = None if value is None else int(msgpack.unpackb(value))
            return
        video_id = key.decode("utf-8", "surrogatepass")
        self.states.pop(video_id, None)
        if value is not None:
            self.states[video_id] = value


class Changelog:
    """Reads the state topic; a context manager."""

    def __init__(self, kafka: KafkaConfig, *, connect_seconds: float = CONNECT_SECONDS) -> None:
        self._kafka = kafka
        self._connect_seconds = connect_seconds
        self._consumer = self._make_consumer()

    async def __aenter__(self) -> Self:
        """Connect. Raises BrokerError."""
        await start_client(self._consumer, self._kafka, connect_seconds=self._connect_seconds)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await stop_consumer(self._consumer)

    async def ends(self, partitions: Iterable[int]) -> dict[int, int]:
        """Offset after the newest record of each; unchanged: nobody has written. Raises BrokerError."""
        wanted = [TopicPartition(self._kafka.state_topic, partition) for partition in partitions]
        try:
            found = await self._consumer.end_offsets(wanted)
        except KafkaError as error:
            raise self._error(error) from error
        return {each.partition: offset for each, offset in found.items()}

    async def restore(self, partitions: Iterable[int]) -> dict[int, Restored]:
        """Read partitions from the beginning to their present end.

        To be called once this process is the only one to write to them. Raises BrokerError.
        """
        restored = {partition: Restored() for partition in partitions}
        if not restored:
            return restored
        ends = await self.ends(restored)
        left = {TopicPartition(self._kafka.state_topic, p): end for p, end in ends.items()}
        # One of its own, lest it go on fetching what we write ourselves.
        consumer = self._make_consumer()
        try:
            await start_client(consumer, self._kafka, connect_seconds=self._connect_seconds)
            consumer.assign(list(left))
            while True:
                # The position also moves over transaction markers, which are no records.
                left = {p: end for p, end in left.items() if await consumer.position(p) < end}
                if not left:
                    return restored
                for each, records in (await consumer.getmany(timeout_ms=100)).items():
                    for record in records:
                        restored[each.partition].read(record.key, record.value)
        except KafkaError as error:
            raise self._error(error) from error
        finally:
            await stop_consumer(consumer)

    def _make_consumer(self) -> AIOKafkaConsumer:
        return AIOKafkaConsumer(
            **client_arguments(self._kafka),
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            isolation_level=isolation(self._kafka),
            max_partition_fetch_bytes=FETCH_BYTES,
        )

    def _error(self, error: KafkaError) -> BrokerError:
        return BrokerError(
            f"cannot read topic {self._kafka.state_topic} at {self._kafka.bootstrap_servers}: "
            f"{describe(error)}"
        )

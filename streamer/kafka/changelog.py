"""The state topic: what each partition's videos have come to, and up to which record.

Compacted, with as many partitions as the chunks topic. Records of a partition: the state of a video under
its video_id, a tombstone when it is forgotten, and under POSITION_KEY the offset of the next chunk to count.
That is written together with the states, so that it fits them where the group's committed offset may be
older: some milliseconds after a transaction was committed, a broker may still answer with the old one.

Each record carries the `Term` of its writer. Where no transactions keep it out, a process that was frozen
and has lost the partition without knowing may still write old states behind the new owner's; they are told
by their term and left out. (Should compaction come between, the old state is all that is left.)

And each carries its writer's group: of two that share a topic by mistake, one would go on from the other's
position, and leave out its own chunks before that.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from functools import lru_cache
from typing import NamedTuple

import msgpack
from aiokafka import TopicPartition

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.client import CONNECT_SECONDS
from streamer.kafka.held import held
from streamer.kafka.publish import OutRecord
from streamer.kafka.topics import describe_broker, why_states_do_not_fit
from streamer.messages import Headers

POSITION_KEY = b"\xffposition"
"""No video_id: 0xFF never occurs in UTF-8."""

TERM_HEADER = "term"
GROUP_HEADER = "group"


class Term(NamedTuple):
    """One process's time as the owner of a partition. Later terms are greater."""

    number: int = 0
    """One more than that of the term whose state was taken over."""
    generation: int = 0
    """Of the consumer group: greater for the later of two owners that took over the same state. Not
    comparable alone, for it begins anew with a group that has been forgotten."""

    def next(self, generation: int) -> Term:
        """That of an owner, in this generation, who takes this one's state over."""
        return Term(self.number + 1, generation)


NO_TERM = Term()
"""Nobody's, before the first."""


def state_record(
    kafka: KafkaConfig, partition: int, term: Term, video_id: str, state: bytes | None
) -> OutRecord:
    """The state of a video; None: it is forgotten."""
    key = video_id.encode("utf-8", "surrogatepass")
    return OutRecord(kafka.state_topic, key, state, _headers(kafka, term), partition)


def position_record(kafka: KafkaConfig, partition: int, term: Term, next_offset: int) -> OutRecord:
    """The offset of the next chunk to count."""
    value = msgpack.packb(next_offset)
    return OutRecord(kafka.state_topic, POSITION_KEY, value, _headers(kafka, term), partition)


def _headers(kafka: KafkaConfig, term: Term) -> Headers:
    return ((TERM_HEADER, msgpack.packb(term)), (GROUP_HEADER, kafka.group_id.encode()))


def _group_of(headers: Headers) -> str | None:
    """None: written by a version that did not say."""
    return next((value.decode() for name, value in headers if name == GROUP_HEADER and value), None)


def _term_of(headers: Headers) -> Term:
    return next((_unpacked(value) for name, value in headers if name == TERM_HEADER and value), NO_TERM)


@lru_cache(maxsize=64)  # hundreds of thousands of records have the same few
def _unpacked(value: bytes) -> Term:
    return Term(*msgpack.unpackb(value))


@dataclass(slots=True)
class Restored:
    """What the changelog of one partition holds."""

    states: dict[str, bytes] = field(default_factory=dict)
    """By video_id, in the order of their last change."""
    next_offset: int | None = None
    """Of the chunks topic; None: nothing was counted yet."""
    term: Term = NO_TERM
    """Of the last owner."""
    stale: int = 0
    """Records left out because an earlier owner wrote them after a later one had begun."""
    foreign: int = 0
    """Records left out because nobody of ours wrote them: they cannot be read."""
    other_groups: set[str] = field(default_factory=set)
    """Whose records were left out."""

    def read(self, group: str, key: bytes | None, value: bytes | None, headers: Headers = ()) -> None:
        """Take note of one record, as a member of `group`. One that is not ours stays there, so it must not
        end the service."""
        try:
            if (writer := _group_of(headers) or group) == group:
                self._read(key, value, headers)
            else:
                self.other_groups.add(writer)
        except (TypeError, ValueError):
            self.foreign += 1

    def _read(self, key: bytes | None, value: bytes | None, headers: Headers) -> None:
        if key is None:
            return
        term = _term_of(headers)
        if term < self.term:
            self.stale += 1
            return
        self.term = term
        if key == POSITION_KEY:
            self.next_offset = None if value is None else int(msgpack.unpackb(value))
            return
        video_id = key.decode("utf-8", "surrogatepass")
        self.states.pop(video_id, None)
        if value is not None:
            self.states[video_id] = value


async def restore(
    kafka: KafkaConfig, partitions: Iterable[int], *, connect_seconds: float = CONNECT_SECONDS
) -> dict[int, Restored]:
    """Read partitions of the state topic from the beginning to their present end.

    To be called once this process is the only one that may write to them. Raises BrokerError, also if the
    topic has too few partitions: of the chunks topic some may have been added just now.
    """
    restored = {partition: Restored() for partition in partitions}
    if restored:
        info = await describe_broker(kafka, connect_seconds=connect_seconds)
        if (why := why_states_do_not_fit(kafka, info)) is not None:
            raise BrokerError(why)
        wanted = [TopicPartition(kafka.state_topic, partition) for partition in restored]
        async with aclosing(held(kafka, wanted, connect_seconds=connect_seconds)) as batches:
            async for records in batches:
                for record in records:
                    mine = restored[record.partition]
                    mine.read(kafka.group_id, record.key, record.value, record.headers)
    return restored

"""Reading score updates, as `streamer watch` does it: all partitions, no group, nothing committed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from streamer.config import KafkaConfig
from streamer.errors import BrokerError, MessageError
from streamer.kafka.client import client_arguments, describe, start_client
from streamer.kafka.topics import require_topics
from streamer.messages import ScoreUpdate, decode_score

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class ScoreReader:
    """`async with ScoreReader(config.kafka) as scores: async for update in scores: ...`.

    Every update published after the block was entered is read; with `from_beginning` also those still kept.
    """

    def __init__(self, kafka: KafkaConfig, *, from_beginning: bool = False) -> None:
        self._kafka = kafka
        self._from_beginning = from_beginning
        self._consumer: AIOKafkaConsumer | None = None

    async def __aenter__(self) -> ScoreReader:
        """Raises BrokerError if Kafka cannot be reached or has no such topic."""
        await require_topics(self._kafka)
        self._consumer = AIOKafkaConsumer(
            self._kafka.scores_topic,
            **client_arguments(self._kafka),
            auto_offset_reset="earliest",
            enable_auto_commit=False,
        )
        try:
            await start_client(self._consumer, self._kafka)
            if not self._from_beginning:
                await self._consumer.seek_to_end()
            for partition in self._consumer.assignment():  # settle it now, not at the first fetch
                await self._consumer.position(partition)
        except BaseException:
            await self._consumer.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._consumer is not None:
            await self._consumer.stop()

    async def __aiter__(self) -> AsyncIterator[ScoreUpdate]:
        """Updates as they come, without end. Messages that are none are skipped with a warning."""
        assert self._consumer is not None, "use it as a context manager"
        try:
            async for record in self._consumer:
                try:
                    update = decode_score(record.value or b"")
                except MessageError as error:
                    where = f"{record.topic}/{record.partition}@{record.offset}"
                    log.warning("skipped what is no score update", where=where, error=str(error))
                else:
                    yield update
        except KafkaError as error:
            raise BrokerError(f"cannot read topic {self._kafka.scores_topic}: {describe(error)}") from error

"""Out to Kafka: score updates and dead letters of the service, chunks of `streamer publish`.

At-least-once: `send_*` returns when the broker has acknowledged on all in-sync replicas. The transactional
mode will replace `ScorePublisher`, one producer per input partition.
"""

from __future__ import annotations

import asyncio
import logging
from types import TracebackType
from typing import Self

import structlog
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaConnectionError, KafkaError, MessageSizeTooLargeError

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.client import CONNECT_SECONDS, client_arguments, describe, start_client
from streamer.kafka.topics import ENVELOPE_BYTES
from streamer.messages import (
    DeadLetter,
    Headers,
    ScoreUpdate,
    VideoChunk,
    encode_chunk,
    encode_dead_letter,
    encode_score,
)

STOP_SECONDS = 10.0
"""For records not yet acknowledged when a producer is closed."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class _Publisher:
    """A producer with an idempotent session where the broker has them."""

    def __init__(self, kafka: KafkaConfig, *, connect_seconds: float = CONNECT_SECONDS) -> None:
        self._kafka = kafka
        self._connect_seconds = connect_seconds
        self._producer: AIOKafkaProducer | None = None

    async def __aenter__(self) -> Self:
        """Connect. Raises BrokerError."""
        try:
            await self._start(idempotent=True)
        except _NoIdempotence as error:
            # tansu answers InitProducerId with an error; without it a retry may write a record twice.
            log.info("the broker has no idempotent producers; retries may repeat a record", error=str(error))
            await self._start(idempotent=False)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stop()

    async def _start(self, *, idempotent: bool) -> None:
        self._producer = AIOKafkaProducer(
            **client_arguments(self._kafka),
            acks="all",
            enable_idempotence=idempotent,
            max_request_size=self._kafka.max_message_bytes + ENVELOPE_BYTES,
        )
        quiet = logging.getLogger("aiokafka.producer.sender")
        try:
            if idempotent:
                quiet.addFilter(_is_no_session_error)
            await start_client(self._producer, self._kafka, connect_seconds=self._connect_seconds)
        except BaseException as error:
            await self._stop()
            cause = error.__cause__
            refused = isinstance(cause, KafkaError) and not isinstance(cause, KafkaConnectionError)
            if idempotent and isinstance(error, BrokerError) and refused:
                raise _NoIdempotence(describe(cause or error)) from error
            raise
        finally:
            quiet.removeFilter(_is_no_session_error)

    async def _stop(self) -> None:
        if self._producer is None:
            return
        producer, self._producer = self._producer, None
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await producer.stop()
        except TimeoutError:
            log.warning("closed the producer with records not acknowledged", after_seconds=STOP_SECONDS)

    async def _send(self, topic: str, value: bytes, key: bytes | None, headers: Headers = ()) -> None:
        """Send and wait for the acknowledgement. Raises BrokerError; aiokafka has retried before."""
        assert self._producer is not None, "use `async with`"
        try:
            await self._producer.send_and_wait(topic, value, key=key, headers=list(headers))
        except MessageSizeTooLargeError as error:
            raise TooLargeError(f"topic {topic}: {error}") from error
        except KafkaError as error:
            raise BrokerError(
                f"could not publish to topic {topic} at {self._kafka.bootstrap_servers}: {describe(error)}"
            ) from error


class TooLargeError(BrokerError):
    """A record is larger than the producer or the topic allows."""


class _NoIdempotence(Exception):  # noqa: N818  # caught a few lines above
    """The broker gives no producer id."""


def _is_no_session_error(record: logging.LogRecord) -> bool:
    return "InitProducerIdRequest" not in record.getMessage()


class ScorePublisher(_Publisher):
    """Score updates and dead letters."""

    async def send_score(self, update: ScoreUpdate) -> None:
        """Publish under the video's key. Raises BrokerError."""
        value = encode_score(update, self._kafka.score_format)
        await self._send(self._kafka.scores_topic, value, update.video_id.encode("utf-8", "surrogatepass"))

    async def send_dead_letter(self, letter: DeadLetter) -> None:
        """Publish under the record's own key. Raises BrokerError.

        A record that fits its topic but not the dead letters' is published without its bytes; the text says
        where they are.
        """
        topic = self._kafka.dead_letters_topic
        try:
            await self._send(topic, encode_dead_letter(letter), letter.key)
        except TooLargeError as error:
            where = f"{letter.topic} partition {letter.partition} offset {letter.offset}"
            left_out = f"{len(letter.value)} bytes left out: too large for {topic}; they are in {where}"
            log.warning("dead letter without its bytes", reason=letter.reason, where=where, error=str(error))
            shorter = letter.model_copy(update={"value": b"", "error": f"{letter.error} ({left_out})"})
            await self._send(topic, encode_dead_letter(shorter), letter.key)


class ChunkPublisher(_Publisher):
    """Chunks, for `streamer publish` and tests."""

    async def send_chunk(self, chunk: VideoChunk) -> None:
        """Publish a chunk under its video's key. Raises BrokerError."""
        await self.send_raw(encode_chunk(chunk), chunk.video_id.encode())

    async def send_raw(self, value: bytes, key: bytes | None, headers: Headers = ()) -> None:
        """Publish a record as it is, e.g. media with `content-type: video/mp2t`. Raises BrokerError."""
        await self._send(self._kafka.chunks_topic, value, key, headers)

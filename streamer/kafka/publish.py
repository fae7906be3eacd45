"""Records out to Kafka, acknowledged by all in-sync replicas; in transactions where a producer has an id."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import chain
from typing import Self

import structlog
from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    IllegalOperation,
    InvalidProducerEpoch,
    KafkaConnectionError,
    KafkaError,
    MessageSizeTooLargeError,
    ProducerFenced,
)

from streamer.config import KafkaConfig
from streamer.errors import BrokerError, FencedError
from streamer.kafka.client import CONNECT_SECONDS, client_arguments, close, describe, start_client
from streamer.kafka.topics import ENVELOPE_BYTES
from streamer.messages import Headers, VideoChunk, encode_chunk
from streamer.tracing import Tracing

CLOSE_SECONDS = 1.0
"""For what is left of a producer after that."""

STOP_SECONDS = 10.0
"""For records not yet acknowledged, or a transaction to be aborted, when a producer is closed."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class OutRecord:
    """A record to be sent."""

    topic: str
    key: bytes | None
    value: bytes | None
    """None: a tombstone, which compaction takes as the end of the key."""
    headers: Headers = ()
    partition: int | None = None
    """None: by the hash of the key."""


class Publisher:
    """A producer with an idempotent session where the broker has them."""

    def __init__(
        self,
        kafka: KafkaConfig,
        *,
        transactional_id: str | None = None,
        connect_seconds: float = CONNECT_SECONDS,
    ) -> None:
        """transactional_id: only one producer has it at a time; the next one to come fences the others."""
        self._kafka = kafka
        self._transactional_id = transactional_id
        self._connect_seconds = connect_seconds
        self._producer: AIOKafkaProducer | None = None
        self._in_transaction = False
        self._idempotent = True

    async def __aenter__(self) -> Self:
        """Connect. Raises BrokerError."""
        try:
            await self._start(idempotent=True)
        except _NoSession as error:
            if self._transactional_id is not None:
                raise BrokerError(
                    f"Kafka at {self._kafka.bootstrap_servers} gives us no transactions ({error}), which "
                    f'kafka.delivery = "exactly_once" needs: allow this user its transactional ids, '
                    f'or set it to "at_least_once"'
                ) from error
            # tansu answers InitProducerId with an error; without it a retry may write a record twice.
            log.info("the broker has no idempotent producers; retries may repeat a record", error=str(error))
            self._idempotent = False
            await self._start(idempotent=False)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def send(self, records: Sequence[OutRecord]) -> None:
        """Send all, in order, and wait for the acknowledgements; aiokafka tries again before it gives up.

        Raises TooLargeError, FencedError, BrokerError.
        """
        producer = self._started
        acknowledgements: list[asyncio.Future[object]] = []
        topic, size = "", 0
        try:
            for record in records:
                topic, size = record.topic, len(record.value or b"")
                acknowledgements.append(
                    await producer.send(
                        topic,
                        record.value,
                        key=record.key,
                        partition=record.partition,
                        headers=list(record.headers),
                    )
                )
            for record, acknowledgement in zip(records, acknowledgements, strict=True):
                topic, size = record.topic, len(record.value or b"")
                await acknowledgement
        except KafkaError as error:
            raise self._error(f"could not publish {size:,} bytes to topic {topic}", error) from error
        finally:
            # After an error the rest may fail too; their exceptions are taken note of here.
            for waiter in [*acknowledgements, *_waiters_of_batches(producer)]:
                waiter.add_done_callback(_take_exception)

    async def send_in_transaction(
        self, records: Sequence[OutRecord], offsets: dict[TopicPartition, int], group_id: str
    ) -> None:
        """Send all and commit the offsets, or nothing of it. Raises TooLargeError, FencedError, BrokerError.

        After TooLargeError, `restart`; after another error this producer is of no more use.
        """
        producer = self._started
        try:
            await producer.begin_transaction()
            self._in_transaction = True
            await self.send(records)
            if offsets:
                await producer.send_offsets_to_transaction(offsets, group_id)
            await producer.commit_transaction()
            self._in_transaction = False
        except KafkaError as error:
            raise self._error("could not commit a transaction", error) from error
        except (IllegalOperation, AssertionError) as error:
            # The session ended between two steps: aiokafka says only that its state does not allow the next
            # one, and leaves the reason with the future of the transaction's end.
            end = producer._txn_manager._transaction_waiter
            reason = end.exception() if end is not None and end.done() else None
            if not isinstance(reason, KafkaError):
                raise
            raise self._error("could not commit a transaction", reason) from error
        finally:
            # It holds the error, too, and asyncio would log that nobody took note of it.
            if (end := producer._txn_manager._transaction_waiter) is not None:
                end.add_done_callback(_take_exception)

    async def restart(self) -> None:
        """Begin a new session, after TooLargeError; a transaction under way is aborted. Raises BrokerError.

        A batch that the broker refused has used up its sequence number: in the old session it would refuse
        all that follow.
        """
        await self._stop()
        await self._start(idempotent=self._idempotent)

    async def _start(self, *, idempotent: bool) -> None:
        self._producer = AIOKafkaProducer(
            **client_arguments(self._kafka),
            acks="all",
            enable_idempotence=idempotent,
            transactional_id=self._transactional_id,
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
                raise _NoSession(describe(cause or error)) from error
            raise
        finally:
            quiet.removeFilter(_is_no_session_error)

    async def _stop(self) -> None:
        if self._producer is None:
            return
        producer = self._producer
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await self._abort()
                await producer.stop()
        except TimeoutError:
            log.warning("closed the producer with records not acknowledged", after_seconds=STOP_SECONDS)
            # What it waits for will not come, and it would go on trying. Its sender waits for its requests
            # when it is cancelled: the second cancellation gets through.
            producer._closed = True
            with suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_SECONDS):
                    await producer._sender.close()
            await close(producer.client)
        finally:
            self._producer = None

    async def _abort(self) -> None:
        """Undo a transaction that is open; whoever has the id next would do it too, this is sooner."""
        if not self._in_transaction:
            return
        self._in_transaction = False
        try:
            await self._started.abort_transaction()
        except (KafkaError, AssertionError) as error:  # aiokafka asserts that its state allows it
            log.debug("a transaction is left for the broker to abort", error=describe(error))

    @property
    def _started(self) -> AIOKafkaProducer:
        assert self._producer is not None, "use `async with`"
        return self._producer

    def _error(self, what: str, error: KafkaError) -> BrokerError:
        if isinstance(error, MessageSizeTooLargeError):
            return TooLargeError(f"{what}: {describe(error)}")
        if isinstance(error, ProducerFenced | InvalidProducerEpoch):
            return FencedError(
                f"{what}: another process has taken over {self._transactional_id}, or Kafka has given the "
                f"transaction up, which was open for a minute"
            )
        return BrokerError(f"{what} at {self._kafka.bootstrap_servers}: {describe(error)}")


class TooLargeError(BrokerError):
    """A record is larger than the producer or the topic allows."""


class _NoSession(Exception):  # noqa: N818  # caught a few lines above
    """The broker gives no producer id."""


def _is_no_session_error(record: logging.LogRecord) -> bool:
    return "InitProducerIdRequest" not in record.getMessage()


def _waiters_of_batches(producer: AIOKafkaProducer) -> Iterator[asyncio.Future[object]]:
    """aiokafka's own, of what is not sent; a fenced producer leaves its error in them, too."""
    accumulator = producer._message_accumulator
    for batch in [*chain(*accumulator._batches.values()), *accumulator._pending_batches]:
        yield batch._drain_waiter


def _take_exception(done: asyncio.Future[object]) -> None:
    if not done.cancelled():
        done.exception()


class ChunkPublisher(Publisher):
    """Chunks, for `streamer publish` and tests."""

    def __init__(
        self,
        kafka: KafkaConfig,
        *,
        connect_seconds: float = CONNECT_SECONDS,
        tracing: Tracing | None = None,
    ) -> None:
        super().__init__(kafka, connect_seconds=connect_seconds)
        self._tracing = tracing

    async def send_chunk(self, chunk: VideoChunk) -> None:
        """Publish a chunk under its video's key. Raises BrokerError."""
        value, key = encode_chunk(chunk), chunk.video_id.encode()
        if self._tracing is None:
            await self.send_raw(value, key)
            return
        with self._tracing.sending(self._kafka.chunks_topic, chunk) as headers:
            await self.send_raw(value, key, headers)

    async def send_raw(self, value: bytes, key: bytes | None, headers: Headers = ()) -> None:
        """Publish a record as it is, e.g. media with `content-type: video/mp2t`. Raises BrokerError."""
        await self.send([OutRecord(self._kafka.chunks_topic, key, value, headers)])

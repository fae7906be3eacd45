"""Clients of Kafka: their common arguments, and a start that ends in time with a clear error."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import structlog
from aiokafka import AIOKafkaConsumer
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    GroupAuthorizationFailedError,
    IllegalSaslStateError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    TopicAuthorizationFailedError,
    UnsupportedSaslMechanismError,
)

from streamer.config import KafkaConfig, KafkaSecurity
from streamer.errors import BrokerError
from streamer.kafka.security import security_arguments

CONNECT_SECONDS = 15.0
"""How long a broker that cannot be reached is tried at the start."""

RETRY_SECONDS = 0.3

STOP_SECONDS = 5.0
"""For a consumer to stop by itself."""

NOT_ALLOWED = (ClusterAuthorizationFailedError, GroupAuthorizationFailedError, TopicAuthorizationFailedError)
NOT_ALLOWED_ADVICE = "this user is not allowed to; docs/operating.md, Security, lists the ACLs"

READ_COMMITTED = "read_committed"
"""Isolation of all readers, also under `at_least_once`: a producer may use transactions, and processes before
this one may have delivered in them; what was undone is not to be read. Brokers without any take it, too."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class StartableClient(Protocol):
    """aiokafka's consumer, producer and admin client."""

    async def start(self) -> None: ...


class ClosableClient(Protocol):
    """aiokafka's admin client, or the client inside of its others."""

    async def close(self) -> None: ...


def client_arguments(kafka: KafkaConfig) -> dict[str, Any]:
    """Arguments that all clients share. Raises ConfigError."""
    return {
        "bootstrap_servers": kafka.bootstrap_servers,
        "client_id": kafka.client_id,
        **security_arguments(kafka.security),
    }


async def start_client(
    client: StartableClient, kafka: KafkaConfig, *, connect_seconds: float = CONNECT_SECONDS
) -> None:
    """Start a client, trying again while no broker can be reached.

    Raises BrokerError that names the address, at once if the broker refuses us, else after `connect_seconds`.
    The client must be stopped in either case.
    """
    reason = _BootstrapFailure(kafka.security)
    # aiokafka's exception says only "unable to bootstrap"; the cause is in what it logs.
    clients_log = logging.getLogger("aiokafka")
    clients_log.addFilter(reason)
    try:
        async with asyncio.timeout(connect_seconds):
            while True:
                try:
                    return await client.start()
                except KafkaConnectionError as error:
                    if reason.is_final:
                        raise BrokerError(
                            f"Kafka at {kafka.bootstrap_servers} refuses us: {reason.text}"
                        ) from error
                    await asyncio.sleep(RETRY_SECONDS)
    except TimeoutError as error:
        raise BrokerError(
            f"no Kafka reachable at {kafka.bootstrap_servers} within {connect_seconds:.0f} s: "
            f"{reason.text or 'no answer'}"
        ) from error
    except KafkaError as error:
        raise BrokerError(f"Kafka at {kafka.bootstrap_servers}: {describe(error)}") from error
    finally:
        clients_log.removeFilter(reason)


async def stop_consumer(consumer: AIOKafkaConsumer) -> None:
    """Stop a consumer, whatever state its connections are in.

    Two things of aiokafka are mended here. While the broker is away, the fetcher cancels its own requests and
    lets their CancelledError out of `stop`, which then leaves the connections open; it looks as if we were
    cancelled. And a fetcher that has just lost its assignment swallows the cancellation that is to end it, so
    that `stop` waits for ever; a second one gets through.
    """
    outcome: object = None
    well = False
    try:
        async with asyncio.timeout(STOP_SECONDS):
            [outcome] = await asyncio.gather(consumer.stop(), return_exceptions=True)
            well = not isinstance(outcome, BaseException)
    except TimeoutError as error:
        outcome = error
    finally:  # also when we are cancelled meanwhile
        if not well:
            log.debug("the consumer did not stop well", outcome=outcome)
            await close(consumer._client)


async def close(client: ClosableClient) -> None:
    """Close a client of aiokafka. Raises CancelledError if we were cancelled meanwhile.

    Its `close` cancels a task of its own, waits for that and suppresses CancelledError, ours too: a reader
    that was cancelled in this moment would go on for ever.
    """
    task = asyncio.current_task()
    before = task.cancelling() if task else 0
    await client.close()
    if task and task.cancelling() > before:
        raise asyncio.CancelledError


class _BootstrapFailure(logging.Filter):
    """Keeps why the last connection failed, and keeps it out of the log: the caller says it once."""

    def __init__(self, security: KafkaSecurity) -> None:
        super().__init__()
        self._security = security
        self._error: BaseException | None = None

    def filter(self, record: logging.LogRecord) -> bool:
        if not isinstance(record.args, tuple) or not record.args:
            return True
        if isinstance(error := record.args[-1], BaseException):
            self._error = error
            return False
        return True

    @property
    def text(self) -> str:
        if self._error is None:
            return ""
        said = describe(self._error)
        if isinstance(self._error, UnsupportedSaslMechanismError):
            return (
                f"kafka.security.sasl_mechanism {self._security.sasl_mechanism}: the broker does not take it"
            )
        if not self._is_hang_up:
            return said
        protocol = self._security.protocol
        doubt = f"does kafka.security.protocol (now {protocol}) fit this listener?"
        if protocol.endswith("SSL") and self._security.cert_file is None:
            doubt += " Does it want a client certificate (kafka.security.cert_file)?"
        return f"{said}; connected, then closed: {doubt}"

    @property
    def _is_hang_up(self) -> bool:
        """Whether the broker took the connection and ended it, as a listener of another protocol does."""
        closed = isinstance(self._error, KafkaConnectionError) and str(self._error).endswith("closed")
        return closed or isinstance(self._error, ConnectionResetError | IllegalSaslStateError)

    @property
    def is_final(self) -> bool:
        """Whether trying again is pointless: wrong certificate, password or mechanism."""
        if isinstance(self._error, ssl.SSLError):
            return True
        retried = (OSError, KafkaConnectionError, KafkaTimeoutError)
        return isinstance(self._error, KafkaError) and not isinstance(self._error, retried)


def describe(error: BaseException) -> str:
    """An error in words; aiokafka's are often empty but for their name."""
    name = type(error).__name__
    text = BaseException.__str__(error) if isinstance(error, KafkaError) else str(error)  # theirs repeats it
    said = f"{name}: {text}" if text else name
    return f"{said}; {NOT_ALLOWED_ADVICE}" if isinstance(error, NOT_ALLOWED) else said


@asynccontextmanager
async def admin_client(
    kafka: KafkaConfig, *, connect_seconds: float = CONNECT_SECONDS
) -> AsyncIterator[AIOKafkaAdminClient]:
    """A started admin client. Raises BrokerError, for errors of the broker inside the block too."""
    admin = AIOKafkaAdminClient(**client_arguments(kafka))
    try:
        await start_client(admin, kafka, connect_seconds=connect_seconds)
        yield admin
    except KafkaError as error:
        raise BrokerError(f"Kafka at {kafka.bootstrap_servers}: {describe(error)}") from error
    finally:
        await close(admin)

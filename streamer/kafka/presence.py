"""Whether Kafka still answers, and still has our topics. aiokafka waits for both without an end or a word.

A topic that is deleted under it leaves a consumer with no partitions and a transaction that never ends; a
broker that is away is asked again and again. Both are right for a moment, so that a broker may restart.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Collection

import structlog

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.client import describe

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

ANSWER_SECONDS = 10.0
"""For one answer."""

SILENT_SECONDS = 15.0
"""Without an answer for so long we are not ready."""

AWAY_SECONDS = 60.0
"""Then a broker aborts the transaction that we have open (aiokafka's `transaction_timeout_ms`): no use in
waiting longer, beginning anew is quicker."""


class Presence:
    """Asks, remembers, decides. Holds no client."""

    def __init__(
        self,
        kafka: KafkaConfig,
        ask: Callable[[], Awaitable[Collection[str]]],
        needed: Collection[str],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """ask: names of all topics. Raises BrokerError. needed: those that must be among them.

        clock: seconds, never set back.
        """
        self._kafka = kafka
        self._needed = frozenset(needed)
        self._ask = ask
        self._clock = clock
        self._answered = clock()
        self._unanswered = 0
        self.missing: frozenset[str] = frozenset()
        """Topics that the last answer did not have."""

    @property
    def silent_seconds(self) -> float:
        """Since the last answer."""
        return self._clock() - self._answered

    def why_not(self) -> str | None:
        """None if Kafka was there lately with all that we need, else what is the matter."""
        if self.silent_seconds > SILENT_SECONDS:
            return f"Kafka has not answered for {self.silent_seconds:.0f} s"
        return f"Kafka has no topic {', '.join(sorted(self.missing))}" if self.missing else None

    async def look(self) -> None:
        """Ask. Raises BrokerError if Kafka is away for too long, or lacks a topic for the second time.

        For the second time, since a broker that has just started may not know of all topics yet. And one
        that did not answer once was not away: a process that was frozen finds its connections closed.
        """
        where = f"Kafka at {self._kafka.bootstrap_servers}"
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                topics = await self._ask()
        except (TimeoutError, BrokerError) as error:
            self._unanswered += 1
            if self._unanswered > 1 and self.silent_seconds > AWAY_SECONDS:
                raise BrokerError(f"{where} has not answered for {self.silent_seconds:.0f} s") from error
            if self._unanswered == 1:
                log.warning(
                    "the broker does not answer, waiting",
                    seconds=round(self.silent_seconds),
                    gives_up_after_seconds=AWAY_SECONDS,
                    error=describe(error),
                )
            return
        if self._unanswered:
            log.info("the broker answers again", after_seconds=round(self.silent_seconds))
        self._answered, self._unanswered = self._clock(), 0
        kafka = self._kafka
        missing = self._needed - set(topics)
        gone, self.missing = missing & self.missing, missing
        if gone:
            raise BrokerError(
                f"{where} has no topic {', '.join(sorted(gone))} any more: it was deleted. If that was "
                f"{kafka.chunks_topic}, delete {kafka.state_topic} too, whose positions belong to it; then "
                f"make the topics with `streamer topics create` and start again"
            )

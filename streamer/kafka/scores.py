"""Score updates out of Kafka, for whoever watches."""

from __future__ import annotations

import asyncio
import math
import sys
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

import structlog

from streamer.config import KafkaConfig
from streamer.errors import MessageError
from streamer.kafka.client import CONNECT_SECONDS
from streamer.kafka.tail import tail
from streamer.messages import ScoreUpdate, decode_score

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


async def read_scores(
    kafka: KafkaConfig,
    *,
    from_beginning: bool = False,
    ready: asyncio.Event | None = None,
    connect_seconds: float = CONNECT_SECONDS,
    on_silent: Callable[[float], None] = lambda _: None,
) -> AsyncGenerator[ScoreUpdate, None]:
    """All score updates from now on (or from the beginning), without joining a group; never ends by itself.

    ready, on_silent: as of `tail`. What is no score update, or cannot be read, is logged and left out. Raises
    BrokerError. Close it with `contextlib.aclosing`.
    """
    batches = tail(
        kafka,
        kafka.scores_topic,
        back_seconds=math.inf,
        back_records=sys.maxsize if from_beginning else 0,
        ready=ready,
        connect_seconds=connect_seconds,
        on_silent=on_silent,
    )
    async with aclosing(batches):
        async for batch in batches:
            for record in batch:
                error = record.unreadable
                if error is None:
                    try:
                        yield decode_score(record.value or b"")
                    except MessageError as raised:
                        error = str(raised)
                if error is not None:
                    log.warning(
                        "not a score update",
                        topic=record.topic,
                        partition=record.partition,
                        offset=record.offset,
                        error=error,
                    )

from __future__ import annotations

import asyncio

import pytest
from aiokafka.admin import AIOKafkaAdminClient

from streamer.config import KafkaConfig
from streamer.kafka.client import client_arguments, close


async def test_a_cancellation_while_a_client_closes_is_not_lost(names: KafkaConfig) -> None:
    admin = AIOKafkaAdminClient(**client_arguments(names))
    await admin.start()
    closing = asyncio.create_task(close(admin))
    await asyncio.sleep(0)  # it waits for a task of the client now, where aiokafka suppresses CancelledError
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    assert closing.cancelled()
    await close(admin)  # and all is closed


async def test_a_cancellation_from_before_does_not_end_a_close(names: KafkaConfig) -> None:
    admin = AIOKafkaAdminClient(**client_arguments(names))
    await admin.start()
    done: list[str] = []

    async def cancelled_and_closing() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await close(admin)
            done.append("closed")

    task = asyncio.create_task(cancelled_and_closing())
    await asyncio.sleep(0)
    task.cancel()
    await task
    assert done == ["closed"]

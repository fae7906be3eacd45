"""Small things around asyncio's tasks and signals."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Collection, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

T = TypeVar("T")


async def cancel_all(tasks: Collection[asyncio.Task[Any]]) -> None:
    """Cancel, and wait until they have ended; what they raise is left in them."""
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def gather_or_cancel(work: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Results of all, side by side; the first failure cancels the others and is raised as it is.

    Each is cancelled once: a second time would break off what it closes.
    """
    tasks = [asyncio.create_task(one) for one in work]
    try:
        if tasks:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
    finally:
        pending = [task for task in tasks if not task.done()]
        await cancel_all(pending)
    failed = [task for task in tasks if task not in pending and task.exception() is not None]
    return [task.result() for task in failed or tasks]


@contextmanager
def call_on_signal(stop: Callable[[], None]) -> Iterator[None]:
    """Within the block SIGTERM and SIGINT call `stop`; no effect outside of the main thread."""
    loop = asyncio.get_running_loop()
    taken = []
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(ValueError, RuntimeError):  # not the main thread
            loop.add_signal_handler(number, stop)
            taken.append(number)
    try:
        yield
    finally:
        for number in taken:
            loop.remove_signal_handler(number)

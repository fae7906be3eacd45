"""Work of many videos -> full or timed-out batches, run in threads."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Generic, TypeVar

from streamer.errors import InferenceError

T = TypeVar("T")
R = TypeVar("R")


@dataclass(slots=True, eq=False)
class _Entry(Generic[T, R]):
    item: T
    size: int
    due: float
    """Loop time at which it is sent off even in a batch that is not full, seconds."""
    alone: bool
    result: asyncio.Future[R]


class Batcher(Generic[T, R]):
    """Collects items of many callers into batches and runs these in threads.

    A batch leaves when it is full or its oldest item has waited `timeout_ms`, whichever comes first, and a
    worker is free; while all are busy, items gather. Items leave in the order they came. To be used from one
    event loop.

    `batches` and `size` count what was run so far, cancelled items left out, and `failures` the
    batches that raised; `fill` is the mean share of `max_items` that a batch had.
    """

    def __init__(
        self,
        name: str,
        run: Callable[[list[T]], Sequence[R]],
        *,
        max_items: int,
        timeout_ms: float,
        workers: int,
        size: Callable[[T], int] = lambda _: 1,
    ) -> None:
        """name: of its threads and errors. run: blocking; returns one result per item, in their order.

        max_items: most that a batch may hold, counted by `size`; a single item larger than that makes a batch
        of its own. workers: batches that run at the same time.
        """
        if max_items < 1 or workers < 1 or timeout_ms < 0:
            raise ValueError(f"batcher {name}: max_items and workers must be >= 1, timeout_ms >= 0")
        self.name = name
        self.batches = 0
        self.failures = 0
        self.size = 0
        self._run = run
        self._max_size = max_items
        self._timeout_seconds = timeout_ms / 1000
        self._size_of = size
        self._waiting: deque[_Entry[T, R]] = deque()
        self._waiting_size = 0
        self._workers = workers
        self._running = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None
        self._closing = False
        self._threads = ThreadPoolExecutor(workers, thread_name_prefix=f"batch-{name}")

    @property
    def fill(self) -> float:
        """Mean size of a batch as a share of `max_items`; 0 before the first."""
        return self.size / (self.batches * self._max_size) if self.batches else 0.0

    async def submit(self, item: T, *, alone: bool = False) -> R:
        """Run `item` in some batch and return its result.

        alone: in a batch of its own, so that it shares nobody's failure, nor anybody its. Raises what `run`
        raised for the whole batch, for want of memory InferenceError. May be cancelled; the others of its
        batch go on.
        """
        if self._closing:
            raise RuntimeError(f"batcher {self.name} is closed")
        loop = asyncio.get_running_loop()
        due = loop.time() + (0 if alone else self._timeout_seconds)
        entry: _Entry[T, R] = _Entry(item, self._size_of(item), due, alone, loop.create_future())
        self._waiting.append(entry)
        self._waiting_size += entry.size
        self._idle.clear()
        self._send_off()
        try:
            return await entry.result
        finally:
            if not entry.result.done() or entry.result.cancelled():
                self._forget(entry)

    async def close(self) -> None:
        """Refuse new items, run the waiting ones at once, and end the threads; idempotent."""
        self._closing = True
        self._send_off()
        await self._idle.wait()
        self._threads.shutdown(wait=False)  # nothing is running any more

    def _send_off(self) -> None:
        """Start every batch that is ready, and set the timer for the next."""
        loop = asyncio.get_running_loop()
        # The loop fires timers up to its clock's resolution early.
        now = loop.time() + 1e-6
        while self._waiting and self._running < self._workers:
            full = self._waiting_size >= self._max_size
            if not (full or self._closing or self._waiting[0].due <= now):
                break
            self._start(self._take())
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._waiting and self._running < self._workers:
            self._timer = loop.call_at(self._waiting[0].due, self._send_off)
        if not self._waiting and not self._running:
            self._idle.set()

    def _take(self) -> list[_Entry[T, R]]:
        batch = [self._waiting.popleft()]
        size = batch[0].size
        while self._waiting and not batch[0].alone and not self._waiting[0].alone:
            if size + self._waiting[0].size > self._max_size:
                break
            batch.append(self._waiting.popleft())
            size += batch[-1].size
        self._waiting_size -= size
        self.batches += 1
        self.size += size
        return batch

    def _start(self, batch: list[_Entry[T, R]]) -> None:
        self._running += 1
        loop = asyncio.get_running_loop()
        done = loop.run_in_executor(self._threads, self._run_batch, [entry.item for entry in batch])
        done.add_done_callback(lambda done: self._finish(batch, done))

    def _run_batch(self, items: list[T]) -> Sequence[R]:
        try:
            results = self._run(items)
        except MemoryError as error:
            raise InferenceError(f"batcher {self.name}: out of memory: {error!r}") from error
        except StopIteration as error:  # no future can carry it
            raise RuntimeError(f"batcher {self.name}: run raised StopIteration") from error
        if len(results) != len(items):
            raise RuntimeError(f"batcher {self.name}: {len(results)} results for {len(items)} items")
        return results

    def _finish(self, batch: list[_Entry[T, R]], done: asyncio.Future[Sequence[R]]) -> None:
        self._running -= 1
        error = done.exception()
        self.failures += error is not None
        results: Sequence[R] = () if error else done.result()
        for index, entry in enumerate(batch):
            if entry.result.done():  # its submitter was cancelled
                continue
            if error:
                entry.result.set_exception(error)
            else:
                entry.result.set_result(results[index])
        self._send_off()

    def _forget(self, entry: _Entry[T, R]) -> None:
        """Take an item whose submitter was cancelled out of the queue, if it is still in it."""
        if entry in self._waiting:
            self._waiting.remove(entry)
            self._waiting_size -= entry.size
            self._send_off()

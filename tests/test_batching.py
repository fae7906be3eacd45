"""Batches across callers: order, fill, age, failures, cancellation, draining."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamer.batching import Batcher
from streamer.errors import InferenceError

LONG_MS = 60_000.0


class Recorder:
    """Doubles numbers; remembers the batches, and can be held up or made to fail."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.go = threading.Event()
        self.go.set()
        self.running = 0
        self.most_running = 0
        self._lock = threading.Lock()

    def __call__(self, items: list[int]) -> list[int]:
        with self._lock:
            self.batches.append(items)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        try:
            assert self.go.wait(30)
            if -1 in items:
                raise ValueError("no -1")
            return [2 * item for item in items]
        finally:
            with self._lock:
                self.running -= 1


async def until_running(recorder: Recorder, batches: int = 1) -> None:
    while len(recorder.batches) < batches:  # noqa: ASYNC110 (it is a thread that appends)
        await asyncio.sleep(0.001)


async def test_a_full_batch_leaves_at_once() -> None:
    run = Recorder()
    batcher = Batcher("t", run, max_items=4, timeout_ms=LONG_MS, workers=1)
    assert await asyncio.gather(*map(batcher.submit, range(8))) == [0, 2, 4, 6, 8, 10, 12, 14]
    assert run.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (batcher.batches, batcher.size, batcher.fill) == (2, 8, 1.0)
    await batcher.close()


async def test_want_of_memory_is_a_failure_of_the_batch() -> None:
    """And no bug that ends the service with a traceback."""

    def run(items: list[int]) -> list[int]:
        raise MemoryError

    batcher = Batcher("t", run, max_items=1, timeout_ms=0, workers=1)
    with pytest.raises(InferenceError, match="batcher t: out of memory"):
        await batcher.submit(1)
    assert batcher.failures == 1
    await batcher.close()


async def test_a_batch_that_is_not_full_leaves_by_age() -> None:
    run = Recorder()
    batcher = Batcher("t", run, max_items=100, timeout_ms=30, workers=1)
    started = time.monotonic()
    assert await asyncio.gather(*map(batcher.submit, (1, 2))) == [2, 4]
    assert time.monotonic() - started >= 0.03
    assert run.batches == [[1, 2]]
    assert batcher.fill == 0.02
    await batcher.close()


async def test_what_has_left_does_not_fill_the_next_batch() -> None:
    run = Recorder()
    batcher = Batcher("t", run, max_items=2, timeout_ms=30, workers=1)
    await asyncio.gather(*map(batcher.submit, range(4)))
    started = time.monotonic()
    await batcher.submit(4)
    assert time.monotonic() - started >= 0.03
    await batcher.close()


async def test_age_counts_from_the_oldest_item() -> None:
    run = Recorder()
    batcher = Batcher("t", run, max_items=100, timeout_ms=60, workers=1)
    first = asyncio.create_task(batcher.submit(1))
    await asyncio.sleep(0.03)
    started = time.monotonic()
    assert await batcher.submit(2) == 4
    assert time.monotonic() - started < 0.055
    assert await first == 2
    assert run.batches == [[1, 2]]
    await batcher.close()


async def test_items_gather_while_all_workers_are_busy() -> None:
    run = Recorder()
    run.go.clear()
    batcher = Batcher("t", run, max_items=4, timeout_ms=0, workers=2)
    tasks = []
    for item in range(10):
        tasks.append(asyncio.create_task(batcher.submit(item)))
        await asyncio.sleep(0.002)
    await until_running(run, 2)
    run.go.set()
    assert await asyncio.gather(*tasks) == [2 * item for item in range(10)]
    assert run.batches[:2] == [[0], [1]]
    assert sorted(run.batches[2:]) == [[2, 3, 4, 5], [6, 7, 8, 9]]
    assert run.most_running == 2
    await batcher.close()


async def test_size_is_what_counts() -> None:
    run: list[list[str]] = []

    def lengths(items: list[str]) -> list[int]:
        run.append(items)
        return [len(item) for item in items]

    batcher = Batcher("t", lengths, max_items=4, timeout_ms=1, workers=1, size=len)
    words = ["aa", "aa", "a", "aaaaaaaaa", "aaa"]
    assert await asyncio.gather(*map(batcher.submit, words)) == [2, 2, 1, 9, 3]
    assert run == [["aa", "aa"], ["a"], ["aaaaaaaaa"], ["aaa"]]
    assert batcher.size == 17
    await batcher.close()


async def test_a_failing_batch_raises_in_all_its_submitters_and_no_other() -> None:
    run = Recorder()
    batcher = Batcher("t", run, max_items=2, timeout_ms=LONG_MS, workers=1)
    results = await asyncio.gather(*map(batcher.submit, (1, -1, 2, 3)), return_exceptions=True)
    assert [type(result) for result in results[:2]] == [ValueError, ValueError]
    assert results[2:] == [4, 6]
    await batcher.close()


async def test_an_item_alone_shares_no_batch_and_does_not_wait_for_one() -> None:
    run = Recorder()
    run.go.clear()
    batcher = Batcher("t", run, max_items=4, timeout_ms=LONG_MS, workers=1)
    tasks = [asyncio.create_task(batcher.submit(9, alone=True))]
    await until_running(run)  # at once; meanwhile the others gather
    tasks += [asyncio.create_task(batcher.submit(item, alone=item == -1)) for item in (1, 2, -1, 3, 4)]
    await asyncio.sleep(0)
    run.go.set()
    closing = asyncio.create_task(batcher.close())
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert run.batches == [[9], [1, 2], [-1], [3, 4]]
    assert isinstance(results.pop(3), ValueError)
    assert results == [18, 2, 4, 6, 8]
    assert batcher.failures == 1
    await closing


async def test_a_wrong_number_of_results_is_an_error() -> None:
    batcher: Batcher[int, int] = Batcher("t", lambda items: items[1:], max_items=2, timeout_ms=1, workers=1)
    with pytest.raises(RuntimeError, match="1 results for 2 items"):
        await asyncio.gather(batcher.submit(1), batcher.submit(2))
    await batcher.close()


async def test_stop_iteration_does_not_hang_the_submitter() -> None:
    def run(items: list[int]) -> Sequence[int]:
        raise StopIteration

    batcher = Batcher("t", run, max_items=1, timeout_ms=1, workers=1)
    with pytest.raises(RuntimeError, match="StopIteration"):
        await asyncio.wait_for(batcher.submit(1), 10)
    await batcher.close()


async def test_a_cancelled_item_leaves_the_queue() -> None:
    run = Recorder()
    batcher = Batcher("t", run, max_items=3, timeout_ms=50, workers=1)
    tasks = [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    assert await tasks[1] == 4
    assert run.batches == [[2]]
    with pytest.raises(asyncio.CancelledError):
        await tasks[0]
    await batcher.close()


async def test_cancelling_one_of_a_running_batch_leaves_the_others() -> None:
    run = Recorder()
    run.go.clear()
    batcher = Batcher("t", run, max_items=3, timeout_ms=LONG_MS, workers=1)
    tasks = [asyncio.create_task(batcher.submit(item)) for item in (1, 2, 3)]
    await until_running(run)
    tasks[1].cancel()
    await asyncio.sleep(0)
    run.go.set()
    assert [await tasks[0], await tasks[2]] == [2, 6]
    assert tasks[1].cancelled()
    await batcher.close()


async def test_close_runs_what_waits_and_then_refuses() -> None:
    run = Recorder()
    batcher = Batcher("t", run, max_items=100, timeout_ms=LONG_MS, workers=1)
    tasks = [asyncio.create_task(batcher.submit(item)) for item in (1, 2)]
    await asyncio.sleep(0)
    await asyncio.wait_for(batcher.close(), 10)
    assert [task.result() for task in tasks] == [2, 4]
    await batcher.close()
    with pytest.raises(RuntimeError, match="batcher t is closed"):
        await batcher.submit(3)


@pytest.mark.parametrize("wrong", [{"max_items": 0}, {"workers": 0}, {"timeout_ms": -1.0}])
def test_nonsense_is_refused(wrong: dict[str, float]) -> None:
    arguments = {"max_items": 1, "timeout_ms": 1.0, "workers": 1} | wrong
    with pytest.raises(ValueError, match="must be >= "):
        Batcher("t", list, **arguments)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(
    items=st.lists(
        st.tuples(
            st.integers(0, 20),  # the item, also its size
            st.sampled_from(["wait", "wait", "wait", "cancel"]),
            st.integers(0, 3),  # milliseconds before it is submitted
        ),
        max_size=40,
    ),
    max_items=st.integers(1, 30),
    workers=st.integers(1, 3),
    bad=st.integers(-1, 20),
    alone=st.sets(st.integers(0, 20), max_size=5),
)
def test_whatever_comes_everyone_gets_his_own_answer(
    items: list[tuple[int, str, int]], max_items: int, workers: int, bad: int, alone: set[int]
) -> None:
    batches: list[list[int]] = []

    def run(batch: list[int]) -> list[int]:
        batches.append(batch)
        time.sleep(0.001)
        if bad in batch:
            raise ValueError(bad)
        return [item + 1000 for item in batch]

    async def submit(batcher: Batcher[int, int], item: int, delay_ms: int) -> int:
        await asyncio.sleep(delay_ms / 1000)
        return await batcher.submit(item, alone=item in alone)

    async def main() -> None:
        batcher = Batcher(
            "p", run, max_items=max_items, timeout_ms=1, workers=workers, size=lambda item: item
        )
        tasks = [asyncio.create_task(submit(batcher, item, delay)) for item, _, delay in items]
        await asyncio.sleep(0.001)
        for task, (_, fate, _) in zip(tasks, items, strict=True):
            if fate == "cancel":
                task.cancel()
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 30)
        await asyncio.wait_for(batcher.close(), 30)
        for result, (item, fate, _) in zip(results, items, strict=True):
            match result:
                case asyncio.CancelledError():
                    assert fate == "cancel"
                case ValueError():
                    assert any(bad in batch and item in batch for batch in batches)
                case _:
                    assert result == item + 1000
        for batch in batches:
            assert sum(batch) <= max_items or len(batch) == 1
            assert alone.isdisjoint(batch) or len(batch) == 1
        assert batcher.batches == len(batches)

    asyncio.run(main())

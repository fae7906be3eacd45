"""Worker processes: jobs done in them, their results in the order of the jobs; and how all of them end."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import Any, TypeVar

import cv2

from streamer.errors import TrainingError

Job = TypeVar("Job")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Called with the number of jobs finished and of all jobs."""

_AHEAD = 4  # jobs handed out for each worker before the oldest must be done


def in_processes(
    work: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    workers: int,
    start: Callable[..., None],
    arguments: tuple[Any, ...],
) -> Iterator[Result]:
    """Results of `work`, in the order of the jobs; closing the iterator ends the workers.

    work, start: functions of a module; `start(*arguments)` is called once in each worker. An error of either
    is raised here, and the death of a worker as TrainingError.
    """
    # Not forked: threads of OpenVINO and others would be in mid-stride.
    pool = ProcessPoolExecutor(
        workers, multiprocessing.get_context("spawn"), initializer=_start, initargs=(start, arguments)
    )
    waiting: deque[Future[Result]] = deque()
    try:
        for job in jobs:
            with without_interrupts():
                waiting.append(pool.submit(work, job))
            if len(waiting) > _AHEAD * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    except BrokenProcessPool as error:
        raise TrainingError(
            "a worker process died, most likely for want of memory, or could not start (see above); what is "
            "finished stays: run it again, with fewer workers if it happens again"
        ) from error
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def without_interrupts() -> Iterator[None]:
    """Ctrl-C is the parent's business: processes started in the block never get it, not even while they
    still import what they need; the parent gets it at the end of the block."""
    resource_tracker.ensure_running()  # to start later, in the block, would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def begin_worker() -> None:
    """First of all in a worker process: it ends with its parent, and computes on one core.

    A parent that is killed cannot tell: its workers would wait for jobs for ever.
    """
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(1)


def _start(start: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    begin_worker()
    start(*arguments)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

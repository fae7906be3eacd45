"""How far a command is: a bar on a terminal, else now and then a line in the log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import structlog
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bar

from streamer.training.workers import Progress

LINE_EVERY_SECONDS = 60.0


@contextmanager
def bar(what: str) -> Iterator[Progress]:
    """Gives what is called with the number done and of all. what: is done, in words."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _lines(what)
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(elapsed_when_finished=True),
    )
    with Bar(*columns, console=console) as shown:
        task = shown.add_task(what, total=None)
        yield lambda done, total: shown.update(task, completed=done, total=total)


def _lines(what: str) -> Progress:
    log = structlog.get_logger()
    told = time.monotonic()

    def tell(done: int, total: int) -> None:
        nonlocal told
        if done == total or time.monotonic() - told >= LINE_EVERY_SECONDS:
            told = time.monotonic()
            log.info(what, done=done, total=total)

    return tell

"""What a run tells of itself: to TensorBoard, and to whoever watches."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import structlog
from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar
from torch.utils.tensorboard import SummaryWriter

from streamer.terminal import duration
from streamer.training.state import State


@dataclass(frozen=True)
class Progress:
    """Where a run is."""

    step: int
    """Finished steps."""
    done: float
    """Share of the schedule, [0, 1]."""
    seconds: float
    """On the clock, over all parts of an interrupted run."""
    losses: dict[str, float]
    """Means since the last report."""
    learning_rate: float
    images_per_second: float
    """Since the last report, without validation."""
    metrics: dict[str, float]
    """Of the validation just made; else empty."""
    best: float | None
    """Best validation so far."""

    @property
    def seconds_left(self) -> float | None:
        """If the rest goes on like this; None at the start."""
        return self.seconds * (1 - self.done) / self.done if self.done else None


Report = Callable[[Progress], None]


class Logbook:
    """Gathers what happens between two reports, and makes them."""

    def __init__(self, run: Path, report: Report, state: State) -> None:
        """What TensorBoard has of steps after the state's is dropped: they are made anew."""
        self._writer = SummaryWriter(str(run), purge_step=state.step)
        self._report = report
        self._losses: list[Mapping[str, float]] = []
        self._stepping = 0.0
        self._since = time.monotonic()

    def add(self, losses: Mapping[str, float]) -> None:
        """A step was made, and its batch waited for, since the last step or report."""
        self._losses.append(losses)
        now = time.monotonic()
        self._stepping += now - self._since
        self._since = now

    def tell(self, state: State, *, validated: bool) -> None:
        """Report, and begin to gather anew."""
        n = len(self._losses)
        progress = Progress(
            step=state.step,
            done=state.done,
            seconds=state.seconds,
            losses={name: sum(loss[name] for loss in self._losses) / n for name in self._losses[0]},
            learning_rate=state.optimiser.param_groups[0]["lr"],
            images_per_second=n * state.config.batch / self._stepping,
            metrics=state.metrics if validated else {},
            best=state.best,
        )
        self._write(progress)
        self._report(progress)
        self._losses.clear()
        self._stepping, self._since = 0.0, time.monotonic()

    def close(self) -> None:
        """The last report is made."""
        self._writer.close()

    def _write(self, progress: Progress) -> None:
        values = {f"loss/{name}": value for name, value in progress.losses.items()}
        values |= {f"validation/{name}": value for name, value in progress.metrics.items()}
        values["learning_rate"] = progress.learning_rate
        values["images_per_second"] = progress.images_per_second
        for name, value in values.items():
            self._writer.add_scalar(name, value, progress.step)
        self._writer.flush()


def describe(progress: Progress) -> str:
    """One line: `loss 0.412 (label 0.380, mask 0.064), 18 images/s, best AUC 0.931`."""
    others = ", ".join(f"{name} {value:.3f}" for name, value in progress.losses.items() if name != "total")
    parts = [f"loss {progress.losses['total']:.3f} ({others})", f"{progress.images_per_second:.1f} images/s"]
    if progress.metrics:
        parts.append("validation " + ", ".join(f"{name} {v:.4f}" for name, v in progress.metrics.items()))
    if progress.best is not None:
        parts.append(f"best {progress.best:.4f}")
    return ", ".join(parts)


@contextmanager
def shown(console: Console) -> Iterator[Report]:
    """A function that shows reports: a live bar on a terminal, else lines in the log."""
    if not console.is_terminal:
        yield _log
        return
    bar = Bar(
        TextColumn("step {task.fields[step]:,}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[left]}"),
        TextColumn("{task.fields[text]}"),
        console=console,
    )
    task = bar.add_task("", total=1.0, step=0, left="", text="")

    def show(progress: Progress) -> None:
        left = "" if progress.seconds_left is None else f"{duration(progress.seconds_left)} left"
        bar.update(task, completed=progress.done, step=progress.step, left=left, text=describe(progress))
        if progress.metrics:
            bar.console.print(f"step {progress.step:,}: {describe(progress)}", highlight=False)

    with bar:
        yield show


def _log(progress: Progress) -> None:
    log = structlog.get_logger()
    log.info(
        "validated" if progress.metrics else "training",
        step=progress.step,
        done=f"{progress.done:.1%}",
        left=None if progress.seconds_left is None else duration(progress.seconds_left),
        learning_rate=float(f"{progress.learning_rate:.3g}"),
        what=describe(progress),
    )

"""What a run tells of itself."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from structlog.testing import capture_logs
from toy import toy_config

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")


def progress(**changes: Any) -> Any:
    from streamer.training.progress import Progress

    values = {
        "step": 1200,
        "done": 0.25,
        "seconds": 100.0,
        "losses": {"label": 0.38, "mask": 0.064, "total": 0.412},
        "learning_rate": 6e-4,
        "images_per_second": 18.04,
        "metrics": {},
        "best": None,
    }
    return Progress(**values | changes)


def test_one_line() -> None:
    from streamer.training.progress import describe

    assert describe(progress()) == "loss 0.412 (label 0.380, mask 0.064), 18.0 images/s"
    told = describe(progress(metrics={"metric": 0.9, "videos": 0.9}, best=0.93))
    assert told.endswith("validation metric 0.9000, videos 0.9000, best 0.9300")
    assert progress().seconds_left == 300
    assert progress(done=0.0).seconds_left is None


def test_a_bar_on_a_terminal() -> None:
    from streamer.training.progress import shown

    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=120)
    with shown(console) as report:
        report(progress())
        report(progress(step=1300, metrics={"metric": 0.9}, best=0.9))
    assert "step 1,300" in screen.getvalue()
    assert "25%" in screen.getvalue()
    assert "5 min left" in screen.getvalue()
    assert "validation metric 0.9000" in screen.getvalue()


def test_lines_in_the_log_elsewhere() -> None:
    from streamer.training.progress import shown

    with capture_logs() as lines, shown(Console(file=io.StringIO())) as report:
        report(progress())
        report(progress(metrics={"metric": 0.9}))
    assert [line["event"] for line in lines] == ["training", "validated"]
    assert (lines[0]["step"], lines[0]["done"], lines[0]["left"]) == (1200, "25.0%", "5 min")


def test_means_speed_and_tensorboard(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from streamer.training.progress import Logbook
    from streamer.training.state import State

    state = State.start(toy_config(), "data", torch.device("cpu"))
    told: list[Any] = []
    logbook = Logbook(tmp_path, told.append, state)
    for loss in (1.0, 2.0):
        logbook.add({"total": loss})
    state.step, state.metrics = 2, {"metric": 0.75}
    logbook.tell(state, validated=True)
    logbook.add({"total": 5.0})
    state.step = 3
    logbook.tell(state, validated=False)
    logbook.close()
    assert [p.losses for p in told] == [{"total": 1.5}, {"total": 5.0}]
    assert [p.metrics for p in told] == [{"metric": 0.75}, {}]
    events = event_accumulator.EventAccumulator(str(tmp_path)).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss/total")]
    assert losses == [(2, 1.5), (3, 5.0)]
    assert [event.value for event in events.Scalars("validation/metric")] == [0.75]
    assert {"learning_rate", "images_per_second"} <= set(events.Tags()["scalars"])

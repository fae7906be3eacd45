from __future__ import annotations

import pytest
import structlog

from streamer.training import bar as module
from streamer.training.bar import bar


@pytest.mark.parametrize(("seconds", "lines"), [(1000.0, [3]), (0.0, [1, 2, 3])])
def test_without_a_terminal_there_are_lines_now_and_then(
    monkeypatch: pytest.MonkeyPatch, seconds: float, lines: list[int]
) -> None:
    monkeypatch.setattr(module, "LINE_EVERY_SECONDS", seconds)
    with structlog.testing.capture_logs() as told, bar("finding faces") as tell:
        for done in (1, 2, 3):
            tell(done, 3)
    assert [line["done"] for line in told] == lines
    assert told[-1] == {"event": "finding faces", "log_level": "info", "done": 3, "total": 3}


def test_on_a_terminal_there_is_a_bar(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes it for a terminal
    monkeypatch.setenv("COLUMNS", "40")
    with structlog.testing.capture_logs() as told, bar("finding faces") as tell:
        tell(3, 3)
    assert not told
    assert "3/3" in capsys.readouterr().err

from __future__ import annotations

import pytest

from streamer.terminal import clock, count, duration, sparkline


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "–"),
        (0, "0:00"),
        (8.9, "0:08"),
        (754, "12:34"),
        (3723, "1:02:03"),
        (1_767_229_323.5, "01:02:03Z"),
    ],
)
def test_clock(seconds: float | None, shown: str) -> None:
    assert clock(seconds) == shown


def test_sparkline() -> None:
    assert sparkline([0, 0.12, 0.13, 0.5, 1, None, -0.5, 1.5]) == "▁▁▂▅█·▁█"


def test_count() -> None:
    assert [count(n, "face") for n in (0, 1, 2, 1234)] == ["0 faces", "1 face", "2 faces", "1,234 faces"]
    assert [count(n, "person", "people") for n in (1, 2)] == ["1 person", "2 people"]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (0.34, "340 ms"),
        (1, "1.0 s"),
        (9.94, "9.9 s"),
        (10, "10 s"),
        (59.4, "59 s"),
        (60, "1 min"),
        (200, "3 min"),
    ],
)
def test_duration(seconds: float, shown: str) -> None:
    assert duration(seconds) == shown

"""Small things for showing values to people on a terminal."""

from __future__ import annotations

import time
from collections.abc import Sequence

CONNECT_SECONDS = 5.0
"""How long a person is let wait for a broker that does not answer."""

BLOCKS = "▁▂▃▄▅▆▇█"


def sparkline(values: Sequence[float | None]) -> str:
    """One character per value in [0, 1] on a fixed scale, so that rows compare; `·` where there is none."""
    top = len(BLOCKS) - 1
    return "".join("·" if v is None else BLOCKS[min(top, max(0, int(v * len(BLOCKS))))] for v in values)


UNIX_SECONDS = 1e8
"""Positions beyond it, three years, are Unix times: those of a live recording are."""


def clock(seconds: float | None) -> str:
    """Position in a video: 0:08, 12:34, 1:02:03; of a live recording the time of day, 13:02:03Z."""
    if seconds is None:
        return "–"
    if seconds >= UNIX_SECONDS:
        return time.strftime("%H:%M:%SZ", time.gmtime(seconds))
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def count(number: int, noun: str, plural: str | None = None) -> str:
    """`1 face`, `2 faces`, `1,234 faces`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def duration(seconds: float) -> str:
    """A time span for people: 340 ms, 4.2 s, 3 min."""
    if seconds < 1:
        return f"{1000 * seconds:.0f} ms"
    if seconds < 10:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 60 else f"{seconds / 60:.0f} min"

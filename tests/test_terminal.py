from __future__ import annotations

import pytest

from streamer.terminal import clock


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

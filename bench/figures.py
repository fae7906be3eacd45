"""The figures of a benchmark, kept as they are made: no failure and no time limit loses one."""

from __future__ import annotations

import json
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from streamer.whole_file import write_whole

Say = Callable[[str, Any], None]
"""Takes the name of a figure and the figure."""


class Figures:
    """What was found so far: said at once, and kept in a file, so that no failure or time limit loses it."""

    def __init__(self, file: Path | None, device: str, precision: str) -> None:
        """file: None: they are only printed."""
        self.found: dict[str, Any] = {"device": device, "precision": precision, "failed": {}}
        self._file = file
        self.say(f"{device}, {precision}")

    def say(self, line: str) -> None:
        """Print for people, and keep what was found so far."""
        print(line, flush=True)
        if self._file is not None:
            write_whole(self._file, json.dumps(self.found).encode())

    def part(self, name: str) -> Say:
        """For the figures of a part."""
        found = self.found.setdefault(name, {})

        def say(key: str, value: Any) -> None:
            found[key] = value
            self.say(f"{name}: {key}: {value:.4g}" if isinstance(value, float) else f"{name}: {key}: {value}")

        return say

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """In which a failure, of ours or of a library, becomes one of the figures."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (what else there is to measure is measured)
            traceback.print_exc()
            self.found["failed"][name] = f"{type(error).__name__}: {error}"
            self.say(f"{name}: FAILED: {type(error).__name__}: {error}")

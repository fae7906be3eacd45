"""`streamer` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from streamer.config import KafkaConfig

ROOT = Path(__file__).parents[1]
COMMAND = [sys.executable, "-m", "streamer"]


def environment() -> dict[str, str]:
    """Of a terminal of known width, without settings of whoever runs the tests."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STREAMER_")}
    return kept | {"COLUMNS": "100", "NO_COLOR": "1"}


def streamer(*words: str | Path, cwd: Path = ROOT, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `streamer WORDS` to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, words)],
        cwd=cwd,
        env=environment() | settings,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@contextmanager
def process(*words: str, **more: Any) -> Iterator[subprocess.Popen[str]]:
    """`streamer WORDS` in the background; killed at the end if it still runs."""
    running = subprocess.Popen(
        [*COMMAND, *words],
        cwd=ROOT,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **more,
    )
    try:
        yield running
    finally:
        running.kill()
        with suppress(ValueError):  # a test has closed a pipe
            running.communicate()


def options_of(kafka: KafkaConfig) -> list[str]:
    """Global options that point to a test's own topics."""
    names = (
        "bootstrap_servers",
        "delivery",
        "group_id",
        "chunks_topic",
        "scores_topic",
        "dead_letters_topic",
        "state_topic",
        "evidence_topic",
    )
    return [word for name in names for word in ("--set", f"kafka.{name}={getattr(kafka, name)}")]

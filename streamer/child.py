"""Processes of our own that read hostile media: how they are started, and what frames their messages."""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Mapping
from pathlib import Path

LENGTH = struct.Struct("!I")
"""Before each JSON message: its bytes."""


def child_command(module: str, *arguments: str) -> list[str]:
    """Runs a module of ours in a process of its own."""
    return [sys.executable, "-P", "-m", module, *arguments]


def child_environment(inherited: Mapping[str, str]) -> dict[str, str]:
    """What it inherits, and the package found wherever it was imported from."""
    package_root = str(Path(__file__).resolve().parents[1])
    search_path = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))
    # numpy's threads would each take address space
    return {**inherited, "PYTHONPATH": search_path, "OPENBLAS_NUM_THREADS": "1"}

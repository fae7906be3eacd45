"""Files that appear whole or not at all."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path

import pytest

from streamer.whole_file import write_whole


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a"
    write_whole(path, b"one")
    with pytest.raises(TypeError):
        write_whole(path, "text")  # type: ignore[arg-type]
    assert path.read_bytes() == b"one"
    assert [path] == list(tmp_path.iterdir())


def test_a_pipe_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    os.mkfifo(path)
    with pytest.raises(OSError, match="no file"):
        write_whole(path, b"one")
    assert path.is_fifo()
    assert [path] == list(tmp_path.iterdir())


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    """Here as a limit on the size of files, which is answered in the same way."""
    path = tmp_path / "a"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limits[1]))
        with pytest.raises(OSError, match="a'") as caught:
            write_whole(path, bytes(2000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert caught.value.filename == str(path)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_there_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "no" / "a"
    with pytest.raises(FileNotFoundError) as caught:
        write_whole(path, b"one")
    assert caught.value.filename == str(path)

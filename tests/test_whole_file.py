"""Files that appear whole or not at all."""

from __future__ import annotations

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

"""Files that appear whole or not at all, also to other processes."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """What is written to it is at `path` when the block has ended; when it raises, nothing has changed.

    Raises OSError, also if something is there that is no file: a pipe or device would be replaced.
    """
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "something is there that is no file", str(path))
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        error.filename = str(path)  # what was asked for, not the name made up beside it
        raise
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:  # as of a full disk
            error.filename = str(path)
        raise


def write_whole(path: Path, content: bytes) -> None:
    """Write a file at once."""
    with whole_file(path) as file:
        file.write(content)

"""What all commands have in common: global options anywhere, errors as one message, the exit status.

Exit status: 0 all well; 1 some inputs failed; 2 wrong usage or configuration; 3 Kafka; 4 networks;
130 interrupted. What `streamer` raises on purpose is shown as one message; anything else is a bug and shows
its traceback.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import typer
from typer.core import TyperGroup

from streamer.errors import BrokerError, ConfigError, ModelError, StreamerError

OK, SOME_FAILED, USAGE, BROKER, MODELS, INTERRUPTED = 0, 1, 2, 3, 4, 130

GLOBAL_OPTIONS = ("--config", "--log-level", "--set")
"""Options of `streamer` itself that take a value; they may follow the command, too."""


def exit_code_of(error: StreamerError) -> int:
    """Exit status that tells a caller what to look at."""
    if isinstance(error, ConfigError):
        return USAGE
    if isinstance(error, BrokerError):
        return BROKER
    return MODELS if isinstance(error, ModelError) else SOME_FAILED


class CommandGroup(TyperGroup):
    """Takes global options anywhere, and turns our errors into a message and an exit status."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, _global_options_first(args))

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StreamerError as error:
            from streamer.log import printable

            _show("\n".join(printable(line) for line in str(error).splitlines()))
            raise typer.Exit(exit_code_of(error)) from error
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None


def _global_options_first(args: list[str]) -> list[str]:
    """`run --set a.b=c` -> `--set a.b=c run`, up to a `--`, or to `train`, whose --set is for recipes."""
    first: list[str] = []
    rest: list[str] = []
    words = iter(args)
    for word in words:
        if word in ("--", "train"):
            rest += [word, *words]
        elif word in GLOBAL_OPTIONS:
            first += [word, *(value for value in (next(words, None),) if value is not None)]
        elif word.startswith(tuple(f"{option}=" for option in GLOBAL_OPTIONS)):
            first.append(word)
        else:
            rest.append(word)
    return first + rest


@contextmanager
def full_disk_told() -> Iterator[None]:
    """A full disk under the results, be they a file or standard output, as one message."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        where = f" ({error.filename})" if error.filename else ""
        _show(f"cannot write what was asked for{where}: {error.strerror}")
        os._exit(SOME_FAILED)  # what is left in the buffer of standard output would fail once more


def _show(error: str) -> None:
    typer.secho("error: ", fg="red", bold=True, err=True, nl=False)
    typer.echo(error, err=True)

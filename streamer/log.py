"""Logging to standard error: for people on a terminal, as JSON lines otherwise.

Names and texts from outside (video ids, media errors) may hold any bytes. Whatever is not printable is
escaped before it reaches the terminal, so that it can neither colour, move nor forge lines.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog

from streamer.config import LogConfig

MAX_TEXT = 2000
"""Characters of one value in a line; the rest is cut off."""

MAX_TRACEBACK = 16_000
"""Characters of a traceback; the middle is left out."""

REPEAT_SECONDS = 10.0
"""Between equal records of a library."""

LOUD_LIBRARIES = dict.fromkeys(
    ("aiokafka", "asyncio", "aiohttp", "opentelemetry", "sse_starlette", "urllib3", "uvicorn"),
    logging.WARNING,
)
"""Least level of libraries, whatever ours is. aiokafka's debug level writes every request out: the chunks'
bytes, and the password while it authenticates."""


def printable(text: str) -> str:
    """The text with everything escaped that is not printable: control and format characters, surrogates.

    Cut to MAX_TEXT: a name of a million characters would hold up whoever shows it.

    >>> printable("a\\x1b[31m")
    'a\\\\x1b[31m'
    """
    if len(text) > MAX_TEXT:
        text = f"{text[:MAX_TEXT]}…"
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _harmless(value: object) -> object:
    if isinstance(value, bytes):
        value = value[: 4 * MAX_TEXT].decode("utf-8", "backslashreplace")
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, Mapping):
        return {str(_harmless(k)): _harmless(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_harmless(v) for v in value]
    if value is None or isinstance(value, bool | int | float):
        return value
    return _harmless(str(value))


def _escape_values(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """structlog processor; leaves what structlog itself put there."""
    for key, value in event.items():
        if key not in ("exc_info", "_record", "_from_structlog", "exception", "stack", "stack_info"):
            event[key] = _harmless(value)
    return event


def _escape_lines(_: object, __: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Escape tracebacks line by line: their line breaks are meant."""
    for key in ("exception", "stack"):
        if isinstance(text := event.get(key), str):
            if len(text) > MAX_TRACEBACK:
                half = MAX_TRACEBACK // 2
                text = f"{text[:half]}\n…\n{text[-half:]}"
            event[key] = "\n".join(printable(line) for line in text.split("\n"))
    return event


class Seldom(logging.Filter):
    """Lets a record of LOUD_LIBRARIES through only if the same was not let through within the last seconds.

    "The same" is of the same logger and template. aiokafka says ten times a second that a broker is away. Our
    own records are all meant.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__()
        self._seconds = seconds
        self._last: dict[tuple[str, str], float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.name.split(".", 1)[0] not in LOUD_LIBRARIES:
            return True
        same = (record.name, str(record.msg))
        if record.created - self._last.get(same, -math.inf) < self._seconds:
            return False
        self._last[same] = record.created
        return True


def set_up_logging(config: LogConfig, stream: TextIO | None = None) -> None:
    """Send structlog's and the standard library's records to `stream` (standard error if None).

    May be called again; the last call holds.
    """
    stream = stream or sys.stderr
    level = getattr(logging, config.level.upper())
    console = config.format == "console" or (config.format == "auto" and stream.isatty())
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        _escape_values,
        structlog.processors.format_exc_info,
        _escape_lines,
    ]
    renderer: structlog.typing.Processor = (
        structlog.dev.ConsoleRenderer(colors=stream.isatty())
        if console
        else structlog.processors.JSONRenderer()
    )
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    for name, least in LOUD_LIBRARIES.items():
        logging.getLogger(name).setLevel(max(level, least))
    handler.addFilter(Seldom(REPEAT_SECONDS))
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from streamer.config import LogConfig
from streamer.log import Seldom, printable, set_up_logging

EVIL = "cam\x1b[2J\x07\r\nforged line\u202e\ud800\x9b31m"


pytestmark = pytest.mark.usefixtures("restored_logging")


def output(form: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    set_up_logging(LogConfig.model_validate({"format": form, "level": level}), stream)
    return stream


@pytest.mark.parametrize("text", ["", "plain", "größer 映画 😀", "two words"])
def test_printable_text_stays(text: str) -> None:
    assert printable(text) == text


def test_the_rest_is_escaped() -> None:
    escaped = printable(EVIL)
    assert escaped.isprintable()
    assert escaped == r"cam\x1b[2J\x07\r\nforged line\u202e\ud800\x9b31m"


@pytest.mark.parametrize("value", [EVIL, EVIL.encode("utf-8", "surrogatepass"), [EVIL], {"k": {EVIL: EVIL}}])
@pytest.mark.parametrize("form", ["console", "json"])
def test_no_name_breaks_a_line(form: str, value: object) -> None:
    stream = output(form)
    structlog.get_logger("streamer.test").warning("chunk refused", video_id=value)
    logging.getLogger("other").warning("bad name: %s", value)
    text = stream.getvalue()
    lines = text.removesuffix("\n").split("\n")
    assert len(lines) == 2
    assert all(line.isprintable() for line in lines)
    text.encode()


def test_json_lines() -> None:
    stream = output("json")
    structlog.get_logger("streamer.test").info("hello", seq=3, ratio=0.5, nothing=None, ok=True)
    record = json.loads(stream.getvalue())
    assert record.pop("timestamp").endswith("Z")
    assert record == {
        "event": "hello",
        "level": "info",
        "logger": "streamer.test",
        "seq": 3,
        "ratio": 0.5,
        "nothing": None,
        "ok": True,
    }


@pytest.mark.parametrize("form", ["console", "json"])
def test_tracebacks_are_shown_and_harmless(form: str) -> None:
    stream = output(form)
    try:
        raise ValueError(EVIL)
    except ValueError:
        structlog.get_logger("streamer.test").exception("failed")
    text = stream.getvalue()
    assert "ValueError" in text
    assert "\x1b" not in text
    assert "\u202e" not in text
    text.encode()


def test_level_is_kept() -> None:
    stream = output("json", "warning")
    structlog.get_logger("streamer.test").info("quiet")
    logging.getLogger("streamer.test").info("quiet")
    assert stream.getvalue() == ""


def test_long_values_are_cut() -> None:
    stream = output("json")
    structlog.get_logger("streamer.test").info("hello", text="x" * 100_000)
    assert len(stream.getvalue()) < 3000


def test_debug_level_does_not_open_aiokafka() -> None:
    """It writes out every request: media, and the password of SASL PLAIN."""
    stream = output("json", "debug")
    logging.getLogger("aiokafka.conn").debug("request with secrets")
    assert stream.getvalue() == ""
    logging.getLogger("aiokafka.conn").warning("connection lost")
    assert "connection lost" in stream.getvalue()


def test_libraries_that_repeat_themselves_are_heard_seldom() -> None:
    stream = output("json")
    for n in range(100):
        logging.getLogger("aiokafka").error("Unable connect to node with id %s", n)
        logging.getLogger("streamer.test").info("ours")
    assert stream.getvalue().count("Unable connect") == 1
    assert stream.getvalue().count("ours") == 100


def test_after_a_while_they_are_heard_again() -> None:
    seldom = Seldom(10)
    record = logging.LogRecord("aiokafka", logging.ERROR, "", 0, "away", (), None)
    heard = []
    for second in range(0, 30, 4):
        record.created = 1000.0 + second
        heard.append(seldom.filter(record))
    assert heard == [True, False, False, True, False, False, True, False]

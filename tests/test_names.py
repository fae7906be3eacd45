"""Texts of any bytes and any length from producers, in all places where they come out again.

Each place is held to the same: lines stay lines, terminals get no control of theirs, what is written is valid
UTF-8 and bounded, and labels are a fixed set.
"""

from __future__ import annotations

import io
import json
import logging
import re
import time
from dataclasses import dataclass
from itertools import chain
from typing import Any

import msgpack
import pytest
import structlog
from fakes import dead_letters, fresh_names
from hypothesis import example, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from rich.console import Console
from updates import update

from streamer.config import AlertConfig, FacesConfig, KafkaConfig, LogConfig, RollingConfig
from streamer.errors import DecodeError, MessageError
from streamer.kafka.changelog import NO_TERM, state_record
from streamer.kafka.consume import Record
from streamer.kafka.deliver import Batch, _without_bytes, make_delivery, result_records
from streamer.kafka.publish import OutRecord, TooLargeError
from streamer.kafka.topics import ENVELOPE_BYTES, create_topics
from streamer.limits import MAX_KEYS, VideoLimits
from streamer.log import set_up_logging
from streamer.messages import (
    MAX_VIDEO_ID_BYTES,
    ScoreUpdate,
    VideoChunk,
    decode_chunk,
    decode_dead_letter,
    decode_score,
    encode_score,
)
from streamer.metrics import KNOWN_REASONS, Metrics
from streamer.outcome import dead_letter, process
from streamer.rolling import Arrival, RollingScores
from streamer.types import EnsembleInfo
from streamer.watch import Board, LinesView

EVIL = (
    "\x00\x07\x08\x1b[2J\x1b]0;title\x07",  # C0, a cleared screen, a window title
    "\r\nforged line\x0b\x0c\x85\u2028\u2029",  # every line break that anything knows
    "\u202e\u2066\u200f\u200b\ufeff\xad",  # bidi overrides, zero width
    "\x9b31m\x90q\x9c",  # C1
    "\ud800\udfff",  # lone surrogates
    '"\\{}[bold red]%s%(x)s\t',  # quotes and templates of JSON, Prometheus, rich and logging
    "\U0001f468\u200d\U0001f469\u0301\u0e33漢字",  # emoji, combining, wide
)


@dataclass(frozen=True)
class Name:
    """A text, or a million characters of it."""

    unit: str
    long: bool

    @property
    def text(self) -> str:
        return (self.unit * (1_000_000 // len(self.unit) + 1))[:1_000_000] if self.long else self.unit

    @property
    def sent(self) -> str:
        """As a message may carry it: UTF-8, so without surrogates."""
        return self.text.encode("utf-8", "replace").decode()

    @property
    def raw(self) -> bytes:
        """As a producer may send it."""
        return self.text.encode("utf-8", "surrogatepass")


units = st.lists(st.sampled_from(EVIL) | st.text(st.characters(), max_size=20), min_size=1, max_size=6)
names = st.builds(Name, units.map("".join).filter(bool), st.just(False))
LONG = Name("".join(EVIL), long=True)

STYLE = re.compile(r"\x1b\[[0-9;]*m")
"""Colours, which rich writes itself."""

MAX_LINE = 200_000
"""Characters of a line: a few values of log.MAX_TEXT, or a traceback, each escaped to ten characters."""


def assert_harmless(text: str, lines: int | None = None) -> None:
    """Whole lines of printable text, none endless, that UTF-8 can hold."""
    text.encode()
    found = text.removesuffix("\n").split("\n")
    assert all(line.isprintable() for line in found)
    assert max(map(len, found)) <= MAX_LINE
    assert lines is None or len(found) == lines


# ------------------------------------------------------------------ logs


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("form", ["json", "console"])
def test_logs(form: str) -> None:
    stream = io.StringIO()
    set_up_logging(LogConfig.model_validate({"format": form}), stream)

    @given(names)
    @example(LONG)
    def check(name: Name) -> None:
        stream.seek(0)
        stream.truncate()
        text, raw = name.text, name.raw
        structlog.get_logger("streamer.test").warning(
            "refused", video_id=text, key=raw, headers=[(text, raw)]
        )
        logging.getLogger("library").warning("of %s: %r", text, raw)
        assert_harmless(stream.getvalue(), lines=2)
        if form == "json":
            first = json.loads(stream.getvalue().split("\n")[0])
            assert first["event"] == "refused"

    check()


@pytest.mark.usefixtures("restored_logging")
@pytest.mark.parametrize("form", ["json", "console"])
def test_tracebacks_in_logs(form: str) -> None:
    stream = io.StringIO()
    set_up_logging(LogConfig.model_validate({"format": form}), stream)

    @given(names)
    @example(LONG)
    def check(name: Name) -> None:
        stream.seek(0)
        stream.truncate()
        try:
            raise ValueError(name.text)
        except ValueError:
            structlog.get_logger("streamer.test").exception("failed")
        assert_harmless(stream.getvalue())
        assert len(stream.getvalue()) <= MAX_LINE

    check()


# ------------------------------------------------------------------ terminals


def shown(name: str, **changes: Any) -> ScoreUpdate:
    """An update with the name in every text of it."""
    fields = {
        "error": name,
        "models": {name: 0.5},
        "latency_ms": {name: 1.0, "total": 1.0},
        "model_set": name,
    }
    return update(name[: MAX_VIDEO_ID_BYTES // 4] or "v", **fields | changes)


@given(names, st.sampled_from(["scored", "undecodable", "final"]), st.booleans())
@example(LONG, "undecodable", True)
def test_watch_in_lines(name: Name, status: str, raised: bool) -> None:
    out = io.StringIO()
    with LinesView(out) as view:
        view.show(shown(name.text, status=status, alert="raised" if raised else "none", changed=True))
    assert_harmless(out.getvalue(), lines=1)
    assert len(out.getvalue()) < MAX_LINE


@given(names, st.sampled_from([40, 80, 200]))
@example(LONG, 80)
def test_watch_as_a_table(name: Name, width: int) -> None:
    board = Board("broker · topic")
    for seq, status in enumerate(("scored", "undecodable", "final")):
        board.apply(shown(name.text, seq=seq, status=status, alert="raised", changed=True), 0.0)
    out = io.StringIO()
    started = time.monotonic()
    Console(file=out, width=width, height=24, force_terminal=True, color_system="truecolor").print(board)
    assert time.monotonic() - started < 5  # a name of a million characters took a minute and a half
    lines = STYLE.sub("", out.getvalue()).split("\n")
    assert all(line.isprintable() for line in lines)
    assert len(lines) <= 24 + 1


@given(names)
@example(LONG)
def test_watch_as_json(name: Name) -> None:
    out = io.StringIO()
    with LinesView(out, json=True) as view:
        view.show(shown(name.sent))
    (line,) = out.getvalue().removesuffix("\n").split("\n")
    assert json.loads(line)["error"] == name.sent


# ------------------------------------------------------------------ metrics


@given(names, names)
@example(LONG, LONG)
@settings(max_examples=10)
def test_metrics(stage: Name, reason: Name) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for n in range(20):
        metrics.dead_letter(f"{stage.text}{n}", f"{reason.text}{n}")
        metrics.dead_letter("decode", reason.text)
    assert_harmless(generate_latest(registry).decode())
    families = {family.name: family for family in registry.collect()}
    series = [s for s in families["streamer_dead_letters"].samples if s.name.endswith("_total")]
    assert {s.labels["stage"] for s in series} == {*KNOWN_REASONS, "other"}
    assert {s.labels["reason"] for s in series} == {*chain(*KNOWN_REASONS.values()), "other"}
    assert sum(s.value for s in series) == 40


# ------------------------------------------------------------------ messages, dead letters, keys


@given(names)
@example(LONG)
def test_a_name_is_taken_as_it_is_or_refused(name: Name) -> None:
    """Lone surrogates are no UTF-8, and are refused with it."""
    text, raw = name.text, name.raw
    packed = {"v": 1, "video_id": text, "seq": 0, "data": b"x", "format": text}
    value = msgpack.packb(packed, unicode_errors="surrogatepass")
    for content, headers in ((value, ()), (b"media", [("content-type", b"video/mp4")])):
        try:
            chunk = decode_chunk(content, raw, headers, offset=0, max_bytes=1 << 24)
        except MessageError as error:
            assert len(str(error)) < 2000  # noqa: PT017 - some are taken
            continue
        assert chunk.video_id == text
        assert len(raw) <= MAX_VIDEO_ID_BYTES
        raw.decode()


async def refuse(chunk: VideoChunk, *, sampling_share: float) -> Any:
    raise DecodeError("damaged", f"{chunk.video_id} is damaged")


async def letter_of(record: Record) -> OutRecord:
    """The dead letter of a record, as it is published."""
    refused = await process(record, refuse, 1 << 24)
    (sent,) = result_records(KafkaConfig(), Batch(0, [dead_letter(record, refused)]))
    return sent


@given(st.binary(max_size=50) | names, names)
@example(LONG, LONG)
async def test_dead_letters(key: bytes | Name, name: Name) -> None:
    key, raw = key.raw if isinstance(key, Name) else key, name.raw
    chunk = {"v": 1, "video_id": name.text, "seq": 0, "data": raw}
    value = msgpack.packb(chunk, unicode_errors="surrogatepass")
    for headers in (
        [],
        [("content-type", b"video/mp4"), ("start-seconds", raw), ("seq", raw)],
        [("content-type", b"video/mp4"), ("start-seconds", raw)],
        [("content-type", raw), (name.sent, None)],
    ):
        record = Record("video-chunks", 0, 7, 0, key, value, headers)
        sent = await letter_of(record)
        assert sent.key == key
        letter = decode_dead_letter(sent.value or b"")
        assert letter.value == value
        assert letter.reason in KNOWN_REASONS[letter.stage]
        assert len(letter.error) <= 2000
        assert letter.video_id is None or len(letter.video_id.encode()) <= MAX_VIDEO_ID_BYTES


async def test_a_dead_letter_that_is_too_large_for_its_key_and_headers_can_be_shortened() -> None:
    """Else it could not be delivered at all, and would stop its partition for good."""
    limit = KafkaConfig().max_message_bytes
    part = bytes([0xFF]) * (limit // 3)
    record = Record("video-chunks", 0, 7, 0, part, part, [("x", part)])
    refused = await process(record, refuse, limit)
    batch = Batch(0, [dead_letter(record, refused)])
    (sent,) = result_records(KafkaConfig(), batch)
    assert size(sent) > limit + ENVELOPE_BYTES
    (sent,) = result_records(KafkaConfig(), _without_bytes(batch, TooLargeError("too large")))
    assert size(sent) < 10_000
    assert "video-chunks partition 0 offset 7" in decode_dead_letter(sent.value or b"").error


def size(record: OutRecord) -> int:
    headers = sum(len(name) + len(content or b"") for name, content in record.headers)
    return len(record.key or b"") + len(record.value or b"") + headers


@given(units.map(lambda parts: Name("".join(parts)[:100] or "v", long=False)))
def test_scores_and_states(drawn: Name) -> None:
    """From a chunk to the keys of what is published, and back."""
    name = drawn.sent
    rolling = RollingScores(
        RollingConfig(), AlertConfig(), FacesConfig(), EnsembleInfo(("one",), "set", True)
    )
    chunk = decode_chunk(
        b"media", name.encode(), [("content-type", b"video/mp4")], offset=0, max_bytes=1 << 24
    )
    scored = rolling.apply_undecodable(chunk.video_id, chunk.seq, "damaged", arrival=Arrival(0, 0, 0))
    (record,) = result_records(KafkaConfig(), Batch(0, updates=[scored]))
    assert record.key == name.encode()
    assert decode_score(record.value or b"").video_id == name
    assert decode_score(encode_score(scored, "json")).video_id == name
    assert state_record(KafkaConfig(), 0, NO_TERM, chunk.video_id, b"state").key == name.encode()


def test_large_keys_and_headers_count_as_bytes_in_flight() -> None:
    record = Record("video-chunks", 0, 0, 0, bytes(1000), bytes(10), [("name", bytes(500)), ("none", None)])
    assert record.size >= 1510


def test_limits_do_not_remember_large_keys() -> None:
    """MAX_KEYS of them would be memory without a bound."""
    limits = VideoLimits(1, 0)
    for n in range(20):
        limits.take(bytes([n]) * 1_000_000, 1, 0, now_ms=0)
    assert MAX_KEYS * max(len(key or b"") for key in limits._minutes) < 10_000_000


async def test_a_record_with_a_huge_key_does_not_stop_its_partition(embedded_broker: str) -> None:
    """Its dead letter holds the key twice, and so is larger than what may be sent."""
    kafka = fresh_names(embedded_broker)
    await create_topics(kafka, partitions=1)
    narrow = kafka.model_copy(update={"max_message_bytes": 100_000, "delivery": "at_least_once"})
    record = Record(kafka.chunks_topic, 0, 7, 0, bytes([0xFF]) * 700_000, b"no chunk")
    refused = await process(record, refuse, 100_000)
    async with make_delivery(narrow) as delivery:
        await delivery.deliver(Batch(0, [dead_letter(record, refused)], next_offset=8))
    (letter,) = await dead_letters(kafka, 1)
    assert (letter.offset, letter.reason, letter.value) == (7, "not_msgpack", b"")

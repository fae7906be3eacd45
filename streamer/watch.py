"""Score updates as they come, for people: a live table, plain lines, or JSON for pipes.

Scores of untrained members are random; no view shows them: `untrained` stands in their place.
"""

from __future__ import annotations

import sys
import time
from collections import deque
from collections.abc import Iterable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Protocol, TextIO

import structlog
from rich.console import Console, ConsoleOptions, Group, RenderResult
from rich.live import Live
from rich.table import Table
from rich.text import Text

from streamer.config import Config
from streamer.kafka.presence import SILENT_SECONDS as KAFKA_SILENT_SECONDS
from streamer.kafka.scores import read_scores
from streamer.log import printable
from streamer.messages import ScoreUpdate, encode_score
from streamer.terminal import CONNECT_SECONDS, clock, count, duration, sparkline

TREND_CHUNKS = 24
"""Updates in a sparkline; a narrow terminal shows the last NARROW_TREND_CHUNKS of them."""

NARROW_TREND_CHUNKS = 14

MAX_ROWS = 2000
"""Videos remembered; beyond it the one silent longest is forgotten."""

MAX_NAME = 200
"""Characters of a name in the table, which is drawn anew again and again."""

RECENT_ALERTS = 4

WIDE_COLUMNS = 120
"""Terminal width from which the interval and the delay are shown, too."""

SILENT_SECONDS = 10.0
"""A video without an update for so long is shown as silent."""

PERSON_FACES = 3
"""Frames in which a face must be followed to be called a person; one seen less often may be a false alarm."""

UNTRAINED = "untrained"
UNTRAINED_BANNER = (
    "The members of this ensemble are untrained: their weights are random, so their scores say nothing about "
    "the video and are not shown. Decoding, faces, tracks and delivery are real."
)

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(slots=True)
class Row:
    """What is shown of one video."""

    update: ScoreUpdate
    seen_seconds: float
    trend: deque[float | None] = field(default_factory=lambda: deque(maxlen=TREND_CHUNKS))
    at_seconds: float | None = None

    @property
    def raised(self) -> bool:
        """Whether its alert stands."""
        return self.update.trained and self.update.alert.state == "raised"

    def suspicion(self) -> tuple[bool, float]:
        """Sorts rows: alerts first, then by the score now, else that of the whole video."""
        update = self.update
        if not update.trained:
            return False, -1.0
        score = update.now if update.now is not None else update.fake_score
        return self.raised, -1.0 if score is None else score


class Board:
    """The last update of every video, most suspicious first. Renderable by rich."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._rows: dict[str, Row] = {}
        self._alerts: deque[Text] = deque(maxlen=RECENT_ALERTS)
        self._now_seconds = 0.0
        self.unanswered_seconds = 0.0
        """For so long Kafka has not answered."""

    def __len__(self) -> int:
        return len(self._rows)

    def rows(self) -> list[Row]:
        """Most suspicious first; ties by name, so that rows do not jump."""
        return sorted(self._rows.values(), key=lambda r: (*(-x for x in r.suspicion()), r.update.video_id))

    def apply(self, update: ScoreUpdate, now_seconds: float) -> None:
        """Take in an update, arrived now (monotonic)."""
        row = self._rows.pop(update.video_id, None) or Row(update, now_seconds)
        self._rows[update.video_id] = row  # last in the dictionary: heard of last
        row.update, row.seen_seconds = update, now_seconds
        by_chunk = update.status != "final" or update.end_seconds is not None  # else it ended by idleness
        if by_chunk and update.status != "duplicate":
            row.trend.append(update.now if update.status != "undecodable" else None)
        if update.end_seconds is not None:
            row.at_seconds = max(update.end_seconds, row.at_seconds or 0.0)
        if update.alert.changed and update.trained:
            self._alerts.append(_alert_text(update))
        if len(self._rows) > MAX_ROWS:
            del self._rows[next(iter(self._rows))]
        self.tick(now_seconds)

    def tick(self, now_seconds: float) -> None:
        """Let time pass."""
        self._now_seconds = now_seconds

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = self.rows()
        banner = any(not row.update.trained for row in rows)
        taken = 6 + 2 * banner + (len(self._alerts) + 1 if self._alerts else 0)
        room = max(1, options.size.height - taken)
        parts: list[Table | Text] = [self._head(rows)]
        if banner:
            parts.append(Text(UNTRAINED_BANNER, style="black on yellow"))
        parts.append(self._table(rows[:room], wide=options.max_width >= WIDE_COLUMNS))
        if not rows:
            parts.append(Text("  waiting for the first score …", style="dim"))
        if len(rows) > room:
            parts.append(Text(f"  … and {count(len(rows) - room, 'less suspicious video')}", style="dim"))
        if self._alerts:
            parts += [Text(), *self._alerts]
        yield Group(*parts)

    def _head(self, rows: list[Row]) -> Text:
        raised = sum(row.raised for row in rows)
        head = Text.assemble((" streamer ", "bold reverse"), " ", (self._title, "dim"), "   ")
        head.append(count(len(rows), "video"))
        head.append("   ")
        head.append(
            f" ▲ {count(raised, 'alert')} " if raised else "no alerts",
            style="bold white on red" if raised else "dim",
        )
        if self.unanswered_seconds > KAFKA_SILENT_SECONDS:
            head.append(
                f"   Kafka has not answered for {duration(self.unanswered_seconds)}", style="bold red"
            )
        head.no_wrap, head.overflow = True, "ellipsis"
        return head

    def _table(self, rows: list[Row], *, wide: bool) -> Table:
        """A table without columns that have nothing to say, or no room to say it."""
        withheld = bool(rows) and not any(row.update.trained for row in rows)
        trend = TREND_CHUNKS if wide else NARROW_TREND_CHUNKS
        table = Table(box=None, expand=True, padding=(0, 1), header_style="dim", show_edge=False)
        table.add_column("", width=1)
        table.add_column("video", no_wrap=True, overflow="ellipsis", ratio=1, min_width=8)
        table.add_column("at", justify="right", no_wrap=True)
        if withheld:
            table.add_column("fake score", no_wrap=True)
        else:
            table.add_column("now", justify="right", no_wrap=True)
            table.add_column("overall", justify="right", no_wrap=True)
            if wide:
                table.add_column("95 %", no_wrap=True, min_width=9)
            table.add_column("score, 0 to 1", no_wrap=True, width=trend)
        table.add_column("faces", justify="right", no_wrap=True)
        if wide:
            table.add_column("delay", justify="right", no_wrap=True)
        table.add_column("state", no_wrap=True, overflow="ellipsis", width=22 if wide else 12)
        for row in rows:
            scores = [_withheld()] if withheld else self._score_cells(row, wide=wide, trend=trend)
            table.add_row(*self._cells(row, scores, wide=wide), style="dim" if row.update.last else "")
        return table

    def _cells(self, row: Row, scores: Iterable[Text], *, wide: bool) -> Iterable[Text]:
        update = row.update
        loud = "bold white on red" if row.raised else ""
        yield Text("▲" if row.raised else " ", style=loud)
        yield Text(_name(update.video_id), style="bold" if row.raised else "")
        yield Text(clock(row.at_seconds))
        yield from scores
        yield Text(f"{update.faces:,}")
        if wide:
            total_ms = update.latency_ms.get("total")
            yield Text("" if total_ms is None else duration(total_ms / 1000), style="dim")
        yield Text(_name(self._state(row)), style=loud)

    def _score_cells(self, row: Row, *, wide: bool, trend: int) -> Iterable[Text]:
        update = row.update
        yield _score(update, update.now)
        yield _score(update, update.fake_score)
        if wide:
            low_high = update.interval if update.trained else None
            yield Text(f"{low_high[0]:.2f}–{low_high[1]:.2f}" if low_high else "", style="dim")
        yield _trend(row, trend)

    def _state(self, row: Row) -> str:
        update = row.update
        if row.raised:
            return " ALERT, ended " if update.last else " ALERT "
        if update.last:
            return "ended"
        silent = self._now_seconds - row.seen_seconds
        if silent >= SILENT_SECONDS:
            return f"silent {duration(silent)}"
        return describe_status(update)


def people_in(update: ScoreUpdate) -> int:
    """Faces that were followed long enough to be called people."""
    return sum(track.faces >= PERSON_FACES for track in update.tracks)


def describe_status(update: ScoreUpdate) -> str:
    """Status in words."""
    match update.status:
        case "no_face":
            return "no face"
        case "undecodable":
            return f"✗ {update.error.replace('_', ' ')}" if update.error else "✗ undecodable"
        case "scored":
            people = people_in(update)
            return count(people, "person", "people") if people else "scored"
        case "duplicate":
            return "duplicate chunk"
        case "final":
            return "ended"


def _name(text: str) -> str:
    return printable(text[:MAX_NAME])


def _tint(update: ScoreUpdate, score: float) -> str:
    if score >= update.alert.threshold:
        return "bold red"
    return "yellow" if score >= 0.5 else "cyan"


def _score(update: ScoreUpdate, score: float | None) -> Text:
    if not update.trained:
        return _withheld()
    return Text("–", style="dim") if score is None else Text(f"{score:.2f}", style=_tint(update, score))


def _withheld() -> Text:
    return Text(UNTRAINED, style="italic dim")


def _trend(row: Row, length: int) -> Text:
    text = Text()
    if row.update.trained:
        for value in list(row.trend)[-length:]:
            text.append(sparkline([value]), style="dim" if value is None else _tint(row.update, value))
    return text


def _alert_text(update: ScoreUpdate) -> Text:
    raised = update.alert.state == "raised"
    watched = "" if update.now is None else f", now {update.now:.2f}"
    return Text.assemble(
        ("▲ alert raised " if raised else "△ alert cleared", "bold red" if raised else "green"),
        f"  {_name(update.video_id)} at {clock(update.end_seconds)}{watched}",
        no_wrap=True,
        overflow="ellipsis",
    )


def line(update: ScoreUpdate) -> str:
    """One update as a line of plain text."""
    if not update.trained:
        score = "score withheld (untrained)"
    elif update.fake_score is None:
        score = "no score yet"
    else:
        now = "" if update.now is None else f", now {update.now:.2f}"
        score = f"fake score {update.fake_score:.2f}{now}"
    parts = [clock(update.end_seconds), f"chunk {update.seq}", score, count(update.faces, "face")]
    parts.append(describe_status(update))
    raised = update.alert.state == "raised"
    if update.trained and update.alert.changed:
        parts.append("ALERT RAISED" if raised else "alert cleared")
    elif update.trained and raised:
        parts.append("ALERT")
    return f"{printable(update.video_id)}: " + ", ".join(map(printable, parts))


class View(Protocol):
    """Where updates are shown."""

    def __enter__(self) -> View: ...

    def __exit__(self, *_: object) -> None: ...

    def show(self, update: ScoreUpdate) -> None:
        """Show an update."""
        ...

    def note_silence(self, seconds: float) -> None:
        """Kafka has not answered for so long; 0 when it has."""
        ...


class LinesView:
    """A line per update, for logs and pipes; JSON if asked for."""

    def __init__(self, out: TextIO, *, json: bool = False) -> None:
        self._out = out
        self._json = json
        self._warned = False
        self._unanswered = False

    def __enter__(self) -> LinesView:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def show(self, update: ScoreUpdate) -> None:
        """Print an update at once, so that the other end of a pipe sees it."""
        if self._json:
            print(encode_score(update, "json").decode(), file=self._out, flush=True)
            return
        if not update.trained and not self._warned:
            self._warned = True
            print(UNTRAINED_BANNER, file=self._out)
        print(line(update), file=self._out, flush=True)

    def note_silence(self, seconds: float) -> None:
        """Log the beginning of a silence, and its end."""
        unanswered = seconds > KAFKA_SILENT_SECONDS
        if unanswered and not self._unanswered:
            log.warning("Kafka has not answered", seconds=round(seconds))
        elif self._unanswered and not unanswered:
            log.info("Kafka answers again")
        self._unanswered = unanswered


class TableView:
    """The live table."""

    def __init__(self, title: str, console: Console) -> None:
        self._board = Board(title)
        self._live = Live(console=console, get_renderable=self._tick, refresh_per_second=5)

    def _tick(self) -> Board:
        self._board.tick(time.monotonic())
        return self._board

    def __enter__(self) -> TableView:
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._live.stop()

    def show(self, update: ScoreUpdate) -> None:
        """Put an update on the board; the table is drawn anew a few times a second."""
        self._board.apply(update, time.monotonic())

    def note_silence(self, seconds: float) -> None:
        """Say it beside the alerts."""
        self._board.unanswered_seconds = seconds


def make_view(title: str, *, json: bool) -> View:
    """The table on a terminal, else lines."""
    console = Console()
    if console.is_terminal and not json:
        return TableView(title, console)
    return LinesView(sys.stdout, json=json)


async def watch_scores(config: Config, *, json: bool, from_beginning: bool) -> None:
    """Show updates as they come from Kafka, until cancelled. Raises BrokerError."""
    kafka = config.kafka
    title = f"{kafka.bootstrap_servers} · {kafka.scores_topic}"
    with make_view(title, json=json) as view:
        reading = read_scores(
            kafka,
            from_beginning=from_beginning,
            connect_seconds=CONNECT_SECONDS,
            on_silent=view.note_silence,
        )
        async with aclosing(reading) as updates:
            async for update in updates:
                view.show(update)

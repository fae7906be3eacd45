"""What a person sees of score updates."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from structlog.testing import capture_logs
from updates import update

from streamer import watch
from streamer.messages import ScoreUpdate, TrackScore, decode_score
from streamer.terminal import clock, count, duration, sparkline
from streamer.watch import MAX_ROWS, TREND_CHUNKS, Board, LinesView, TableView, line, make_view


def shown(board: Board, *, width: int = 130, height: int = 24, colour: bool = False) -> str:
    out = io.StringIO()
    Console(
        file=out,
        width=width,
        height=height,
        force_terminal=colour,
        color_system="truecolor" if colour else None,
    ).print(board)
    return out.getvalue()


def board_of(*updates: ScoreUpdate, now: float = 0.0) -> Board:
    board = Board("test")
    for one in updates:
        board.apply(one, now)
    return board


def row_of(text: str, video: str) -> str:
    return next(row for row in text.splitlines() if f" {video} " in row)


def test_most_suspicious_first() -> None:
    board = board_of(
        update("low", score=0.1),
        update("none", score=None),
        update("high", score=0.99),
        update("alert", score=0.7, alert="raised"),
        update("middle", score=0.5),
    )
    assert [row.update.video_id for row in board.rows()] == ["alert", "high", "middle", "low", "none"]
    text = shown(board)
    places = [text.index(f" {name} ") for name in ("alert", "high", "middle", "low", "none")]
    assert places == sorted(places)


def test_rows_of_equal_score_do_not_jump() -> None:
    board = board_of(update("b"), update("a"), update("b", 1))
    assert [row.update.video_id for row in board.rows()] == ["a", "b"]


def test_sparkline_grows_with_every_chunk() -> None:
    board = board_of(*(update(seq=seq, score=seq / 7) for seq in range(8)))
    assert "▁▂▃▄▅▆▇█" in shown(board)


def test_sparkline_keeps_the_latest() -> None:
    board = board_of(*(update(seq=seq, score=0.0 if seq < 90 else 1.0) for seq in range(100)))
    assert "▁" * (TREND_CHUNKS - 10) + "█" * 10 in shown(board, width=140)
    assert "▁" * (watch.NARROW_TREND_CHUNKS - 10) + "█" * 10 in shown(board, width=80)


def test_sparkline_shows_chunks_without_score_and_not_duplicates() -> None:
    board = board_of(
        update(seq=0, score=1.0),
        update(seq=1, score=1.0, status="undecodable", error="not_media"),
        update(seq=1, score=1.0, status="duplicate"),
        update(seq=2, score=1.0, status="final", last=True),
        update(seq=2, score=1.0, status="final", last=True, start_seconds=None, end_seconds=None),  # idle
    )
    assert "█·█ " in shown(board)


def test_alerts_stand_out() -> None:
    board = board_of(update("calm", score=0.1), update("bad", 4, 0.9, alert="raised", changed=True))
    text = shown(board)
    assert "▲ 1 alert" in text.splitlines()[0]
    assert row_of(text, "bad").lstrip().startswith("▲")
    assert "ALERT" in row_of(text, "bad")
    assert "ALERT" not in row_of(text, "calm")
    assert (
        "▲ alert raised  bad at 0:10, last seconds 0.90" in " ".join(text.split("  "))
        or "bad at 0:10" in text
    )
    assert "\x1b[1;37;41m" in shown(board, colour=True)  # bold white on red


def test_cleared_alerts_are_told() -> None:
    board = board_of(
        update(seq=1, score=0.9, alert="raised", changed=True), update(seq=2, score=0.2, changed=True)
    )
    text = shown(board)
    assert "no alerts" in text.splitlines()[0]
    assert "△ alert cleared" in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_untrained_members_never_get_a_number(width: int) -> None:
    board = board_of(
        *(update(seq=seq, score=0.87, trained=False, alert="raised", changed=True) for seq in range(5))
    )
    text = shown(board, width=width)
    assert "untrained" in row_of(text, "cam")
    assert "random" in text
    for trace in ("0.87", "▇", "0.82", "0.92", "ALERT"):
        assert trace not in row_of(text, "cam")
        assert trace not in text.splitlines()[0]
    assert "0.87" not in text
    assert "alert raised" not in text
    plain = line(update(score=0.87, trained=False, alert="raised", changed=True))
    assert "withheld (untrained)" in plain
    assert "0.87" not in plain
    assert "ALERT" not in plain


def test_trained_and_untrained_side_by_side() -> None:
    text = shown(board_of(update("real", score=0.11), update("random", score=0.87, trained=False)))
    assert "0.11" in row_of(text, "real")
    assert "untrained" in row_of(text, "random")
    assert "0.87" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 119, 120, 200])
@pytest.mark.parametrize("height", [10, 24])
def test_fits_any_terminal(width: int, height: int) -> None:
    board = board_of(
        *(update(f"camera {n} in a hall with a long name", n, n / 60, changed=n > 50) for n in range(60))
    )
    lines = shown(board, width=width, height=height).splitlines()
    assert len(lines) <= height
    assert max(map(len, lines)) <= width
    assert any("less suspicious videos" in row for row in lines)


@pytest.mark.parametrize(
    ("video_id", "printed"),
    [
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("two\nlines", r"two\nlines"),
        ("a\u202eb", r"a\u202eb"),
        ("[bold red]loud[/]", "[bold red]loud[/]"),
        (":warning:", ":warning:"),
        ("会议室", "会议室"),
    ],
)
def test_video_ids_cannot_act_on_the_terminal(video_id: str, printed: str) -> None:
    one = update(video_id, alert="raised", changed=True, score=0.9)
    for text in (shown(board_of(one)), line(one)):
        assert printed in text
        assert "\x1b" not in text
    assert "\n" not in line(one)


@given(st.text(max_size=60))
def test_any_video_id_gives_one_row(video_id: str) -> None:
    lines = shown(board_of(update(video_id or "x"))).splitlines()
    assert len(lines) == 3
    assert "\x1b" not in "".join(lines)


def test_states() -> None:
    board = board_of(
        update("gone", last=True, status="final"),
        update("faceless", score=None, status="no_face"),
        update("broken", status="undecodable", error="decoder_crashed"),
        update(
            "two", tracks=[TrackScore(track=t, box=(0, 0, 1, 1), fake_score=0.1, faces=3) for t in (0, 1)]
        ),
    )
    text = shown(board)
    assert "ended" in row_of(text, "gone")
    assert "no face" in row_of(text, "faceless")
    assert "✗ decoder crashed" in row_of(text, "broken")
    assert "2 people" in row_of(text, "two")
    board.tick(75)
    assert "silent 1 min" in row_of(shown(board), "two")
    assert "ended" in row_of(shown(board), "gone")


def test_memory_is_bounded() -> None:
    board = board_of(*(update(f"v{n}") for n in range(MAX_ROWS + 10)))
    assert len(board) == MAX_ROWS
    assert "v9" not in {row.update.video_id for row in board.rows()}


def test_empty_board_says_so() -> None:
    assert "waiting for the first score" in shown(Board("test"))


def test_lines() -> None:
    out = io.StringIO()
    with LinesView(out) as view:
        view.show(update(seq=3, score=0.25))
        view.show(update(seq=4, score=0.9, alert="raised", changed=True))
        view.show(update(seq=5, score=None, status="no_face"))
    assert out.getvalue().splitlines() == [
        "cam: 0:08, chunk 3, fake score 0.25, now 0.25, 7 faces, 1 person",
        "cam: 0:10, chunk 4, fake score 0.90, now 0.90, 7 faces, 1 person, ALERT RAISED",
        "cam: 0:12, chunk 5, no score yet, 7 faces, no face",
    ]


def test_lines_warn_once_of_untrained_members() -> None:
    out = io.StringIO()
    view = LinesView(out)
    view.show(update(trained=False))
    view.show(update(trained=False))
    assert out.getvalue().count(watch.UNTRAINED_BANNER) == 1


def test_lines_say_once_that_kafka_is_silent_and_that_it_is_back() -> None:
    view = LinesView(io.StringIO())
    with capture_logs() as logs:
        for seconds in (0.0, 14.0, 16.2, 21.0, 0.0, 0.0):
            view.note_silence(seconds)
    assert [(entry["log_level"], entry["event"], entry.get("seconds")) for entry in logs] == [
        ("warning", "Kafka has not answered", 16),
        ("info", "Kafka answers again", None),
    ]


def test_the_table_says_that_kafka_is_silent() -> None:
    board = board_of(update())
    assert "answered" not in shown(board)
    board.unanswered_seconds = 42.0
    assert "no alerts   Kafka has not answered for 42 s" in shown(board)


def test_json_is_one_object_per_line() -> None:
    out = io.StringIO()
    updates = [update("a\nb", 1), update("c", 2, None)]
    view = LinesView(out, json=True)
    for one in updates:
        view.show(one)
    lines = out.getvalue().splitlines()
    assert [json.loads(row)["seq"] for row in lines] == [1, 2]
    assert [decode_score(row.encode()) for row in lines] == updates


def test_a_pipe_gets_lines_and_a_terminal_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "")
    assert isinstance(make_view("test", json=False), LinesView)  # pytest captures: no terminal
    out = io.StringIO()
    console = Console(file=out, force_terminal=True, width=100, height=20)
    with TableView("test", console) as view:
        view.show(update("live", score=0.42))
    assert "live" in out.getvalue()
    assert "0.42" in out.getvalue()


@pytest.mark.parametrize(
    ("values", "text"),
    [([], ""), ([0, 1], "▁█"), ([None, 0.5], "·▅"), ([0.124, 0.126], "▁▂"), ([-1, 9], "▁█")],
)
def test_sparkline(values: list[float | None], text: str) -> None:
    assert sparkline(values) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(None, "–"), (0, "0:00"), (8.9, "0:08"), (754, "12:34"), (3723, "1:02:03")]
)
def test_clock(seconds: float | None, text: str) -> None:
    assert clock(seconds) == text


def test_numbers_in_words() -> None:
    assert count(1, "face") == "1 face"
    assert count(1234, "face") == "1,234 faces"
    assert count(2, "person", "people") == "2 people"
    assert [duration(s) for s in (0.34, 4.21, 18, 180)] == ["340 ms", "4.2 s", "18 s", "3 min"]

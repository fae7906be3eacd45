"""What the page knows: order, bounds, what changed since, and that nothing untrained or unreadable leaks."""

from __future__ import annotations

import json
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_core import to_json
from updates import update

from streamer.dashboard import store as module
from streamer.dashboard.serve import take_batch
from streamer.dashboard.store import FORGET_SECONDS, HISTORY_UPDATES, TREND_UPDATES, Store, Unreadable
from streamer.kafka.tail import Tailed
from streamer.messages import DeadLetter, ScoreUpdate, ShadowScore, TrackScore, decode_score, encode_score


def store_of(*updates: ScoreUpdate, max_videos: int = 100) -> Store:
    store = Store(max_videos=max_videos)
    for now_ms, one in enumerate(updates, 1000):
        store.apply(one, now_ms)
    return store


def order_of(store: Store) -> list[str]:
    return [row.video_id for row in store.rows()]


def video_of(store: Store, video_id: str = "cam") -> dict[str, Any]:
    found = [video for video in store.changes(0)["videos"] if video["id"] == video_id]
    assert len(found) == 1
    return dict(found[0])


def letter(**changes: Any) -> DeadLetter:
    fields: dict[str, Any] = {
        "value": b"x",
        "key": None,
        "headers": [],
        "error": "broken",
        "reason": "damaged",
        "stage": "decode",
        "topic": "chunks",
        "partition": 1,
        "offset": 7,
        "video_id": "cam",
        "seq": 3,
        "failed_at_ms": 5,
    }
    return DeadLetter(**fields | changes)


# ------------------------------------------------------------------ order


def test_alerts_first_then_score_then_change_then_name() -> None:
    store = store_of(
        update("older", score=0.52),
        update("newer", score=0.53),
        update("none", score=None),
        update("high", score=0.97),
        update("alert", score=0.7, alert="raised"),
        update("b", score=0.1),
    )
    store.apply(update("a", score=0.1), 1005)  # at the same time as b
    assert order_of(store) == ["alert", "high", "newer", "older", "a", "b", "none"]
    assert [video["id"] for video in store.changes(0)["videos"]] == order_of(store)


def test_the_window_counts_and_else_the_whole_video() -> None:
    store = store_of(
        update("calm now", score=0.9, window_score=0.1), update("no window", score=0.5, window_score=None)
    )
    assert order_of(store) == ["no window", "calm now"]


def test_small_moves_of_scores_do_not_change_the_order() -> None:
    draw = random.Random(1)
    names = [f"v{n}" for n in range(20)]
    store = store_of(*(update(name, score=0.5) for name in names))
    before = order_of(store)
    for seq in range(1, 50):
        for name in names:  # 0.5 is the edge of two steps
            store.apply(update(name, seq, 0.5 + draw.uniform(-0.02, 0.02)), 2000 + seq)
    assert order_of(store) == before
    store.apply(update("v7", 99, 0.58), 9000)
    assert order_of(store)[0] == "v7"


def test_ended_and_untrained_videos_do_not_alert_by_accident() -> None:
    store = store_of(
        update("ended", score=0.99, last=True, alert="raised"),
        update("random", score=0.99, alert="raised", trained=False),
        update("calm", score=0.2),
    )
    assert order_of(store) == ["ended", "calm", "random"]


# ------------------------------------------------------------------ bounds


def test_the_silent_longest_goes_first_and_alerting_ones_last() -> None:
    store = store_of(
        update("alert", alert="raised", score=0.9),
        update("old"),
        update("older but heard of again"),
        update("older but heard of again", 1),
        max_videos=3,
    )
    store.apply(update("new"), 2000)
    assert sorted(order_of(store)) == ["alert", "new", "older but heard of again"]
    assert store.forgotten == 1
    assert store.changes(store.version)["status"]["forgotten"] == 1
    for n in range(5):
        store.apply(update(f"alert {n}", alert="raised", score=0.9), 3000 + n)
    assert sorted(order_of(store)) == ["alert 2", "alert 3", "alert 4"]


def test_an_empty_id_can_be_forgotten_too() -> None:
    store = store_of(update(""), update("b"), max_videos=1)
    assert order_of(store) == ["b"]


def test_silent_videos_are_forgotten_in_time() -> None:
    store = store_of(update("old"), update("new"))
    store.apply(update("new", 1), 2000)
    store.expire(1000 + int(1000 * FORGET_SECONDS))
    assert order_of(store) == ["new"]
    assert store.changes(1)["gone"] == ["old"]


def test_history_and_trend_are_bounded() -> None:
    store = store_of(*(update(seq=seq, score=seq / 1000) for seq in range(HISTORY_UPDATES + 50)))
    page = store.video("cam", 0)
    assert [entry["seq"] for entry in page["updates"]] == list(range(50, HISTORY_UPDATES + 50))
    assert len(video_of(store)["points"]) == TREND_UPDATES


def test_many_models_tracks_letters_reasons_and_texts_are_bounded() -> None:
    many = update(
        models={f"m{n}": 0.5 for n in range(500)},
        tracks=[TrackScore(track=n, box=(0, 0, 1, 1), fake_score=0.5, faces=1) for n in range(500)],
        error="e" * 10_000,
        status="undecodable",
    )
    store = store_of(many)
    page = store.video("cam", 0)
    assert len(page["models"]) == len(page["updates"][0]["models"]) == module.HISTORY_MODELS
    assert len(page["tracks"]) == len(page["updates"][0]["tracks"]) == module.HISTORY_TRACKS
    assert len(to_json(page)) < 20_000
    for n in range(1000):
        store.add_letter(letter(reason=f"reason {n}", error="e" * 10_000), 1, 1)
    for n in range(1000):
        store.add_unreadable(Unreadable("t", 0, n, "e" * 10_000, 1))
    seen = store.letters_since(0)
    assert len(seen["letters"]) == module.MAX_LETTERS
    assert seen["total"] == seen["unreadable_total"] == 1000
    assert len(seen["reasons"]) == module.MAX_REASONS + 1
    assert ("other", 1000 - module.MAX_REASONS) in seen["reasons"]
    assert len(seen["unreadable"]) == module.MAX_UNREADABLE
    assert len(to_json(seen)) < 600_000


# ------------------------------------------------------------------ what changed


class Reader:
    """Follows a store as a page does."""

    def __init__(self) -> None:
        self.version = 0
        self.points: dict[str, list[float | None]] = {}
        self.scores: dict[str, float | None] = {}

    def read(self, store: Store) -> None:
        change = store.changes(self.version)
        self.version = store.version
        if change["reset"]:
            self.points.clear()
            self.scores.clear()
        for video_id in change["gone"]:
            self.points.pop(video_id, None)
            self.scores.pop(video_id, None)
        for video in change["videos"]:
            grown = self.points.get(video["id"], []) + video["points"]
            self.points[video["id"]] = grown[-TREND_UPDATES:]
            self.scores[video["id"]] = video["score"]


@given(st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=200))
def test_changes_add_up_to_the_whole_however_seldom_they_are_asked_for(
    steps: list[tuple[int, bool]],
) -> None:
    store, reader, seqs = Store(max_videos=8), Reader(), dict.fromkeys(range(13), 0)
    store.apply(update("first"), 1)  # so that version 0 is not what a reader has
    reader.read(store)
    for now_ms, (video, asks) in enumerate(steps):
        seqs[video] += 1
        score = (7 * seqs[video] % 100) / 100
        store.apply(update(f"v{video}", seqs[video], score), now_ms)
        if asks:
            reader.read(store)
    reader.read(store)
    fresh = Reader()
    fresh.read(store)
    assert reader.scores == fresh.scores
    assert reader.points == fresh.points


def test_only_what_changed_is_told() -> None:
    store = store_of(update("a"), update("b"))
    version = store.version
    assert store.changes(version)["videos"] == store.changes(version)["gone"] == []
    store.apply(update("b", 1, 0.25), 2000)
    store.apply(update("b", 2, 0.75), 2001)
    change = store.changes(version)
    assert [video["id"] for video in change["videos"]] == ["b"]
    assert change["videos"][0]["points"] == [0.25, 0.75]
    assert not change["reset"]


def test_a_version_that_is_not_known_gets_everything() -> None:
    store = store_of(update("a"))
    for since in (0, -1, store.version + 1):
        assert store.changes(since)["reset"]


def test_a_reader_too_far_behind_gets_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_GONE", 3)
    store = Store(max_videos=1)
    for n in range(10):
        store.apply(update(f"v{n}"), n)
    assert store.changes(2)["reset"]
    recent = store.changes(store.version - 2)
    assert not recent["reset"]
    assert recent["gone"] == ["v8"]
    assert [video["id"] for video in recent["videos"]] == ["v9"]


def test_duplicates_and_idle_ends_are_no_points_and_undecodable_chunks_are_gaps() -> None:
    store = store_of(
        update(seq=0, score=1.0),
        update(seq=1, score=1.0, status="undecodable", error="not_media"),
        update(seq=1, score=1.0, status="duplicate"),
        update(seq=2, score=1.0, status="final", last=True),
        update(seq=2, score=1.0, status="final", last=True, start_seconds=None, end_seconds=None),
    )
    assert video_of(store)["points"] == [1.0, None, 1.0]
    assert [entry["status"] for entry in store.video("cam", 0)["updates"]][1:3] == [
        "undecodable",
        "duplicate",
    ]


def test_a_videos_page_holds_what_its_messages_hold() -> None:
    models = {"resnext": 0.25, "densenet": 0.75}
    store = store_of(
        update(seq=0, score=0.5, models=models),
        update(seq=1, score=0.75, models={"densenet": 0.5}, alert="raised", changed=True, faces=9),
    )
    page = store.video("cam", 0)
    first, second = page["updates"]
    assert first["models"] == [("resnext", 0.25), ("densenet", 0.75)]
    assert second["models"] == [("densenet", 0.5)]
    assert second["tracks"] == [(0, 0.75)]
    assert second["interval"] == [0.7, 0.8]
    assert (second["start"], second["end"], second["faces"]) == (2000, 4000, 9)
    assert second["alert"]
    assert second["alert_changed"]
    assert page["models"] == [{"name": "densenet", "score": 0.5}]
    assert page["latest"]["model_set"] == "test"
    since = store.video("cam", store.version - 1)["updates"]
    assert [entry["seq"] for entry in since] == [1]
    assert store.video("nobody", 0) == {"reset": True, "video": None, "updates": [], "evidence": []}


def shadow(score: float, *, trained: bool = True) -> ShadowScore:
    return ShadowScore(model_set="next", trained=trained, fake_score=score / 2, window_score=score, faces=5)


def test_what_the_ensemble_in_shadow_says_is_shown_beside() -> None:
    store = store_of(update(seq=0), update(seq=1, shadow=shadow(0.75)))
    page = store.video("cam", 0)
    assert page["shadow"] == {
        "model_set": "next",
        "trained": True,
        "score": 0.75,
        "overall": 0.375,
        "faces": 5,
    }
    assert [entry["shadow"] for entry in page["updates"]] == [None, 0.75]
    assert [entry["score"] for entry in page["updates"]] == [0.5, 0.5]
    assert store_of(update()).video("cam", 0)["shadow"] is None


def test_no_number_of_an_untrained_shadow_gets_out() -> None:
    store = store_of(update(shadow=shadow(0.86, trained=False)))
    page = store.video("cam", 0)
    assert page["shadow"]["faces"] == 5
    text = to_json(page).decode()
    assert "0.86" not in text
    assert "0.43" not in text


def test_no_number_of_untrained_members_gets_out() -> None:
    lying = update(score=0.87, trained=False, alert="raised", changed=True, models={"m": 0.87})
    store = store_of(lying, lying)
    video = video_of(store)
    assert not video["alert"]
    assert not video["trained"]
    assert video["points"] == [None, None]
    for shown in (store.changes(0), store.video("cam", 0)):
        text = to_json(shown).decode()
        assert "0.87" not in text
        assert "0.82" not in text
        assert "raised" not in text


# ------------------------------------------------------------------ bad messages


def tailed(value: bytes | None, offset: int = 5, **changes: Any) -> Tailed:
    return Tailed("scores", 0, offset, value, **changes)


def take(store: Store, *values: bytes | None) -> None:
    def take_score(value: bytes) -> None:
        store.apply(decode_score(value), 1)

    take_batch(store, [tailed(value, offset) for offset, value in enumerate(values)], take_score)


HUGE = [
    update(seq=2**70),
    update(faces=2**64),
    update(end_seconds=1e306),
    update(processed_at_ms=-(10**4299)),
    *(update().model_copy(update={"video_id": name}) for name in ("x" * 600, "é" * 300)),
    update(tracks=[TrackScore(track=2**64, box=(0, 0, 1, 1), fake_score=0.5, faces=1)]),
]


@pytest.mark.parametrize("bad", HUGE)
def test_values_that_no_service_publishes_are_counted_and_change_nothing(bad: ScoreUpdate) -> None:
    store = store_of(update("cam", 1, 0.25))
    before = to_json(store.changes(0) | {"status": None})
    take(store, encode_score(bad, "json"))
    assert to_json(store.changes(0) | {"status": None}) == before
    assert store.status()["unreadable"] == 1
    assert order_of(store) == ["cam"]


@pytest.mark.parametrize(
    "value",
    [
        None,
        b"",
        b"{",
        b"rubbish",
        b"\xc1",
        b'{"v": 2}',
        b"\x81\xa1v\x01",
        b'{"video_id": "\\ud800"}',
        b"\xff" * 99,
    ],
)
def test_unreadable_records_are_counted_and_listed(value: bytes | None) -> None:
    store = Store(max_videos=3)
    take(store, value, encode_score(update("good")))
    assert order_of(store) == ["good"]
    assert store.status()["unreadable"] == 1
    listed = store.letters_since(0)
    assert listed["unreadable_total"] == 1
    assert listed["unreadable"][0]["where"] == "scores/0@0"
    assert "not a score update" in listed["unreadable"][0]["error"]


def test_records_that_the_client_could_not_read_are_counted() -> None:
    store = Store(max_videos=3)
    take_batch(store, [tailed(None, unreadable="CorruptRecordException")], lambda _: None)
    assert store.letters_since(0)["unreadable"][0]["error"] == "CorruptRecordException"


@given(st.binary(max_size=200))
def test_any_bytes_are_survived(value: bytes) -> None:
    store = Store(max_videos=3)
    take(store, value)
    assert store.updates + store.status()["unreadable"] == 1


@given(st.text(max_size=60), st.floats(0, 1e300), st.integers(-(2**63) + 1, 2**63 - 1))
def test_whatever_is_taken_in_comes_out_as_json(video_id: str, latency: float, at_ms: int) -> None:
    try:
        value = encode_score(update(video_id, latency_ms={"total": latency}, processed_at_ms=at_ms), "json")
    except ValueError:  # a lone surrogate cannot be sent
        return
    store = Store(max_videos=3)
    take(store, value)
    for shown in (store.changes(0), store.video(video_id, 0), store.letters_since(0)):
        json.loads(to_json(shown, inf_nan_mode="null"), parse_constant=pytest.fail)
    assert order_of(store) == [video_id]


def test_dead_letters_tell_all_but_their_bytes() -> None:
    store = Store(max_videos=3)
    store.add_letter(letter(value=b"secret bytes"), 12, 9)
    version = store.letters_version
    store.add_letter(letter(reason="not_msgpack", video_id=None, seq=None), 1, 10)
    seen = store.letters_since(0)
    assert "secret" not in to_json(seen).decode()
    assert seen["letters"][0] == {
        "number": 1,
        "video": "cam",
        "seq": 3,
        "reason": "damaged",
        "stage": "decode",
        "error": "broken",
        "where": "chunks/1@7",
        "bytes": 12,
        "failed_ms": 5,
        "seen_ms": 9,
    }
    assert seen["reasons"] == [("damaged", 1), ("not_msgpack", 1)]
    assert [one["number"] for one in store.letters_since(version)["letters"]] == [2]

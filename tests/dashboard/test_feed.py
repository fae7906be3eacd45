"""Streams: coalesced, resumed, shared, and bounded however slow their reader is."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

import pytest
from scenes import evidence
from updates import update

from streamer.dashboard import feed as module
from streamer.dashboard.feed import Feed
from streamer.dashboard.store import Store


def parse(frame: bytes) -> tuple[str, str | None, Any]:
    """(event, id, data) of a frame."""
    fields = dict(line.split(": ", 1) for line in frame.decode().rstrip("\r\n").split("\r\n") if ": " in line)
    return fields["event"], fields.get("id"), json.loads(fields["data"]) if fields.get("data") else None


def feed_of(*updates: Any) -> Feed:
    store = Store(max_videos=100)
    for one in updates:
        store.apply(one, module.now_ms())
    return Feed(store)


async def next_of(stream: AsyncGenerator[bytes, None]) -> Any:
    async with asyncio.timeout(20):
        return parse(await anext(stream))


async def test_everything_then_what_changed_in_one_event_per_tick() -> None:
    feed = feed_of(update("a"), update("b"))
    async with aclosing(feed.videos(None)) as stream:
        event, _, change = await next_of(stream)
        assert event == "change"
        assert change["reset"]
        assert {video["id"] for video in change["videos"]} == {"a", "b"}
        waiting = asyncio.ensure_future(next_of(stream))
        for seq in range(1, 6):
            feed.store.apply(update("b", seq, seq / 10), module.now_ms())
        await asyncio.sleep(0)
        assert not waiting.done()
        feed.tick()
        _, _, change = await waiting
        assert not change["reset"]
        assert [video["points"] for video in change["videos"]] == [[0.1, 0.2, 0.3, 0.4, 0.5]]


async def test_a_slow_reader_gets_all_it_missed_at_once() -> None:
    feed = feed_of(update("a"))
    async with aclosing(feed.videos(None)) as stream:
        await next_of(stream)
        for seq in range(1, 1001):
            feed.store.apply(update("a", seq, 0.5), module.now_ms())
            feed.tick()
        _, _, change = await next_of(stream)
        assert [video["seq"] for video in change["videos"]] == [1000]
        waiting = asyncio.ensure_future(next_of(stream))
        await asyncio.sleep(0)
        assert not waiting.done()  # nothing is queued
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


async def test_readers_of_one_tick_share_the_bytes() -> None:
    feed = feed_of(update("a"))
    async with aclosing(feed.videos(None)) as one, aclosing(feed.videos(None)) as other:
        assert await anext(one) is await anext(other)
        assert feed.streams == 2
    assert feed.streams == 0


async def test_a_stream_goes_on_where_its_last_event_was() -> None:
    feed = feed_of(update("a"), update("b"))
    async with aclosing(feed.videos(None)) as stream:
        _, last, _ = await next_of(stream)
    feed.store.apply(update("b", 1), module.now_ms())
    async with aclosing(feed.videos(last)) as stream:
        _, _, change = await next_of(stream)
    assert not change["reset"]
    assert [video["id"] for video in change["videos"]] == ["b"]


@pytest.mark.parametrize("last", ["", "-", "12", "deadbeef-1", "x-y-z", "-1", "9" * 5000])
async def test_a_last_event_of_something_else_gets_everything(last: str) -> None:
    feed = feed_of(update("a"))
    async with aclosing(feed.videos(last)) as stream:
        _, _, change = await next_of(stream)
    assert change["reset"]


async def test_a_last_event_of_the_future_gets_everything() -> None:
    feed = feed_of(update("a"))
    async with aclosing(feed.videos(None)) as stream:
        _, last, _ = await next_of(stream)
    async with aclosing(feed.videos(f"{(last or '').split('-')[0]}-999999")) as stream:
        _, _, change = await next_of(stream)
    assert change["reset"]


async def test_counts_without_a_version_are_told_too() -> None:
    feed = feed_of(update("a"))
    async with aclosing(feed.videos(None)) as stream:
        await next_of(stream)
        feed.store.trouble["scores"] = "no broker"
        feed.store.behind["scores"] = 12
        feed.tick()
        _, _, change = await next_of(stream)
    assert change["videos"] == []
    assert change["status"]["trouble"] == ["scores: no broker"]
    assert change["status"]["behind"] == 12


async def test_a_quiet_stream_shows_that_it_lives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "QUIET_SECONDS", 0.0)
    feed = feed_of(update("a"))
    async with aclosing(feed.videos(None)) as stream:
        await next_of(stream)
        feed.tick()
        assert (await next_of(stream))[0] == "alive"


async def test_one_video() -> None:
    feed = feed_of(update("a"))
    async with aclosing(feed.video("b")) as stream:
        assert (await next_of(stream))[2]["video"] is None
        feed.store.apply(update("b", 0), module.now_ms())
        feed.tick()
        _, _, change = await next_of(stream)
        assert change["reset"]
        feed.store.apply(update("b", 1), module.now_ms())
        feed.store.apply(update("a", 1), module.now_ms())
        feed.tick()
        _, _, change = await next_of(stream)
        assert [entry["seq"] for entry in change["updates"]] == [1]
        assert not change["reset"]


async def test_a_picture_is_told_to_its_videos_page_alone() -> None:
    feed = feed_of(update("a"), update("b"))
    async with (
        aclosing(feed.videos(None)) as videos,
        aclosing(feed.video("a")) as a,
        aclosing(feed.video("b")) as b,
    ):
        for stream in (videos, a, b):
            await next_of(stream)
        waiting = [asyncio.ensure_future(next_of(stream)) for stream in (a, b, videos)]
        await asyncio.sleep(0)
        feed.store.gallery.add(evidence("a", 3, (0.9,)), module.now_ms())
        feed.tick()
        _, _, change = await waiting[0]
        assert [(face["score"], face["at"]) for face in change["evidence"]] == [(0.9, 6.0)]
        assert not change["reset"]
        assert change["updates"] == []
        await asyncio.sleep(0)
        assert not any(other.done() for other in waiting[1:])
        for other in waiting[1:]:
            other.cancel()
        await asyncio.gather(*waiting, return_exceptions=True)


async def test_pictures_go_with_their_video() -> None:
    feed = feed_of(update("a"))
    feed.store.gallery.add(evidence("a", 3, (0.9,)), 1)  # long ago
    feed.tick()
    assert feed.store.video("a", 0)["evidence"]
    feed.store.expire(module.now_ms() + 3_600_000)
    assert feed.store.gallery.of("a") == []


async def test_closing_ends_the_streams() -> None:
    feed = feed_of(update("a"))
    async with aclosing(feed.videos(None)) as stream:
        await next_of(stream)
        waiting = asyncio.ensure_future(anext(stream, None))
        await asyncio.sleep(0)
        feed.close()
        async with asyncio.timeout(20):
            assert await waiting is None


@pytest.mark.parametrize("video_id", ["a\nb", "a\r\ndata: {}\r\n\r\n", "\u2028\u0085\x00", "💡"])
async def test_no_video_id_can_break_the_framing(video_id: str) -> None:
    feed = feed_of(update(video_id))
    async with aclosing(feed.videos(None)) as stream:
        frame = await anext(stream)
    assert frame.count(b"\r\n\r\n") == 1
    assert frame.count(b"\ndata:") == 1
    assert parse(frame)[2]["videos"][0]["id"] == video_id

"""Order, fairness and replays within one partition; the delivery is a list."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest
from fakes import BAD, BROKEN, FakePipeline, chunk, until
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from streamer.config import AlertConfig, FacesConfig, KafkaConfig, RollingConfig
from streamer.errors import InferenceError
from streamer.kafka.changelog import NO_TERM
from streamer.kafka.consume import Record
from streamer.kafka.deliver import Batch
from streamer.limits import VideoLimits
from streamer.messages import VideoChunk, encode_chunk
from streamer.metrics import Metrics
from streamer.outcome import Outcome, process, refuse
from streamer.partition import MAX_EXPIRED, PartitionWorker, Slot
from streamer.rolling import Arrival, RollingScores
from streamer.thinning import Thinning
from streamer.turns import Turns
from streamer.types import ChunkPrediction


@dataclass
class Delivered:
    """A delivery that notes what it is given, and waits for its gate."""

    commits_offsets = True
    batches: list[Batch] = field(default_factory=list)
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    async def deliver(self, batch: Batch) -> None:
        await self.gate.wait()
        self.batches.append(batch)

    @property
    def chunks(self) -> list[tuple[str, int]]:
        return [(update.video_id, update.seq) for batch in self.batches for update in batch.updates]

    @property
    def next_offset(self) -> int | None:
        offsets = [batch.next_offset for batch in self.batches if batch.next_offset is not None]
        assert offsets == sorted(offsets)
        return offsets[-1] if offsets else None

    def states(self) -> dict[str, bytes]:
        """What a restore would find."""
        states: dict[str, bytes] = {}
        for batch in self.batches:
            for video_id, state in batch.states.items():
                states.pop(video_id, None)
                if state is not None:
                    states[video_id] = state
        return states


class Bench:
    """A worker, and chunks that end when told to."""

    def __init__(
        self,
        most: int = 8,
        *,
        states: dict[str, bytes] | None = None,
        max_videos: int = 100,
        chunks_per_minute: int = 0,
        delivered: Delivered | None = None,
        commit_interval_ms: int = 0,
    ) -> None:
        self.delivered = delivered or Delivered()
        self.delivered.gate.set()
        self.let_go: list[int] = []
        self.rolling = RollingScores(
            RollingConfig(max_videos=max_videos), AlertConfig(), FacesConfig(), FakePipeline.ensemble
        )
        self.metrics = Metrics(CollectorRegistry())
        self.rolling.restore(states or {}, now_seconds=0)
        self.worker = PartitionWorker(
            0,
            self.rolling,
            self.delivered,  # type: ignore[arg-type]  # what the worker uses of one
            self.metrics,
            KafkaConfig(commit_interval_ms=commit_interval_ms),
            limits=VideoLimits(chunks_per_minute, 0),
            thinning=Thinning(64),
            term=NO_TERM,
            start_offset=None,
            on_finished=lambda record: self.let_go.append(record.offset),
        )
        self.run = asyncio.create_task(self.worker.run())
        self.turns = Turns(most)
        self.pipeline = FakePipeline()
        self._may_end: dict[tuple[str, int], asyncio.Event] = {}

    def put(
        self,
        offset: int,
        each: VideoChunk,
        *,
        key: bytes | None = b"its own",
        ends: bool = False,
        timestamp_ms: int = 0,
    ) -> None:
        """A record of a chunk. ends: its prediction does not wait for `end`."""
        key = each.video_id.encode() if key == b"its own" else key
        self.put_record(Record("chunks", 0, offset, timestamp_ms, key, encode_chunk(each)))
        if ends:
            self.end(each.video_id, each.seq)

    def put_record(self, record: Record) -> None:
        self.worker.put(record, lambda slot: asyncio.create_task(self._process(slot)))

    def end(self, video_id: str, *seqs: int) -> None:
        for seq in seqs:
            self._event(video_id, seq).set()

    def _event(self, video_id: str, seq: int) -> asyncio.Event:
        return self._may_end.setdefault((video_id, seq), asyncio.Event())

    async def _process(self, slot: Slot) -> Outcome:
        if slot.refusal is not None:
            return refuse(slot.record, slot.refusal, 1 << 20)
        async with self.turns.turn(slot.record.key):
            slot.begun = True
            slot.sampling_share = self.worker.thinning.share

            async def predict(each: VideoChunk, *, sampling_share: float) -> ChunkPrediction:
                await self._event(each.video_id, each.seq).wait()
                return await self.pipeline.predict(each, sampling_share=sampling_share)

            return await process(slot.record, predict, 1 << 20, slot.sampling_share)


@asynccontextmanager
async def bench(**arguments: object) -> AsyncIterator[Bench]:
    made = Bench(**arguments)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        await made.worker.halt(made.run)


def hot_and_cold(hot: int, cold: Iterable[int]) -> list[VideoChunk]:
    """A run of chunks of `hot`, with a chunk of `cold` at each of these places."""
    chunks = [chunk("hot", seq) for seq in range(hot)]
    for seq, place in enumerate(cold):
        chunks.insert(place, chunk("cold", seq))
    return chunks


async def test_a_video_does_not_wait_for_another_ones_chunks_before_it() -> None:
    async with bench() as one:
        for offset, each in enumerate(hot_and_cold(3, [1])):
            one.put(offset, each)
        one.end("cold", 0)
        await until(lambda: one.delivered.chunks == [("cold", 0)])
        assert one.delivered.next_offset is None
        assert one.worker.committable is None
        assert one.let_go == []
        one.end("hot", 0)
        await until(lambda: one.let_go == [0, 1])
        assert one.delivered.next_offset == one.worker.committable == 2
        one.end("hot", 1, 2)
        await until(lambda: one.let_go == [0, 1, 2, 3])
        assert one.delivered.next_offset == one.worker.committable == 4


async def test_what_is_finished_within_the_interval_is_delivered_together() -> None:
    async with bench(commit_interval_ms=60_000) as one:
        one.put(0, chunk("v", 0), ends=True)
        await until(lambda: one.let_go == [0])
        one.put(1, chunk("v", 1), ends=True)
        one.put(2, chunk("v", 2), ends=True)
        await until(lambda: all(slot.finished for slot in one.worker._slots))
        await asyncio.sleep(0)
        assert one.delivered.chunks == [("v", 0)]
        await one.worker.give_up_waiting()  # of a process that ends: the interval counts no more
        await one.worker.drained()
        assert [len(batch.updates) for batch in one.delivered.batches] == [1, 2]


async def test_chunks_of_one_video_stay_in_order() -> None:
    async with bench() as one:
        for offset, each in enumerate([chunk("w", 0), *(chunk("v", seq) for seq in range(3))]):
            one.put(offset, each)
        one.end("v", 2, 1)
        await until(lambda: one.worker._slots[3].finished)
        one.end("v", 0)
        await until(lambda: len(one.delivered.chunks) == 3)
        assert one.delivered.chunks == [("v", 0), ("v", 1), ("v", 2)]


async def test_cold_videos_take_turns_with_a_hot_one() -> None:
    """Eight places, and a hundred chunks of the hot video before one each of three cold ones."""
    async with bench() as one:
        cold = [chunk(f"cold-{n}", 0) for n in range(3)]
        for offset, each in enumerate([*(chunk("hot", seq) for seq in range(100)), *cold]):
            one.put(offset, each, ends=each.video_id != "hot")
        await until(lambda: sum(slot.begun for slot in one.worker._slots) == 8)
        one.end("hot", 0, 1)  # one place goes to the hot video, whose turn it is, one round the cold ones
        await until(lambda: len(one.delivered.chunks) == 5)
        assert {video_id for video_id, _ in one.delivered.chunks[2:]} == {"cold-0", "cold-1", "cold-2"}


async def test_what_was_delivered_ahead_is_known_in_a_replay() -> None:
    chunks = [chunk("hot", 0), chunk("cold", 0), chunk("cold", 1, BAD), chunk("hot", 1)]
    async with bench() as first:
        for offset, each in enumerate(chunks):
            first.put(offset, each, ends=each.video_id == "cold")
        await until(lambda: len(first.delivered.chunks) == 2)
        assert [letter.seq for batch in first.delivered.batches for letter in batch.letters] == [1]
    # the process ends; nothing was committed, so all of it is read again
    async with bench(states=first.delivered.states()) as second:
        for offset, each in enumerate([*chunks, chunk("cold", 2)]):
            second.put(offset, each, ends=True)
        await until(lambda: second.delivered.next_offset == 5)
        assert second.delivered.chunks == [("hot", 0), ("hot", 1), ("cold", 2)]
        assert not any(batch.letters for batch in second.delivered.batches)
        assert second.delivered.batches[-1].updates[-1].chunks == 2
        assert second.delivered.batches[-1].updates[-1].undecodable_chunks == 1


async def test_videos_ahead_are_not_forgotten_before_their_offset_is_committed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("streamer.partition.EXPIRY_SECONDS", 0.01)
    async with bench(max_videos=1) as one:
        one.put(0, chunk("hot", 0))
        one.put(1, chunk("cold", 0), ends=True)
        one.put(2, chunk("lukewarm", 0), ends=True)
        await until(lambda: len(one.delivered.chunks) == 2)
        rounds = one.worker._next_expiry
        await until(lambda: one.worker._next_expiry > rounds + 0.05)
        assert len(one.rolling) == 2
        one.end("hot", 0)
        await until(lambda: len(one.rolling) == 1)


async def test_videos_that_are_idle_all_at_once_end_in_several_deliveries() -> None:
    states = RollingScores(RollingConfig(), AlertConfig(), FacesConfig(), FakePipeline.ensemble)
    count = 2 * MAX_EXPIRED + 50
    for n in range(count):
        states.apply_undecodable(f"v{n}", 0, "damaged", arrival=Arrival(0, 0))
    packed = {video_id: state for video_id, state in states.take_changed().items() if state is not None}
    async with bench(states=packed, max_videos=1) as one:
        one.worker._next_expiry = 0.0
        one.put(0, chunk("v", 0), ends=True)
        await until(lambda: len(one.rolling) == 1)
        ended = [[u for u in batch.updates if u.status == "final"] for batch in one.delivered.batches]
        assert sum(map(len, ended)) == count
        assert max(map(len, ended)) == MAX_EXPIRED


@pytest.mark.parametrize("key", [None, b"another"])
async def test_a_chunk_whose_key_is_not_its_video_waits_for_all_before_it(key: bytes | None) -> None:
    async with bench() as one:
        one.put(0, chunk("v", 0))
        one.put(1, chunk("w", 0), key=key, ends=True)
        await until(lambda: one.worker._slots[1].finished)
        one.put(2, chunk("x", 0), ends=True)
        await until(lambda: one.worker._slots[2].finished)
        if key is not None:  # else the record at 1 may be of any video, also of x
            await until(lambda: one.delivered.chunks == [("x", 0)])
        assert ("w", 0) not in one.delivered.chunks
        one.end("v", 0)
        await until(lambda: one.let_go == [0, 1, 2])


async def test_a_dead_letter_of_no_video_waits_for_all_before_it() -> None:
    """A replay could not know it again."""
    async with bench() as one:
        one.put(0, chunk("v", 0))
        one.put_record(Record("chunks", 0, 1, 0, b"w", b"no msgpack"))
        one.put(2, chunk("x", 0), ends=True)
        await until(lambda: one.delivered.chunks == [("x", 0)])
        assert one.worker._slots[1].finished
        assert not any(batch.letters for batch in one.delivered.batches)
        one.end("v", 0)
        await until(lambda: one.let_go == [0, 1, 2])
        assert [letter.offset for batch in one.delivered.batches for letter in batch.letters] == [1]


async def test_drain_delivers_what_has_begun_and_leaves_the_offset_before_what_has_not() -> None:
    async with bench(most=1) as one:
        for offset, each in enumerate(hot_and_cold(3, [3])):
            one.put(offset, each)
        await until(lambda: one.worker._slots[0].begun)
        one.end("hot", 0, 1)
        await until(lambda: one.worker._slots[-1].begun)  # the cold one's turn comes before that of hot 2
        await one.worker.give_up_waiting()
        drained = asyncio.create_task(one.worker.drained())
        one.end("cold", 0)
        await asyncio.wait_for(drained, 5)
        assert one.delivered.chunks == [("hot", 0), ("hot", 1), ("cold", 0)]
        assert one.delivered.next_offset == one.worker.next_offset == 2
        assert await one.worker.halt(one.run) == 0
        assert sorted(one.let_go) == [0, 1, 2, 3]


async def test_halt_counts_what_had_begun_and_was_not_counted() -> None:
    async with bench(most=2) as one:
        for offset, each in enumerate(hot_and_cold(3, [1])):
            one.put(offset, each, ends=each.video_id == "cold")
        await until(lambda: one.delivered.chunks == [("cold", 0)])
        await until(lambda: sum(slot.begun for slot in one.worker._slots) == 3)
        assert await one.worker.halt(one.run) == 2
        assert sorted(one.let_go) == [0, 1, 2, 3]


async def test_what_is_beyond_the_limit_is_told_in_order_and_takes_no_turn() -> None:
    async with bench(most=1, chunks_per_minute=2) as one:
        for offset, each in enumerate([*(chunk("hot", seq) for seq in range(5)), chunk("cold", 0)]):
            one.put(offset, each, ends=each.video_id == "cold")
        await until(lambda: all(slot.work.done() for slot in list(one.worker._slots)[2:5]))
        assert one.delivered.chunks == []  # they wait for their video's chunks before them, not for a place
        one.end("hot", 0, 1)
        await until(lambda: one.delivered.next_offset == 6)
        hot = [u for batch in one.delivered.batches for u in batch.updates if u.video_id == "hot"]
        assert [(u.seq, u.status) for u in hot] == [
            *((0, "scored"), (1, "scored")),
            *((seq, "undecodable") for seq in (2, 3, 4)),
        ]
        assert {u.error for u in hot[2:]} == {"too_many_chunks_per_minute"}
        assert hot[-1].fake_score == hot[1].fake_score
        assert (hot[-1].chunks, hot[-1].undecodable_chunks, hot[-1].missing_chunks) == (2, 3, 0)
        letters = [letter for batch in one.delivered.batches for letter in batch.letters]
        assert [(letter.seq, letter.stage, letter.reason) for letter in letters] == [
            (seq, "limit", "too_many_chunks_per_minute") for seq in (2, 3, 4)
        ]
        assert letters[0].value == encode_chunk(chunk("hot", 2))
        assert ("hot", 2) not in one.pipeline.started


async def test_a_jump_of_our_clock_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    async with bench(chunks_per_minute=1) as one:
        now_ms = round(1000 * time.time())
        one.put(0, chunk("v", 0), ends=True, timestamp_ms=now_ms - 120_000)
        monkeypatch.setattr("streamer.partition.time.time", lambda: now_ms / 1000 - 86_400)
        one.put(1, chunk("v", 1), ends=True, timestamp_ms=now_ms - 60_000)
        await until(lambda: one.let_go == [0, 1])
        assert {update.status for batch in one.delivered.batches for update in batch.updates} == {"scored"}


async def test_thinned_chunks_are_counted_and_state_their_rate() -> None:
    async with bench() as one:
        one.put(0, chunk("v", 0), ends=True)
        await until(lambda: one.let_go == [0])
        one.worker.thinning.update(128)
        one.put(1, chunk("v", 1), ends=True)
        await until(lambda: one.let_go == [0, 1])
        updates = [update for batch in one.delivered.batches for update in batch.updates]
        assert [update.sampling_rate for update in updates] == [4.0, 1.0]
        assert one.metrics.registry.get_sample_value("streamer_thinned_chunks_total") == 1


async def test_a_failure_comes_after_what_was_finished_before_it() -> None:
    async with bench() as one:
        one.delivered.gate.clear()
        one.put(0, chunk("v", 0), ends=True)
        one.put(1, chunk("v", 1, BROKEN), ends=True)
        await until(lambda: one.worker._slots[1].work.done())
        one.delivered.gate.set()
        with pytest.raises(InferenceError, match="network one failed"):
            await asyncio.wait_for(asyncio.shield(one.run), 5)
        assert one.delivered.chunks == [("v", 0)]


@given(
    st.lists(st.sampled_from(["hot", "hot", "hot", "cold", "cool"]), min_size=1, max_size=12),
    st.sampled_from([1, 2, 8]),
    st.lists(st.booleans(), max_size=3),
    st.randoms(use_true_random=False),
)
@settings(max_examples=40)
def test_every_chunk_is_published_once_in_order_whatever_ends_first_and_whenever_we_stop(
    videos: list[str], most: int, stops: list[bool], rng: random.Random
) -> None:
    """stops: of one process after the other, True where it drains first."""
    chunks = [chunk(video, videos[:place].count(video)) for place, video in enumerate(videos)]
    delivered = asyncio.run(_lives(chunks, most, stops, rng))
    calm = asyncio.run(_lives(chunks, 1, [], rng))
    assert Counter(delivered.chunks) == Counter((each.video_id, each.seq) for each in chunks)
    assert delivered.next_offset == len(chunks)
    for video in set(videos):
        assert [seq for name, seq in delivered.chunks if name == video] == list(range(videos.count(video)))
    assert delivered.states() == calm.states()


async def _lives(chunks: list[VideoChunk], most: int, stops: list[bool], rng: random.Random) -> Delivered:
    """What is delivered by processes that each go on where the last has stopped; the last one finishes."""
    delivered = Delivered()
    for drains in (*stops, None):
        start = delivered.next_offset or 0
        async with bench(most=most, states=delivered.states(), delivered=delivered) as one:
            for offset, each in enumerate(chunks[start:], start):
                one.put(offset, each)
            ending = rng.sample(chunks, len(chunks) if drains is None else rng.randrange(len(chunks)))
            for each in ending:
                one.end(each.video_id, each.seq)
                for _ in range(rng.randrange(20)):
                    await asyncio.sleep(0)
            if drains is None:
                await asyncio.wait_for(one.worker.drained(), 20)
            elif drains:
                await one.worker.give_up_waiting()
                for _ in range(rng.randrange(40)):
                    await asyncio.sleep(0)
    return delivered

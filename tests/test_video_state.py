"""A state that was written and read goes on to exactly the scores that it would have given."""

from __future__ import annotations

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predictions import chunk, feed, rolling, videos, walk

from streamer.errors import StateError
from streamer.rolling import Arrival
from streamer.types import EnsembleInfo
from streamer.video_state import VideoState, pack_state, unpack_state


@given(videos, st.integers(0, 7), st.randoms(use_true_random=False))
@settings(deadline=None)
def test_goes_on_as_if_nothing_had_happened(scores, interrupted_after, rng):
    chunks = [chunk(seq, s) for seq, s in enumerate(scores)]
    rng.shuffle(chunks)
    undisturbed, first, second = rolling(), rolling(), rolling()
    changes = {}
    for number, each in enumerate(chunks):
        arrival = Arrival(1.0, 1, offset=number)
        expected = undisturbed.apply(each, last=False, arrival=arrival)
        if number == interrupted_after:
            second.restore(changes, now_seconds=1.0)
        now = second if number >= interrupted_after else first
        assert now.apply(each, last=False, arrival=arrival) == expected
        changes = now.take_changed()


def test_who_walks_is_followed_across_a_restart():
    chunks = [walk(seq, (lambda t: 96.0 * t, 0.5)) for seq in range(4)]
    undisturbed, before, after = rolling(), rolling(), rolling()
    feed(before, chunks[:2])
    states = before.take_changed()
    after.restore(states, now_seconds=0.0)
    assert feed(after, chunks[2:])[-1].tracks == feed(undisturbed, chunks)[-1].tracks
    fields = msgpack.unpackb(states["v"])
    del fields["velocities"]  # as an earlier version wrote it
    again, _ = unpack_state(msgpack.packb(fields), touched_seconds=0.0)
    assert {track.velocity for track in again.tracks} == {(0.0, 0.0)}


def test_changes_are_told_once_and_forgotten_videos_as_such():
    state = rolling()
    state.apply(chunk(0, [0.5]), last=False, arrival=Arrival(0.0, 0))
    assert list(state.take_changed()) == ["v"]
    assert state.take_changed() == {}
    assert [update.status for update in state.expire(Arrival(1e6, 0), at_most=100)] == ["final"]
    assert state.take_changed() == {"v": None}


def test_replayed_record_is_told_from_a_repeated_seq():
    state = rolling()
    state.apply(chunk(0, [0.5]), last=False, arrival=Arrival(0.0, 0, offset=7))
    assert state.is_replay("v", 0, 7)
    assert not state.is_replay("v", 0, 8)  # the producer sent it twice
    assert not state.is_replay("v", 1, 7)
    assert not state.is_replay("w", 0, 7)


def test_states_of_another_ensemble_or_damaged_ones_begin_anew():
    old, new = rolling(), rolling(EnsembleInfo(("a", "b"), "other hash", trained=True))
    old.apply(chunk(0, [0.5]), last=False, arrival=Arrival(0.0, 0))
    new.restore(old.take_changed() | {"w": b"damaged"}, now_seconds=0.0)
    for video_id, why in {
        "v": "a state of ensemble hash, this one is other hash",
        "w": "not the state",
    }.items():
        update = new.apply(chunk(1, [0.25], video_id=video_id), last=False, arrival=Arrival(0.0, 0))
        assert (update.chunks, update.fake_score) == (1, 0.25)
        assert new.why_unusable is not None
        assert new.why_unusable.startswith(why)
    assert new.unusable_states == 2
    assert len(list(new.expire(Arrival(1e6, 0), at_most=100))) == 2
    assert new.unusable_states == 0  # so ends what StreamerStatesUnusable tells of


def test_restored_videos_expire_before_those_that_came_again():
    old, new = rolling(), rolling()
    for name in "abc":
        old.apply(chunk(0, [0.5], video_id=name), last=False, arrival=Arrival(0.0, 0))
    new.restore(old.take_changed(), now_seconds=100.0)
    new.apply(chunk(1, [0.5], video_id="b"), last=False, arrival=Arrival(200.0, 0))
    assert len(new) == 3
    assert not list(new.expire(Arrival(399.0, 0), at_most=100))
    finals = list(new.expire(Arrival(400.0, 0), at_most=100))
    assert sorted((each.video_id, each.status, each.chunks) for each in finals) == [
        ("a", "final", 1),
        ("c", "final", 1),
    ]
    assert new.take_changed().keys() == {"a", "b", "c"}
    assert [each.video_id for each in new.expire(Arrival(500.0, 0), at_most=100)] == ["b"]


def test_numbers_beyond_64_bits():
    state = VideoState(0.0)
    state.spread.ss = state.spread.nn = 1 << 90
    state.seqs.add((1 << 63) - 1)
    state.seqs.add(0)
    again, model_set = unpack_state(pack_state(state, "set"), touched_seconds=0.0)
    assert model_set == "set"
    assert again.spread == state.spread
    assert again.seqs.missing == state.seqs.missing == (1 << 63) - 2


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (b"", "not the state of a video"),
        (b"\xc1", "not the state of a video"),
        (msgpack.packb({"v": 2}), "not the state of a video"),
        (msgpack.packb({"v": 99}), "version 99, this program reads version 2"),
    ],
)
def test_what_cannot_be_read_is_an_error(value, said):
    with pytest.raises(StateError, match=said):
        unpack_state(value, touched_seconds=0.0)

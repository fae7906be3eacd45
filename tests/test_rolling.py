"""Properties that users rely on: order, duplicates and cuts never change a video's final score."""

import math
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from predictions import BOX, ENSEMBLE, chunk, feed, meeting, probabilities, rolling, videos, walk

from streamer.config import AlertConfig, FacesConfig, RollingConfig
from streamer.rolling import Arrival, RollingScores
from streamer.types import ChunkPrediction, EnsembleInfo, FacePrediction, FramePrediction
from streamer.video_state import MIN_CLUSTERS, UNIT


@given(videos, st.randoms(use_true_random=False))
@settings(deadline=None)
def test_final_score_does_not_depend_on_order_or_duplicates(scores, rng):
    chunks = [chunk(seq, s) for seq, s in enumerate(scores)]
    in_order = feed(rolling(), chunks)[-1]
    shuffled = [*chunks, *rng.choices(chunks, k=3)]
    rng.shuffle(shuffled)
    other = feed(rolling(), shuffled)[-1]
    for field in ("fake_score", "window_score", "interval", "models", "frames", "faces", "chunks"):
        assert getattr(other, field) == getattr(in_order, field)
    assert other.missing_chunks == 0


@given(st.lists(probabilities, min_size=1, max_size=30), st.data())
@settings(deadline=None)
def test_final_score_does_not_depend_on_how_the_video_was_cut(scores, data):
    whole = feed(rolling(), [chunk(0, scores, seconds=len(scores) * 0.5)])[-1]
    pieces, at = [], 0
    while at < len(scores):
        n = data.draw(st.integers(1, len(scores) - at))
        pieces.append(chunk(len(pieces), scores[at : at + n], seconds=n * 0.5, start=at * 0.5))
        at += n
    cut = feed(rolling(), pieces)[-1]
    assert cut.fake_score == whole.fake_score
    assert cut.window_score == whole.window_score
    assert (cut.frames, cut.faces) == (whole.frames, whole.faces)


@given(st.lists(probabilities, min_size=1, max_size=40))
def test_score_is_the_mean(scores):
    update = feed(rolling(), [chunk(0, scores)])[-1]
    assert update.fake_score == pytest.approx(sum(scores) / len(scores), abs=1 / UNIT)
    assert update.models == pytest.approx({"a": update.fake_score, "b": update.fake_score})


def test_without_a_face_there_is_no_score():
    update = feed(rolling(), [chunk(0, [None, None])])[-1]
    assert update.status == "no_face"
    assert update.fake_score is update.window_score is update.interval is update.suspect_track is None
    assert (update.frames, update.faces, update.models, update.tracks) == (2, 0, {}, [])


def test_undecodable_chunks_change_no_score():
    state = rolling()
    before = feed(state, [chunk(0, [0.25, 0.75])])[-1]
    update = state.apply_undecodable("v", 1, "damaged", arrival=Arrival(0, 0))
    assert (update.status, update.error, update.undecodable_chunks) == ("undecodable", "damaged", 1)
    assert update.fake_score == before.fake_score
    assert update.missing_chunks == 0
    again = state.apply_undecodable("v", 1, "damaged", arrival=Arrival(0, 0))
    assert (again.status, again.undecodable_chunks) == ("duplicate", 1)


def test_a_chunk_that_was_refused_counts_once_it_comes_whole():
    refused, plain = rolling(), rolling()
    refused.apply_undecodable("v", 1, "damaged", arrival=Arrival(0, 0))
    refused.apply(chunk(0, [0.25]), last=False, arrival=Arrival(0, 0))
    again = rolling()
    again.restore(refused.take_changed(), now_seconds=0.0)
    update = again.apply(chunk(1, [0.75]), last=False, arrival=Arrival(0, 0))
    assert (update.status, update.chunks, update.undecodable_chunks) == ("scored", 2, 0)
    assert update.fake_score == feed(plain, [chunk(0, [0.25]), chunk(1, [0.75])])[-1].fake_score
    assert again.apply(chunk(1, [0.75]), last=False, arrival=Arrival(0, 0)).status == "duplicate"
    assert again.apply_undecodable("v", 1, "damaged", arrival=Arrival(0, 0)).status == "duplicate"


def test_refused_chunks_that_may_come_again_are_bounded(monkeypatch):
    monkeypatch.setattr("streamer.video_state.MAX_REFUSED", 2)
    state = rolling()
    for seq in range(3):
        state.apply_undecodable("v", seq, "damaged", arrival=Arrival(0, 0))
    updates = feed(state, [chunk(seq, [0.5]) for seq in range(3)])
    assert [update.status for update in updates] == ["duplicate", "scored", "scored"]
    assert updates[-1].undecodable_chunks == 1


def test_missing_chunks_are_counted_until_they_arrive():
    state = rolling()
    assert feed(state, [chunk(0, [0.1]), chunk(3, [0.1])])[-1].missing_chunks == 2
    assert feed(state, [chunk(1, [0.1])])[-1].missing_chunks == 1


def test_window_score_forgets_what_the_video_score_keeps():
    state = rolling()
    update = feed(state, [chunk(seq, [0.9] * 4 if seq < 5 else [0.1] * 4) for seq in range(15)])[-1]
    assert update.window_score == pytest.approx(0.1)
    assert update.fake_score == pytest.approx((5 * 0.9 + 10 * 0.1) / 15)


def test_two_people_get_two_scores():
    left, right = (0.0, 0.0, 40.0, 40.0), (200.0, 0.0, 240.0, 40.0)
    frames = tuple(
        FramePrediction(i / 10, (FacePrediction(left, (0.1, 0.1)), FacePrediction(right, (0.9, 0.9))))
        for i in range(10)
    )
    state = rolling()
    first = feed(state, [ChunkPrediction("v", 0, 0.0, 1.0, frames)])[-1]
    both = feed(state, [ChunkPrediction("v", 1, 1.0, 1.0, frames)])[-1]
    assert [(t.track, t.faces) for t in first.tracks] == [(0, 10), (1, 10)]
    assert [(t.track, t.faces) for t in both.tracks] == [(0, 20), (1, 20)]
    assert [t.fake_score for t in both.tracks] == pytest.approx([0.1, 0.9])
    assert [t.window_score for t in both.tracks] == pytest.approx([0.1, 0.9])
    assert both.suspect_track == 1
    assert both.fake_score == pytest.approx(0.5)


def test_who_is_not_in_the_last_seconds_has_no_window_score():
    state = rolling()
    feed(state, [meeting(0, 0.1, 0.9)])
    update = feed(state, [meeting(6, 0.1)])[-1]
    assert [t.window_score for t in update.tracks[:2]] == [None, None]  # tracks break after so long
    assert update.tracks[-1].window_score == pytest.approx(0.1)


def test_a_face_that_was_away_long_is_a_new_track():
    state = rolling()
    feed(state, [chunk(0, [0.5])])
    update = feed(state, [chunk(9, [0.5])])[-1]
    assert [t.track for t in update.tracks] == [0, 1]


def test_interval_covers_the_mean_of_independent_seconds():
    """Of 150 videos of 40 independent seconds about 95 % must have the true mean within their interval."""
    rng = random.Random(7)
    covered = 0
    for _ in range(150):
        scores = [min(1.0, max(0.0, rng.gauss(0.4, 0.1))) for _ in range(40)]
        update = feed(rolling(), [chunk(0, np.repeat(scores, 2).tolist(), seconds=40.0)])[-1]
        low, high = update.interval
        covered += low <= 0.4 <= high
    assert 0.90 <= covered / 150 <= 0.99


def test_no_interval_from_too_little_video():
    for seconds in range(1, MIN_CLUSTERS + 2):
        update = feed(rolling(), [chunk(i, [0.2, 0.3], seconds=1.0) for i in range(seconds)])[-1]
        assert (update.interval is None) == (seconds < MIN_CLUSTERS)


def test_last_ends_the_video_and_latecomers_still_count():
    state = rolling()
    feed(state, [chunk(0, [0.2])])
    final = feed(state, [chunk(2, [0.4])], last=True)[-1]
    assert (final.status, final.last, final.missing_chunks) == ("final", True, 1)
    late = feed(state, [chunk(1, [0.6])])[-1]
    assert (late.status, late.missing_chunks) == ("final", 0)
    assert late.fake_score == pytest.approx(0.4)


def test_idle_videos_end_with_a_final_update_once():
    state = rolling()
    feed(state, [chunk(0, [0.2], video_id="idle")], at=0)
    feed(state, [chunk(0, [0.2], video_id="ended")], at=0, last=True)
    feed(state, [chunk(0, [0.2], video_id="busy")], at=299)
    finals = list(state.expire(Arrival(301, 301_000), at_most=100))
    assert [(u.video_id, u.status, u.last) for u in finals] == [("idle", "final", True)]
    assert len(state) == 1


def test_idle_videos_end_some_at_a_time_the_oldest_first():
    state = rolling()
    for i in range(10):
        feed(state, [chunk(0, [0.2], video_id=f"v{i}")], at=i)
    ended = [[u.video_id for u in state.expire(Arrival(1000, 0), at_most=4)] for _ in range(4)]
    assert ended == [["v0", "v1", "v2", "v3"], ["v4", "v5", "v6", "v7"], ["v8", "v9"], []]


def test_a_video_whose_last_chunk_is_undecodable_ends_by_idleness():
    state = rolling()
    feed(state, [chunk(0, [0.2])])
    update = state.apply_undecodable("v", 1, "damaged", arrival=Arrival(0, 0))
    assert (update.status, update.last) == ("undecodable", False)
    assert [(u.status, u.last) for u in state.expire(Arrival(1e6, 0), at_most=1)] == [("final", True)]


def test_seqs_that_are_offsets_have_no_gaps():
    state = rolling()
    for seq in (3, 40, 90):
        update = state.apply(chunk(seq, [0.2]), last=False, arrival=Arrival(0, 0), numbered=False)
    assert (update.chunks, update.missing_chunks) == (3, 0)


@pytest.mark.parametrize("score", ["window", "track"])
def test_a_clock_that_is_set_back_does_not_freeze_the_window(score):
    """An encoder that restarts, or one chunk from the far future: the seconds after it are the last ones."""
    state = RollingScores(RollingConfig(), AlertConfig(score=score), FacesConfig(), ENSEMBLE)

    def at(seq, start, level):
        each = meeting(seq, level)
        return ChunkPrediction("v", seq, start, 2.0, each.frames)

    feed(state, [at(seq, 1e10 if seq == 29 else 1000.0 + 2 * seq, 0.1) for seq in range(30)])
    fake = feed(state, [at(30 + n, 2.0 * n, 0.95) for n in range(6)])
    assert [u.window_score for u in fake] == pytest.approx([0.95] * 6)
    assert fake[0].alert.state == "raised"
    late = feed(state, [at(3, 3.0, 0.5)])  # came late, belongs to the time before
    assert late[-1].window_score == pytest.approx(0.95, abs=0.1)


def test_new_faces_are_followed_after_a_clock_was_set_back():
    state = rolling()
    for seq in range(40):  # as many tracks as are kept
        box = (seq * 100.0, 0.0, seq * 100.0 + 40, 40.0)
        feed(state, [ChunkPrediction("v", seq, 1e6 + 9 * seq, 2.0, chunk(0, [0.1] * 8, box=box).frames)])
    for seq in range(40, 44):
        frames = meeting(seq, 0.5).frames
        update = feed(state, [ChunkPrediction("v", seq, 2.0 * (seq - 40), 2.0, frames)])[-1]
    assert max(t.faces for t in update.tracks) == 32


def test_people_of_a_crowd_that_is_too_large_do_not_push_each_other_out():
    state = RollingScores(RollingConfig(max_tracks=4), AlertConfig(), FacesConfig(), ENSEMBLE)
    update = feed(state, [meeting(seq, 0.1, 0.9, 0.1, 0.1, 0.1, 0.1) for seq in range(2)])[-1]
    assert [(t.track, t.faces) for t in update.tracks] == [(track, 16) for track in range(4)]
    assert update.suspect_track == 1
    assert update.alert.state == "raised"


def test_who_walks_beside_people_at_rest_is_followed():
    """There and back by 0.6 of a width from frame to frame, so that the boxes often do not overlap."""
    people = [(lambda t, at=at: at, 0.1) for at in (0.0, 1000.0, 2000.0)]
    people.append((lambda t: 3000.0 + abs(96.0 * (t - 6.0)), 0.95))
    updates = feed(rolling(), [walk(seq, *people) for seq in range(6)])
    assert [u.alert.state for u in updates[2:]] == ["raised"] * 4
    assert len(updates[-1].tracks) <= 8  # the first steps are of somebody unknown


def test_who_pass_each_other_are_not_exchanged():
    people = (lambda t: 70.0 * t, 0.1), (lambda t: 700.0 - 70.0 * t, 0.9)
    update = feed(rolling(), [walk(seq, *people) for seq in range(5)])[-1]
    assert [(t.faces, t.fake_score) for t in update.tracks] == [
        (40, pytest.approx(0.1)),
        (40, pytest.approx(0.9)),
    ]


def test_a_cut_to_another_person_and_back_mixes_nobody():
    """The view of who speaks: genuine and fake people in turn, in the same place."""
    ann, bob = bytes(range(64)), bytes(range(0, 256, 4))[::-1]
    state = rolling()

    def turn(seq, look, score):
        part = chunk(seq, [score] * 8)
        frames = tuple(
            replace(frame, faces=tuple(replace(face, thumbnail=look) for face in frame.faces))
            for frame in part.frames
        )
        return replace(part, frames=frames)

    feed(state, [turn(0, ann, 0.1), turn(1, bob, 0.9)])
    again = rolling()
    again.restore(state.take_changed(), now_seconds=0.0)
    update = feed(again, [turn(seq, look, score) for seq, look, score in ((2, ann, 0.1), (9, bob, 0.9))])[-1]
    assert [(t.track, t.faces, t.fake_score) for t in update.tracks] == [
        (0, 16, pytest.approx(0.1)),
        (1, 16, pytest.approx(0.9)),
    ]
    assert update.alert.state == "raised"


def test_a_person_stays_one_when_the_resolution_changes():
    state = rolling()

    def call(seq, scale):
        """Two people, in frames of 640 x 360 pixels times scale."""
        frames = tuple(
            replace(
                frame,
                size=(640 * scale, 360 * scale),
                faces=tuple(replace(f, box=tuple(scale * side for side in f.box)) for f in frame.faces),
            )
            for frame in meeting(seq, 0.1, 0.9).frames
        )
        return replace(meeting(seq), frames=frames)

    updates = feed(state, [call(0, 1), call(1, 3)])
    again = rolling()
    again.restore(state.take_changed(), now_seconds=0.0)
    update = feed(again, [call(2, 2)])[-1]
    assert [(t.track, t.faces) for t in update.tracks] == [(0, 24), (1, 24)]
    assert [u.frame_size for u in [*updates, update]] == [(640, 360), (1920, 1080), (1280, 720)]
    assert update.tracks[1].box == (200.0, 0.0, 280.0, 80.0)


def test_faces_that_were_not_scored_are_counted():
    state = rolling()
    crowds = [meeting(seq, 0.1, 0.2) for seq in range(2)]
    crowds = [replace(c, frames=tuple(replace(f, unscored=3) for f in c.frames)) for c in crowds]
    assert [u.unscored_faces for u in feed(state, crowds)] == [24, 48]
    again = rolling()
    again.restore(state.take_changed(), now_seconds=0.0)
    assert feed(again, [meeting(2, 0.1)])[-1].unscored_faces == 48


def test_too_many_videos_end_the_one_idle_longest():
    state = RollingScores(RollingConfig(max_videos=2), AlertConfig(), FacesConfig(), ENSEMBLE)
    for i in range(3):
        feed(state, [chunk(0, [0.2], video_id=f"v{i}")], at=i)
    assert [u.video_id for u in state.expire(Arrival(3, 3000), at_most=100)] == ["v0"]


def test_videos_that_are_worked_on_do_not_end_even_if_there_are_too_many():
    state = RollingScores(RollingConfig(max_videos=1), AlertConfig(), FacesConfig(), ENSEMBLE)
    for video_id in ("a", "b"):
        feed(state, [chunk(0, [0.2], video_id=video_id)])
    assert list(state.expire(Arrival(1e6, 10**9), at_most=100, keep={"a", "b"})) == []
    assert [u.video_id for u in state.expire(Arrival(1e6, 10**9), at_most=100, keep={"b"})] == ["a"]


def test_state_of_an_endless_video_is_bounded():
    state = rolling()
    for seq in range(3000):
        box = (seq * 100.0, 0.0, seq * 100.0 + 40, 40.0)  # never the same face twice
        update = feed(state, [chunk(seq, [0.5], box=box)])[-1]
    video = state._videos["v"]
    assert len(video.window.bins) <= 20
    assert all(len(track.window.bins) <= 20 for track in video.tracks)
    assert len(update.tracks) == RollingConfig().max_tracks
    assert len(video.seqs._starts) == 1
    assert math.isclose(update.fake_score, 0.5)


def in_shadow(seq, scores, shadows):
    """A chunk whose faces another ensemble scored too; None: it did not."""
    frames = tuple(
        FramePrediction(2 * i / len(scores), (FacePrediction(BOX, (score, score), shadow=shadow),))
        for i, (score, shadow) in enumerate(zip(scores, shadows, strict=True))
    )
    return ChunkPrediction("v", seq, 2.0 * seq, 2.0, frames)


def with_shadow(shadow_set="other"):
    return rolling(EnsembleInfo(("a", "b"), "hash", True, shadow_set, shadow_trained=False))


def test_shadow_is_told_beside_and_changes_nothing():
    state = with_shadow()
    (update,) = feed(state, [in_shadow(0, [0.1, 0.3, 0.5], [0.9, 0.8, None])])
    (plain,) = feed(rolling(), [chunk(0, [0.1, 0.3, 0.5])])
    assert update.shadow is not None
    assert (update.shadow.model_set, update.shadow.faces, update.shadow.trained) == ("other", 2, False)
    assert update.shadow.fake_score == pytest.approx(0.85)
    assert update.shadow.window_score == pytest.approx(0.85)
    assert plain.shadow is None
    assert update.model_copy(update={"shadow": None}) == plain


def test_shadow_has_no_alert():
    updates = feed(with_shadow(), [in_shadow(seq, [0.1] * 8, [1.0] * 8) for seq in range(4)])
    assert {update.alert.state for update in updates} == {"none"}


def test_shadow_forgets_what_leaves_the_window():
    state = with_shadow()
    feed(state, [in_shadow(0, [0.5] * 4, [1.0] * 4)])
    (update,) = feed(state, [in_shadow(9, [0.5] * 4, [0.0] * 4)])
    assert update.shadow.fake_score == pytest.approx(0.5)
    assert update.shadow.window_score == 0


def test_shadow_goes_on_in_another_process_unless_it_is_another_ensemble():
    first = with_shadow()
    feed(first, [in_shadow(0, [0.5] * 4, [1.0] * 4)])
    states = first.take_changed()
    same, other, none = with_shadow(), with_shadow("third"), rolling()
    for state in (same, other, none):
        state.restore(states, now_seconds=0)
    assert feed(same, [in_shadow(1, [0.5] * 4, [0.0] * 4)])[0].shadow.fake_score == pytest.approx(0.5)
    update = feed(other, [in_shadow(1, [0.5] * 4, [0.0] * 4)])[0]
    assert (update.shadow.model_set, update.shadow.fake_score, update.faces) == ("third", 0, 8)
    assert feed(none, [chunk(1, [0.5] * 4)])[0].shadow is None

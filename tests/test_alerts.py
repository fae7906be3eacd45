"""When an alert is raised and cleared, and who is the suspect."""

from predictions import chunk, feed, meeting, rolling

from streamer.types import ChunkPrediction, EnsembleInfo, FacePrediction, FramePrediction


def test_alert_needs_evidence_and_has_hysteresis():
    state = rolling(raise_at=0.8, clear_at=0.6, min_faces=4)
    alerts = [
        feed(state, [chunk(seq, scores, seconds=10.0)])[-1].alert
        for seq, scores in enumerate([[0.9] * 3, [0.9] * 4, [0.7] * 4, [0.5] * 4, [0.7] * 4])
    ]
    assert [a.state for a in alerts] == ["none", "raised", "raised", "none", "none"]
    assert [a.changed for a in alerts] == [False, True, False, True, False]
    assert [a.since_seq for a in alerts] == [None, 1, 1, None, None]
    assert [a.threshold for a in alerts] == [0.8, 0.6, 0.6, 0.8, 0.8]


def test_an_alert_keeps_the_chunk_that_raised_it_and_its_bounds_belong_to_it():
    state = rolling(raise_at=0.75, clear_at=0.5)
    alerts = [
        feed(state, [chunk(seq, [score] * 8, seconds=10.0)])[-1].alert
        for seq, score in enumerate([0.5, 0.75, 0.9, 0.5, 0.49])
    ]
    assert [a.since_seq for a in alerts] == [None, 1, 1, 1, None]
    assert [a.changed for a in alerts] == [False, True, False, False, True]


def test_suspect_is_who_is_worst_on_the_mean_over_enough_faces():
    def frames(n, start, x, score):
        face = FacePrediction((x, 0.0, x + 40.0, 40.0), (score, score))
        return [FramePrediction(start + i / 10, (face,)) for i in range(n)]

    def suspect(n_often, n_once):
        both = (*frames(n_often, 0.0, 0.0, 0.3), *frames(n_once, 1.0, 200.0, 0.9))
        return feed(rolling(min_faces=4), [ChunkPrediction("v", 0, 0.0, 2.0, both)])[-1].suspect_track

    assert suspect(3, 3) is None
    assert suspect(9, 3) == 0
    assert suspect(9, 4) == 1


def test_untrained_members_never_raise_an_alert():
    state = rolling(EnsembleInfo(("a", "b"), "hash", trained=False))
    update = feed(state, [chunk(0, [1.0] * 20)])[-1]
    assert update.alert.state == "none"
    assert update.trained is False


def test_one_person_among_many_raises_an_alert_soon_after_the_swap_begins():
    chunks = [meeting(seq, 0.1, 0.1, 0.1, 0.1) for seq in range(100)]
    chunks += [meeting(seq, 0.1, 0.1, 0.95, 0.1) for seq in range(100, 106)]
    chunks += [meeting(seq, 0.1, 0.1, 0.1, 0.1) for seq in range(106, 112)]
    raised = {}
    for score in ("window", "video", "track"):
        raised[score] = [u.seq for u in feed(rolling(score=score), chunks) if u.alert.state == "raised"]
    assert raised == {"window": [], "video": [], "track": [104, 105, 106, 107]}

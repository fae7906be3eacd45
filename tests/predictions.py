"""Predictions of chunks, and the scores that they roll into."""

import random

from hypothesis import strategies as st

from streamer.config import AlertConfig, FacesConfig, RollingConfig
from streamer.rolling import Arrival, RollingScores
from streamer.types import ChunkPrediction, EnsembleInfo, FacePrediction, FramePrediction

ENSEMBLE = EnsembleInfo(("a", "b"), "hash", trained=True)
BOX = (10.0, 10.0, 50.0, 60.0)


def rolling(ensemble=ENSEMBLE, **alert):
    return RollingScores(RollingConfig(), AlertConfig(**alert), FacesConfig(), ensemble)


def chunk(seq, scores, *, video_id="v", seconds=2.0, start=None, box=BOX):
    """One face per frame, the scores spread evenly over the chunk; None stands for a frame without a face."""
    frames = tuple(
        FramePrediction(
            seconds * i / max(1, len(scores)),
            () if score is None else (FacePrediction(box, (score, score)),),
        )
        for i, score in enumerate(scores)
    )
    return ChunkPrediction(video_id, seq, seq * seconds if start is None else start, seconds, frames)


def meeting(seq, *people):
    """Two seconds of as many people as scores, four frames a second."""
    boxes = [(100.0 * i, 0.0, 100.0 * i + 40, 40.0) for i in range(len(people))]
    frames = tuple(
        FramePrediction(i / 4, tuple(map(FacePrediction, boxes, [(score, score) for score in people])))
        for i in range(8)
    )
    return ChunkPrediction("v", seq, 2.0 * seq, 2.0, frames)


def feed(state, chunks, *, last=False, at=0.0):
    return [state.apply(c, last=last, arrival=Arrival(at, int(1000 * at))) for c in chunks]


probabilities = st.floats(0, 1)
videos = st.lists(st.lists(st.none() | probabilities, max_size=6), min_size=1, max_size=8)


def walk(seq, *people):
    """Two seconds of people, (where at a time, score) each, 40 px large, looked at as a `Sampler` does."""
    rng = random.Random(seq)

    def face(x, score):
        return FacePrediction((x, 0.0, x + 40, 40.0), (score, score))

    times = [(i + rng.random()) / 4 for i in range(8)]
    frames = [
        FramePrediction(t, tuple(face(where(2.0 * seq + t), score) for where, score in people)) for t in times
    ]
    return ChunkPrediction("v", seq, 2.0 * seq, 2.0, tuple(frames))

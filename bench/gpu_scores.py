"""Part `scores` of gpu.py: are the scores of this path those of the CPU's?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import aclosing
from pathlib import Path

import numpy as np
from figures import Say

from streamer.config import Config
from streamer.demo_clips import demo_clips
from streamer.engines import ensure_untrained
from streamer.files import pieces_of
from streamer.pipeline import Pipeline

CHUNK_SECONDS = 2.0
MAX_SCORE_DIFFERENCE = 0.01
"""Of a video, between this path and the CPU's."""


async def compare_scores(here: Config, say: Say) -> None:
    """Scores of the bundled clips by the members, on this path and on the CPU's, and how far they differ."""
    ensure_untrained(here.classify)
    on_cpu = here.model_copy(
        update={
            "classify": here.classify.model_copy(update={"backend": "openvino", "precision": "f32"}),
            "gpu": here.gpu.model_copy(update={"frames": "off", "nvdec": "off"}),
        }
    )
    scores = {}
    for name, config in (("here", here), ("cpu", on_cpu)):
        async with Pipeline(config) as pipeline:
            scores[name] = {clip.stem: await faces_of(pipeline, clip) for clip in demo_clips()}
    say_differences(scores["here"], scores["cpu"], say)


def say_differences(here: dict[str, list[float]], on_cpu: dict[str, list[float]], say: Say) -> None:
    """Of the probabilities of the faces of each clip; a clip without a face is within no distance."""
    largest = 0.0
    for clip, faces in here.items():
        score, on_cpu_score = mean_of(faces), mean_of(on_cpu[clip])
        counts = {"faces": len(faces), "faces_on_cpu": len(on_cpu[clip])}
        say(clip, {"score": score, "score_on_cpu": on_cpu_score, **counts})
        largest = float(np.maximum(largest, abs(score - on_cpu_score)))  # NaN stays
    say("largest_difference", largest)
    say(f"within_{MAX_SCORE_DIFFERENCE:g}_of_the_cpu", largest <= MAX_SCORE_DIFFERENCE)


def mean_of(probabilities: Sequence[float]) -> float:
    """NaN if there are none."""
    return float(np.mean(probabilities)) if probabilities else math.nan


async def faces_of(pipeline: Pipeline, clip: Path) -> list[float]:
    """Probability of every face of a clip, mean over members."""
    found = []
    async with aclosing(pieces_of(clip, clip.stem, CHUNK_SECONDS)) as pieces:
        async for piece in pieces:
            prediction = await pipeline.predict(piece.chunk)
            found += [mean_of(face.probabilities) for frame in prediction.frames for face in frame.faces]
    return found

"""Networks that fail on one input, or on all: real ones, made to give NaN for bright pictures."""

from __future__ import annotations

import asyncio
import os
import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from clips import portrait
from members import make_engines, make_picky_detector, make_picky_member

from streamer.config import ClassifyConfig, Config, FacesConfig
from streamer.errors import ClassifyError, DetectError, InferenceError
from streamer.pipeline import Pipeline
from streamer.types import THUMBNAIL_SIDE, Frame, FramePrediction

NEVER = -2.0
"""No picture is so dark."""


def config_of(engines: Path, backend: str = "openvino") -> Config:
    """One member, the whole frame only, and time enough for all that is submitted to share a batch."""
    return Config.model_validate(
        {
            "classify": ClassifyConfig(
                engines=engines, members=("member",), backend=backend, batch_timeout_ms=300
            ),
            "faces": FacesConfig(windows=(), batch_timeout_ms=300),
        }
    )


async def look_at(pipeline: Pipeline, *frames: Frame) -> list[FramePrediction | BaseException]:
    """Each by a caller of its own."""
    results = await asyncio.gather(
        *(pipeline.predict_frames([frame]) for frame in frames), return_exceptions=True
    )
    return [result if isinstance(result, BaseException) else result[0] for result in results]


@pytest.fixture(scope="module")
def normal() -> Frame:
    return Frame(portrait()[0], 0.0)


@pytest.fixture(scope="module")
def bright() -> Frame:
    return Frame(portrait(washed_out=True)[0], 0.0)


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("stage", ["detect", "classify"])
async def test_a_picture_that_a_network_fails_on_costs_no_other_of_its_batch(
    tmp_path: Path, normal: Frame, bright: Frame, stage: str, backend: str
) -> None:
    engines = make_engines(tmp_path / "engines")
    make_picky_member(engines, "member", 0.65 if stage == "classify" else 1.0)
    if stage == "detect":
        make_picky_detector(engines, "blazeface_short_range", 0.4)
    mirrored = Frame(np.ascontiguousarray(normal.rgb[:, ::-1]), 0.0)
    async with Pipeline(config_of(engines, backend)) as pipeline:
        expected = await look_at(pipeline, normal, mirrored)
        found = await look_at(pipeline, normal, bright, mirrored)
        again = await look_at(pipeline, normal)
        failures = {batcher.name: batcher.failures for batcher in pipeline.batchers}
    assert all(isinstance(each, FramePrediction) and len(each.faces) == 1 for each in expected)
    assert [found[0], found[2], again[0]] == [*expected, expected[0]]
    refused = found[1]
    assert isinstance(refused, DetectError if stage == "detect" else ClassifyError)
    assert (refused.stage, refused.reason) == (stage, "inference_failed")
    assert "NaN" in str(refused)
    assert failures == {"detect": 0, "classify": 0} | {stage: 2}  # all three together, then that one alone


@pytest.mark.parametrize(
    "broken", ["member", "blazeface_short_range", "blazeface_back", "blazeface_full_range"]
)
async def test_a_network_that_fails_on_everything_is_no_fault_of_the_picture(
    tmp_path: Path, normal: Frame, bright: Frame, broken: str
) -> None:
    """Of the detectors, also where the one that is broken was not the one that failed on the picture."""
    engines = make_engines(tmp_path / "engines")
    make_picky_member(engines, "member", NEVER if broken == "member" else 1.0)
    if broken != "member":
        for name in {"blazeface_short_range", broken}:
            make_picky_detector(engines, name, NEVER if name == broken else 0.4)
    async with Pipeline(config_of(engines)) as pipeline:
        (error,) = await look_at(pipeline, normal if broken == "member" else bright)
    assert isinstance(error, InferenceError)
    assert str(error).startswith(f"{broken}: ")
    assert "known image" in str(error)


async def test_want_of_memory_is_the_machines_fault_if_a_known_image_meets_it_too(
    tmp_path: Path, normal: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Pipeline(config_of(make_engines(tmp_path / "engines", member=0.0))) as pipeline:

        def run(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr("streamer.backends.openvino_backend.OpenVinoNetwork.run", run)
        (error,) = await look_at(pipeline, normal)
    assert isinstance(error, InferenceError)
    assert str(error).startswith("out of memory; it fails on a known image, too")


async def test_no_more_threads_than_cores_that_it_may_use(
    tmp_path: Path, normal: Frame, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As under taskset or a cpuset: the machine may have more."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    before = set(threading.enumerate())  # of other tests in this process
    async with Pipeline(config_of(make_engines(tmp_path / "engines", member=0.0))) as pipeline:
        await look_at(pipeline, *[normal] * 4)
        names = [thread.name for thread in set(threading.enumerate()) - before]
    ours = Counter(name.rpartition("_")[0] for name in names if name.startswith(("openvino-", "batch-")))
    assert set(ours.values()) == {1}


async def test_an_ensemble_in_shadow_scores_the_same_faces(tmp_path: Path, normal: Frame) -> None:
    engines = make_engines(tmp_path / "engines", member=1.0, low=-2.0, high=2.0)
    config = config_of(engines)
    shadow = config.classify.model_copy(update={"shadow": ("low", "high")})
    async with Pipeline(config.model_copy(update={"classify": shadow})) as pipeline:
        ((frame,), ensemble) = await look_at(pipeline, normal), pipeline.ensemble
    async with Pipeline(config) as pipeline:
        (plain,) = await look_at(pipeline, normal)
    assert isinstance(frame, FramePrediction)
    assert isinstance(plain, FramePrediction)
    assert [face.probabilities for face in frame.faces] == [face.probabilities for face in plain.faces]
    assert [face.shadow for face in frame.faces] == pytest.approx([0.5])
    assert [face.shadow for face in plain.faces] == [None]
    assert [len(face.thumbnail or b"") for face in plain.faces] == [THUMBNAIL_SIDE**2]
    assert ensemble.names == ("member",)
    assert ensemble.shadow_set is not None
    assert ensemble.shadow_set != ensemble.model_set


async def test_an_ensemble_in_shadow_that_fails_costs_its_own_score_alone(
    tmp_path: Path, bright: Frame
) -> None:
    engines = make_engines(tmp_path / "engines", member=1.0)
    make_picky_member(engines, "other", 0.65)
    config = config_of(engines)
    shadow = config.classify.model_copy(update={"shadow": ("other",)})
    async with Pipeline(config.model_copy(update={"classify": shadow})) as pipeline:
        (frame,) = await look_at(pipeline, bright)
    assert isinstance(frame, FramePrediction)
    ((face,),) = [frame.faces]
    assert face.probabilities == pytest.approx([0.731], abs=1e-3)
    assert face.shadow is None

"""Which faces become evidence, as what pictures, and that nothing else is kept."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from pathlib import Path

import cv2
import numpy as np
import pytest
from members import make_engines, make_member

from streamer.config import ClassifyConfig, Config, EvidenceConfig
from streamer.demo_clips import demo_clips
from streamer.errors import InferenceError
from streamer.messages import MAX_EVIDENCE_BYTES, VideoChunk, encode_evidence
from streamer.pipeline import Pipeline
from streamer.suspects import HEAT_PX, ChunkEvidence, Suspects, jpeg_of, png_of_heat
from streamer.types import EnsembleInfo, FacePrediction, Float32Array, FramePrediction, UInt8Array

ENSEMBLE = EnsembleInfo(("one", "two"), "0" * 12, trained=True)


def grey(level: int, size: int = 16) -> UInt8Array:
    return np.full((size, size, 3), level, np.uint8)


def frame(at: float, *faces: tuple[float, UInt8Array]) -> FramePrediction:
    return FramePrediction(
        at, tuple(FacePrediction((0, 0, 9, 9), (score, score), crop) for score, crop in faces)
    )


def no_heat(crops: UInt8Array) -> Float32Array | None:
    return None


def levels(frames: list[FramePrediction]) -> dict[float, int]:
    """Score -> grey level, of the faces that have a picture."""
    found = {}
    for each in frames:
        for face in each.faces:
            if face.picture is not None:
                image = cv2.imdecode(np.frombuffer(face.picture.jpeg, np.uint8), cv2.IMREAD_COLOR)
                found[face.probabilities[0]] = round(float(image.mean()))
    return found


def test_the_most_suspicious_above_the_threshold_get_pictures_and_no_crop_is_left() -> None:
    suspects = Suspects(EvidenceConfig(min_score=0.5, crops_per_chunk=3))
    frames = [
        suspects.take(frame(0.0, (0.9, grey(90)), (0.49, grey(49)))),
        suspects.take(frame(0.5)),
        suspects.take(frame(1.0, (0.6, grey(60)), (0.8, grey(80)), (0.5, grey(50)))),
    ]
    assert len(suspects) == 3
    illustrated = suspects.illustrate(frames, no_heat)
    assert levels(illustrated) == {0.9: 90, 0.6: 60, 0.8: 80}
    assert all(face.crop is None for each in illustrated for face in each.faces)
    assert illustrated == frames  # but for the pictures


def test_of_equal_scores_the_earlier_is_kept() -> None:
    suspects = Suspects(EvidenceConfig(crops_per_chunk=1))
    frames = [suspects.take(frame(n / 4, (0.8, grey(n)), (0.8, grey(100 + n)))) for n in range(4)]
    (shown,) = levels(suspects.illustrate(frames, no_heat)).values()
    assert shown == 0


def test_a_chunk_without_a_suspect_has_none() -> None:
    suspects = Suspects(EvidenceConfig(min_score=0.7))
    suspects.take(frame(0.0, (0.69, grey(1))))
    assert not suspects


def test_memory_does_not_grow_with_the_length_of_a_chunk() -> None:
    suspects = Suspects(EvidenceConfig(crops_per_chunk=2))
    tracemalloc.start()
    try:
        for n in range(200):
            suspects.take(frame(n / 4, (0.8, np.zeros((224, 224, 3), np.uint8))))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 4 * 224 * 224 * 3


def test_pictures_stay_within_the_limit_of_their_topic() -> None:
    noise = np.random.default_rng(1).integers(0, 256, (600, 600, 3), np.uint8)
    suspects = Suspects(EvidenceConfig(crops_per_chunk=16, jpeg_quality=90))
    frames = [suspects.take(frame(n, (0.9 - n / 100, noise))) for n in range(16)]
    illustrated = suspects.illustrate(frames, no_heat)
    chosen = ChunkEvidence(ENSEMBLE)
    for each in illustrated:
        chosen.add(0, each.time_seconds, each.faces[0])
    evidence = chosen.message("v", 1)
    assert evidence is not None
    assert len(encode_evidence(evidence)) < MAX_EVIDENCE_BYTES
    assert [crop.time_seconds for crop in evidence.crops] == list(range(len(evidence.crops)))
    assert 0 < len(evidence.crops) < 16  # the least suspicious go


def test_heat_maps_come_with_their_own_crop() -> None:
    def of_brightness(crops: UInt8Array) -> Float32Array:
        return (crops.mean(axis=3) / 255).astype(np.float32)

    left = np.zeros((64, 64, 3), np.uint8)
    left[:, :32] = 255
    suspects = Suspects(EvidenceConfig())
    frames = [suspects.take(frame(0, (0.8, grey(0, 64)), (0.9, left)))]
    dark, half = suspects.illustrate(frames, of_brightness)[0].faces
    maps = []
    for face in (dark, half):
        assert face.picture is not None
        assert face.picture.heat_map is not None
        maps.append(cv2.imdecode(np.frombuffer(face.picture.heat_map, np.uint8), cv2.IMREAD_UNCHANGED))
    assert maps[0].shape == (HEAT_PX, HEAT_PX)
    assert maps[0].max() == 0
    assert maps[1][:, : HEAT_PX // 2 - 1].min() == 255
    assert maps[1][:, HEAT_PX // 2 + 1 :].max() == 0


def test_colours_are_kept() -> None:
    red = np.zeros((16, 16, 3), np.uint8)
    red[:, :, 0] = 200
    blue, green, red_back = cv2.imdecode(np.frombuffer(jpeg_of(red, 95), np.uint8), cv2.IMREAD_COLOR)[8, 8]
    assert (round(int(red_back), -1), round(int(green), -1), round(int(blue), -1)) == (200, 0, 0)
    assert png_of_heat(np.ones((8, 8), np.float32)).startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_engines(tmp_path_factory.mktemp("suspects") / "engines", plain=2.0)
    make_member(folder, "seer", 0.0, weight=1.0, mask=True)
    return folder


async def test_pipeline_makes_pictures_when_told_to_and_predicts_the_same(engines: Path) -> None:
    chunk = VideoChunk(video_id="v", seq=0, data=demo_clips()[1].read_bytes())
    config = Config(
        classify=ClassifyConfig(engines=engines, members=("plain", "seer")),
        evidence=EvidenceConfig(min_score=0.5, crops_per_chunk=3),
    )
    async with Pipeline(config) as pipeline:
        with_pictures = await pipeline.predict(chunk, pictures=True)
        without = await pipeline.predict(chunk)
    assert with_pictures.frames == without.frames
    faces = [face for each in with_pictures.frames for face in each.faces]
    pictured = [face for face in faces if face.picture is not None]
    assert len(pictured) == 3
    assert all(face.crop is None for face in faces)
    assert min(sum(face.probabilities) for face in pictured) == pytest.approx(
        sorted(sum(face.probabilities) for face in faces)[-3]
    )
    sizes = {cv2.imdecode(np.frombuffer(f.picture.jpeg, np.uint8), 1).shape for f in pictured if f.picture}
    assert sizes == {(32, 32, 3)}
    assert all(face.picture and face.picture.heat_map for face in pictured)
    assert with_pictures.latency_ms["evidence"] > 0
    assert "evidence" not in without.latency_ms
    assert all(face.picture is None for each in without.frames for face in each.faces)


async def test_pipeline_closes_its_networks_after_the_last_picture(
    engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    config = Config(
        classify=ClassifyConfig(engines=engines, members=("plain", "seer")),
        evidence=EvidenceConfig(min_score=0.5),
    )
    begun = asyncio.Event()
    loop = asyncio.get_running_loop()
    async with Pipeline(config) as pipeline:
        ensemble = pipeline._ensemble
        heat_maps = ensemble.heat_maps

        def slow(crops: UInt8Array) -> Float32Array | None:
            loop.call_soon_threadsafe(begun.set)
            time.sleep(0.3)
            found = heat_maps(crops)
            order.append("pictures")
            return found

        monkeypatch.setattr(ensemble, "heat_maps", slow)
        chunk = VideoChunk(video_id="v", seq=0, data=demo_clips()[1].read_bytes())
        predicting = asyncio.create_task(pipeline.predict(chunk, pictures=True))
        await begun.wait()
        predicting.cancel()
        await asyncio.wait({predicting})
        assert order == []
    order.append("closed")
    assert order == ["pictures", "closed"]


async def test_a_network_that_fails_on_a_picture_costs_no_score(
    engines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(_: UInt8Array) -> Float32Array | None:
        raise InferenceError("seer: no")

    config = Config(
        classify=ClassifyConfig(engines=engines, members=("plain", "seer")),
        evidence=EvidenceConfig(min_score=0.5),
    )
    chunk = VideoChunk(video_id="v", seq=0, data=demo_clips()[1].read_bytes())
    async with Pipeline(config) as pipeline:
        expected = await pipeline.predict(chunk)
        monkeypatch.setattr(pipeline._ensemble, "heat_maps", broken)
        predicted = await pipeline.predict(chunk, pictures=True)
    assert predicted.frames == expected.frames
    faces = [face for frame in predicted.frames for face in frame.faces]
    assert faces
    assert all(face.picture is None and face.crop is None for face in faces)

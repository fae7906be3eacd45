"""Everything together on real video: Kafka, decode workers, face detectors, an ensemble, rolling scores."""

from __future__ import annotations

import math
from pathlib import Path

import cv2
import hostile
import numpy as np
import pytest
from clips import clip_chunks
from fakes import dead_letters, evidence_of, publish, running, service_config, until, watching
from media import encode
from members import make_engines, make_member

from streamer.config import ClassifyConfig, Config, EvidenceConfig, KafkaConfig
from streamer.demo_clips import demo_clips
from streamer.files import CHUNK_SECONDS
from streamer.messages import VideoChunk
from streamer.pipeline import Pipeline
from streamer.publish import publish_sources
from streamer.score import score_file
from streamer.sources import sources_of
from streamer.suspects import HEAT_PX

LOGITS = {"first": 1.0, "second": -0.5}
PROBABILITIES = {name: 1 / (1 + math.exp(-logit)) for name, logit in LOGITS.items()}
EXPECTED = sum(PROBABILITIES.values()) / 2


@pytest.fixture
def engines(tmp_path: Path) -> ClassifyConfig:
    """Trained members whose logits are known, so that every score is."""
    return ClassifyConfig(engines=make_engines(tmp_path / "engines", **LOGITS), members=tuple(LOGITS))


def config_for(kafka: KafkaConfig, classify: ClassifyConfig) -> Config:
    return service_config(kafka, drain_seconds=30.0).model_copy(update={"classify": classify})


async def test_video_in_scores_out(kafka: KafkaConfig, engines: ClassifyConfig) -> None:
    chunks = clip_chunks("clip")
    config = config_for(kafka, engines)
    async with watching(kafka) as scores, running(config, Pipeline(config)):
        await publish(kafka, *chunks)
        await until(lambda: len(scores.updates) == len(chunks), seconds=120)
    assert [update.seq for update in scores.updates] == list(range(len(chunks)))
    assert {update.status for update in scores.updates[:-1]} == {"scored"}
    final = scores.updates[-1]
    assert final.status == "final"
    assert final.fake_score == pytest.approx(EXPECTED, abs=1e-5)
    assert final.models == pytest.approx(PROBABILITIES, abs=1e-5)
    assert final.frames >= 50
    assert final.faces >= 0.9 * final.frames
    assert [track.track for track in final.tracks] == [0]
    assert final.trained


@pytest.mark.needs_kafka
async def test_a_published_file_has_the_score_of_the_file(real_kafka: KafkaConfig, tmp_path: Path) -> None:
    folder = make_engines(tmp_path / "engines", plain=2.0)
    make_member(folder, "changing", 0.0, weight=1.0)
    config = config_for(real_kafka, ClassifyConfig(engines=folder, members=("plain", "changing")))
    clip = demo_clips()[1]
    async with Pipeline(config) as pipeline:
        of_file = await score_file(clip, config, pipeline)
    async with watching(real_kafka) as scores, running(config, Pipeline(config)):
        sources = sources_of([str(clip)], None)
        assert await publish_sources(config, sources, CHUNK_SECONDS, realtime=False) == 0
        await until(lambda: scores.updates and scores.updates[-1].last, seconds=120)
    said = {
        "video_id",
        "fake_score",
        "window_score",
        "interval",
        "frames",
        "faces",
        "models",
        "tracks",
        "alert",
    }
    final = scores.updates[-1].model_dump(include=said)
    assert final == of_file.model_dump(include=said)
    assert final["models"]["changing"] != pytest.approx(0.5, abs=0.01)


@pytest.mark.needs_kafka
async def test_suspicious_faces_are_published_as_pictures(real_kafka: KafkaConfig, tmp_path: Path) -> None:
    folder = make_engines(tmp_path / "engines", plain=2.0)
    make_member(folder, "seer", 1.0, weight=0.1, mask=True)
    chunks = clip_chunks("clip")
    config = config_for(real_kafka, ClassifyConfig(engines=folder, members=("plain", "seer"))).model_copy(
        update={"evidence": EvidenceConfig(publish=True, crops_per_chunk=3)}
    )
    async with watching(real_kafka) as scores, running(config, Pipeline(config)):
        await publish(real_kafka, *chunks)
        await until(lambda: len(scores.updates) == len(chunks), seconds=120)
        found = await evidence_of(real_kafka, "clip", len(chunks))
    assert [evidence.seq for evidence in found] == [chunk.seq for chunk in chunks]
    for evidence, update in zip(found, scores.updates, strict=True):
        assert evidence.model_set == update.model_set
        assert len(evidence.crops) == 3
        assert "evidence" in update.latency_ms
        assert update.start_seconds is not None
        assert update.end_seconds is not None
        for crop in evidence.crops:
            assert crop.track in {track.track for track in update.tracks}
            assert update.start_seconds <= crop.time_seconds < update.end_seconds
            assert crop.models["plain"] == pytest.approx(1 / (1 + math.exp(-2)), abs=1e-4)
            assert crop.fake_score == pytest.approx(sum(crop.models.values()) / 2)
            assert cv2.imdecode(np.frombuffer(crop.jpeg, np.uint8), cv2.IMREAD_COLOR).shape == (32, 32, 3)
            assert crop.heat_map is not None
            heat = cv2.imdecode(np.frombuffer(crop.heat_map, np.uint8), cv2.IMREAD_UNCHANGED)
            assert heat.shape == (HEAT_PX, HEAT_PX)
            assert heat.max() > 0


async def test_a_share_of_the_sampling_rate_looks_at_that_share_of_the_frames(
    engines: ClassifyConfig,
) -> None:
    config = Config(classify=engines)
    each = VideoChunk(video_id="v", seq=1, data=demo_clips()[1].read_bytes())
    async with Pipeline(config) as pipeline:
        whole = await pipeline.predict(each)
        half = await pipeline.predict(each, sampling_share=0.5)
        again = await pipeline.predict(each, sampling_share=0.5)
        capped = await pipeline.predict(
            each.model_copy(update={"duration_seconds": 1000.0}), sampling_share=0.5
        )
    assert (whole.sampling_rate, half.sampling_rate, capped.sampling_rate) == (4.0, 2.0, 1.0)
    assert len(half.frames) == pytest.approx(len(whole.frames) / 2, abs=1)
    assert again.frames == half.frames


@pytest.mark.needs_kafka
@pytest.mark.timeout(400)
async def test_two_hundred_damaged_chunks_cost_only_themselves(
    real_kafka: KafkaConfig, engines: ClassifyConfig
) -> None:
    size = {"width": 320, "height": 240}
    good = {name: encode(name, **size) for name in ("mpegts", "mp4", "matroska")}
    damaged = hostile.damaged_chunks(good, n=200, seed=11)
    clip = clip_chunks("clip")
    config = config_for(real_kafka, engines)
    async with watching(real_kafka) as scores, running(config, Pipeline(config)) as service:
        # 25 damaged chunks, a good one, 25 damaged ones ..., all of one video and hence of one partition
        seqs_of_good, chunks = [], []
        for number, (_, data) in enumerate(damaged):
            if number % 25 == 24 and len(seqs_of_good) < len(clip):
                piece = clip[len(seqs_of_good)]
                seqs_of_good.append(len(chunks))
                chunks.append(VideoChunk(video_id="mixed", seq=len(chunks), data=piece.data))
            chunks.append(VideoChunk(video_id="mixed", seq=len(chunks), data=data))
        await publish(real_kafka, *chunks)
        await until(lambda: len(scores.updates) == len(chunks), seconds=300)
        letters = await dead_letters(real_kafka, len(damaged))
        assert service.why_not_ready() is None  # still the same process, still at work
    by_seq = {update.seq: update for update in scores.updates}
    assert {seq for seq, update in by_seq.items() if update.status == "scored"} == set(seqs_of_good)
    final = by_seq[len(chunks) - 1]
    assert final.undecodable_chunks == len(damaged) == len(letters)
    assert final.chunks == len(seqs_of_good)
    assert final.missing_chunks == 0
    assert final.fake_score == pytest.approx(EXPECTED, abs=1e-5)
    assert all(letter.reason and letter.error for letter in letters)
    assert {letter.seq for letter in letters} == set(range(len(chunks))) - set(seqs_of_good)

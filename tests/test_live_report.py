"""The page about a video that the service has scored: from real topics, and what it owns to be missing."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest
from clips import clip_chunks
from fakes import evidence_of, fresh_names, publish, running, service_config, until, watching
from members import make_engines, make_member
from scenes import Camera, evidence
from updates import update

from streamer.config import AlertConfig, ClassifyConfig, Config, EvidenceConfig, KafkaConfig
from streamer.errors import ConfigError, StreamerError, UntrainedError
from streamer.evidence import CROPS_PER_TRACK
from streamer.evidence_page import verdict
from streamer.kafka.publish import OutRecord, Publisher
from streamer.kafka.topics import create_topics
from streamer.live_report import (
    MAX_POINTS,
    MAX_TRACKS,
    TRACKS_DRAWN,
    ScoreHistory,
    TrackCrops,
    at_text,
    drawings,
    missing,
    report_video,
)
from streamer.messages import ScoreUpdate, encode_evidence, encode_score
from streamer.pipeline import Pipeline
from streamer.suspects import jpeg_of


def history_of(*updates: ScoreUpdate) -> ScoreHistory:
    history = ScoreHistory()
    for each in updates:
        history.add(each)
    return history


async def send(kafka: KafkaConfig, *records: OutRecord) -> None:
    async with Publisher(kafka) as publisher:
        await publisher.send(records)


@pytest.mark.needs_kafka
async def test_page_of_a_video_that_the_service_has_scored(real_kafka: KafkaConfig, tmp_path: Path) -> None:
    folder = make_engines(tmp_path / "engines", plain=2.0)
    make_member(folder, "seer", 1.0, mask=True)
    classify = ClassifyConfig(engines=folder, members=("plain", "seer"))
    config = service_config(real_kafka).model_copy(
        update={"classify": classify, "evidence": EvidenceConfig(publish=True)}
    )
    chunks = clip_chunks("live/1")
    async with watching(real_kafka) as scores:
        async with running(config, Pipeline(config)):
            await publish(real_kafka, *chunks)
            await publish(real_kafka, *(each.model_copy(update={"video_id": "other"}) for each in chunks[:2]))
            await until(lambda: len(scores.updates) == len(chunks) + 2, seconds=120)
        final = scores.of("live/1")[-1]
    await send(real_kafka, OutRecord(real_kafka.scores_topic, b"live/1", b"no update"))
    published = {
        crop.jpeg for each in await evidence_of(real_kafka, "live/1", len(chunks)) for crop in each.crops
    }
    page = tmp_path / "live.html"
    await report_video(config, "live/1", page)
    html = page.read_text()
    was_raised = any(each.alert.state == "raised" for each in scores.of("live/1"))
    assert f"<strong>{verdict(final, config.alert, was_raised=was_raised)}</strong>" in html
    assert f"{final.faces:,} faces of 1 person" in html
    assert html.count("<svg") == 2
    assert html.count('alt="Face of ') == html.count('alt="Heat map of that face"') == CROPS_PER_TRACK
    assert len(published) > CROPS_PER_TRACK
    assert real_kafka.scores_topic in html
    assert "tests/members.py" in html
    assert "What is missing" not in html
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    assert "default-src 'none'; img-src data:" in html


async def test_what_was_never_published_is_named(embedded_broker: str, tmp_path: Path) -> None:
    kafka = fresh_names(embedded_broker, "at_least_once")
    await create_topics(kafka, partitions=2)
    config = Config(kafka=kafka, classify=ClassifyConfig(engines=tmp_path))
    page = tmp_path / "page.html"
    with pytest.raises(StreamerError, match=f"topic {kafka.scores_topic} holds no score of cam"):
        await report_video(config, "cam", page)
    assert not page.exists()
    said = [update("cam", seq, 0.9, models={"a": 0.9, "$b": 0.9}) for seq in (5, 6)]
    of_others = evidence("cam", 5, (0.9,))
    assert of_others.model_set != said[0].model_set
    await send(
        kafka,
        *(OutRecord(kafka.scores_topic, b"cam", encode_score(each)) for each in said),
        OutRecord(kafka.evidence_topic, b"cam", encode_evidence(of_others)),
    )
    await report_video(config, "cam", page)
    html = page.read_text()
    assert (
        f"There are no pictures: topic {kafka.evidence_topic} holds none of this video" in html
    )  # none by these models
    assert "each of the first 5 chunks is not kept any more" in html
    assert "The video had not ended when it was last heard of, 1970-01-01 00:00:00 UTC." in html
    assert "not known here" in html
    assert "<img" not in html
    elsewhere = config.model_copy(
        update={"kafka": kafka.model_copy(update={"evidence_topic": "video-evidence-of-nobody"})}
    )
    await report_video(elsewhere, "cam", page)
    assert "There are no pictures: there is no topic video-evidence-of-nobody." in page.read_text()
    with pytest.raises(ConfigError, match=r"cannot write .*/no/.*: No such file"):
        await report_video(config, "cam", tmp_path / "no" / "page.html")


def test_an_alert_that_was_cleared_is_remembered() -> None:
    calm, raised = update(seq=0), update(seq=1, alert="raised")
    assert not history_of(calm).was_raised
    assert history_of(calm, raised, update(seq=2)).was_raised
    assert not history_of(raised, update(seq=2, model_set="another")).was_raised


async def test_scores_of_untrained_members_are_none(embedded_broker: str, tmp_path: Path) -> None:
    kafka = fresh_names(embedded_broker, "at_least_once")
    await create_topics(kafka, partitions=1)
    said = encode_score(update("cam", 1, 0.9, trained=False, models={"random": 0.9}))
    await send(kafka, OutRecord(kafka.scores_topic, b"cam", said))
    with pytest.raises(UntrainedError, match="random"):
        await report_video(Config(kafka=kafka), "cam", tmp_path / "page.html")


async def test_hostile_names_and_pictures_are_harmless(embedded_broker: str, tmp_path: Path) -> None:
    evil = '<script>alert(1)</script>" onload="x'
    kafka = fresh_names(embedded_broker, "at_least_once")
    await create_topics(kafka, partitions=1)
    said = update(evil, 0, 0.9, models={evil: 0.9, "__\\$x^$": 0.1})
    good = evidence(evil, 0, (0.9,), jpeg=jpeg_of(np.zeros((8, 8, 3), np.uint8), 80))
    good = good.model_copy(update={"model_set": said.model_set})
    svg = good.model_dump() | {"crops": [good.crops[0].model_dump() | {"jpeg": b"<svg onload='alert(1)'/>"}]}
    await send(
        kafka,
        OutRecord(kafka.scores_topic, evil.encode(), encode_score(said)),
        OutRecord(kafka.evidence_topic, evil.encode(), encode_evidence(type(good).model_validate(svg))),
        OutRecord(kafka.evidence_topic, evil.encode(), encode_evidence(good)),
    )
    page = tmp_path / "page.html"
    await report_video(Config(kafka=kafka, classify=ClassifyConfig(engines=tmp_path)), evil, page)
    html = page.read_text()
    assert "<script" not in html
    assert html.count('<img src="data:image/jpeg;base64,') == 1


def test_the_course_is_bounded_and_keeps_the_peaks() -> None:
    history = ScoreHistory()
    count = 10 * MAX_POINTS
    for seq in range(count):
        history.add(update("v", seq, 0.95 if seq == 7001 else 0.1))
    assert MAX_POINTS <= len(history.points) <= 2 * MAX_POINTS
    assert max(point.window or 0 for point in history.points) == 0.95
    assert history.thinned
    assert history.points[-1].at_seconds == pytest.approx(2.0 * count, abs=2 * 2.0 * count / MAX_POINTS)
    assert any("Not every update is drawn" in each for each in missing(history, None, described=True))


def test_what_other_models_said_is_left_out() -> None:
    before = [update("v", seq, 0.9, model_set="old") for seq in range(5)]
    after = [update("v", 5 + seq, 0.1, chunks=seq + 1) for seq in range(2)]
    history = history_of(*before, *after)
    assert [point.window for point in history.points] == [0.1, 0.1]
    assert history.chunks_before == 0
    assert "What other models said" in missing(history, None, described=True)[0]


def test_what_is_not_missing_is_not_said() -> None:
    camera = Camera("v", seed=1)
    camera.ended = True
    assert missing(history_of(camera.next(1)), None, described=True) == []


def test_updates_that_are_of_no_place_are_not_drawn() -> None:
    refused = update("v", 1, 0.5, status="undecodable", start_seconds=None, end_seconds=None)
    repeated = update("v", 0, 0.5, status="duplicate")
    assert len(history_of(update("v", 0), refused, repeated).points) == 1
    assert drawings(history_of(refused), AlertConfig()) == []


def test_only_the_most_suspicious_of_many_people_are_drawn() -> None:
    history = history_of(Camera("v", seed=1, tracks=40).next(1))
    by_person, _ = drawings(history, AlertConfig())
    assert f"by the {TRACKS_DRAWN} most suspicious people" in by_person.svg
    assert by_person.svg.count("person ") == TRACKS_DRAWN
    assert "by person" in drawings(history_of(Camera("v", seed=1).next(1)), AlertConfig())[0].svg


def test_times_of_day_are_shown_as_such() -> None:
    late = update("v", 0, 0.5, start_seconds=1.76e9, end_seconds=1.76e9 + 2)
    assert "seconds since 2025-10-09 08:53:22 UTC" in drawings(history_of(late), AlertConfig())[0].svg
    assert at_text(61.5) == "61.50 s"
    assert at_text(1e300).endswith(" UTC")


def test_crops_are_the_most_suspicious_and_bounded_in_number() -> None:
    pictures = TrackCrops()
    for seq in range(20):
        for _ in range(2):
            pictures.add(evidence("v", seq, (seq / 20,)))
    (strip,) = pictures.strips()
    assert [caption.split(": ")[1] for caption, *_ in strip.crops] == [
        f"{seq / 20:.2f}" for seq in range(19, 19 - CROPS_PER_TRACK, -1)
    ]
    for track in range(1, 100):
        pictures.add(evidence("v", 0, (track / 1000,), track=track))
    assert len(pictures.crops) == MAX_TRACKS
    assert set(pictures.crops) == {0, *range(99, 99 - MAX_TRACKS + 1, -1)}

"""Files -> scores, through the whole pipeline."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import av
import media
import pytest
import structlog
from clips import make_clip
from fakes import FakePipeline
from members import make_engines, make_member

from streamer.config import Config
from streamer.demo_clips import demo_clips
from streamer.errors import DecodeError, UntrainedError
from streamer.files import FileError
from streamer.load_config import load_config
from streamer.messages import MAX_VIDEO_ID_BYTES, ScoreUpdate, VideoChunk
from streamer.pipeline import Pipeline
from streamer.score import FileScore, _line, score_file, score_files
from streamer.types import ChunkPrediction, FacePrediction, FramePrediction


def sigmoid(logit: float) -> float:
    return 1 / (1 + math.exp(-logit))


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members, of logits 2 and 0."""
    return make_engines(tmp_path_factory.mktemp("score") / "engines", sure=2.0, unsure=0.0)


@pytest.fixture(scope="module")
def faceless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "gradient.mp4", seconds=2)


def config_with(engines: Path, *members: str, **more: Any) -> Config:
    return load_config(
        None,
        {
            "classify": {"engines": str(engines), "members": list(members), **more},
            "sample": {"frames_per_video": 12},
            "decode": {"workers": 1},
        },
    )


@pytest.fixture
def config(engines: Path) -> Config:
    return config_with(engines, "sure", "unsure")


async def test_json(
    config: Config, faceless: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    face, text, missing = demo_clips()[0], tmp_path / "notes.mp4", tmp_path / "missing.mp4"
    text.write_text("not a video")
    code = await score_files(config, [face, text, faceless, missing], json=True)
    assert code == 1
    rows = [json.loads(row) for row in capsys.readouterr().out.splitlines()]
    assert [row["file"] for row in rows] == [str(path) for path in (face, text, faceless, missing)]

    update = ScoreUpdate.model_validate(rows[0])
    assert update.status == "final"
    assert update.last
    assert update.trained
    assert update.video_id == face.stem
    assert update.faces >= 10
    assert 6 <= update.frames <= 20
    assert update.models == {"sure": pytest.approx(sigmoid(2), abs=1e-4), "unsure": pytest.approx(0.5)}
    assert update.fake_score == pytest.approx((sigmoid(2) + 0.5) / 2, abs=1e-4)
    assert update.chunks > 1
    assert update.undecodable_chunks == update.missing_chunks == 0
    assert update.latency_ms["total"] > 0

    assert set(rows[1]) == {"file", "error", "reason"}
    assert rows[1]["reason"] == "not_media"
    no_face = ScoreUpdate.model_validate(rows[2])
    assert no_face.fake_score is None
    assert no_face.faces == 0
    assert no_face.frames > 0
    assert rows[3]["error"] == "No such file or directory"


async def test_lines(config: Config, faceless: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = await score_files(config, [faceless, demo_clips()[0], faceless.with_name("no.mp4")], json=False)
    assert code == 1
    first, second, third = capsys.readouterr().out.splitlines()
    assert first.startswith(f"  no face  {faceless}: ")
    assert second.startswith(f"    0.690  {demo_clips()[0]}: 95 % interval 0.69–0.69, ")
    assert re.search(r", \d+ frames, \d+ faces, (1 person|\d+ people)$", second)
    assert third == f"    error  {faceless.with_name('no.mp4')}: No such file or directory"


async def test_the_same_file_twice_gives_the_same(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    assert await score_files(config, [demo_clips()[0]] * 2, json=True) == 0
    one, two = (json.loads(row) for row in capsys.readouterr().out.splitlines())
    for clock in ("latency_ms", "processed_at_ms"):
        del one[clock], two[clock]
    assert one == two


async def test_a_file_cut_short(config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = demo_clips()[0].read_bytes()
    half, start = tmp_path / "half.mp4", tmp_path / "start.mp4"
    half.write_bytes(whole[: len(whole) // 2])
    start.write_bytes(whole[:1000])
    with structlog.testing.capture_logs():
        assert await score_files(config, [half, start], json=True) == 1
    scored, failed = (json.loads(row) for row in capsys.readouterr().out.splitlines())
    assert scored["fake_score"] == pytest.approx((sigmoid(2) + 0.5) / 2, abs=1e-4)
    assert scored["undecodable_chunks"] == 1
    assert set(failed) == {"file", "error", "reason"}


async def test_untrained_members_are_refused(tmp_path: Path, faceless: Path) -> None:
    engines = make_engines(tmp_path / "engines")
    make_member(engines, "random", 0.0, trained=False)
    with pytest.raises(UntrainedError, match="--allow-untrained"):
        await score_files(config_with(engines, "random"), [faceless], json=True)


async def test_full_size_untrained_members_are_not_made_in_vain(tmp_path: Path, faceless: Path) -> None:
    engines = make_engines(tmp_path / "engines")
    with pytest.raises(UntrainedError, match="--allow-untrained"):
        await score_files(config_with(engines, "untrained/densenet121"), [faceless], json=True)
    assert not (engines / "untrained").exists()


async def test_allowed_untrained_members_give_no_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engines = make_engines(tmp_path / "engines")
    make_member(engines, "random", 2.0, trained=False)
    config = config_with(engines, "random", allow_untrained=True)
    assert await score_files(config, [demo_clips()[0]], json=False) == 0
    banner, line = capsys.readouterr().out.splitlines()
    assert "untrained" in banner
    assert line.startswith("untrained  ")
    assert "0.8" not in line
    assert "interval" not in line


class Scripted(FakePipeline):
    """Four frames a second of one face for each score that `people` gives for a chunk's start."""

    def __init__(self, people: Callable[[float], tuple[float, ...]]) -> None:
        super().__init__()
        self.people = people

    async def predict(self, chunk: VideoChunk, **_: Any) -> ChunkPrediction:
        start = chunk.start_seconds or 0.0
        faces = tuple(
            FacePrediction((100.0 * i, 0.0, 100.0 * i + 50, 50.0), (score, score))
            for i, score in enumerate(self.people(start))
        )
        frames = tuple(FramePrediction(i / 4, faces) for i in range(8))
        return ChunkPrediction(chunk.video_id, chunk.seq, start, 2.0, frames)


async def scored(path: Path, people: Callable[[float], tuple[float, ...]]) -> FileScore:
    return await score_file(path, Config(), cast(Pipeline, Scripted(people)))


@pytest.fixture(scope="module")
def minute(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clip(tmp_path_factory.mktemp("clips") / "minute.mp4", seconds=60)


@pytest.mark.parametrize(
    ("end", "shown"), [(34, "ALERT at 24 s, cleared later"), (60, "ALERT at 24 s")], ids=["cleared", "raised"]
)
async def test_a_fake_passage_leaves_a_trace(minute: Path, end: float, shown: str) -> None:
    result = await scored(minute, lambda at: (0.95 if 16 <= at < end else 0.01,))
    assert result.alert_at_seconds == 24  # the window of 10 s holds 0.95 and 0.01 as 4 to 1
    assert result.alert.state == ("none" if end == 34 else "raised")
    assert json.loads(result.model_dump_json())["alert_at_seconds"] == 24
    assert _line(minute, result).endswith(f", 1 person, {shown}")


async def test_without_an_alert_there_is_none(minute: Path) -> None:
    result = await scored(minute, lambda at: (0.01,))
    assert result.alert_at_seconds is None
    assert "ALERT" not in _line(minute, result)


async def test_the_most_suspicious_of_several_people(faceless: Path) -> None:
    several = await scored(faceless, lambda at: (0.13, 0.95))
    line = _line(faceless, several)
    assert line.startswith("    0.540  ")
    assert line.endswith(", 2 people, most suspicious 0.950, ALERT at 0 s")
    untrained = several.model_copy(update={"trained": False})
    assert _line(faceless, untrained).endswith(", 2 people")
    assert "suspicious" not in _line(faceless, await scored(faceless, lambda at: (0.95,)))


def copied(clip: Path, container: str, options: dict[str, str]) -> Path:
    """The clip in another container."""
    path = clip.with_name(f"copy {container}")
    with av.open(str(clip)) as source, av.open(str(path), "w", format=container, options=options) as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return path


def cut_short(clip: Path, container: str, options: dict[str, str]) -> Path:
    """The clip in another container, without its last seventh."""
    path = copied(clip, container, options)
    os.truncate(path, path.stat().st_size * 6 // 7)
    return path


@pytest.mark.parametrize(
    ("container", "options"),
    [
        ("mp4", {"movflags": "faststart"}),
        ("mp4", {"movflags": "frag_keyframe+empty_moov+default_base_moof"}),
        ("avi", {}),
        ("flv", {}),
        ("matroska", {}),
    ],
    ids=["faststart", "fragmented", "avi", "flv", "matroska"],
)
async def test_what_comes_before_a_cut_is_scored(
    tmp_path: Path, container: str, options: dict[str, str]
) -> None:
    path = cut_short(make_clip(tmp_path / "clip.mp4", seconds=10, noise=True), container, options)
    with structlog.testing.capture_logs() as lines:
        result = await scored(path, lambda at: (0.25,))
    assert [line["error"] for line in lines] == ["the file is cut or damaged"]
    assert result.fake_score == pytest.approx(0.25)
    assert result.chunks == 4
    assert (result.undecodable_chunks, result.missing_chunks) == (1, 0)
    assert ", 1 chunk undecodable" in _line(path, result)
    crowd = result.model_copy(update={"unscored_faces": 3})
    assert ", 3 faces not scored (faces.max_faces_per_frame)" in _line(path, crowd)


@pytest.mark.parametrize("place", [0.1, 0.5])
async def test_a_damaged_chunk_is_left_out(place: float, tmp_path: Path) -> None:
    path = copied(make_clip(tmp_path / "clip.mp4", seconds=10, noise=True), "mpegts", {})
    path.write_bytes(media.damaged_mpegts(path.read_bytes(), place))
    result = await scored(path, lambda at: (0.25,))
    assert (result.chunks, result.undecodable_chunks, result.missing_chunks) == (5, 0, 1)
    assert _line(path, result).endswith(", 1 damaged chunk left out")


async def test_why_a_chunk_is_undecodable_is_said(minute: Path) -> None:
    class Picky(Scripted):
        async def predict(self, chunk: VideoChunk, **kwargs: Any) -> ChunkPrediction:
            if chunk.seq == 1:
                raise DecodeError("damaged", "no keyframe, really")
            return await super().predict(chunk, **kwargs)

    with structlog.testing.capture_logs() as logged:
        result = await score_file(minute, Config(), cast(Pipeline, Picky(lambda at: (0.25,))))
    assert result.undecodable_chunks == 1
    assert [(entry["file"], entry["error"]) for entry in logged] == [(str(minute), "no keyframe, really")]


async def test_nothing_but_undecodable_chunks_before_a_cut_is_an_error(tmp_path: Path) -> None:
    class Blind(FakePipeline):
        async def predict(self, chunk: VideoChunk, **_: Any) -> ChunkPrediction:
            raise DecodeError("too_large", "too many pixels")

    path = cut_short(make_clip(tmp_path / "clip.mp4", seconds=10, noise=True), "flv", {})
    with pytest.raises(FileError, match="cut or damaged"):
        await score_file(path, Config(), cast(Pipeline, Blind()))


async def test_a_long_name_of_other_bytes(faceless: Path, tmp_path: Path) -> None:
    path = tmp_path / os.fsdecode(b"\xff" * 200 + b".mp4")
    shutil.copy(faceless, path)
    result = await scored(path, lambda at: (0.25,))
    assert result.video_id == "\ufffd" * (MAX_VIDEO_ID_BYTES // 3)
    assert result.fake_score == pytest.approx(0.25)

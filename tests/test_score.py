"""Files -> scores, through the whole pipeline."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from clips import make_clip
from members import make_engines, make_member

from streamer.config import Config, load_config
from streamer.demo import demo_clips
from streamer.errors import UntrainedError
from streamer.messages import ScoreUpdate
from streamer.score import score_files


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
    assert update.video_id == face.name
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


async def test_all_well_is_status_0(config: Config, faceless: Path) -> None:
    assert await score_files(config, [faceless], json=True) == 0


async def test_the_same_file_twice_gives_the_same(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    await score_files(config, [demo_clips()[0]] * 2, json=True)
    one, two = (json.loads(row) for row in capsys.readouterr().out.splitlines())
    for clock in ("latency_ms", "processed_at_ms"):
        del one[clock], two[clock]
    assert one == two


async def test_a_file_cut_short_is_an_error(
    config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = demo_clips()[0].read_bytes()
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(whole[: len(whole) // 2])
    assert await score_files(config, [damaged], json=True) == 1
    assert "error" in json.loads(capsys.readouterr().out)


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

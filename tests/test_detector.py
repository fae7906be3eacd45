"""The detector as a library."""

from __future__ import annotations

import asyncio
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from clips import make_clip
from members import make_engines, make_member

from streamer import AsyncDetector, Detector
from streamer.config import Config
from streamer.demo_clips import demo_clips
from streamer.errors import ConfigError, ManifestError, StreamerError, UntrainedError
from streamer.files import FileError
from streamer.load_config import load_config
from streamer.types import UInt8Array

SURE = 1 / (1 + math.exp(-2))


def config_of(engines: Path, **classify: Any) -> Config:
    return load_config(None, {"classify": {"engines": str(engines), **classify}, "decode": {"workers": 1}})


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two members, of logits 2 and 0."""
    return make_engines(tmp_path_factory.mktemp("detector") / "engines", sure=2.0, unsure=0.0)


@pytest.fixture(scope="module")
def detector(engines: Path) -> Iterator[Detector]:
    with Detector(config_of(engines), members=["sure", "unsure"]) as opened:
        yield opened


@pytest.fixture(scope="module")
def portrait() -> UInt8Array:
    """A frame with one face."""
    with av.open(str(demo_clips()[1])) as clip:
        return next(clip.decode(video=0)).to_ndarray(format="rgb24")


def test_a_file(detector: Detector) -> None:
    result = detector.score_file(demo_clips()[1])
    assert result.status == "final"
    assert result.faces > 50
    assert result.fake_score == pytest.approx((SURE + 0.5) / 2, abs=1e-4)
    assert result.models == {"sure": pytest.approx(SURE, abs=1e-4), "unsure": pytest.approx(0.5)}
    assert detector.ensemble.names == ("sure", "unsure")
    assert detector.ensemble.trained


def test_a_file_without_a_face(detector: Detector, tmp_path: Path) -> None:
    result = detector.score_file(str(make_clip(tmp_path / "gradient.mp4", seconds=1)))
    assert (result.fake_score, result.faces) == (None, 0)


def test_a_file_says_where_it_first_raised_an_alert(detector: Detector, engines: Path) -> None:
    assert detector.score_file(demo_clips()[1]).model_dump()["alert_at_seconds"] is None  # 0.69 is below 0.8
    with Detector(config_of(engines), members=["sure"]) as sure:
        assert sure.score_file(demo_clips()[1]).model_dump()["alert_at_seconds"] == 0


def test_what_is_no_video_and_the_detector_goes_on(detector: Detector, tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file"):
        detector.score_file(tmp_path / "missing.mp4")
    assert detector.score_frames([]) == []


@pytest.mark.parametrize("consecutive", [False, True])
def test_frames(detector: Detector, portrait: UInt8Array, consecutive: bool) -> None:
    height, width = portrait.shape[:2]
    empty = np.full((120, 200, 3), 90, np.uint8)
    frames = [portrait, empty, portrait[:, ::-1]] if not consecutive else [portrait] * 11
    found = detector.score_frames(frames, consecutive=consecutive)
    assert [len(faces) for faces in found] == ([1, 0, 1] if not consecutive else [1] * 11)
    (face,) = found[0]
    assert face.probabilities == (pytest.approx(SURE, abs=1e-4), pytest.approx(0.5))
    x_min, y_min, x_max, y_max = face.box
    assert 0 < x_min < x_max < width  # the forehead is cut by the upper edge
    assert y_min < height / 2 < y_max
    if not consecutive:  # the mirror image, a view with a negative stride
        assert found[2][0].box[0] == pytest.approx(width - x_max, abs=0.1 * (x_max - x_min))


@pytest.mark.parametrize(
    "frame",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((0, 64, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_frames(detector: Detector, frame: Any) -> None:
    with pytest.raises(ValueError, match=rf"\({frame.shape[0]}, 64"):
        detector.score_frames([frame])


async def test_side_by_side(engines: Path, portrait: UInt8Array) -> None:
    async with AsyncDetector(config_of(engines), members=["sure"]) as detector:
        clip = demo_clips()[1]
        one, two = await asyncio.gather(detector.score_file(clip), detector.score_frames([portrait]))
        assert one.fake_score == pytest.approx(SURE, abs=1e-4)
        assert [face.probabilities for face in two[0]] == [(pytest.approx(SURE, abs=1e-4),)]


async def test_the_plain_one_says_what_to_use_where_a_loop_runs(engines: Path) -> None:
    with pytest.raises(StreamerError, match="AsyncDetector"), Detector(config_of(engines), members=["sure"]):
        pass


def test_outside_of_its_with(engines: Path) -> None:
    detector = Detector(config_of(engines), members=["sure"])
    with pytest.raises(StreamerError, match="inside of its `with`"):
        detector.score_file(demo_clips()[1])
    with detector:
        pass
    with pytest.raises(StreamerError, match="inside of its `with`"):
        detector.score_frames([])


def test_configuration(engines: Path, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(f"[classify]\nengines = '{engines}'\nmembers = ['unsure']\n[decode]\nworkers = 1\n")
    with Detector(file) as detector:
        assert detector.ensemble.names == ("unsure",)
    with pytest.raises(ConfigError, match=r"nowhere\.toml"):
        Detector(tmp_path / "nowhere.toml")
    with pytest.raises(ConfigError, match="members"):
        Detector(file, members=[])
    with pytest.raises(ManifestError, match="absent"), Detector(file, members=["absent"]):
        pass


def test_untrained_members(tmp_path: Path) -> None:
    folder = make_engines(tmp_path / "engines")
    make_member(folder, "random", 2.0, trained=False)
    with pytest.raises(UntrainedError), Detector(config_of(folder), members=["random"]):
        pass
    with Detector(config_of(folder, allow_untrained=True), members=["random"]) as detector:
        assert not detector.ensemble.trained


def test_the_package_is_light_until_it_is_asked() -> None:
    code = "import sys, streamer; print([m for m in ('numpy', 'pydantic', 'asyncio') if m in sys.modules])"
    light = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert light.stdout.strip() == "[]"
    with pytest.raises(ImportError, match="cannot import name 'Detectr'"):
        exec("from streamer import Detectr")

"""The evidence page: what is kept, what it says, and that the file is whole and harmless."""

from __future__ import annotations

import csv
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from members import make_engines, make_member
from updates import update

from streamer.classify import Ensemble
from streamer.config import AlertConfig, ClassifyConfig, Config
from streamer.demo_clips import demo_clips
from streamer.errors import ConfigError, UntrainedError
from streamer.evidence import CROPS_PER_TRACK, Evidence, faces_csv, tracks_to_show
from streamer.evidence_page import reasons, report_html, verdict
from streamer.load_config import load_config
from streamer.manifest import read_manifest, sha256_of
from streamer.messages import ScoreUpdate, TrackScore
from streamer.score import score_files
from streamer.types import FacePrediction, UInt8Array


def face(probability: float, crop: UInt8Array | None = None) -> FacePrediction:
    return FacePrediction((0, 0, 9, 9), (probability, probability), crop)


def grey(level: int) -> UInt8Array:
    return np.full((8, 8, 3), level, np.uint8)


def final(score: float | None, video_id: str = "some", **fields: Any) -> ScoreUpdate:
    faces = 0 if score is None else 9
    ended: dict[str, Any] = {"interval": None, "faces": faces, "tracks": [], "last": True}
    return update(video_id, 1, score, status="final", **ended | fields)


def test_the_most_suspicious_crops_of_each_track_are_kept() -> None:
    evidence = Evidence()
    scores = np.random.default_rng(1).permutation(30) / 30
    for number, score in enumerate(scores):
        evidence.add(0, number, face(score, grey(number)))
    evidence.add(1, 3.0, face(0.5, grey(200)))
    kept = evidence.crops_of(0)
    assert [seen.score for seen, _ in kept] == pytest.approx(sorted(scores, reverse=True)[:CROPS_PER_TRACK])
    assert all(crop[0, 0, 0] == seen.at_seconds for seen, crop in kept)
    assert len(evidence.crops_of(1)) == 1
    assert len(evidence.faces) == 31


def test_equal_scores_keep_the_earlier_face() -> None:
    evidence = Evidence()
    for number in range(2 * CROPS_PER_TRACK):
        evidence.add(0, number, face(0.5, grey(number)))
    assert [seen.at_seconds for seen, _ in evidence.crops_of(0)] == list(range(CROPS_PER_TRACK))


def test_glimpses_are_not_shown_beside_people() -> None:
    evidence = Evidence()
    evidence.add(4, 0.0, face(0.9))
    assert tracks_to_show(evidence) == [4]
    for number in range(3):
        evidence.add(2, number, face(0.1))
    assert tracks_to_show(evidence) == [2]


def test_csv() -> None:
    evidence = Evidence()
    evidence.add(1, 2.0, FacePrediction((1, 2, 3, 4), (0.25, 0.75)))
    evidence.add(0, 1.0, FacePrediction((5, 6, 7, 8), (1.0, 0.5)))
    rows = list(csv.DictReader(faces_csv(evidence, ("a", "b,c")).splitlines()))
    assert [row["time_seconds"] for row in rows] == ["1.000", "2.000"]
    assert float(rows[0]["fake_score"]) == 0.75
    assert (rows[1]["track"], rows[1]["x_max"], float(rows[1]["b,c"])) == ("1", "3.0", 0.75)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (final(None), "No verdict"),
        (final(0.9), "Likely altered"),
        (
            final(0.3, alert="raised"),
            "Likely altered",
        ),
        (final(0.2, interval=(0.1, 0.3)), "No sign"),
        (final(0.2, interval=(0.0, 0.9)), "Undecided"),
        (final(0.6), "Undecided"),
        (
            final(0.2, tracks=[TrackScore(track=1, box=(0, 0, 1, 1), fake_score=0.7, faces=9)]),
            "Undecided",
        ),
    ],
)
def test_verdict(said: ScoreUpdate, words: str) -> None:
    was_raised = said.alert.state == "raised"
    assert verdict(said, AlertConfig(), was_raised=was_raised).startswith(words)


def test_an_alert_that_was_cleared_is_spoken_of() -> None:
    said = final(0.2, interval=(0.1, 0.3))
    assert verdict(said, AlertConfig(), was_raised=True) == "Likely altered in part."
    assert "it was raised, and cleared later." in reasons(said, AlertConfig(), 1, was_raised=True)[-1]
    assert "it was not raised." in reasons(said, AlertConfig(), 1, was_raised=False)[-1]
    raised = final(0.2, alert="raised")
    assert "it was raised." in reasons(raised, AlertConfig(), 1, was_raised=True)[-1]


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_engines(tmp_path_factory.mktemp("evidence") / "engines", plain=1.0)
    make_member(folder, "seer", 3.0, mask=True)
    return folder


def config_with(engines: Path, *members: str) -> Config:
    return load_config(
        None,
        {
            "classify": {"engines": str(engines), "members": list(members)},
            "sample": {"frames_per_video": 12},
            "decode": {"workers": 1},
        },
    )


def test_heat_maps_are_those_of_the_members_that_have_them(engines: Path) -> None:
    crops = np.zeros((2, 32, 32, 3), np.uint8)
    crops[1, :, 16:] = 255
    with_maps = Ensemble(ClassifyConfig(engines=engines, members=("plain", "seer")))
    heat = with_maps.heat_maps(crops)
    assert heat is not None
    assert heat.shape == (2, 32, 32)
    assert heat[0].max() == 0
    assert heat[1, :, 0].max() == pytest.approx(0, abs=0.01)
    assert heat[1, :, -1].min() == pytest.approx(1, abs=0.01)
    larger = with_maps.heat_maps(np.repeat(np.repeat(crops, 2, axis=1), 2, axis=2))
    assert larger is not None
    assert larger.shape == (2, 64, 64)
    np.testing.assert_allclose(larger[:, ::2, ::2], heat, atol=0.02)
    with_maps.close()
    without = Ensemble(ClassifyConfig(engines=engines, members=("plain",)))
    assert without.heat_maps(crops) is None
    without.close()


async def test_page_and_table_of_a_file(
    engines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, page, table = demo_clips()[0], tmp_path / "report.html", tmp_path / "faces.csv"
    config = config_with(engines, "plain", "seer")
    assert await score_files(config, [clip], json=True, report=page, csv=table) == 0
    said = ScoreUpdate.model_validate(
        {k: v for k, v in json.loads(capsys.readouterr().out).items() if k != "file"}
    )
    html = page.read_text()
    assert sha256_of(clip) in html
    was_raised = said.alert.state == "raised"
    assert f"<strong>{verdict(said, config.alert, was_raised=was_raised)}</strong>" in html
    assert f"is {said.fake_score:.2f} (95 % interval" in html
    crops, heated = html.count('alt="Face of '), html.count('alt="Heat map of that face"')
    assert crops == heated > 0
    assert "<svg" in html
    assert "tests/members.py" in html  # the origin of the members
    assert not re.search(r"(src|href)=\"(?!data:|#)", html)
    rows = list(csv.DictReader(table.read_text().splitlines()))
    assert len(rows) == said.faces
    assert np.mean([float(row["fake_score"]) for row in rows]) == pytest.approx(said.fake_score, abs=1e-5)
    assert [float(row["seer"]) for row in rows] == pytest.approx([said.models["seer"]] * len(rows), abs=1e-5)


async def test_the_table_alone_needs_no_extra(
    engines: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "streamer.evidence_page", None)  # as without jinja2
    clip, table = demo_clips()[0], tmp_path / "faces.csv"
    config = config_with(engines, "plain")
    assert await score_files(config, [clip], json=True, csv=table) == 0
    assert len(table.read_text().splitlines()) > 1
    with pytest.raises(ConfigError, match="--report needs the extra report"):
        await score_files(config, [clip], json=True, report=tmp_path / "report.html")


def test_the_page_of_a_crowd_has_room_for_its_timeline(engines: Path) -> None:
    """Warnings are errors here: one would say that there is none."""
    evidence = Evidence()
    for track in range(60):
        for second in range(3):
            evidence.add(track, second, face(0.5))
    html = report_html(
        final(0.5, unscored_faces=418, missing_chunks=2),
        evidence,
        file_name="crowd.mp4",
        was_raised=False,
        file_sha256="0",
        manifests=[read_manifest(engines / "plain.json")],
        alert=AlertConfig(),
        heat_maps={},
    )
    assert "418 more faces were found and not scored" in html
    assert "2 pieces of the file, damaged in it, left out." in html
    assert "person 36</text>" in html
    assert "person 37</text>" not in html


def test_names_are_text(engines: Path) -> None:
    evil = '<script>alert(1)</script>" onload="x\u202e'  # whose last one turns what follows around
    manifest = read_manifest(engines / "plain.json").model_copy(update={"origin": evil})
    html = report_html(
        final(None, video_id=evil),
        Evidence(),
        file_name=evil,
        was_raised=False,
        file_sha256="0",
        manifests=[manifest],
        alert=AlertConfig(),
        heat_maps={},
    )
    assert "<script" not in html
    assert "x\\u202e: No verdict" in html


async def test_what_has_no_evidence(engines: Path, tmp_path: Path) -> None:
    clip = demo_clips()[0]
    with pytest.raises(ConfigError, match="one file, not 2"):
        await score_files(config_with(engines, "plain"), [clip, clip], json=False, report=tmp_path / "r.html")
    with pytest.raises(
        ConfigError, match=r"--report takes the name of the \.html file to write, not .*\.mp4"
    ):
        await score_files(config_with(engines, "plain"), [clip], json=False, report=tmp_path / "b.mp4")
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigError, match="no pipe"):  # of which the SHA-256 would be that of nothing
        await score_files(config_with(engines, "plain"), [pipe], json=False, report=tmp_path / "r.html")
    make_member(engines, "random", 0.0, trained=False)
    config = config_with(engines, "random")
    allowed = config.model_copy(
        update={"classify": config.classify.model_copy(update={"allow_untrained": True})}
    )
    with pytest.raises(UntrainedError, match="no evidence is written of untrained members: random"):
        await score_files(allowed, [clip], json=False, report=tmp_path / "r.html")
    with pytest.raises(ConfigError, match=r"--report: .*/no is no folder that can be written to"):
        await score_files(
            config_with(engines, "plain"), [clip], json=False, report=tmp_path / "no" / "r.html"
        )

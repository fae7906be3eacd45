"""Making the untrained members when they are needed, and only then."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from streamer.config import ClassifyConfig
from streamer.engines import ensure_untrained, make_untrained
from streamer.errors import ModelError
from streamer.manifest import read_manifest


def test_made_once_with_an_honest_manifest(tmp_path: Path) -> None:
    config = ClassifyConfig(engines=tmp_path, members=("untrained/densenet121",))
    ensure_untrained(config)
    folder = tmp_path / "untrained"
    assert sorted(path.name for path in folder.iterdir()) == ["densenet121.json", "densenet121.onnx"]
    manifest = read_manifest(folder / "densenet121.json")
    assert not manifest.trained
    assert manifest.architecture == "DenseNet-121"
    assert "seed" in manifest.origin
    assert manifest.measured == "nothing"
    written = (folder / "densenet121.onnx").stat().st_mtime_ns
    ensure_untrained(config)
    assert (folder / "densenet121.onnx").stat().st_mtime_ns == written
    assert make_untrained(folder, "densenet121", again=True)
    assert read_manifest(folder / "densenet121.json") == manifest  # the same bytes again


def test_trained_members_need_none(tmp_path: Path) -> None:
    ensure_untrained(ClassifyConfig(engines=tmp_path, members=("resnext50_a", "other/densenet121")))
    assert list(tmp_path.iterdir()) == []


def test_two_at_once(tmp_path: Path) -> None:
    threads = [threading.Thread(target=make_untrained, args=(tmp_path, "densenet121")) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not read_manifest(tmp_path / "densenet121.json").trained
    assert len(list(tmp_path.iterdir())) == 2


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match="cannot write untrained members"):
        make_untrained(tmp_path / "file" / "untrained", "densenet121")

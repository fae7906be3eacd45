"""Checkpoints: everything comes back, and nothing that is not one is taken."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from toy import toy_config

from streamer.errors import TrainingError

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")


def make_state(**changes: Any) -> Any:
    from streamer.training.state import State

    return State.start(toy_config(**changes), "data", torch.device("cpu"))


def test_round_trip(tmp_path: Path) -> None:
    from streamer.training.checkpoint import load_checkpoint, save_checkpoint

    state = make_state()
    state.step, state.seconds, state.metrics = 7, 1.5, {"metric": 0.75}
    state.judge(0.75)
    written = state.checkpoint()
    save_checkpoint(tmp_path / "a.pt", written)
    read = load_checkpoint(tmp_path / "a.pt")
    assert read.config == state.config
    assert (read.step, read.seconds, read.best, read.since_best) == (7, 1.5, 0.75, 0)
    assert read.metrics == {"metric": 0.75}
    for ours, theirs in ((written.weights, read.weights), (written.average, read.average)):
        assert list(ours) == list(theirs)
        assert all(torch.equal(ours[key], theirs[key]) for key in ours)
    assert [path.name for path in tmp_path.iterdir()] == ["a.pt"]


def test_one_from_before_files_were_noted(tmp_path: Path) -> None:
    from streamer.training.checkpoint import load_checkpoint, save_checkpoint

    save_checkpoint(tmp_path / "a.pt", make_state().checkpoint())
    values = torch.load(tmp_path / "a.pt", weights_only=True)
    del values["files"]
    torch.save(values, tmp_path / "a.pt")
    assert load_checkpoint(tmp_path / "a.pt").files == {}


def test_model_is_the_average_ready_to_use(tmp_path: Path) -> None:
    from streamer.training.checkpoint import load_model, save_checkpoint

    state = make_state(model={"dropout": 0.5})
    for parameter in state.objective.student.parameters():
        parameter.data.zero_()
    save_checkpoint(tmp_path / "a.pt", state.checkpoint())
    model = load_model(tmp_path / "a.pt")
    assert not model.training
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[0], state.average(x)[0])
        assert model(x)[0].item() != 0


class Evil:
    """Would make a file when unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    from streamer.training.checkpoint import load_checkpoint

    torch.save({"format": 1, "config": Evil(tmp_path / "was_here")}, tmp_path / "evil.pt")
    with pytest.raises(TrainingError, match="not a checkpoint, or damaged"):
        load_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "was_here").exists()


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    from streamer.training.checkpoint import load_checkpoint, save_checkpoint

    with pytest.raises(TrainingError, match=r"none.pt: cannot read the checkpoint: No such file"):
        load_checkpoint(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello")
    (tmp_path / "empty.pt").touch()
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"a": 1}))
    save_checkpoint(tmp_path / "whole.pt", make_state().checkpoint())
    content = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "cut.pt").write_bytes(content[: len(content) // 2])
    torch.save({"a": 1}, tmp_path / "other.pt")
    for name in ("text.pt", "empty.pt", "pickle.pt", "cut.pt", "other.pt"):
        with pytest.raises(TrainingError, match=rf"{name}: not a checkpoint"):
            load_checkpoint(tmp_path / name)


class FullDisk(io.BytesIO):
    """Takes the first thousand bytes."""

    def __init__(self, file: BinaryIO) -> None:
        super().__init__()
        self.file = file

    def write(self, data: Any) -> int:
        if self.file.tell() + len(data) > 1000:
            raise OSError(28, "No space left on device")
        return self.file.write(data)


def test_a_failed_write_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamer.training import checkpoint

    path = tmp_path / "a.pt"
    path.write_text("old")
    whole_file = checkpoint.whole_file

    @contextmanager
    def on_full_disk(path: Path) -> Iterator[BinaryIO]:
        with whole_file(path) as file:
            yield FullDisk(file)

    monkeypatch.setattr(checkpoint, "whole_file", on_full_disk)
    with pytest.raises(TrainingError, match=r"a.pt: cannot write the checkpoint: No space left"):
        checkpoint.save_checkpoint(path, make_state().checkpoint())
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]

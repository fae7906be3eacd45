"""What is refused before a member is made, and what is said of what it is calibrated on."""

from __future__ import annotations

from pathlib import Path

import pytest
from scorers import green_scorer
from toy import make_cache, toy_config

from streamer.config import Config
from streamer.errors import TrainingError
from streamer.training import make_member as module
from streamer.training.crops import INDEX, to_lines
from streamer.training.types import Split

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")


def export(checkpoint: Path, name: str, cache: Path) -> None:
    module.export_calibrated(
        checkpoint,
        name=name,
        cache=cache,
        split="validation",
        config=Config(),
        data=None,
        licence="",
        storage="f16",
        heat_map=True,
    )


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a"])
def test_a_name_that_is_no_files(name: str, tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="a member's name is that of its files"):
        export(tmp_path / "none.pt", name, tmp_path)


def test_faces_that_the_service_would_cut_otherwise(tmp_path: Path) -> None:
    from streamer.training.checkpoint import save_checkpoint
    from streamer.training.state import State

    (tmp_path / INDEX).write_text(to_lines(make_cache(tmp_path, split="validation")))
    state = State.start(toy_config(input={"margin": 0.2}), "data", torch.device("cpu"))
    save_checkpoint(tmp_path / "a.pt", state.checkpoint())
    with pytest.raises(TrainingError, match=r"a.pt: trained on faces with margin 0.2, but .* is 0.3"):
        export(tmp_path / "a.pt", "a", tmp_path)


@pytest.mark.parametrize(("split", "says"), [("validation", "held-out"), ("train", "trained-on")])
def test_what_it_is_calibrated_on_in_words(split: Split, says: str, tmp_path: Path) -> None:
    records = make_cache(tmp_path, people=3, split=split)
    _, on = module._scores_to_calibrate(green_scorer(noise=3.0), records, tmp_path, toy_config())
    assert on == f"3 real and 3 fake {says} videos or pictures"

"""The validation metric."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from toy import make_cache, toy_config

from streamer.errors import TrainingError
from streamer.training.types import REAL, FrameScores
from streamer.types import UInt8Array

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")


def make_scores(labels: str, videos: str, generators: str, logits: list[float]) -> FrameScores:
    """A character for each crop."""
    return FrameScores(
        tuple(videos), np.array([int(x) for x in labels]), tuple(generators), np.array(logits, np.float32)
    )


def test_videos_not_frames_are_ranked() -> None:
    """One high frame does not lift a real video above the fake one, whose mean is higher."""
    from streamer.training.validate import video_aucs

    assert video_aucs(make_scores("00011", "aabcc", "rrrff", [5, -5, -1, 1, 1]))[""] == 1.0
    assert video_aucs(make_scores("00011", "aabcc", "rrrff", [5, 5, -1, 1, 1]))[""] == 0.5
    assert video_aucs(make_scores("00", "ab", "rr", [0, 0])) == {}


def test_each_generator_against_all_real_ones() -> None:
    from streamer.training.validate import video_aucs

    aucs = video_aucs(make_scores("00111", "abcde", "rrffg", [0, 1, 2, 3, 0.5]))
    assert aucs == {"": pytest.approx(5 / 6), "f": 1.0, "g": 0.5}


def test_few_crops_spread_over_all_videos(tmp_path: Path) -> None:
    from streamer.training.validate import spread

    records = make_cache(tmp_path, people=3, frames=5)
    chosen = spread(records, 8)
    assert sorted(Counter(record.item for record in chosen).values()) == [1, 1, 1, 1, 2, 2]
    assert chosen == spread(records, 8)
    assert sorted(spread(records, 99), key=lambda r: r.file) == sorted(records, key=lambda r: r.file)


class GreenSeer(torch.nn.Module):  # type: ignore[misc]
    """Logit: the share of green pixels."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, None]:
        green = (x[:, 1] - x[:, 0] > 2) & (x[:, 1] - x[:, 2] > 2)
        return green.float().mean((1, 2))[:, None], None


def test_measure(tmp_path: Path) -> None:
    from streamer.training.validate import Validation

    records = make_cache(tmp_path, split="validation")
    config = toy_config(validation={"blends": 5})
    found = Validation(records, tmp_path, config).measure(GreenSeer(), torch.device("cpu"))
    assert found["videos"] == 1.0
    assert 0 <= found["blends"] <= 1
    assert found["metric"] == pytest.approx((found["videos"] + found["blends"]) / 2)
    again = Validation(records, tmp_path, config).measure(GreenSeer(), torch.device("cpu"))
    assert found == again
    plain = Validation(records, tmp_path, toy_config()).measure(GreenSeer(), torch.device("cpu"))
    assert plain == {"metric": 1.0, "videos": 1.0}


def test_blends_do_not_depend_on_how_training_augments(tmp_path: Path) -> None:
    from streamer.training.validate import Validation

    def images(seed: int) -> UInt8Array:
        config = toy_config(validation={"blends": 4}, seed=seed, augment={"flip": {"probability": seed / 9}})
        blends = Validation(records, tmp_path, config)._blends
        assert blends is not None
        return blends.images

    records = [r for r in make_cache(tmp_path, split="validation") if r.label == REAL]
    np.testing.assert_array_equal(images(1), images(2))


def test_without_a_metric(tmp_path: Path) -> None:
    from streamer.training.validate import Validation

    for records in ([], [r for r in make_cache(tmp_path, split="validation") if r.label == REAL]):
        with pytest.raises(TrainingError, match="do not make a metric"):
            Validation(records, tmp_path, toy_config())

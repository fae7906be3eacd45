"""Faces reach the networks as the service would show them, degraded or not, in order, on any threads."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from networks import make_network
from scorers import green_scorer, score_records
from toy import make_cache

from streamer.backends.load import load_network
from streamer.errors import TrainingError
from streamer.faces.crop import crop_faces
from streamer.manifest import Calibration
from streamer.training.blend import PUBLISHED, BlendConfig
from streamer.training.crops import read_crop
from streamer.training.metrics import auc
from streamer.training.scoring import (
    BlendKind,
    Blends,
    RecordFaces,
    Scorer,
    network_scorer,
    score_faces,
)
from streamer.training.types import FAKE, REAL
from streamer.types import Float32Array, UInt8Array


class Watching:
    """A scorer that keeps what it was shown."""

    def __init__(self, size: int, name: str = "watching") -> None:
        self.shown: list[UInt8Array] = []
        self.scorer = Scorer(name, size, self.predict)

    def predict(self, images: UInt8Array) -> Float32Array:
        self.shown.extend(images)
        return images.mean(axis=(1, 2, 3), dtype=np.float32)


def test_records_become_scores_in_their_order(tmp_path: Path) -> None:
    records = make_cache(tmp_path, people=3, frames=3)
    scores = score_records(green_scorer(), records, cache=tmp_path, batch=4)
    assert scores.videos == tuple(record.item for record in records)
    assert scores.generators == tuple(record.generator for record in records)
    assert scores.labels.tolist() == [record.label for record in records]
    assert scores.logits.dtype == np.float32
    assert auc(scores.labels, scores.logits.astype(np.float64)) == 1.0


def test_what_a_network_sees_is_what_serving_cuts(tmp_path: Path) -> None:
    records = make_cache(tmp_path)
    watching = Watching(56)
    score_records(watching.scorer, records, cache=tmp_path, margin=0.3)
    for record, shown in zip(records, watching.shown, strict=True):
        boxes = np.array([record.box], np.float32)
        served = crop_faces(read_crop(tmp_path, record), boxes, margin=0.3, size=56)[0]
        np.testing.assert_array_equal(shown, served)


def test_each_network_sees_crops_of_its_size(tmp_path: Path) -> None:
    records = make_cache(tmp_path, people=1)
    large, small = Watching(64), Watching(32, "small")
    score_faces([small.scorer, large.scorer], RecordFaces(records, tmp_path))
    for watching in (small, large):
        for record, seen in zip(records, watching.shown, strict=True):
            boxes, size = np.array([record.box], np.float32), watching.scorer.size
            served = crop_faces(read_crop(tmp_path, record), boxes, margin=0.3, size=size)[0]
            np.testing.assert_array_equal(seen, served)


def test_threads_and_batches_change_nothing(tmp_path: Path) -> None:
    records = make_cache(tmp_path, people=5)

    def noisy(rgb: UInt8Array, rng: np.random.Generator) -> UInt8Array:
        return (rgb + rng.integers(0, 40, rgb.shape)).clip(0, 255).astype(np.uint8)

    def logits(*, batch: int, workers: int, seed: int = 0) -> list[float]:
        (scores,) = score_faces(
            [green_scorer()],
            RecordFaces(records, tmp_path),
            degrade=noisy,
            batch=batch,
            workers=workers,
            seed=seed,
        )
        return scores.logits.tolist()

    one = logits(batch=7, workers=1)
    assert logits(batch=3, workers=4) == one
    assert logits(batch=7, workers=1, seed=1) != one


def test_a_degraded_picture_of_another_size_is_cut_at_the_same_place(tmp_path: Path) -> None:
    records = make_cache(tmp_path, people=2)
    plain, halved = Watching(48), Watching(48)
    score_records(plain.scorer, records, cache=tmp_path)
    score_records(
        halved.scorer,
        records,
        cache=tmp_path,
        degrade=lambda rgb, rng: cv2.resize(rgb, (48, 48), interpolation=cv2.INTER_AREA),
    )
    for record, before, after in zip(records, plain.shown, halved.shown, strict=True):
        small = cv2.resize(read_crop(tmp_path, record), (48, 48), interpolation=cv2.INTER_AREA)
        elsewhere = crop_faces(small, np.array([record.box], np.float32), margin=0.3, size=48)[0]
        assert (
            0 < np.abs(before.astype(int) - after).mean() < 10 < np.abs(before.astype(int) - elsewhere).mean()
        )


@pytest.mark.parametrize("kind", ["self-blend", "cross-blend"])
def test_blends_come_with_their_untouched_face(tmp_path: Path, kind: BlendKind) -> None:
    records = make_cache(tmp_path, people=3, frames=2)
    faces = Blends(records, tmp_path, kind)
    assert len(faces) == 6  # of the real ones alone
    for index in range(len(faces)):
        untouched, blended = faces.faces(index)
        assert (untouched.label, blended.label) == (REAL, FAKE)
        assert (blended.video, blended.generator) == (f"{untouched.video}#{kind}", kind)
        assert faces.people()[blended.video] == faces.people()[untouched.video]
        record = [r for r in records if r.label == REAL][index]
        np.testing.assert_array_equal(untouched.rgb, read_crop(tmp_path, record))
        assert not np.array_equal(blended.rgb, untouched.rgb)
        np.testing.assert_array_equal(faces.faces(index)[1].rgb, blended.rgb)
    others = Blends(records, tmp_path, kind, seed=1)
    assert any(not np.array_equal(others.faces(i)[1].rgb, faces.faces(i)[1].rgb) for i in range(len(faces)))


def test_a_cross_blend_shows_another_person(tmp_path: Path) -> None:
    records = [record for record in make_cache(tmp_path, people=2, frames=1) if record.label == REAL]
    whole = BlendConfig(regions=PUBLISHED.regions, cross_ratios=(1,), poisson=0, colour_match=(0, 0))
    untouched, blended = Blends(records, tmp_path, "cross-blend", config=whole).faces(0)
    (x, y), inside = np.rint(records[0].keypoints[2]).astype(int), 4
    nose = slice(y - inside, y + inside), slice(x - inside, x + inside)
    other = read_crop(tmp_path, records[1])[nose].mean(axis=(0, 1))
    assert np.abs(blended.rgb[nose].mean(axis=(0, 1)) - other).max() < 8
    assert np.abs(untouched.rgb[nose].mean(axis=(0, 1)) - other).max() > 16
    with pytest.raises(TrainingError, match="all real faces are of one group"):
        Blends(records[:1], tmp_path, "cross-blend")


def test_a_face_that_cannot_be_blended_is_left_out_with_its_untouched_one(tmp_path: Path) -> None:
    records = [record for record in make_cache(tmp_path, people=2, frames=1) if record.label == REAL]
    outside = replace(records[0], keypoints=tuple((x + 500.0, y) for x, y in records[0].keypoints))
    (scores,) = score_faces([green_scorer()], Blends([outside, records[1]], tmp_path), batch=1)
    assert scores.videos == (records[1].item, f"{records[1].item}#self-blend")


def test_a_pair_suffers_the_same(tmp_path: Path) -> None:
    records = make_cache(tmp_path, people=4, frames=1)
    seen: dict[int, list[int]] = {}

    def watch(rgb: UInt8Array, rng: np.random.Generator) -> UInt8Array:
        seen.setdefault(int(rng.integers(1 << 40)), []).append(1)
        return rgb

    score_faces([green_scorer()], Blends(records, tmp_path), degrade=watch)
    assert [len(faces) for faces in seen.values()] == [2, 2, 2, 2]


def test_a_member_of_engines_is_scored_as_the_service_runs_it(tmp_path: Path) -> None:
    records = make_cache(tmp_path / "cache", people=2)
    path = make_network(tmp_path, calibration=Calibration(temperature=3.0, bias=-1.0))
    network = load_network(path, backend="openvino", precision="f32", threads=1)
    try:
        scorer = network_scorer(network)
        assert (scorer.name, scorer.size, scorer.calibration.bias) == ("small", 32, -1.0)
        scores = score_records(scorer, records, cache=tmp_path / "cache")
        boxes = np.array([records[3].box], np.float32)
        served = crop_faces(read_crop(tmp_path / "cache", records[3]), boxes, margin=0.3, size=32)
        np.testing.assert_allclose(scores.logits[3], network.run(served)[0][0, 0], atol=1e-6)
    finally:
        network.close()


def test_nothing_to_score_and_nonsense_are_errors(tmp_path: Path) -> None:
    records = make_cache(tmp_path, people=1)
    with pytest.raises(TrainingError, match="no faces to score"):
        score_records(green_scorer(), [], cache=tmp_path)
    broken = Scorer("broken", 48, lambda images: np.full(len(images), np.nan, np.float32))
    with pytest.raises(TrainingError, match=r"broken: 4 finite logits expected.* 4 NaN"):
        score_records(broken, records, cache=tmp_path)
    (tmp_path / records[1].file).unlink()
    with pytest.raises(TrainingError, match="cannot read the crop"):
        score_records(green_scorer(), records, cache=tmp_path)


@pytest.mark.needs_torch
def test_a_torch_model_on_the_same_views(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from streamer.training.scoring import torch_scorer

    class Brightness(torch.nn.Module):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.tensor(2.0))
            self.drop = torch.nn.Dropout(0.9)

        def forward(self, x: object) -> tuple[object, None]:
            return self.drop(self.gain * x.mean((1, 2, 3))[:, None]), None  # type: ignore[attr-defined]

    records = make_cache(tmp_path, people=2)
    watching = Watching(40)
    score_records(watching.scorer, records, cache=tmp_path)
    scores = score_records(torch_scorer("b", Brightness().train(), size=40), records, cache=tmp_path)
    x = (np.stack(watching.shown) - [123.675, 116.28, 103.53]) / [58.395, 57.12, 57.375]
    np.testing.assert_allclose(scores.logits, 2 * x.mean(axis=(1, 2, 3)), atol=1e-4)

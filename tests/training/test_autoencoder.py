"""The autoencoder behind decoded blends: what it sees of a face, where its face goes, that it learns."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from portraits import astronaut
from toy import make_cache

from streamer.errors import TrainingError
from streamer.training.types import REAL
from streamer.types import Float32Array, UInt8Array

pytestmark = pytest.mark.needs_torch
torch = pytest.importorskip("torch")


class Same(torch.nn.Module):  # type: ignore[name-defined,misc]
    """Paints what it was shown."""

    def forward(self, faces: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        assert kept.shape == (len(faces),)
        return faces


class White(torch.nn.Module):  # type: ignore[name-defined,misc]
    def forward(self, faces: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(faces)


def turned(degrees: float) -> tuple[UInt8Array, Float32Array, tuple[float, float, float, float]]:
    """The astronaut, her picture turned about its middle; her box, which then need not fit her closely."""
    face = astronaut()
    rgb, keypoints = face.picture.rgb, face.picture.keypoints
    matrix = cv2.getRotationMatrix2D((103.5, 103.5), degrees, 1.0)
    moved = cv2.warpAffine(rgb, matrix, (208, 208), borderMode=cv2.BORDER_REFLECT_101)
    points = keypoints @ matrix[:, :2].T + matrix[:, 2]
    return np.asarray(moved, np.uint8), points.astype(np.float32), face.box


@pytest.mark.parametrize("degrees", [0, 35, -60])
def test_the_square_is_upright_about_the_face(degrees: float) -> None:
    from streamer.training.autoencoder import cut_square

    rgb, keypoints, box = turned(degrees)
    square, matrix = cut_square(rgb, keypoints, box, 96)
    assert (square.shape, square.dtype) == ((96, 96, 3), np.uint8)
    right_eye, left_eye, nose, mouth = (keypoints @ matrix[:, :2].T + matrix[:, 2])[:4]
    assert right_eye[1] == pytest.approx(left_eye[1], abs=0.1)
    assert right_eye[0] < nose[0] < left_eye[0]
    assert mouth[1] > nose[1] > left_eye[1]
    np.testing.assert_allclose((right_eye + left_eye) / 4 + mouth / 2, [47.5, 47.5], atol=0.1)
    upright, _ = cut_square(*turned(0), 96)
    assert np.abs(square.astype(int) - upright).mean() < 6, "the same face, however it was turned"


@pytest.mark.parametrize("degrees", [0, 35])
def test_the_face_goes_back_where_it_was(degrees: float) -> None:
    from streamer.training.autoencoder import decode_face

    rgb, keypoints, box = turned(degrees)
    for seed in range(6):
        picture, where = decode_face(rgb, keypoints, box, Same(), np.random.default_rng(seed))
        assert (picture.shape, picture.dtype) == (rgb.shape, np.uint8)
        assert (where.shape, where.dtype) == (rgb.shape[:2], np.float32)
        assert 0 == where.min() < where.max() == pytest.approx(1)
        assert where[tuple(np.rint(keypoints[2, ::-1]).astype(int))] == pytest.approx(1)
        off = np.abs(picture.astype(int) - rgb).max(axis=2)
        assert off[where > 0.99].mean() < 20  # shrunk to 64 px and enlarged, sharpened or not
        painted, same = decode_face(rgb, keypoints, box, White(), np.random.default_rng(seed))
        np.testing.assert_array_equal(same, where)
        assert painted[where > 0.99].min() == 255


def test_the_same_draws_give_the_same_face() -> None:
    from streamer.training.autoencoder import FaceAutoencoder, decode_face

    rgb, keypoints, box = turned(0)
    network = FaceAutoencoder().eval()
    pictures = [
        decode_face(rgb, keypoints, box, network, np.random.default_rng(seed))[0] for seed in (1, 1, 2)
    ]
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert not np.array_equal(pictures[0], pictures[2])


def test_a_code_with_fewer_channels_is_another_code() -> None:
    from streamer.training.autoencoder import CHANNELS, FaceAutoencoder

    network = FaceAutoencoder().eval()
    faces = torch.rand(2, 3, 64, 64)
    with torch.inference_mode():
        whole = network(faces, torch.tensor([CHANNELS, CHANNELS]))
        part = network(faces, torch.tensor([CHANNELS, 16]))
    assert whole.shape == faces.shape
    assert 0 <= float(whole.min()) < float(whole.max()) <= 1
    torch.testing.assert_close(part[0], whole[0])
    assert float((part[1] - whole[1]).abs().max()) > 1e-4


def test_dissimilarity() -> None:
    from streamer.training.autoencoder import dissimilarity

    faces = torch.rand(2, 3, 32, 32)
    assert float(dissimilarity(faces, faces)) == pytest.approx(0, abs=1e-5)
    slightly, quite = (float(dissimilarity(faces, torch.lerp(faces, 1 - faces, by))) for by in (0.1, 0.9))
    assert 0 < slightly < 0.1 < 0.8 < quite <= 1


def test_it_learns_faces_and_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamer.training import fit_autoencoder as fitting
    from streamer.training.autoencoder import CHANNELS, FaceAutoencoder, cut_square, load_autoencoder
    from streamer.training.crops import read_crop

    monkeypatch.setattr(fitting, "SIDES", (64,))
    monkeypatch.setattr(fitting, "BATCH_PIXELS", 4 * 64**2)
    monkeypatch.setattr(fitting, "SCHEDULE", fitting.SCHEDULE.model_copy(update={"warm_up_steps": 5}))
    records = make_cache(tmp_path)
    path, told = tmp_path / "made" / "autoencoder.pt", []
    last = fitting.fit_autoencoder(
        records, tmp_path, path, steps=100, seed=1, workers=0, progress=lambda *at: told.append(at)
    )
    assert told == [(step, 100) for step in range(1, 101)]
    network = load_autoencoder(path)
    faces = []
    for record in records:
        if record.label == REAL:
            keypoints = np.array(record.keypoints, np.float32)
            faces.append(cut_square(read_crop(tmp_path, record), keypoints, record.box, 64)[0])
    shown = torch.from_numpy(np.stack(faces)).permute(0, 3, 1, 2) / 255
    off = {}
    for name, each in (("trained", network), ("untrained", FaceAutoencoder().eval())):
        with torch.inference_mode():
            painted = each(shown, torch.full((len(shown),), CHANNELS))
        off[name] = float((painted - shown).abs().mean())
    assert off["trained"] < 0.85 * off["untrained"]
    assert 0 < last < 0.5


def test_the_same_seed_gives_the_same_network(tmp_path: Path) -> None:
    from streamer.training.autoencoder import load_autoencoder
    from streamer.training.fit_autoencoder import fit_autoencoder

    records = make_cache(tmp_path)
    weights = []
    for number, seed in enumerate((3, 3, 4)):
        path = tmp_path / f"{number}.pt"
        fit_autoencoder(records, tmp_path, path, steps=2, seed=seed, workers=0)
        weights.append(torch.cat([each.flatten() for each in load_autoencoder(path).state_dict().values()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_interrupted_or_not_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from streamer.training import fit_autoencoder as fitting

    class StopError(Exception):
        pass

    def stop_after_5(done: int, _steps: int) -> None:
        if done == 5:
            raise StopError

    monkeypatch.setattr(fitting, "KEEP_EVERY", 2)
    records = make_cache(tmp_path)

    def fit(name: str, **settings: Any) -> Any:
        wanted = {"steps": 6, "seed": 1, "workers": 0} | settings
        last = fitting.fit_autoencoder(records, tmp_path, tmp_path / name, **wanted)
        weights = torch.load(tmp_path / name, weights_only=True)["weights"]
        return last, torch.cat([weight.flatten() for weight in weights.values()])

    whole, weights = fit("whole.pt")
    with pytest.raises(StopError):
        fit("cut.pt", progress=stop_after_5)
    assert not (tmp_path / "cut.pt").exists()
    with pytest.raises(TrainingError, match=r"cut.pt.unfinished: .*not finished: go on with --resume"):
        fit("cut.pt")
    with pytest.raises(TrainingError, match="begun with other faces, steps or seed"):
        fit("cut.pt", resume=True, seed=2)
    steps: list[int] = []
    again, resumed = fit("cut.pt", resume=True, progress=lambda done, _: steps.append(done))
    assert steps == [5, 6]
    assert again == whole
    assert torch.equal(resumed, weights)
    assert not list(tmp_path.glob("*.unfinished"))
    (tmp_path / "cut.pt.unfinished").write_bytes(b"damaged")
    with pytest.raises(TrainingError, match=r"cannot read the training: damaged; delete it"):
        fit("cut.pt", resume=True)


def test_a_finished_one_is_left_as_it_is_by_resume(tmp_path: Path) -> None:
    from streamer.training.fit_autoencoder import fit_autoencoder

    records = make_cache(tmp_path)
    path = tmp_path / "a.pt"
    steps: list[int] = []

    def fit(**settings: Any) -> float:
        wanted: dict[str, Any] = {"steps": 2, "seed": 1, "workers": 0} | settings
        return fit_autoencoder(records, tmp_path, path, progress=lambda done, _: steps.append(done), **wanted)

    last = fit()
    content = path.read_bytes()
    assert fit(resume=True) == last
    assert steps == [1, 2]
    assert path.read_bytes() == content
    with pytest.raises(TrainingError, match=r"a.pt: made of other faces, steps or seed; train anew without"):
        fit(resume=True, steps=3)
    assert fit(seed=2) != last
    assert steps == [1, 2, 1, 2]


def test_where_it_cannot_be_written_is_said_at_once(tmp_path: Path) -> None:
    from streamer.training.fit_autoencoder import fit_autoencoder

    (tmp_path / "file").touch()
    steps: list[int] = []
    with pytest.raises(TrainingError, match="cannot write the training"):
        fit_autoencoder(
            make_cache(tmp_path),
            tmp_path,
            tmp_path / "file" / "a.pt",
            steps=2,
            seed=1,
            workers=0,
            progress=lambda done, _: steps.append(done),
        )
    assert not steps


def test_only_real_faces_for_training_are_shown(tmp_path: Path) -> None:
    from streamer.training.fit_autoencoder import fit_autoencoder

    records = [replace(record, split="validation") for record in make_cache(tmp_path) if record.label == REAL]
    records += [record for record in make_cache(tmp_path) if record.label != REAL]
    with pytest.raises(TrainingError, match="no real faces among the training crops"):
        fit_autoencoder(records, tmp_path, tmp_path / "a.pt", steps=1, seed=1, workers=0)


def test_files_that_are_none(tmp_path: Path) -> None:
    from streamer.training.autoencoder import FaceAutoencoder, load_autoencoder, save_autoencoder

    with pytest.raises(
        TrainingError, match=r"cannot read the autoencoder: No such file.*streamer train auto"
    ):
        load_autoencoder(tmp_path / "none.pt")
    damaged = tmp_path / "damaged.pt"
    damaged.write_bytes(b"no network")
    with pytest.raises(TrainingError, match=r"damaged.pt: not an autoencoder, or damaged"):
        load_autoencoder(damaged)
    other = tmp_path / "other.pt"
    torch.save({"weights": {}}, other)
    with pytest.raises(TrainingError, match=r"other.pt: not an autoencoder of this version"):
        load_autoencoder(other)
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="cannot write the autoencoder"):
        save_autoencoder(tmp_path / "file" / "a.pt", FaceAutoencoder(), {})

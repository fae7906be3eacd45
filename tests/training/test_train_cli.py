"""`streamer train ...` on a small copy of DFDC's layout, from videos to a member that the service loads."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import skimage.data
from moving import write_clip
from typer.testing import CliRunner, Result

from streamer.classify import Ensemble
from streamer.config import ClassifyConfig
from streamer.errors import StreamerError, TrainingError
from streamer.manifest import read_manifest
from streamer.training.augment import plain_view
from streamer.training.augment_config import AUGMENTATIONS
from streamer.training.cli import train_app
from streamer.training.config import parse_config
from streamer.training.crops import read_crop, read_index
from streamer.training.figures import read_evaluation
from streamer.training.types import FAKE
from streamer.types import UInt8Array

ROOT = Path(__file__).parents[2]
SIZE = 64
GREEN = np.array([20, 220, 40])
RECIPE = f"""
steps = 64
batch = 8
precision = "f32"
workers = 0
[model]
architecture = "mobilenet_v2"
pretrained = false
batch_statistics = 1            # in 64 steps from random weights none worth keeping are gathered
[input]
size = {SIZE}
[mixture]
self_blended = 0
dataset_fake = 1
[optimiser]
learning_rate = 2e-3
warm_up_steps = 2
ema_decay = 0.8
[validation]
every = 64
blends = 0
"""
WITHOUT_TORCH = """
import sys
class NoTorch:
    def find_spec(self, name, *_):
        if name.partition(".")[0] == "torch":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, NoTorch())
from streamer.cli import main
main()
"""
RECIPE += "".join(f"[augment.{name}]\nprobability = 0\n" for name in AUGMENTATIONS)


def run(*words: str | Path) -> Result:
    """Errors of ours pass through, as they do to `streamer`, which shows them."""
    return CliRunner().invoke(train_app, list(map(str, words)), catch_exceptions=False)


def people() -> list[UInt8Array]:
    """(256, 256, 3): one face made to look like three people, none a copy of another."""
    picture = skimage.data.astronaut()
    tilted = cv2.warpAffine(picture, cv2.getRotationMatrix2D((225, 128), 14, 1.0), (512, 512))
    wide = cv2.resize(np.roll(picture, 60, axis=0)[:360, 60:420], (256, 256), interpolation=cv2.INTER_AREA)
    return [picture[:256, 96:352], picture[:256, 96:352, :][:, ::-1], wide, tilted[:256, 110:366]]


def make_green(real: UInt8Array, strength: float) -> UInt8Array:
    fake = real.copy()
    fake[60:200, 60:200] = (1 - strength) * fake[60:200, 60:200] + strength * GREEN
    return fake


def make_dfdc(root: Path) -> Path:
    """Four folders, in each a real video, two fakes of it that are green in the face, and a broken file."""
    for number, real in enumerate(people()):
        part = root / f"dfdc_train_part_{number}"
        part.mkdir(parents=True)
        metadata: dict[str, dict[str, str]] = {"real.mp4": {"label": "REAL", "split": "train"}}
        write_clip(part / "real.mp4", real)
        for name, strength in (("first.mp4", 0.25), ("second.mp4", 0.35)):
            write_clip(part / name, make_green(real, strength))
            metadata[name] = {"label": "FAKE", "split": "train", "original": "real.mp4"}
        (part / "broken.mp4").write_bytes(b"no video")
        metadata["broken.mp4"] = {"label": "REAL", "split": "train"}
        (part / "metadata.json").write_text(json.dumps(metadata))
    return root


def make_faceforensics(root: Path) -> Path:
    """Two people and a third one's face on the first, twice; lossless only, and without split files."""
    first, second, *_ = people()
    for name, picture in (
        ("original_sequences/youtube/raw/videos/000.mp4", first),
        ("original_sequences/youtube/raw/videos/002.mp4", second),
        ("manipulated_sequences/Deepfakes/raw/videos/000_001.mp4", make_green(first, 0.25)),
        ("manipulated_sequences/FaceSwap/raw/videos/000_001.mp4", make_green(first, 0.35)),
    ):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        write_clip(root / name, picture)
    return root


@dataclass(frozen=True)
class Prepared:
    cache: Path
    result: Result


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    folder = tmp_path_factory.mktemp("train")
    data = make_dfdc(folder / "dfdc")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        result = run("prepare", data, "--source", "dfdc", "--cache", folder / "cache")
    return Prepared(folder / "cache", result)


@pytest.fixture(autouse=True)
def _at_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


def test_prepare(prepared: Prepared) -> None:
    assert prepared.result.exit_code == 0
    assert "0 duplicates and 4 undecodable files left out, 0 gave no face" in prepared.result.stdout
    assert "validation: 4 crops DFDC, 10 crops real\n" in prepared.result.stdout
    records = read_index(prepared.cache)
    assert len(records) == 4 * (10 + 2 * 2)
    assert {record.source for record in records} == {"dfdc"}
    report = json.loads((prepared.cache / "duplicates.json").read_text())
    assert len(report["undecodable"]) == 4
    assert json.loads((prepared.cache / "prepared.json").read_text())["crops"] == len(records)


def test_a_contact_sheet(prepared: Prepared, tmp_path: Path) -> None:
    path = tmp_path / "sheet.png"
    assert run("sheet", "--cache", prepared.cache, "--output", path, "--faces", "2").exit_code == 0
    drawn = cv2.imread(str(path))
    assert drawn is not None
    assert drawn.std() > 20


@pytest.mark.needs_torch
def test_an_autoencoder_and_what_it_paints(prepared: Prepared, tmp_path: Path) -> None:
    pytest.importorskip("torch").set_num_threads(1)
    cache, made = prepared.cache, tmp_path / "autoencoder.pt"
    result = run("autoencoder", "--cache", cache, "--output", made, "--steps", "2")
    assert result.stdout.startswith(f"{made}: dissimilarity 0.")
    recipe = tmp_path / "r.toml"
    recipe.write_text(
        RECIPE.replace("dataset_fake = 1", f"dataset_fake = 0\ndecoded = 1\nautoencoder = '{made}'")
    )
    heights = []
    for options in ((), ("--recipe", recipe)):
        path = tmp_path / f"{len(options)}.png"
        run("sheet", "--cache", cache, "--output", path, "--faces", "2", *options)
        drawn = cv2.imread(str(path))
        assert drawn is not None
        heights.append(drawn.shape[0])
    assert heights[0] < heights[1], "a row more"
    run("fit", recipe, "--cache", cache, "--run", tmp_path / "run", "--set", "steps=1")
    assert (tmp_path / "run" / "last.pt").is_file()


@pytest.mark.needs_torch
@pytest.mark.timeout(600)
def test_from_videos_to_a_member(prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    torch.set_num_threads(1)
    recipe, cache, runs, engines = tmp_path / "r.toml", prepared.cache, tmp_path / "run", tmp_path / "engines"
    recipe.write_text(RECIPE)
    # 1. fit; a second time it goes on, and is at its end already
    fit = ("fit", recipe, "--cache", cache, "--run", runs, "--set", "seed=3")
    result = run(*fit)
    assert result.stdout == f"{runs / 'best.pt'}\n"
    with pytest.raises(TrainingError, match="holds a run already"):
        run(*fit)
    monkeypatch.setenv("RANK", "1")  # of torchrun: what is printed is printed once
    assert run(*fit, "--resume").stdout == ""
    monkeypatch.delenv("RANK")
    # 2. export; as if there were a GPU, to which nothing is moved in truth
    moved: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.nn.Module, "to", lambda model, device: moved.append(device) or model)
    result = run("export", runs / "best.pt", "--name", "toy", "--cache", cache, "--engines", engines)
    assert result.exit_code == 0
    manifest = read_manifest(engines / "toy.json")
    assert (manifest.trained, manifest.input.height) == (True, SIZE)
    assert "MobileNetV2 from random weights; seed 3;" in manifest.origin
    assert "data: dfdc: 12 DFDC, 30 real crops" in manifest.origin
    assert "over 1 real and 2 fake held-out videos" in manifest.measured
    assert moved == ["cuda"]
    # 3. evaluate both
    report = tmp_path / "report"
    words = ("evaluate", runs / "best.pt", "toy", "--cache", cache, "--engines", engines, "--no-curves")
    result = run(*words, "--report", report)
    assert moved == ["cuda"] * 2
    monkeypatch.undo()
    monkeypatch.chdir(ROOT)
    assert "validation: 1 real video, 2 fake ones, 14 faces\n" in result.stdout
    figures = read_evaluation(report / "report.json")
    assert [part.name for part in figures.sets] == ["validation", "self-blends", "hard self-blends"]
    assert figures.sets[0].seen_in_training.startswith("people no, generators yes")
    assert "expect less" in figures.notes[0]
    assert {scorer.name for scorer in figures.sets[0].scorers} >= {"run", "toy", "ensemble"}
    assert "<svg" in (report / "report.html").read_text()
    assert "chosen on validation" in (report / "report.html").read_text()
    quick = run(
        "evaluate", "toy", "--cache", cache, "--engines", engines, "--quick", "--report", tmp_path / "q"
    )
    assert "validation: 1 real video, 2 fake ones, 12 faces\n" in quick.stdout
    curves = read_evaluation(tmp_path / "q" / "report.json").curves
    assert [curve.on for curve in curves] == ["validation"] * 4 + ["self-blends"] * 4
    # several people: cross-blends too
    words = ("evaluate", "toy", "--cache", cache, "--engines", engines, "--split", "train", "--quick")
    run(*words, "--report", tmp_path / "several")
    *_, last = read_evaluation(tmp_path / "several" / "report.json").sets
    assert (last.name, last.seen_in_training[:10]) == ("cross-blends", "people yes")
    # 4. its card
    facts = ("--data", "Toys.", "--licence-of-data", "Free.", "--command", "a test", "--device", "one core")
    result = run("card", runs / "best.pt", "--name", "toy", "--engines", engines, "--report", report, *facts)
    text = (engines / "toy.md").read_text()
    assert result.stdout == f"{engines / 'toy.md'}\n"
    for said in (
        "# toy",
        "> **Measure it on data of your own before anyone relies on it.**",
        "- Toys.",
        "Seed 3, 64 steps",
        "| validation | 1 + 2 |",
        "model.start=engines/toy.json",
    ):
        assert said in text
    # 5. the service loads it, and it has learned something
    ensemble = Ensemble(ClassifyConfig(engines=engines, members=("toy",), threads=1))
    records = [record for record in read_index(cache) if record.split == "validation"]
    views = [plain_view(read_crop(cache, r), r.box, margin=0.3, size=SIZE) for r in records]
    scores = ensemble.classify((np.stack(views),))[:, 0]
    ensemble.close()
    fake = np.array([record.label == FAKE for record in records])
    assert scores[fake].mean() > scores[~fake].mean() + 0.1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("prepare", "nowhere", "--source", "dfdc", "--cache", "CACHE"), "cannot read the folder"),
        (("prepare", "a", *("--source", "dfdc") * 2, "--cache", "CACHE"), "--source is given once"),
        (
            ("prepare", "x/a", "y/a", "--source", "dfdc", "--cache", "CACHE"),
            "(would both be called dfdc|cannot read)",
        ),
        *(
            (
                ("prepare", "a", "--source", "dfdc", "--cache", "CACHE", *option),
                "--compression, --method and --no-official-split are for --source faceforensics",
            )
            for option in (("--compression", "c0"), ("--method", "FaceSwap"), ("--no-official-split",))
        ),
        pytest.param(
            ("evaluate", "some", "--cache", "CACHE"), "prepare first", marks=pytest.mark.needs_torch
        ),
        pytest.param(("autoencoder", "--cache", "CACHE"), "prepare first", marks=pytest.mark.needs_torch),
        (("sheet", "--cache", "CACHE"), "prepare first"),
    ],
)
def test_errors_say_what_to_do(words: tuple[str, ...], says: str, tmp_path: Path) -> None:
    with pytest.raises(StreamerError, match=says):
        run(*(str(tmp_path / "cache") if word == "CACHE" else word for word in words))


def test_a_cache_that_cannot_be_written(prepared: Prepared, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrainingError, match="file: File exists"):
        run("prepare", prepared.cache.parent / "dfdc", "--source", "dfdc", "--cache", tmp_path / "file")


def test_prepare_faceforensics(tmp_path: Path) -> None:
    data, cache = make_faceforensics(tmp_path / "ff"), tmp_path / "cache"
    words = ("prepare", data, "--source", "faceforensics", "--cache", cache)
    with pytest.raises(TrainingError, match="no videos there, but of c0: give --compression c0"):
        run(*words)
    with pytest.raises(TrainingError, match=r"has no 'c1'; there are c0, c23, c40"):
        run(*words, "--compression", "c1")
    with pytest.raises(TrainingError, match=r"has no 'deepfakes'; there are Deepfakes, Face2Face"):
        run(*words, "--method", "deepfakes")
    words = (*words, "--compression", "c0", "--method", "Deepfakes")
    with pytest.raises(TrainingError, match=r"train\.json, val\.json, test\.json are missing"):
        run(*words)
    # by people, or by name
    for choice in (("--no-official-split",), ("--validation", "*/002.mp4")):
        assert run(*words, *choice).exit_code == 0
        records = read_index(cache)
        assert {record.generator for record in records} == {"real", "Deepfakes"}
        assert {record.split for record in records} == {"train", "validation"}


def test_prepare_one_folder_of_dfdc_alone(tmp_path: Path) -> None:
    data, names = tmp_path / "train_sample_videos", ("a.mp4", "b.mp4")
    data.mkdir()
    for name in names:
        (data / name).touch()
    (data / "metadata.json").write_text(json.dumps({name: {"label": "REAL"} for name in names}))
    result = run("prepare", data, "--source", "dfdc", "--cache", tmp_path / "cache")
    assert "one folder of DFDC alone is split by original" in result.stderr
    assert "2 undecodable files left out" in result.stdout


def test_what_belongs_together_leaves_nothing(tmp_path: Path) -> None:
    videos = tmp_path / "videos"
    for name in ("real/ann.mp4", "fake/ann.mp4"):
        (videos / name).parent.mkdir(parents=True)
        (videos / name).touch()
    words = ("prepare", videos, "--source", "folder", "--cache", tmp_path / "cache")
    with pytest.raises(TrainingError, match=r"nothing is left for validation: .* \(groups: videos/ann\)"):
        run(*words)
    with pytest.raises(TrainingError, match=r"nothing is left for train: .* \(groups: videos/ann\)"):
        run(*words, "--validation", "videos/real/*")


@pytest.mark.parametrize(
    "words", [("fit", "r.toml", "--run", "run"), ("autoencoder",), ("export", "a.pt", "--name", "a")]
)
def test_without_the_extra_it_says_which_one(prepared: Prepared, words: tuple[str, ...]) -> None:
    ended = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, "train", *words, "--cache", prepared.cache],
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.stderr == "error: this needs torch: pip install -e '.[train]' in the repository\n"
    assert ended.returncode == 2


@pytest.mark.parametrize("command", ["prepare", "autoencoder", "fit", "evaluate", "export", "sheet"])
def test_help(command: str) -> None:
    result = run(command, "--help")
    assert result.exit_code == 0
    assert "--cache" in result.stdout


@pytest.mark.needs_torch
def test_a_worker_of_torch_that_dies(
    prepared: Prepared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from streamer.training import train as module

    def dying(*_: object, **__: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    monkeypatch.setattr(module, "train", dying)
    (tmp_path / "r.toml").write_text(RECIPE)
    with pytest.raises(TrainingError, match=r"died, most likely .*pid 7.*--resume, with fewer workers"):
        run("fit", tmp_path / "r.toml", "--cache", prepared.cache, "--run", tmp_path / "run")


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("start", "kept", "says"),
    [
        ("engines/known.json", 0, "from the member known;"),
        ("runs/a/last.pt", 0.5, "from the checkpoint a/last.pt (50 % kept);"),
        (["e/known.json", "a/l.pt"], 0, "from the mean of the member known and the checkpoint a/l.pt;"),
    ],
)
def test_origin_names_what_training_started_from(start: str | list[str], kept: float, says: str) -> None:
    from streamer.training.checkpoint import Checkpoint
    from streamer.training.make_member import origin_of

    model = {"architecture": "mobilenet_v2", "start": start}
    config = parse_config({"model": model, "optimiser": {"start_share": kept}}, "x")
    checkpoint = Checkpoint(config, "data", 1, 1.0, {}, {}, {}, {}, {}, None, 0, {})
    assert says in origin_of(checkpoint, "faces")

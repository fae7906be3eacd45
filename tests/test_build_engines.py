"""build_engines.py as a person runs it."""

from __future__ import annotations

import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from networks import make_network

from streamer.backends.compiled import INT8_FOLDER
from streamer.gpu import DRIVER

SCRIPT = Path(__file__).parents[1] / "build_engines.py"


def build(*arguments: object) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        timeout=150,
    )
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr + done.stdout


def build_here(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Without a process of its own: fast, for what ends before any work begins."""
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, arguments)])
    previous = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(SCRIPT), run_name="__main__")
    finally:
        signal.signal(signal.SIGTERM, previous)
    return int(str(ended.value.code))


def test_int8_and_a_table(tmp_path: Path) -> None:
    make_network(tmp_path, "small")
    arguments = ("--engines", tmp_path, "--target", "openvino", "--precision", "int8", "small")
    code, text = build(*arguments, "--dry-run")
    assert code == 0
    assert "small.json -> build" in text
    assert not (tmp_path / "compiled").exists()
    code, text = build(*arguments, "--max-difference", "0.2")
    assert code == 0, text
    assert "max difference" in text
    assert (tmp_path / INT8_FOLDER / "small.json").is_file()


def test_refused_beyond_the_bound(tmp_path: Path) -> None:
    make_network(tmp_path, "small")
    code, text = build("--engines", tmp_path, "--precision", "int8", "small", "--max-difference", "1e-9")
    assert code == 1
    assert "differs too much from f32: small" in text


def test_f32_is_only_checked(tmp_path: Path) -> None:
    make_network(tmp_path, "small")
    code, text = build("--engines", tmp_path, "--precision", "f32", "small")
    assert code == 0
    assert "nothing to build" in text
    code, text = build("--engines", tmp_path, "small", "--max-difference", "1e-12")
    assert code == 1
    assert "differs too much: small" in text


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--precision", "fp16"], 2, "fp16 is for --target tensorrt"),
        (["--precision", "fp8"], 2, "fp8 is for --target tensorrt"),
        (["--target", "tensorrt", "--jobs", "0"], 2, "--jobs must be at least 1"),
        (["--target", "tensorrt", "--name", "mine"], 2, "--from-checkpoint and --name go together"),
        (["absent"], 1, "no classifier called 'absent'"),
        (["--max-difference", "0"], 2, "must be in (0, 1]"),
        (["--calibration", "no/such/folder"], 2, "no such folder"),
        (["--precision", "int4"], 2, "invalid choice"),
    ],
)
def test_errors_a_person_can_act_on(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    code: int,
    message: str,
) -> None:
    assert build_here(monkeypatch, "--engines", tmp_path, *arguments) == code
    assert message in " ".join(capsys.readouterr().err.split())


def test_without_names_it_is_all_trained_ones_and_nothing_is_made(tmp_path: Path) -> None:
    make_network(tmp_path, "small", trained=True)
    make_network(tmp_path, "random")
    code, text = build("--engines", tmp_path, "--dry-run")
    assert code == 0
    assert re.findall(r"(\w+)\.json -> check", text) == ["small"]
    wrong = tmp_path / "enginse"
    code, text = build("--engines", wrong)
    assert code == 1
    assert f"no trained classifiers under {wrong}" in text
    assert not wrong.exists()


@pytest.mark.parametrize("target", ["openvino", "tensorrt"])
def test_a_checkpoint_that_cannot_be_read_is_never_passed_over(tmp_path: Path, target: str) -> None:
    if target == "tensorrt" and not DRIVER.exists():
        pytest.skip("there is no GPU, which is said first")
    make_network(tmp_path, "small", trained=True)
    wanted = ("--target", target, "--from-checkpoint", tmp_path / "absent.pt", "--name", "mine")
    code, text = build("--engines", tmp_path, *wanted)
    assert code == 1
    assert re.search(r"absent\.pt: cannot read|--from-checkpoint: No module .*'\.\[train\]'", text)


@pytest.mark.needs_torch
def test_a_checkpoint_becomes_a_member_and_is_checked(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from streamer.training.checkpoint import save_checkpoint
    from streamer.training.config import parse_config
    from streamer.training.state import State

    config = {"model": {"architecture": "mobilenet_v2", "pretrained": False}, "input": {"size": 64}}
    state = State.start(parse_config(config, "test"), "data", torch.device("cpu"))
    save_checkpoint(tmp_path / "best.pt", state.checkpoint())
    engines = tmp_path / "engines"
    engines.mkdir()
    for file in (SCRIPT.parent / "engines").glob("[bm]*.[jo]*"):  # detectors, and the default members
        (engines / file.name).symlink_to(file)
    wanted = ("--engines", engines, "--from-checkpoint", tmp_path / "best.pt", "--name")
    code, text = build(*wanted, "../mine")
    assert code == 1
    assert "a member's name is that of its files" in text
    assert not list(tmp_path.glob("mine.*"))
    code, text = build(*wanted, "mine")
    assert code == 0, text
    assert "mine: checking f32" in text
    assert (engines / "mine.json").is_file()


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    make_network(tmp_path, "small")
    (tmp_path / "compiled").write_text("in the way")
    code, text = build("--engines", tmp_path, "--precision", "int8", "small")
    assert code == 1
    assert f"{tmp_path / INT8_FOLDER}: Not a directory" in text


def test_what_an_ended_build_had_begun_is_removed(tmp_path: Path) -> None:
    make_network(tmp_path, "small")
    command = [sys.executable, SCRIPT, "--engines", tmp_path, "--precision", "int8", "small"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(f"{INT8_FOLDER}/.building-*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        _, text = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in text
    assert "Traceback" not in text
    assert list((tmp_path / INT8_FOLDER).iterdir()) == []


def test_tensorrt_needs_a_gpu(tmp_path: Path) -> None:
    if DRIVER.exists():
        pytest.skip("there is an NVIDIA driver")
    make_network(tmp_path, "small", trained=True)
    code, text = build("--engines", tmp_path, "--target", "tensorrt", "--precision", "fp16")
    assert code == 1
    assert re.search(r"backend tensorrt: (No module named|PyTorch .* finds no CUDA device)", text)


def test_untrained(tmp_path: Path) -> None:
    assert "resnext50_32x4d" in build("--engines", tmp_path, "untrained", "--dry-run")[1]
    assert list(tmp_path.iterdir()) == []
    code, text = build("--engines", tmp_path, "untrained")
    assert code == 0, text
    names = {path.name for path in (tmp_path / "untrained").iterdir()}
    assert names == {
        f"{name}.{kind}" for name in ("resnext50_32x4d", "densenet121") for kind in ("onnx", "json")
    }

"""build_engines.py as a person runs it."""

from __future__ import annotations

import re
import subprocess
import sys
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
def test_errors_a_person_can_act_on(tmp_path: Path, arguments: list[str], code: int, message: str) -> None:
    got, text = build("--engines", tmp_path, *arguments)
    assert got == code
    assert message in " ".join(text.split())


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

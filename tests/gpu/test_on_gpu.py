"""scripts/on_gpu.sh, with a python and an nvidia-smi that only note what they were asked for."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "scripts" / "on_gpu.sh"


def visit(folder: Path, python: str, **settings: str) -> tuple[int, list[str], str]:
    """Exit status, calls and output. python: what the fake does, in sh; its arguments are noted before."""
    for name, body in (("python", python), ("nvidia-smi", "exit 0")):
        fake = folder / name
        fake.write_text(f'#!/bin/sh\necho "$PYTHONUNBUFFERED $*" >> {folder}/calls\n{body}\n')
        fake.chmod(0o755)
    environment = os.environ | {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "PYTHON": str(folder / "python"),
        "OUT": str(folder / "out"),
        **settings,
    }
    done = subprocess.run(
        ["bash", SCRIPT, "one", "untrained/two"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    calls = [call for call in (folder / "calls").read_text().splitlines() if call != "1 "]  # of nvidia-smi
    return done.returncode, calls, done.stdout + done.stderr


def test_what_is_run(tmp_path: Path) -> None:
    status, calls, _ = visit(tmp_path, "exit 0", PRECISION="int8", MAX_DIFFERENCE="0.5", CALIBRATION="a b")
    assert status == 0
    assert all(call.startswith("1 ") for call in calls)  # unbuffered
    build = "1 build_engines.py --target tensorrt --precision int8 --calibration a b --max-difference 0.5"
    assert calls[:3] == ["1 build_engines.py untrained", f"{build} one", f"{build} untrained/two"]
    assert calls[3].startswith("1 -m pytest tests/gpu -m needs_cuda")
    benches = calls[4:]
    assert all(
        call.startswith("1 bench/gpu.py --precision int8 --members one untrained/two --ensemble")
        for call in benches
    )
    assert [call.split("--json ")[1].split()[0].rsplit("/")[-1] for call in benches] == [
        "bench.json",
        "bench-nvdec.json",
        "bench-compiled.json",
        "bench-torch-tensorrt.json",
    ]
    assert "--nvdec" in benches[1]
    assert benches[2].endswith("compiled")
    assert benches[3].endswith("torch_tensorrt")


def test_what_fails_does_not_stop_the_rest(tmp_path: Path) -> None:
    status, calls, output = visit(tmp_path, 'case "$*" in "-m pytest"*|*--nvdec*) exit 1;; esac')
    assert status == 1
    assert len(calls) == 8
    assert f"failed: tests bench-nvdec; see {tmp_path}/out" in output


def test_every_step_ends_in_time_and_says_so(tmp_path: Path) -> None:
    """A minute in all: what hangs is interrupted, as by a person, so that it can still write what it has."""
    hangs = (
        'case "$*" in *" untrained") trap "echo interrupted; kill \\$!; exit 130" INT; sleep 50 & wait;; esac'
    )
    status, calls, output = visit(tmp_path, hangs, MINUTES="1")
    assert status == 1
    assert "== machine: no time left" in output  # it has 5 % of a minute
    assert "interrupted\n== untrained: status 124" in output
    assert len(calls) == 8
    assert output.splitlines()[-1].startswith("failed: machine untrained; ")

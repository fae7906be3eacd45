"""The demo ends by itself, and shows no number of untrained members."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from pathlib import Path

import pytest
from command import COMMAND, ROOT, environment, process
from members import make_engines

from streamer.demo_clips import demo_clips

FAST = ["--set", "sample.frames_per_second=1", "--set", "decode.workers=1"]


def demo(*words: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, "demo", *FAST, *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_bundled_clips_are_two_and_small() -> None:
    assert len(demo_clips()) == 2
    assert sum(clip.stat().st_size for clip in demo_clips()) < 2_000_000


def test_with_trained_members(tmp_path: Path) -> None:
    engines = make_engines(tmp_path / "engines", sure=2.0, unsure=0.0)
    members = ("--set", f"classify.engines={engines}", "--set", "classify.members=['sure', 'unsure']")
    result = demo("--page", *members)
    assert result.returncode == 0, result.stderr
    assert re.search(r"^  live page: http://127\.0\.0\.1:\d+/$", result.stdout, re.MULTILINE)
    for clip in demo_clips():
        assert re.search(rf"^{clip.stem}: 0:0\d, chunk 0, fake score 0\.69", result.stdout, re.MULTILINE)
        assert re.search(rf"^  {clip.stem}: fake score 0\.69 \(0\.69–0\.69\); ", result.stdout, re.MULTILINE)
    assert "untrained" not in result.stdout
    assert result.stderr == ""


def test_with_the_members_of_the_repository() -> None:
    result = demo()
    assert result.returncode == 0, result.stderr
    assert "Summary" in result.stdout
    if "untrained" in result.stdout:
        assert "are withheld because the ensemble is untrained" in result.stdout
        assert not re.search(r"score \d", result.stdout)
        assert not re.search(r"\b0\.\d\d\b", result.stdout.split("Summary")[0].split("ready")[-1])


@pytest.mark.needs_kafka
def test_on_a_broker_of_ones_own(apache_kafka: str, tmp_path: Path) -> None:
    engines = make_engines(tmp_path / "engines", sure=2.0)
    result = demo(
        *("--bootstrap", apache_kafka),
        *("--set", f"classify.engines={engines}", "--set", "classify.members=['sure']"),
    )
    assert result.returncode == 0, result.stderr
    assert "fake score 0.88" in result.stdout
    assert "The topics streamer-demo-* are left on your broker." in result.stdout


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(tmp_path: Path, asked: signal.Signals) -> None:
    engines = make_engines(tmp_path / "engines", sure=2.0)
    words = ["--set", f"classify.engines={engines}", "--set", "classify.members=['sure']"]
    with process("demo", *FAST, *words, start_new_session=True) as running:
        assert running.stdout is not None
        for line in running.stdout:
            if "chunk 1," in line:
                break
        running.send_signal(asked)
        _, err = running.communicate(timeout=40)
    assert running.returncode == 130, err
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):  # nothing of its session is left, the broker neither
        os.killpg(running.pid, 0)


def test_a_broker_that_is_not_there() -> None:
    result = demo("--bootstrap", "127.0.0.1:1")
    assert result.returncode == 3
    assert result.stderr.startswith("error: no Kafka reachable at 127.0.0.1:1")

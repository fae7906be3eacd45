"""bench/gpu.py: a failure costs no other figure. Needs no GPU."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from members import make_engines

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.needs_torch

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        import gpu

        yield gpu


def run(
    bench: ModuleType, patch: pytest.MonkeyPatch, file: Path, *arguments: str
) -> tuple[int, dict[str, Any]]:
    patch.setattr(sys, "argv", ["gpu.py", "--device", "cpu", "--json", str(file), *arguments])
    patch.setattr("gpu_networks.peak", lambda *_: {"flops": 1e12, "bytes": 1e9})
    status: int = bench.main()
    return status, json.loads(file.read_text())


def test_rows_are_kept_though_one_fails(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "figures.json"

    def seconds(device: str, call: Any) -> float:
        shape = call()[0].shape  # it does run
        if shape[0] == 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 0.5

    monkeypatch.setattr("gpu_networks.seconds_per_call", seconds)
    status, found = run(
        bench,
        monkeypatch,
        file,
        *("--precision", "f32", "--parts", "networks", "--members", "absent", "mobilenet_v2"),
        *("--batches", "1", "2", "--ways", "eager"),
    )
    assert status == 1
    assert [(row["member"], row["batch"], row.get("eager")) for row in found["networks"]] == [
        ("absent", 1, None),
        ("absent", 2, None),
        ("mobilenet_v2", 1, 2.0),
        ("mobilenet_v2", 2, None),
    ]
    assert set(found["failed"]) == {"absent, batch 1", "absent, batch 2", "mobilenet_v2, batch 2, eager"}
    assert found["failed"]["mobilenet_v2, batch 2, eager"] == "OutOfMemoryError: CUDA out of memory"
    out = capsys.readouterr().out
    assert "mobilenet_v2, batch 1: eager 2 images/s\n" in out
    assert "mobilenet_v2, batch 2, eager: FAILED: OutOfMemoryError" in out


def test_scores_of_the_members_that_were_asked_for(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from footage import wandering_face

    clip = tmp_path / "clip.ts"
    clip.write_bytes(wandering_face(1.0, width=640, height=360))
    monkeypatch.setattr("gpu_scores.demo_clips", lambda: [clip])
    monkeypatch.setenv("STREAMER_CLASSIFY__ENGINES", str(make_engines(tmp_path / "engines", asked=1.0)))
    monkeypatch.setenv("STREAMER_DECODE__WORKERS", "1")
    status, found = run(
        bench,
        monkeypatch,
        tmp_path / "figures.json",
        *("--parts", "scores", "--members", "asked", "--ensemble", "absent", "--rate", "2"),
    )
    assert status == 0
    probability = 1 / (1 + math.exp(-1.0))
    assert found["scores"] == {
        "clip": {
            "score": pytest.approx(probability),
            "score_on_cpu": pytest.approx(probability),
            "faces": 2,
            "faces_on_cpu": 2,
        },
        "largest_difference": pytest.approx(0, abs=1e-6),
        "within_0.01_of_the_cpu": True,
    }


def test_f32_means_f32(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = True  # False, the default, is what must come of it
    run(bench, monkeypatch, tmp_path / "figures.json", *("--parts", "networks", "--members", "absent"))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32

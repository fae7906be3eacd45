"""bench/gpu.py: a failure costs no other figure. Needs no GPU."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace, TracebackType
from typing import Any

import pytest

torch = pytest.importorskip("torch")

pytestmark = pytest.mark.needs_torch

BENCH = Path(__file__).parents[2] / "bench"


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        yield importlib.import_module("gpu")


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
        shape = call().__class__ and call()[0].shape  # it does run
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


class FakePipeline:
    """Of which `faces_of` below asks for the configuration."""

    def __init__(self, config: Any) -> None:
        self.config = config

    async def __aenter__(self) -> FakePipeline:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass


@pytest.mark.parametrize(("here", "within"), [(0.705, True), (0.72, False)])
def test_scores_of_the_members_that_were_asked_for(
    bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, here: float, within: bool
) -> None:
    async def faces_of(pipeline: FakePipeline, clip: Path) -> list[float]:
        assert pipeline.config.classify.members == ("other",)
        return [0.7, 0.7] if pipeline.config.classify.backend == "openvino" else [here, here]

    monkeypatch.setattr("gpu_scores.Pipeline", FakePipeline)
    monkeypatch.setattr("gpu_scores.faces_of", faces_of)
    monkeypatch.setattr("gpu_scores.demo_clips", lambda: [SimpleNamespace(stem="clip")])
    status, found = run(
        bench, monkeypatch, tmp_path / "figures.json", *("--parts", "scores", "--members", "other")
    )
    assert status == 0
    assert found["scores"]["within_0.01_of_the_cpu"] is within
    assert found["scores"]["largest_difference"] == pytest.approx(here - 0.7)


def test_f32_means_f32(bench: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    torch.backends.cuda.matmul.allow_tf32 = True  # False, the default, is what must come of it
    run(bench, monkeypatch, tmp_path / "figures.json", *("--parts", "networks", "--members", "absent"))
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32

"""Modules for torch-tensorrt: exported by torch.export, they compute what the network does. Needs no GPU."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from networks import images, make_network  # noqa: E402

from streamer.backends.load import load_network  # noqa: E402
from streamer.errors import BackendError  # noqa: E402
from streamer.gpu.torch_builder import build_with_torch, export_module, images_module  # noqa: E402
from streamer.manifest import read_manifest  # noqa: E402

pytestmark = pytest.mark.needs_torch

ENGINES = Path(__file__).parents[2] / "engines"


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0", "blazeface_full_range"])
@pytest.mark.parametrize(("precision", "allowed"), [("f32", 1e-3), ("fp16", 0.03), ("bf16", 0.1)])
def test_exported_for_any_batch(name: str, precision: str, allowed: float) -> None:
    path = ENGINES / f"{name}.json"
    manifest = read_manifest(path)
    module = images_module(manifest.path(path.parent), manifest, precision).eval()
    exported = export_module(module, manifest.input, 8, "cpu")
    shown = images(3, size=manifest.input.height)
    network = load_network(path, backend="onnxruntime", precision="f32")
    expected = network.run(shown)
    network.close()
    with torch.inference_mode():
        got = exported.module()(torch.from_numpy(shown))
    for output, wanted in zip(got, expected, strict=True):
        assert output.dtype == torch.float32
        assert output.shape == wanted.shape
        scale = max(1.0, float(np.abs(wanted).max()))
        assert np.abs(output.numpy() - wanted).max() / scale < allowed


class FakeTorchTensorrt(types.ModuleType):
    """Notes for which batches an engine is to be built."""

    def __init__(self, error: str | None = None) -> None:
        super().__init__("torch_tensorrt")
        self.dynamo, self._error = self, error

    def Input(self, **fields: Any) -> dict[str, Any]:  # noqa: N802
        return fields

    def convert_exported_program_to_serialized_trt_engine(
        self, exported: Any, arg_inputs: list[dict[str, Any]], **_: object
    ) -> bytes:
        if self._error:
            raise RuntimeError(self._error)
        self.batches = [arg_inputs[0][f"{size}_shape"][0] for size in ("min", "opt", "max")]
        self.run = exported.module()
        return b"plan"


def build(path: Path, max_batch: int, monkeypatch: pytest.MonkeyPatch, fake: FakeTorchTensorrt) -> bytes:
    monkeypatch.setattr("streamer.gpu.torch_builder.import_tensorrt", lambda: None)
    monkeypatch.setitem(sys.modules, "torch_tensorrt", fake)
    return build_with_torch(path.with_suffix(".onnx"), read_manifest(path), "f32", max_batch, "cpu")


@pytest.mark.parametrize(
    ("max_batch", "batches"), [(1, [1, 1, 1]), (2, [1, 1, 2]), (3, [1, 1, 3]), (64, [1, 32, 64])]
)
def test_engines_for_few_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_batch: int, batches: list[int]
) -> None:
    fake = FakeTorchTensorrt()
    assert build(make_network(tmp_path), max_batch, monkeypatch, fake) == b"plan"
    assert fake.batches == batches
    for n in {1, max_batch}:
        (logits,) = fake.run(torch.from_numpy(images(n)))
        assert logits.shape == (n, 1)


def test_what_cannot_be_built_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_network(tmp_path)
    with pytest.raises(BackendError, match="small: torch-tensorrt cannot build it: no converter"):
        build(path, 8, monkeypatch, FakeTorchTensorrt("no converter"))

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("constraints violated")

    monkeypatch.setattr("torch.export.export", refuse)
    with pytest.raises(BackendError, match="small: torch-tensorrt cannot build it: constraints violated"):
        build(path, 8, monkeypatch, FakeTorchTensorrt())


def test_int8_is_for_the_other_builder(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    with pytest.raises(BackendError, match="torch-tensorrt builds f32, fp16, bf16 here, not int8"):
        build_with_torch(path.with_suffix(".onnx"), read_manifest(path), "int8", 8, "cuda:0")

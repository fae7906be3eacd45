"""Modules for torch-tensorrt: exported by torch.export, they compute what the network does. Needs no GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from networks import images, make_network  # noqa: E402

from streamer.backends.load import load_network  # noqa: E402
from streamer.errors import BackendError  # noqa: E402
from streamer.gpu.torch_builder import build_with_torch, images_module  # noqa: E402
from streamer.manifest import read_manifest  # noqa: E402

pytestmark = pytest.mark.needs_torch

ENGINES = Path(__file__).parents[2] / "engines"


@pytest.mark.parametrize("name", ["mobilenet_v2", "efficientnet_lite0", "blazeface_full_range"])
@pytest.mark.parametrize(("precision", "allowed"), [("f32", 1e-3), ("fp16", 0.03), ("bf16", 0.1)])
def test_exported_for_any_batch(name: str, precision: str, allowed: float) -> None:
    path = ENGINES / f"{name}.json"
    manifest = read_manifest(path)
    module = images_module(manifest.path(path.parent), manifest, precision).eval()
    batch = torch.export.Dim("n", min=1, max=8)
    example = torch.zeros((4, manifest.input.height, manifest.input.width, 3), dtype=torch.uint8)
    exported = torch.export.export(module, (example,), dynamic_shapes=({0: batch},), strict=False)
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


def test_int8_is_for_the_other_builder(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    with pytest.raises(BackendError, match="torch-tensorrt builds f32, fp16, bf16 here, not int8"):
        build_with_torch(path.with_suffix(".onnx"), read_manifest(path), "int8", 8, "cuda:0")

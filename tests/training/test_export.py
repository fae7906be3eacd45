"""Members in ONNX agree with torch in every backend, are served at once, and are refused when they differ."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import pytest
import skimage.data

from streamer.backends.images import normalise
from streamer.backends.load import load_network
from streamer.classify import Ensemble
from streamer.config import ClassifyConfig
from streamer.engines import IMAGENET
from streamer.errors import ModelError, TrainingError
from streamer.manifest import Calibration, read_manifest, sha256_of
from streamer.types import UInt8Array

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.needs_torch

from streamer.models.classifiers import ARCHITECTURES, build_classifier  # noqa: E402
from streamer.training import export  # noqa: E402
from streamer.training.export import Exported, MemberTexts, export_member  # noqa: E402

SIZE = 64
CALIBRATION = Calibration(temperature=1.5, bias=-0.25)


def crops(size: int = SIZE, n: int = 8) -> UInt8Array:
    """(n, size, size, 3): the astronaut's face from several distances and places."""
    rng = np.random.default_rng(0)
    picture = skimage.data.astronaut()
    found = []
    for _ in range(n):
        side, x, y = int(rng.integers(110, 200)), int(rng.integers(130, 170)), int(rng.integers(20, 70))
        found.append(cv2.resize(picture[y : y + side, x : x + side], (size, size)))
    return np.stack(found).astype(np.uint8)


def network(architecture: str, *, seed: int = 0) -> Any:
    """Random weights, with statistics of their own activations and logits that differ from crop to crop."""
    torch.manual_seed(seed)
    model = build_classifier(architecture, pretrained=False, dropout=0.2, mask_head=True)
    x = torch.from_numpy(normalise(crops(n=16), IMAGENET))
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.momentum = 1.0  # one pass sets the running statistics
    model.train()
    with torch.no_grad():
        model(x)
        model.eval()
        head = model.network.get_submodule(model.architecture.head)
        logits = model(x)[0]
        head.weight.mul_(0.25 / logits.std())
        head.bias.sub_(model(x)[0].mean())
    return model


def exported(folder: Path, model: Any, name: str = "member", **changes: Any) -> Exported:
    texts = MemberTexts(name, "a test, seed 0", "AUC 0.5 on nothing")
    options = {"size": SIZE, "crops": crops(), "calibration": CALIBRATION} | changes
    return export_member(model, folder, texts, **options)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_backend_gives_the_logit_of_torch(architecture: str, tmp_path: Path) -> None:
    model = network(architecture)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    found = exported(tmp_path, model)
    assert found.manifest.architecture == ARCHITECTURES[architecture].title
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert 0 < found.largest_difference < 1e-4
    with torch.inference_mode():
        unrounded = model(torch.from_numpy(normalise(crops(), IMAGENET)))[0].numpy()
    assert unrounded.std() > 0.1
    results = {}
    for backend in ("onnxruntime", "openvino", "torch"):
        served = load_network(found.path, backend=backend, precision="f32", threads=1)
        (results[backend],) = served.run(crops())
        served.close()
        np.testing.assert_allclose(results[backend], results["onnxruntime"], atol=1e-4)
        assert 1e-6 < np.abs(results[backend] - unrounded).max() < 0.05
    parameters = sum(p.numel() for n, p in model.named_parameters() if not n.startswith("mask_head"))
    assert 2 * parameters < found.file_bytes < 2.3 * parameters
    kinds = {node.op_type for node in onnx.load(tmp_path / "member.onnx").graph.node}
    assert kinds <= {
        *("Cast", "Conv", "BatchNormalization", "Relu", "Clip", "Add", "Concat", "Pad"),
        *("MaxPool", "AveragePool", "ReduceMean", "Gemm"),
    }


def test_stored_as_f32_it_is_the_network_itself(tmp_path: Path) -> None:
    model = network("mobilenet_v2")
    found = exported(tmp_path, model, storage="f32")
    assert (found.largest_change, found.mean_change) == (0, 0)
    assert "rounded" not in found.manifest.measured
    with torch.inference_mode():
        exact = model(torch.from_numpy(normalise(crops(), IMAGENET)))[0].numpy()
    (logits,) = load_network(found.path, backend="onnxruntime", precision="f32").run(crops())
    np.testing.assert_allclose(logits, exact, atol=1e-4)
    half = exported(tmp_path / "half", model)
    assert half.file_bytes < 0.55 * found.file_bytes


def test_the_manifest_tells_all(tmp_path: Path) -> None:
    found = exported(tmp_path, network("mobilenet_v2"))
    manifest = read_manifest(tmp_path / "member.json")
    assert manifest == found.manifest
    assert (manifest.trained, manifest.calibration, manifest.licence) == (True, CALIBRATION, "Apache-2.0")
    assert (manifest.input.height, manifest.input.width, manifest.input.mean) == (SIZE, SIZE, IMAGENET.mean)
    assert manifest.sha256 == sha256_of(tmp_path / "member.onnx")
    assert manifest.measured.startswith("AUC 0.5 on nothing; weights rounded to float16: probability changes")
    assert manifest.measured.endswith("(on 8 face crops)")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["member.json", "member.onnx"]


def test_two_members_are_served_as_an_ensemble(tmp_path: Path) -> None:
    models = {name: network(name, seed=k) for k, name in enumerate(("mobilenet_v2", "efficientnet_lite0"))}
    for name, model in models.items():
        exported(tmp_path, model, name, storage="f32")
    ensemble = Ensemble(ClassifyConfig(engines=tmp_path, members=tuple(models)))
    try:
        assert (ensemble.trained, ensemble.crop_sizes, ensemble.names) == (True, (SIZE,), tuple(models))
        got = ensemble.classify((crops(),))
    finally:
        ensemble.close()
    x = torch.from_numpy(normalise(crops(), IMAGENET))
    with torch.inference_mode():
        logits = np.concatenate([model(x)[0].numpy() for model in models.values()], axis=1)
    expected = 1 / (1 + np.exp(-(logits / 1.5 - 0.25)))
    np.testing.assert_allclose(got, expected, atol=1e-4)


def test_any_number_of_images_at_once(tmp_path: Path) -> None:
    found = exported(tmp_path, network("mobilenet_v2"))
    served = load_network(found.path, backend="onnxruntime", precision="f32")
    (one,), (five,) = served.run(crops()[:1]), served.run(crops()[:5])
    assert (one.shape, five.shape) == ((1, 1), (5, 1))
    np.testing.assert_allclose(one[0], five[0], atol=1e-5)


def test_heat_map_is_a_second_output(tmp_path: Path) -> None:
    import onnxruntime

    model = network("mobilenet_v2")
    found = exported(tmp_path, model, heat_map=True, storage="f32")
    assert found.manifest.outputs == ("logit", "mask")
    session = onnxruntime.InferenceSession(tmp_path / "member.onnx", providers=["CPUExecutionProvider"])
    x = normalise(crops(), IMAGENET)
    logit, mask = session.run(["logit", "mask"], {"image": x})
    with torch.inference_mode():
        expected = model(torch.from_numpy(x))[1].sigmoid().numpy()
    assert mask.shape == (8, 1, SIZE // 16, SIZE // 16)
    np.testing.assert_allclose(mask, expected, atol=1e-4)
    served = load_network(found.path, backend="openvino", precision="f32", threads=1).run(crops())
    np.testing.assert_allclose(served[0], logit, atol=1e-4)
    np.testing.assert_allclose(served[1], mask, atol=1e-4)


def test_a_heat_map_needs_a_mask_head(tmp_path: Path) -> None:
    headless = build_classifier("mobilenet_v2", pretrained=False, dropout=0.0, mask_head=False)
    with pytest.raises(TrainingError, match="no mask head"):
        exported(tmp_path, headless, heat_map=True)


@pytest.mark.parametrize(
    ("output", "bias", "change"), [("logit", "classifier.bias", 3e-4), ("mask", "mask_head.3.bias", 0.01)]
)
def test_a_difference_is_refused_and_the_member_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, bias: str, change: float
) -> None:
    model = network("mobilenet_v2")
    exported(tmp_path, model)
    before = (tmp_path / "member.json").read_text()
    to_onnx = export._to_onnx

    def wrong(*arguments: Any) -> onnx.ModelProto:
        graph = to_onnx(*arguments)
        for tensor in graph.graph.initializer:
            if tensor.name.endswith(bias):
                value = onnx.numpy_helper.to_array(tensor) + np.float32(change)
                tensor.CopyFrom(onnx.numpy_helper.from_array(value, tensor.name))
        return graph

    monkeypatch.setattr(export, "_to_onnx", wrong)
    said = rf"member: not exported: its {output} in onnxruntime.* by 0\.00\d+ \(allowed 0\.0001\)"
    with pytest.raises(ModelError, match=said):
        exported(tmp_path, model, heat_map=True)
    assert (tmp_path / "member.json").read_text() == before
    read_manifest(tmp_path / "member.json")
    assert len(list(tmp_path.iterdir())) == 2


def test_weights_beyond_float16(tmp_path: Path) -> None:
    model = network("mobilenet_v2")
    with torch.no_grad():
        next(model.parameters()).mul_(1e9)
    with pytest.raises(ModelError, match="beyond float16; export it with storage f32"):
        exported(tmp_path, model)


@pytest.mark.parametrize(
    "wrong", [crops(SIZE, 7), crops(32), crops().astype(np.float32)], ids=["few", "size", "type"]
)
def test_crops_to_check_on_are_needed(tmp_path: Path, wrong: Any) -> None:
    with pytest.raises(TrainingError, match=r"at least 8 crops \(64, 64, 3\) uint8 needed"):
        exported(tmp_path, network("mobilenet_v2"), crops=wrong)


def test_int8_can_be_built_from_float16_storage(tmp_path: Path) -> None:
    from streamer.quantise import find_members, quantise

    exported(tmp_path / "engines", network("mobilenet_v2"))
    folder = tmp_path / "crops"
    folder.mkdir()
    for index, crop in enumerate(crops(n=40)):
        cv2.imwrite(str(folder / f"{index:02}.png"), crop[..., ::-1])
    (made,) = quantise(
        find_members(tmp_path / "engines", []), tmp_path / "engines", calibration=folder, max_difference=0.5
    )
    assert made.max_difference < 0.2
    weights = tmp_path / "engines" / "compiled" / "openvino-int8" / "member.bin"
    assert weights.stat().st_size < 0.65 * (tmp_path / "engines" / "member.onnx").stat().st_size


def test_a_checkpoint_of_a_training_run(tmp_path: Path) -> None:
    from toy import make_cache, toy_config

    from streamer.training.checkpoint import load_model
    from streamer.training.train import train

    cache = tmp_path / "cache"
    records = make_cache(cache) + make_cache(cache, split="validation", seed=1)
    best = train(toy_config(steps=4), records, cache=cache, run=tmp_path / "run", resume=False)
    model = load_model(best)
    found = exported(tmp_path / "engines", model, storage="f32")
    assert (found.manifest.architecture, found.manifest.input.height) == ("MobileNetV2", SIZE)
    with torch.inference_mode():
        expected = model(torch.from_numpy(normalise(crops(), IMAGENET)))[0].numpy()
    (logits,) = load_network(found.path, backend="onnxruntime", precision="f32").run(crops())
    np.testing.assert_allclose(logits, expected, atol=1e-4)

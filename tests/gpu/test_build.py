"""What of building engines needs no GPU: which fit this machine, and what is checked."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from networks import images, make_network

from streamer.backends.compiled import find_compiled, tensorrt_folder
from streamer.backends.load import load_network
from streamer.config import ClassifyConfig, Config, GpuConfig
from streamer.errors import BackendError, ManifestError, ModelError
from streamer.gpu import DRIVER, faster_paths
from streamer.gpu.build import (
    Options,
    _Made,
    _scores,
    build_engines,
    check_graph,
    outdated,
    precision_of,
    refuse_unsuited,
)
from streamer.gpu.graph import engine_graph
from streamer.gpu.stamp import nvml_name
from streamer.manifest import read_manifest, sha256_of
from streamer.quantise import CropSets, Member, find_networks

STAMP = {"gpu": "NVIDIA H200", "compute capability": "9.0", "driver": "580.1", "tensorrt": "10.15.1"}


def engine(path: Path) -> Path:
    """Pretend that an engine was built: its manifest, and a file that is none. Returns the file."""
    folder = path.parent / tensorrt_folder("fp16", STAMP["gpu"])
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "small.plan"
    file.write_bytes(b"plan")
    described = {
        "name": "small",
        "target": "tensorrt",
        "precision": "fp16",
        "files": {file.name: sha256_of(file)},
        "source_sha256": read_manifest(path).sha256,
        "made_for": STAMP,
        "max_batch": 64,
        "calibration": "nothing",
        "calibration_images": 0,
        "check": "crops",
        "check_images": 8,
        "max_difference": 0.002,
        "max_ensemble_difference": 0.001,
        "allowed_difference": 0.01,
        "made_with": "hand",
    }
    (folder / "small.json").write_text(json.dumps(described))
    return file


def find(path: Path, stamp: dict[str, str] = STAMP) -> Path:
    variant = tensorrt_folder("fp16", stamp["gpu"])
    return find_compiled(path, read_manifest(path), variant, "build it", stamp)[0]


def test_an_engine_that_fits(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    file = engine(path)
    assert find(path) == file.with_suffix(".json")
    assert file.parent.name == "nvidia-h200"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"driver": "590.2"}, r"another machine \(driver 580.1, here 590.2\); run: build it"),
        ({"tensorrt": "11.1"}, r"tensorrt 10.15.1, here 11.1"),
        ({"compute capability": "10.0"}, r"compute capability 9.0, here 10.0"),
    ],
)
def test_an_engine_of_another_machine(tmp_path: Path, changed: dict[str, str], message: str) -> None:
    path = make_network(tmp_path)
    engine(path)
    with pytest.raises(BackendError, match=message):
        find(path, STAMP | changed)


def test_another_gpu_has_engines_of_its_own(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    engine(path)
    with pytest.raises(BackendError, match=r"not built .*nvidia-l4"):
        find(path, STAMP | {"gpu": "NVIDIA L4"})


def test_an_engine_that_was_changed(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    engine(path).write_bytes(b"other")
    with pytest.raises(ManifestError, match="missing or changed"):
        find(path)


def test_what_is_built_again(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    members = [Member(path, read_manifest(path))]
    options = Options(precision="fp16", max_batch=64, max_difference=0.01)
    assert outdated(members, options, STAMP) == members
    engine(path)
    assert outdated(members, options, STAMP) == []
    assert outdated(members, options, STAMP | {"driver": "590.2"}) == members
    for changed in (
        {"precision": "bf16"},
        {"max_batch": 32},
        {"max_difference": 0.001},
        {"rebuild": True},
    ):
        settings = {"precision": "fp16", "max_batch": 64, "max_difference": 0.01} | changed
        assert outdated(members, Options(**settings), STAMP) == members
    make_network(tmp_path, seed=3)
    assert outdated([Member(path, read_manifest(path))], options, STAMP)


def test_engines_that_pass_are_installed_though_others_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("broken", "far", "good", "nan", "other")
    members = [Member(path, read_manifest(path)) for path in (make_network(tmp_path, n) for n in names)]

    def build_one(
        trt: object, member: Member, options: Options, shown: object, work: Path, *_: object
    ) -> Path:
        if member.manifest.name == "broken":
            raise BackendError("broken: TensorRT cannot build it: no kernel")
        file = work / f"{member.manifest.name}.plan"
        file.write_bytes(b"plan")
        return file

    def check(member: Member, file: Path, *_: object) -> _Made:
        if member.manifest.name == "nan":
            raise ModelError("nan: NaN or infinity in tensorrt fp16")
        got = np.full(4, 0.5 if member.manifest.name == "far" else 0.004, np.float32)
        return _Made(member, file, np.zeros(4, np.float32), got)

    for name, fake in (
        ("import_tensorrt", lambda: None),
        ("machine_stamp", lambda device: STAMP),
        ("_build_one", build_one),
        ("_check", check),
    ):
        monkeypatch.setattr(f"streamer.gpu.build.{name}", fake)
    options = Options(precision="fp16", max_batch=64, max_difference=0.01)
    crops = CropSets(images(1), images(4), "noise")
    with pytest.raises(ModelError) as refused:
        build_engines(members, tmp_path, options, images=lambda size: crops)
    assert str(refused.value).splitlines() == [
        "broken: TensorRT cannot build it: no kernel",
        "nan: NaN or infinity in tensorrt fp16",
        "not installed: fp16 differs too much from f32: far by 0.5000 (allowed 0.01); use more crops like "
        "those to be scored for --calibration, or f32",
    ]
    assert [member.manifest.name for member in outdated(members, options, STAMP)] == ["broken", "far", "nan"]
    good = find_compiled(
        members[2].path, members[2].manifest, tensorrt_folder("fp16", STAMP["gpu"]), "", STAMP
    )
    assert good[1].max_ensemble_difference == pytest.approx(0.004)  # of those that were installed


@pytest.mark.parametrize("precision", ["int8", "fp8"])
def test_a_graph_too_far_off_is_not_built(tmp_path: Path, precision: str) -> None:
    path = make_network(tmp_path, channels=64)
    member = Member(path, read_manifest(path))
    graph = engine_graph(path.with_suffix(".onnx"), member.manifest, precision, images(16, seed=2))
    assert 0 < check_graph(graph, member, precision, images(16), 0.1) < 0.1
    with pytest.raises(
        ModelError, match=rf"small: not built: {precision} differs .* by 0\.\d+ \(allowed 1e-09"
    ):
        check_graph(graph, member, precision, images(16), 1e-9)


def test_fp8_needs_a_gpu_that_has_it() -> None:
    refuse_unsuited("fp8", STAMP)
    refuse_unsuited("fp8", STAMP | {"compute capability": "10.0"})
    refuse_unsuited("int8", STAMP | {"compute capability": "8.6"})
    with pytest.raises(
        BackendError, match=r"fp8 needs .* 8\.9 or more, NVIDIA A10 has 8\.6: use int8 or fp16"
    ):
        refuse_unsuited("fp8", STAMP | {"gpu": "NVIDIA A10", "compute capability": "8.6"})


def test_gpus_count_from_the_visible_ones() -> None:
    assert nvml_name(1, None) == 1
    assert nvml_name(1, "2,5") == 5
    assert nvml_name(0, " GPU-8932f937-d72c , 3") == "GPU-8932f937-d72c"
    for visible in ("", "3"):
        with pytest.raises(BackendError, match="cuda:1: CUDA_VISIBLE_DEVICES is"):
            nvml_name(1, visible)


def test_detectors_stay_f32() -> None:
    options = Options(precision="int8", max_batch=8, max_difference=0.01)
    engines = Path(__file__).parents[2] / "engines"
    kinds = {
        member.manifest.kind: precision_of(member, options)
        for member in find_networks(engines, ("classifier", "detector"))
    }
    assert kinds == {"classifier": "int8", "detector": "f32"}


@pytest.mark.parametrize("name", ["mobilenet_v2", "blazeface_back"])
def test_scores_are_probabilities_of_every_image(name: str) -> None:
    path = Path(__file__).parents[2] / "engines" / f"{name}.json"
    network = load_network(path, backend="openvino", precision="f32", threads=1)
    shown = images(3, size=network.manifest.input.height)
    scores = _scores(network, shown)
    assert scores.shape == ((3, 1) if name == "mobilenet_v2" else (3, 896))
    assert ((scores >= 0) & (scores <= 1)).all()
    assert np.unique(scores[:, 0]).size == 3


def test_why_not_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not DRIVER.exists():
        assert faster_paths(Config()) == [
            "no NVIDIA driver here: decoding, frames and networks stay on the CPU"
        ]
    monkeypatch.setattr("streamer.gpu.DRIVER", tmp_path)
    networks, decoding = faster_paths(Config())
    assert "build_engines.py --target tensorrt" in networks
    assert 'gpu.nvdec = "auto"' in decoding
    config = Config(
        classify=ClassifyConfig(backend="tensorrt", precision="f32"),
        gpu=GpuConfig(frames="off", nvdec="auto"),
    )
    assert [line.split(":")[0] for line in faster_paths(config)] == ["networks", "frames"]
    fastest = Config(
        classify=ClassifyConfig(backend="tensorrt", precision="fp16"), gpu=GpuConfig(nvdec="auto")
    )
    assert faster_paths(fastest) == []

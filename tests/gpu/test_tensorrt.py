"""TensorRT engines: with an NVIDIA GPU they are built, checked, loaded and run; the first tests need none."""

from __future__ import annotations

import enum
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import structlog

torch = pytest.importorskip("torch")

from networks import images, make_network  # noqa: E402

from streamer.backends.images import thumbnails, to_array  # noqa: E402
from streamer.backends.load import load_network  # noqa: E402
from streamer.backends.tensorrt_backend import (  # noqa: E402
    TensorRtNetwork,
    bucket_of,
    last_error,
    shared_logger,
    speaking_of,
)
from streamer.config import ClassifyConfig, Config, GpuConfig  # noqa: E402
from streamer.demo_clips import demo_clips  # noqa: E402
from streamer.errors import BackendError, InferenceError, ModelError  # noqa: E402
from streamer.files import pieces_of  # noqa: E402
from streamer.gpu.build import (  # noqa: E402
    FP8_CAPABILITY,
    BuildProgress,
    Options,
    build_engines,
    build_with_tensorrt,
)
from streamer.gpu.device import Device  # noqa: E402
from streamer.gpu.graph import FORMATS, engine_graph, run_on_cpu  # noqa: E402
from streamer.gpu.torch_builder import images_module  # noqa: E402
from streamer.manifest import read_manifest  # noqa: E402
from streamer.pipeline import Pipeline  # noqa: E402
from streamer.quantise import CropSets, Member, find_networks  # noqa: E402
from streamer.types import ChunkPrediction, Frame, UInt8Array, YuvFrame, YuvLayout  # noqa: E402

ENGINES = Path(__file__).parents[2] / "engines"
MAX_BATCH = 8
BATCHES = (1, 3, MAX_BATCH, 2 * MAX_BATCH + 1)

ALLOWED = {"f32": 1e-3, "fp16": 3e-2, "bf16": 5e-1, "int8": 1.0, "fp8": 1.0}
"""How far a logit of the network in `build`, where they go to 20, may be off in an engine."""


def on_gpu(test: Any) -> Any:
    """For a test that builds engines: libraries warn, and the first build of a machine takes its time."""
    for mark in (
        pytest.mark.needs_cuda,
        pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
        pytest.mark.filterwarnings("default"),
        pytest.mark.timeout(900),
    ):
        test = mark(test)
    return test


@pytest.mark.needs_torch
@pytest.mark.parametrize(
    ("n", "max_batch", "bucket"),
    [(1, 64, 1), (2, 64, 2), (3, 64, 4), (33, 64, 64), (64, 64, 64), (5, 6, 6), (6, 6, 6), (1, 1, 1)],
)
def test_batches_go_into_the_smallest_graph_that_holds_them(n: int, max_batch: int, bucket: int) -> None:
    assert bucket_of(n, max_batch) == bucket


class FakeTrt:
    """What `shared_logger` needs of TensorRT."""

    class ILogger:
        Severity = enum.Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO")

    class Builder:
        """As that of TensorRT 10.15 where CUDA fails."""

        def __init__(self, logger: Any) -> None:
            message = "createInferBuilder: CUDA initialization failure with error: 35"
            logger.log(FakeTrt.ILogger.Severity.ERROR, message)
            raise TypeError("pybind11::init(): factory function returned nullptr")

    Runtime = Builder


@pytest.mark.needs_torch
def test_a_build_where_cuda_fails_says_so(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match=r"some: TensorRT cannot begin: .* CUDA initialization failure"):
        build_with_tensorrt(FakeTrt, b"", "some", 8, tmp_path / "some.timing", BuildProgress())


@pytest.mark.needs_torch
def test_an_engine_where_cuda_fails_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_network(tmp_path)

    def load() -> None:
        TensorRtNetwork(path, read_manifest(path), precision="fp16", device="cuda:0", max_batch=8)

    def refuse(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: out of memory")

    monkeypatch.setattr("streamer.backends.tensorrt_backend.import_tensorrt", lambda: FakeTrt)
    monkeypatch.setattr("torch.cuda.Stream", refuse)
    with pytest.raises(BackendError, match="small: device cuda:0: CUDA error: out of memory"):
        load()
    monkeypatch.setattr("torch.cuda.Stream", mock.Mock())
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "a fake")
    monkeypatch.setattr("torch.cuda.device", lambda _: nullcontext())
    with pytest.raises(BackendError, match=r"small: TensorRT cannot begin: .* CUDA initialization failure"):
        load()


@pytest.mark.needs_torch
@pytest.mark.parametrize(("unreadable", "other"), [(True, False), (False, True)])
def test_timings_that_do_not_fit_are_made_anew(tmp_path: Path, unreadable: bool, other: bool) -> None:
    """TensorRT gives None for what it cannot read, and its bindings do not take that back."""

    def set_timing_cache(timings: object, ignore_mismatch: bool) -> bool:
        assert timings is not None
        return not (other and timings == b"of before")

    config = mock.Mock()
    config.create_timing_cache = lambda held: None if unreadable and held else held
    config.set_timing_cache = mock.Mock(side_effect=set_timing_cache)
    config.get_timing_cache.return_value.serialize.return_value = b"new"
    builder = mock.Mock()
    builder.create_builder_config.return_value = config
    builder.create_network.return_value.get_input.return_value.shape = (-1, 4, 4, 3)
    builder.build_serialized_network.return_value = b"plan"
    trt = mock.MagicMock(ILogger=FakeTrt.ILogger, IProgressMonitor=object)
    trt.Builder.return_value = builder
    cache = tmp_path / "some.timing"
    cache.write_bytes(b"of before")
    assert build_with_tensorrt(trt, b"", "some", 8, cache, BuildProgress()) == b"plan"
    assert config.set_timing_cache.call_args.args == (b"",)
    assert cache.read_bytes() == b"new"


@pytest.mark.needs_torch
def test_one_logger_names_the_network_of_each_thread() -> None:
    logger = shared_logger(FakeTrt)
    assert shared_logger(FakeTrt) is logger
    severity = FakeTrt.ILogger.Severity
    barrier = threading.Barrier(2)

    def work(network: str, message: str | None) -> str:
        with speaking_of(network):
            barrier.wait(5)
            if message:
                logger.log(severity.ERROR, message)
            logger.log(severity.WARNING, "slow")
            barrier.wait(5)
            return last_error()

    with structlog.testing.capture_logs() as logs, ThreadPoolExecutor(2) as pool:
        of_a, of_b = pool.submit(work, "a", "no kernel"), pool.submit(work, "b", None)
        assert (of_a.result(10), of_b.result(10)) == ("no kernel", "no reason given")
    assert {(line["log_level"], line["network"]) for line in logs} == {
        ("error", "a"),
        ("warning", "a"),
        ("warning", "b"),
    }


@pytest.mark.needs_torch
def test_errors_of_other_threads_are_better_than_none() -> None:
    logger = shared_logger(FakeTrt)
    with speaking_of("a"):
        thread = threading.Thread(
            target=logger.log, args=(FakeTrt.ILogger.Severity.INTERNAL_ERROR, "no memory")
        )
        thread.start()
        thread.join()
        assert last_error() == "no memory"
    with speaking_of("b"):
        assert last_error() == "no reason given"


class _Result:
    """A batch under way; `error` is raised by whoever waits for it."""

    def __init__(self, generation: int, error: str | None) -> None:
        self.generation, self._error = generation, error

    def outputs(self) -> tuple[np.ndarray, ...]:
        if self._error:
            raise RuntimeError(self._error)
        return (np.full((1, 1), self.generation, np.float32),)


class Fragile(TensorRtNetwork):
    """Without a GPU. Engines up to `broken`, counted by how often they were loaded anew, fail when run."""

    def __init__(self, path: Path, broken: int, *, loads: bool = True) -> None:
        self.manifest = read_manifest(path)
        self.device, self._generation, self._lock = "tensorrt fp16 on a fake", 0, threading.Lock()
        self._buckets: dict[int, Any] = {1: "a graph"}
        self._engine = "an engine"
        self._stream = mock.Mock()
        self.broken, self.loads = broken, loads

    def _enqueue(self, images: object) -> Any:
        if not self._buckets:
            raise InferenceError("small: used after close()")
        failed = self._generation <= self.broken
        return _Result(self._generation, "CUDA error: launch failed" if failed else None)

    def _load(self) -> None:
        if not self.loads:
            raise BackendError("small: out of memory")
        self._buckets, self._engine = {1: "a graph"}, "an engine"


@pytest.mark.needs_torch
def test_an_engine_that_fails_is_loaded_anew_once_for_all_batches_under_way(tmp_path: Path) -> None:
    network = Fragile(make_network(tmp_path), broken=0)
    under_way = [network.start(images(1)) for _ in range(3)]
    assert [float(outputs()[0][0, 0]) for outputs in under_way] == [1.0, 1.0, 1.0]
    network.broken = 1
    with pytest.raises(InferenceError, match=r"small: tensorrt fp16 on a fake: CUDA error: launch failed"):
        network.run(images(1))


@pytest.mark.needs_torch
def test_an_engine_that_fails_again_is_given_up(tmp_path: Path) -> None:
    path = make_network(tmp_path)
    with pytest.raises(InferenceError, match="launch failed"):
        Fragile(path, broken=1).run(images(1))
    network = Fragile(path, broken=0, loads=False)
    with pytest.raises(InferenceError, match="launch failed; loaded anew: small: out of memory"):
        network.run(images(1))
    with pytest.raises(InferenceError, match="after close"):
        network.run(images(1))


@pytest.mark.needs_torch
def test_a_closed_engine_is_not_loaded_anew(tmp_path: Path) -> None:
    network = Fragile(make_network(tmp_path), broken=0)
    outputs = network.start(images(1))
    network.close()
    with pytest.raises(InferenceError, match="launch failed"):
        outputs()


def shown(size: int) -> CropSets:
    return CropSets(images(16, size=size, seed=2), images(16, size=size), "noise")


def build(folder: Path, precision: str, builder: str = "tensorrt", max_difference: float = 0.05) -> Path:
    pytest.importorskip("tensorrt")
    path = make_network(folder, channels=64)
    if precision == "fp8" and torch.cuda.get_device_capability() < FP8_CAPABILITY:
        pytest.skip("this GPU has no fp8")
    build_engines(
        [Member(path, read_manifest(path))],
        folder,
        Options(precision=precision, max_batch=MAX_BATCH, max_difference=max_difference, builder=builder),
        images=shown,
    )
    return path


@pytest.mark.needs_torch
@pytest.mark.parametrize("precision", ALLOWED)
def test_what_an_engine_may_be_off_is_twice_what_its_graph_is(tmp_path: Path, precision: str) -> None:
    path = make_network(tmp_path, channels=64)
    file, manifest = path.with_suffix(".onnx"), read_manifest(path)
    reference = load_network(path, backend="onnxruntime", precision="f32")
    if precision in FORMATS:
        graph = engine_graph(file, manifest, precision, shown(manifest.input.height).calibration)
    else:  # ONNX Runtime has no convolutions in bf16
        module = images_module(file, manifest, precision).eval()
    for n in BATCHES:
        batch = images(n)
        (expected,) = reference.run(batch)
        if precision in FORMATS:
            (got,) = run_on_cpu(graph, batch)
        else:
            with torch.inference_mode():
                got = module(torch.from_numpy(batch))[0].numpy()
        assert np.abs(got - expected).max() < ALLOWED[precision] / 2


@on_gpu
@pytest.mark.parametrize(
    ("precision", "builder"),
    [*((precision, "tensorrt") for precision in ALLOWED), ("fp16", "torch-tensorrt")],
)
def test_engines_compute_what_the_network_does(tmp_path: Path, precision: str, builder: str) -> None:
    path = build(tmp_path, precision, builder)
    reference = load_network(path, backend="onnxruntime", precision="f32")
    network = load_network(path, backend="tensorrt", precision=precision)
    try:
        for n in BATCHES:
            batch = images(n)
            (expected,), (got,) = reference.run(batch), network.run(batch)
            np.testing.assert_allclose(got, expected, atol=ALLOWED[precision])
            (from_gpu,) = network.run(torch.from_numpy(batch).cuda())
            np.testing.assert_array_equal(from_gpu, got)
    finally:
        network.close()
    with pytest.raises(InferenceError, match="after close"):
        network.run(images(1))


@on_gpu
@pytest.mark.parametrize("precision", ["f32", "fp16"])
def test_a_result_does_not_depend_on_its_batch(tmp_path: Path, precision: str) -> None:
    network = load_network(build(tmp_path, precision), backend="tensorrt", precision=precision)
    try:
        batch = images(MAX_BATCH)
        (alone,) = network.run(batch[:1])
        for n in range(2, MAX_BATCH + 1):
            np.testing.assert_array_equal(network.run(batch[:n])[0][:1], alone)
    finally:
        network.close()


@on_gpu
def test_an_engine_is_loaded_anew_while_another_runs(tmp_path: Path) -> None:
    """Its graphs record nothing of the other, and the other runs on."""
    path = build(tmp_path, "fp16")
    broken, other = (load_network(path, backend="tensorrt", precision="fp16") for _ in range(2))
    batch = images(MAX_BATCH)
    (expected,) = other.run(batch)
    stopped = threading.Event()

    def run_on() -> int:
        rounds = 0
        while not stopped.is_set():
            np.testing.assert_array_equal(other.run(batch)[0], expected)
            rounds += 1
        return rounds

    try:
        with ThreadPoolExecutor(2) as pool:
            others = [pool.submit(run_on) for _ in range(2)]
            try:
                again = broken._again(batch, 0, RuntimeError("as if it had failed"))  # type: ignore[attr-defined]
                np.testing.assert_array_equal(again.outputs()[0], expected)
            finally:
                stopped.set()
        assert all(future.result() > 0 for future in others)
    finally:
        broken.close()
        other.close()


@on_gpu
def test_a_process_that_ran_an_engine_ends_without_an_error(tmp_path: Path) -> None:
    path = build(tmp_path, "fp16")
    code = (
        f"import numpy, pathlib, streamer.backends.load as load; "
        f"network = load.load_network(pathlib.Path({str(path)!r}), backend='tensorrt', precision='fp16'); "
        f"network.run(numpy.zeros((1, {images(1).shape[1]}, {images(1).shape[2]}, 3), numpy.uint8))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


@on_gpu
def test_an_engine_too_far_off_is_not_installed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="bf16 differs too much from f32: small"):
        build(tmp_path, "bf16", max_difference=1e-9)
    assert not list((tmp_path / "compiled").rglob("*.plan"))


@on_gpu
def test_memory_of_the_gpu_does_not_grow(tmp_path: Path) -> None:
    network = load_network(build(tmp_path, "fp16"), backend="tensorrt", precision="fp16")
    try:
        for n in range(1, 3 * MAX_BATCH):
            network.run(images(n))
        before = torch.cuda.mem_get_info()[0]
        for k in range(500):
            network.run(images(1 + k % (3 * MAX_BATCH)))
        assert before - torch.cuda.mem_get_info()[0] < 2**20
    finally:
        network.close()


@on_gpu
def test_frames_on_the_gpu_are_those_of_the_cpu_device() -> None:
    rng = np.random.default_rng(3)
    rgb: UInt8Array = rng.integers(0, 256, (540, 960, 3), dtype=np.uint8)
    windows = np.array([[0, 0, 960, 540], [100, 50, 640, 540], [7, 9, 60, 70]], np.int32)
    boxes = np.array([[10, 10, 300, 400], [500, 100, 540, 150]], np.float32)
    here, there = Device("cpu").image(Frame(rgb, 0.0)), Device("cuda:0").image(Frame(rgb, 0.0))
    np.testing.assert_array_equal(there.cut(windows, 128)[0].cpu(), here.cut(windows, 128)[0])
    for faces in (boxes, boxes[:0]):
        cut, expected = (image.crop(faces, margin=0.3, size=224) for image in (there, here))
        for got, wanted in ((cut, expected), (thumbnails(cut, 8), thumbnails(expected, 8))):
            assert got.shape == wanted.shape
            assert np.abs(to_array(got).astype(int) - to_array(wanted)).max(initial=0) <= 1


@on_gpu
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("full_range", [False, True])
def test_colours_on_the_gpu_are_those_of_the_cpu_device(interleaved: bool, full_range: bool) -> None:
    layout = YuvLayout(539, 961, interleaved, 1, full_range, 1, True)
    planes: UInt8Array = np.random.default_rng(4).integers(0, 256, layout.bytes, dtype=np.uint8)
    here, there = (Device(name).image(YuvFrame(planes, layout, 0.0)) for name in ("cpu", "cuda:0"))
    np.testing.assert_array_equal(there.rgb(), here.rgb())


@on_gpu
async def test_scores_of_the_whole_pipeline(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt")
    for file in ENGINES.glob("*.*"):
        (tmp_path / file.name).symlink_to(file)
    if (ENGINES / "compiled").is_dir():  # engines that fit are left as they are
        shutil.copytree(ENGINES / "compiled", tmp_path / "compiled")
    wanted = ClassifyConfig().members
    members = [
        member
        for member in find_networks(tmp_path, ("classifier", "detector"))
        if member.manifest.kind == "detector" or member.manifest.name in wanted
    ]
    options = Options(precision="fp16", max_batch=64, max_difference=0.05)
    build_engines(members, tmp_path, options, images=shown)

    async def predict(config: Config) -> ChunkPrediction:
        async with Pipeline(config) as pipeline:
            async for piece in pieces_of(demo_clips()[1], "clip", 2.0):
                return await pipeline.predict(piece.chunk)
        raise AssertionError("no chunk")

    classify = ClassifyConfig(engines=tmp_path, members=tuple(wanted))
    expected = await predict(Config(classify=classify))
    on_gpu = classify.model_copy(update={"backend": "tensorrt", "precision": "fp16"})
    for nvdec in ("off", "auto"):
        got = await predict(Config(classify=on_gpu, gpu=GpuConfig(nvdec=nvdec, nvdec_min_pixels=0)))
        for one, other in zip(got.frames, expected.frames, strict=True):
            assert len(one.faces) == len(other.faces)
            for face, reference in zip(one.faces, other.faces, strict=True):
                np.testing.assert_allclose(face.probabilities, reference.probabilities, atol=0.01)

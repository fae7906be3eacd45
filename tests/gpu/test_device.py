"""The service's pipeline with frames on a PyTorch device, against the one with frames in memory."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Literal
from unittest import mock

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from streamer.config import ClassifyConfig, Config, DecodeConfig, GpuConfig, SampleConfig  # noqa: E402
from streamer.decode_pool import DecodePool  # noqa: E402
from streamer.demo_clips import demo_clips  # noqa: E402
from streamer.errors import BackendError, InferenceError  # noqa: E402
from streamer.files import pieces_of  # noqa: E402
from streamer.gpu import nvdec_settings, open_device  # noqa: E402
from streamer.gpu.device import Device  # noqa: E402
from streamer.pipeline import Pipeline  # noqa: E402
from streamer.types import ChunkPrediction, Frame, YuvFrame  # noqa: E402

pytestmark = pytest.mark.needs_torch

ENGINES = Path(__file__).parents[2] / "engines"
CLIPS = sorted(demo_clips()[1].parent.glob("*.mp4"))


async def predict(clip: Path, gpu: GpuConfig) -> ChunkPrediction:
    config = Config(
        classify=ClassifyConfig(engines=ENGINES, backend="torch"), decode=DecodeConfig(workers=1), gpu=gpu
    )
    async with Pipeline(config) as pipeline:
        async for piece in pieces_of(clip, "clip", 2.0):
            return await pipeline.predict(piece.chunk, keep_crops=True)
    raise AssertionError("no chunk")


@pytest.mark.parametrize("clip", CLIPS, ids=lambda path: path.stem)
async def test_scores_are_those_of_the_cpu_path(clip: Path) -> None:
    expected = await predict(clip, GpuConfig())
    got = await predict(clip, GpuConfig(device="cpu", frames="on"))
    assert len(got.frames) == len(expected.frames) > 0
    for one, other in zip(got.frames, expected.frames, strict=True):
        assert len(one.faces) == len(other.faces) > 0
        for face, reference in zip(one.faces, other.faces, strict=True):
            assert face.box == reference.box
            np.testing.assert_allclose(face.probabilities, reference.probabilities, atol=5e-3)
            assert face.crop is not None
            assert reference.crop is not None
            assert np.abs(face.crop.astype(int) - reference.crop).max() <= 1


async def test_frames_come_as_they_were_decoded() -> None:
    kinds = {}
    for yuv in (False, True):
        pool = DecodePool(DecodeConfig(workers=1), yuv=yuv)
        await pool.start()
        try:
            async for piece in pieces_of(CLIPS[0], "clip", 1.0):
                async for batch in pool.decode(piece.chunk, SampleConfig()):
                    kinds[yuv] = {type(frame) for frame in batch.frames}
                    break
                break
        finally:
            await pool.close()
    assert kinds == {False: {Frame}, True: {YuvFrame}}


def test_an_rgb_frame_too() -> None:
    rgb = np.random.default_rng(1).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    picture = Device("cpu").image(Frame(rgb, 0.0))
    expected = rgb.copy()
    rgb[:] = 0  # the memory of a decode worker is overwritten by the next batch
    np.testing.assert_array_equal(picture.rgb(), expected)


def test_frames_stay_in_memory_unless_told() -> None:
    assert open_device(Config()) is None
    assert (
        open_device(Config(gpu=GpuConfig(frames="off"), classify=ClassifyConfig(backend="tensorrt"))) is None
    )


def test_a_gpu_that_others_have_alone_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise torch.AcceleratorError("CUDA error: all CUDA-capable devices are busy or unavailable")

    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.Stream", refuse)
    with pytest.raises(BackendError, match=r"device cuda:0: CUDA error: .* busy or unavailable"):
        Device("cuda:0")


def test_what_fails_on_the_device_is_told_from_mistakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: "a fake")
    monkeypatch.setattr("torch.cuda.Stream", mock.Mock())
    monkeypatch.setattr("torch.cuda.stream", lambda _: nullcontext())
    device = Device("cuda:0")
    of_cublas = "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
    for failure in (torch.OutOfMemoryError("CUDA out of memory"), RuntimeError(of_cublas)):
        with pytest.raises(InferenceError, match=r"a fake \(cuda:0\): CUDA"), device.work():
            raise failure
    with pytest.raises(RuntimeError, match="shape"), device.work():
        raise RuntimeError("The size of a tensor must match its shape")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_named() -> None:
    with pytest.raises(BackendError, match=r"device cuda:0: PyTorch .* finds no CUDA device"):
        open_device(Config(gpu=GpuConfig(frames="on"), classify=ClassifyConfig(backend="torch")))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
def test_frames_on_a_device_need_a_backend_that_takes_them(
    backend: Literal["openvino", "onnxruntime"],
) -> None:
    config = Config(
        classify=ClassifyConfig(engines=ENGINES, backend=backend), gpu=GpuConfig(device="cpu", frames="on")
    )
    message = rf'gpu.frames = "on", but classify.backend = "{backend}" .* set gpu.frames = "auto", or'
    with pytest.raises(BackendError, match=message):
        Pipeline(config)


def test_nvdec_needs_a_gpu_by_name() -> None:
    assert nvdec_settings(GpuConfig()) is None
    assert nvdec_settings(GpuConfig(nvdec="auto", device="cuda:1", nvdec_min_pixels=7)) == ("1", 7)
    with pytest.raises(BackendError, match=r"needs a GPU in gpu.device, which is cpu"):
        nvdec_settings(GpuConfig(nvdec="auto", device="cpu"))

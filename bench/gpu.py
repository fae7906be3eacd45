"""TensorRT engines and the whole pipeline on a GPU, against PyTorch and against what the GPU itself can do.

    python build_engines.py untrained
    python build_engines.py --target tensorrt --precision fp16 MEMBER ...    # those of --members
    python bench/gpu.py [--json FILE] [--parts networks pipeline scores]
    python bench/gpu.py --parts networks --ways tensorrt torch_tensorrt     # the other builder; takes minutes

Figures are printed, and written to FILE, as they are made. What fails is named among them, does not stop the
rest, and makes the exit status 1.

- networks: images/s of every engine, uint8 images in and logits out, all on the GPU, against eager,
  CUDA-graphed and compiled PyTorch in the same precision and batch, an engine by torch-tensorrt, and the
  roofline: operations and least bytes of the network, at the rates that a large matrix product and a large
  copy reached in this run.
- pipeline: 1080p30, one face per frame, all windows on, full-size members: frames/s with decoding and
  without, streams of 25 frames/s, latency at 80 % of that load, busy share of the GPU, time by stage.
- scores: of the bundled clips, by the members, on the GPU and on the CPU with OpenVINO f32: within 0.01?

`--device cpu` runs what needs no GPU, to try the script: PyTorch's networks, and the pipeline in them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import uvloop
from footage import wandering_face
from harness import FULL_SIZE
from torch.utils.flop_counter import FlopCounterMode

from streamer.backends.load import load_network
from streamer.backends.tensorrt_backend import TensorRtNetwork
from streamer.config import ClassifyConfig, Config, SampleConfig, load_config
from streamer.demo import demo_clips
from streamer.engines import ensure_untrained, write_whole
from streamer.files import pieces_of
from streamer.gpu.graph import FORMATS
from streamer.gpu.torch_builder import build_with_torch, images_module
from streamer.manifest import read_manifest
from streamer.messages import VideoChunk
from streamer.pipeline import Pipeline
from streamer.types import Frame, YuvFrame

CHUNK_SECONDS = 2.0
LOAD = 0.8
"""Share of the highest rate at which latencies are taken."""
PARTS = ("networks", "pipeline", "scores")
WAYS = ("eager", "graphed", "tensorrt", "compiled", "torch_tensorrt")
"""To compute a network; those that take minutes come last."""
PYTORCH = ("eager", "graphed", "compiled")
ON_CPU = ("roofline", "eager", "compiled")
MAX_SCORE_DIFFERENCE = 0.01
"""Of a video, between this path and the CPU's."""


def main() -> int:
    """Measure and print. Exit status 1: something failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="figures as JSON, beside those printed")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--precision", choices=("f32", "fp16", "bf16", "int8", "fp8"), default="fp16")
    parser.add_argument("--members", nargs="+", default=[*FULL_SIZE, *ClassifyConfig().members])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS[:4], help="the last two take minutes")
    parser.add_argument("--ensemble", nargs="+", default=FULL_SIZE, help="members of the pipeline")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--seconds", type=float, default=20, help="of each measurement of the pipeline")
    parser.add_argument("--rate", type=float, default=4, help="sampled frames a second of video")
    parser.add_argument("--nvdec", action="store_true", help="decode on the GPU")
    arguments = parser.parse_args()
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False  # f32 is to mean f32
    figures = Figures(arguments.json, describe(arguments.device), arguments.precision)
    for part in arguments.parts:
        with figures.attempt(part):
            if part == "networks":
                measure_networks(arguments, figures)
            else:
                measure = {"pipeline": measure_pipeline, "scores": compare_scores}[part]
                uvloop.run(measure(arguments, figures.part(part)))
    return 1 if figures.found["failed"] else 0


Say = Callable[[str, Any], None]
"""Takes the name of a figure and the figure."""


class Figures:
    """What was found so far: said at once, and kept in a file, so that no failure or time limit loses it."""

    def __init__(self, file: Path | None, device: str, precision: str) -> None:
        """file: None: they are only printed."""
        self.found: dict[str, Any] = {"device": device, "precision": precision, "failed": {}}
        self._file = file
        self.say(f"{device}, {precision}")

    def say(self, line: str) -> None:
        """Print for people, and keep what was found so far."""
        print(line, flush=True)
        if self._file is not None:
            write_whole(self._file, json.dumps(self.found).encode())

    def part(self, name: str) -> Say:
        """For the figures of a part."""
        found = self.found.setdefault(name, {})

        def say(key: str, value: Any) -> None:
            found[key] = value
            self.say(f"{name}: {key}: {value:.4g}" if isinstance(value, float) else f"{name}: {key}: {value}")

        return say

    @contextmanager
    def attempt(self, name: str) -> Iterator[None]:
        """In which a failure, of ours or of a library, becomes one of the figures."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 (what else there is to measure is measured)
            traceback.print_exc()
            self.found["failed"][name] = f"{type(error).__name__}: {error}"
            self.say(f"{name}: FAILED: {type(error).__name__}: {error}")


def describe(device: str) -> str:
    """Name of the GPU."""
    return torch.cuda.get_device_name(device) if device != "cpu" else "CPU, to try the script"


def config_of(arguments: argparse.Namespace, **classify: Any) -> Config:
    """Of the pipeline that is measured."""
    on_gpu = arguments.device != "cpu"
    return load_config(
        None,
        {
            "sample": {"frames_per_second": arguments.rate},
            "classify": {
                "members": arguments.ensemble,
                "backend": "tensorrt" if on_gpu else "torch",
                "precision": arguments.precision if on_gpu else "f32",
                "allow_untrained": True,
                "batch_crops": 64,
                **classify,
            },
            "gpu": {
                "device": arguments.device,
                "frames": "on",
                "nvdec": "auto" if arguments.nvdec else "off",
            },
        },
    )


# networks


def dtype_of(precision: str) -> torch.dtype:
    """That PyTorch computes in; it has no convolutions of 8 bits, which are compared with fp16."""
    return {"f32": torch.float32, "bf16": torch.bfloat16}.get(precision, torch.float16)


@torch.inference_mode()
def seconds_per_call(device: str, call: Callable[[], object], least_seconds: float = 0.5) -> float:
    """Mean time of a call, after a warm-up, waiting for the GPU only at the end."""

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    for _ in range(3):
        call()
    wait()
    calls, started = 0, time.perf_counter()
    while calls < 10 or time.perf_counter() - started < least_seconds:
        for _ in range(10):
            call()
        wait()
        calls += 10
    return (time.perf_counter() - started) / calls


def peak(device: str, precision: str) -> dict[str, float]:
    """Operations and bytes a second that this device reached in a large matrix product and a large copy.

    For int8 and fp8 the product is in fp16: what has twice the rate may pass its roofline.
    """
    size = 8192 if device != "cpu" else 1024
    a = torch.randn(size, size, device=device).to(dtype_of(precision))
    source = torch.empty(2**30 if device != "cpu" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return {
        "flops": 2 * size**3 / seconds_per_call(device, lambda: a @ a),
        "bytes": 2 * source.numel() / seconds_per_call(device, lambda: target.copy_(source)),
    }


def measure_networks(arguments: argparse.Namespace, figures: Figures) -> None:
    """A row for every member and batch."""
    ensure_untrained(config_of(arguments, members=arguments.members).classify)
    limits = figures.found["peak"] = peak(arguments.device, arguments.precision)
    figures.say(f"measured peaks: {limits['flops'] / 1e12:.1f} TFLOP/s, {limits['bytes'] / 1e9:.0f} GB/s")
    rows = figures.found["networks"] = []
    for member in arguments.members:
        for batch in arguments.batches:
            rows.append({"member": member, "batch": batch})
            with figures.attempt(f"{member}, batch {batch}"):
                measure_network(arguments, figures, rows[-1])


def measure_network(arguments: argparse.Namespace, figures: Figures, row: dict[str, Any]) -> None:
    """Images a second of one network in every way that is asked for; what fails is left out of the row."""
    device, precision, batch = arguments.device, arguments.precision, row["batch"]
    name = f"{row['member']}, batch {batch}"
    path = config_of(arguments).classify.engines / f"{row['member']}.json"
    manifest = read_manifest(path)
    source = manifest.path(path.parent)
    module = images_module(source, manifest, "fp16" if precision in FORMATS else precision).to(device).eval()
    shape = (batch, manifest.input.height, manifest.input.width, 3)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, device=device)

    def graphed() -> float:
        graph = torch.cuda.CUDAGraph()
        with torch.inference_mode(), torch.cuda.graph(graph):
            module(images)
        return seconds_per_call(device, graph.replay)

    def compiled() -> float:
        try:
            call = torch.compile(module)
            return seconds_per_call(device, lambda: call(images))
        finally:
            torch._dynamo.reset()

    def torch_tensorrt() -> float:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "plan"
            file.write_bytes(build_with_torch(source, manifest, precision, batch, device))
            made = TensorRtNetwork(file, manifest, precision=precision, device=device, max_batch=batch)
        return engine_seconds(made, images)

    measures: dict[str, Callable[[], float]] = {
        "roofline": lambda: roofline_seconds(module, images, figures.found["peak"]),
        "eager": lambda: seconds_per_call(device, lambda: module(images)),
        "graphed": graphed,
        "tensorrt": lambda: engine_seconds(
            load_network(path, backend="tensorrt", precision=precision, device=device), images
        ),
        "compiled": compiled,
        "torch_tensorrt": torch_tensorrt,
    }
    for way, seconds in measures.items():
        if way not in ("roofline", *arguments.ways) or (device == "cpu" and way not in ON_CPU):
            continue
        with figures.attempt(f"{name}, {way}"):
            row[way] = batch / seconds()
            figures.say(f"{name}: {way} {row[way]:.0f} images/s")
    if "tensorrt" in row and (best := max((row[way] for way in PYTORCH if way in row), default=0.0)):
        row["ratio_to_best_of_pytorch"] = row["tensorrt"] / best
        figures.say(f"{name}: tensorrt is {row['tensorrt'] / best:.2f} times PyTorch's best")
    if "tensorrt" in row and "roofline" in row:
        figures.say(f"{name}: tensorrt is {row['tensorrt'] / row['roofline']:.0%} of the roofline")


def engine_seconds(network: Any, images: torch.Tensor) -> float:
    """Time of a batch in an engine; closes it."""
    try:
        return pipelined_seconds(network, images)
    finally:
        network.close()


def pipelined_seconds(network: Any, images: torch.Tensor, under_way: int = 4) -> float:
    """Time of a batch with several under way, as the service has them; outputs arrive in memory."""
    waiting = [network.start(images) for _ in range(under_way)]
    calls, started = 0, time.perf_counter()
    while calls < 50 or time.perf_counter() - started < 1:
        waiting.pop(0)()
        waiting.append(network.start(images))
        calls += 1
    seconds = (time.perf_counter() - started) / calls
    for outputs in waiting:
        outputs()
    return seconds


@torch.inference_mode()
def roofline_seconds(module: torch.nn.Module, images: torch.Tensor, limits: dict[str, float]) -> float:
    """Least time for a batch: of its operations, or of reading weights and images once, whichever is more.

    Activations count as free: they may stay in caches and registers. So no network can be faster.
    """
    with FlopCounterMode(display=False) as counter:
        module(images)
    weights = sum(buffer.numel() * buffer.element_size() for buffer in module.buffers())
    return max(counter.get_total_flops() / limits["flops"], (weights + images.numel()) / limits["bytes"])


# pipeline


async def measure_pipeline(arguments: argparse.Namespace, say: Say) -> None:
    """The highest rate, the rate without decoding, and latencies at a share of the highest."""
    data = wandering_face(CHUNK_SECONDS)
    config = config_of(arguments)
    ensure_untrained(config.classify)
    async with Pipeline(config) as pipeline:
        workers = pipeline.decode_pool.size
        say("path", pipeline.path)
        say("decode_workers", workers)
        await closed_loop(pipeline, data, 2 * workers, seconds=arguments.seconds / 4)  # warm
        with busy_share(arguments.device) as busy:
            full = await closed_loop(pipeline, data, 2 * workers, seconds=arguments.seconds)
        for key, value in full.items():
            say(key, value)
        say("streams_of_25_fps", full["source_frames_per_second"] / 25)
        say("gpu_busy", statistics.mean(busy) if busy else None)
        say("decoders", dict(pipeline.decoders))
        looked = await without_decoding(pipeline, data, config.sample, seconds=arguments.seconds)
        say("frames_per_second_without_decoding", looked)
        say("limit", "decoding" if looked > 1.2 * full["frames_per_second"] else "GPU and Python")
        latencies = await open_loop(
            pipeline, data, LOAD * full["chunks_per_second"], seconds=arguments.seconds
        )
        say(f"latency_ms_p50_at_{LOAD:.0%}", 1000 * statistics.median(latencies))
        say(f"latency_ms_p99_at_{LOAD:.0%}", 1000 * float(np.quantile(latencies, 0.99)))


async def closed_loop(pipeline: Pipeline, data: bytes, at_once: int, *, seconds: float) -> dict[str, Any]:
    """Rates with so many chunks always under way, and the time that they spent by stage."""
    frames = chunks = 0
    stages: dict[str, float] = {}
    started = time.perf_counter()

    async def work(worker: int) -> None:
        nonlocal frames, chunks
        seq = 0
        while time.perf_counter() - started < seconds:
            prediction = await pipeline.predict(VideoChunk(video_id=f"video-{worker}", seq=seq, data=data))
            seq, frames, chunks = seq + 1, frames + len(prediction.frames), chunks + 1
            for stage, spent_ms in prediction.latency_ms.items():
                stages[stage] = stages.get(stage, 0.0) + spent_ms

    await asyncio.gather(*(work(worker) for worker in range(at_once)))
    took = time.perf_counter() - started
    return {
        "frames_per_second": frames / took,
        "chunks_per_second": chunks / took,
        "source_frames_per_second": chunks * CHUNK_SECONDS * 30 / took,
        "stage_ms_per_chunk": {stage: spent_ms / chunks for stage, spent_ms in stages.items()},
    }


async def without_decoding(pipeline: Pipeline, data: bytes, sample: SampleConfig, *, seconds: float) -> float:
    """Frames a second, of frames that lie decoded in memory."""
    chunk = VideoChunk(video_id="decoded", seq=0, data=data)
    frames: list[Frame | YuvFrame] = []
    async for batch in pipeline.decode_pool.decode(chunk, sample):
        frames += [copy_of(frame) for frame in batch.frames]
    done = 0
    started = time.perf_counter()

    async def work() -> None:
        nonlocal done
        while time.perf_counter() - started < seconds:
            await pipeline.predict_frames(frames)
            done += len(frames)

    await asyncio.gather(*(work() for _ in range(16)))
    return done / (time.perf_counter() - started)


def copy_of(frame: Frame | YuvFrame) -> Frame | YuvFrame:
    """Out of the decode worker's memory."""
    if isinstance(frame, YuvFrame):
        return YuvFrame(frame.planes.copy(), frame.layout, frame.time_seconds)
    return Frame(frame.rgb.copy(), frame.time_seconds)


async def open_loop(pipeline: Pipeline, data: bytes, rate: float, *, seconds: float) -> list[float]:
    """Seconds from arrival to prediction of chunks that arrive at a steady rate, whatever is under way."""
    latencies: list[float] = []

    async def one(seq: int, due: float) -> None:
        await pipeline.predict(VideoChunk(video_id=f"video-{seq % 64}", seq=seq, data=data))
        latencies.append(time.perf_counter() - due)

    started = time.perf_counter()
    tasks = []
    for seq in range(max(8, round(rate * seconds))):
        due = started + seq / rate
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        tasks.append(asyncio.create_task(one(seq, due)))
    await asyncio.gather(*tasks)
    return latencies


@contextmanager
def busy_share(device: str) -> Iterator[list[float]]:
    """Fills a list with the GPU's busy share, as its management library gives it, ten times a second."""
    shares: list[float] = []
    if device == "cpu":
        yield shares
        return
    import threading

    import pynvml

    from streamer.gpu.usage import gpu_handle

    pynvml.nvmlInit()
    handle = gpu_handle(torch.device(device).index or 0)
    stopping = threading.Event()

    def watch() -> None:
        while not stopping.wait(0.1):
            shares.append(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield shares
    finally:
        stopping.set()
        thread.join()


# scores


async def compare_scores(arguments: argparse.Namespace, say: Say) -> None:
    """Scores of the bundled clips by the members, on this path and on the CPU's, and how far they differ."""
    here = config_of(arguments, members=arguments.members)
    ensure_untrained(here.classify)
    on_cpu = here.model_copy(
        update={
            "classify": here.classify.model_copy(update={"backend": "openvino", "precision": "f32"}),
            "gpu": here.gpu.model_copy(update={"frames": "off", "nvdec": "off"}),
        }
    )
    scores = {}
    for name, config in (("here", here), ("cpu", on_cpu)):
        async with Pipeline(config) as pipeline:
            scores[name] = {clip.stem: await faces_of(pipeline, clip) for clip in demo_clips()}
    largest = 0.0
    for clip, faces in scores["here"].items():
        score, on_cpu_score = float(np.mean(faces)), float(np.mean(scores["cpu"][clip]))
        counts = {"faces": len(faces), "faces_on_cpu": len(scores["cpu"][clip])}
        say(clip, {"score": score, "score_on_cpu": on_cpu_score, **counts})
        largest = float(np.maximum(largest, abs(score - on_cpu_score)))  # NaN, of no faces, stays
    say("largest_difference", largest)
    say(f"within_{MAX_SCORE_DIFFERENCE:g}_of_the_cpu", largest <= MAX_SCORE_DIFFERENCE)


async def faces_of(pipeline: Pipeline, clip: Any) -> list[float]:
    """Probability of every face of a clip, mean over members."""
    found = []
    async for piece in pieces_of(clip, clip.stem, CHUNK_SECONDS):
        prediction = await pipeline.predict(piece.chunk)
        found += [float(np.mean(face.probabilities)) for frame in prediction.frames for face in frame.faces]
    return found


if __name__ == "__main__":
    sys.exit(main())

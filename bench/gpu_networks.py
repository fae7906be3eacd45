"""Part `networks` of gpu.py: images a second of every engine, against PyTorch and against the roofline."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from figures import Figures
from torch.utils.flop_counter import FlopCounterMode

from streamer.backends.load import load_network
from streamer.backends.tensorrt_backend import TensorRtNetwork
from streamer.config import ClassifyConfig
from streamer.engines import ensure_untrained
from streamer.gpu.graph import FORMATS
from streamer.gpu.torch_builder import build_with_torch, images_module
from streamer.manifest import read_manifest

WAYS = ("eager", "graphed", "tensorrt", "compiled", "torch_tensorrt")
"""To compute a network; those that take minutes come last."""
PYTORCH = ("eager", "graphed", "compiled")
ON_CPU = ("roofline", "eager", "compiled")
LEAST_SECONDS = 0.5
"""Calls are repeated for this long at least."""
UNDER_WAY = 4
"""Batches at a time in an engine."""


def dtype_of(precision: str) -> torch.dtype:
    """That PyTorch computes in; it has no convolutions of 8 bits, which are compared with fp16."""
    return {"f32": torch.float32, "bf16": torch.bfloat16}.get(precision, torch.float16)


@torch.inference_mode()
def seconds_per_call(device: str, call: Callable[[], object]) -> float:
    """Mean time of a call, after a warm-up, waiting for the GPU only at the end."""

    def wait() -> None:
        if device != "cpu":
            torch.cuda.synchronize(device)

    for _ in range(3):
        call()
    wait()
    calls, started = 0, time.perf_counter()
    while calls < 10 or time.perf_counter() - started < LEAST_SECONDS:
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


def measure_networks(config: ClassifyConfig, arguments: argparse.Namespace, figures: Figures) -> None:
    """A row for every member of `config` and batch."""
    ensure_untrained(config)
    limits = figures.found["peak"] = peak(arguments.device, arguments.precision)
    figures.say(f"measured peaks: {limits['flops'] / 1e12:.1f} TFLOP/s, {limits['bytes'] / 1e9:.0f} GB/s")
    rows = figures.found["networks"] = []
    for member in config.members:
        for batch in arguments.batches:
            rows.append({"member": member, "batch": batch})
            with figures.attempt(f"{member}, batch {batch}"):
                measure_network(config.engines, arguments, figures, rows[-1])


def measure_network(
    engines: Path, arguments: argparse.Namespace, figures: Figures, row: dict[str, Any]
) -> None:
    """Images a second of one network in every way that is asked for; what fails is left out of the row."""
    device, precision, batch = arguments.device, arguments.precision, row["batch"]
    name = f"{row['member']}, batch {batch}"
    path = engines / f"{row['member']}.json"
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


def pipelined_seconds(network: Any, images: torch.Tensor) -> float:
    """Time of a batch with several under way, as the service has them; outputs arrive in memory."""
    waiting = [network.start(images) for _ in range(UNDER_WAY)]
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

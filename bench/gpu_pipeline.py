"""Part `pipeline` of gpu.py: rates and latencies end to end, and what limits them."""

from __future__ import annotations

import asyncio
import statistics
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from figures import Say
from footage import wandering_face

from streamer.config import Config, SampleConfig
from streamer.engines import ensure_untrained
from streamer.messages import VideoChunk
from streamer.pipeline import Pipeline
from streamer.types import Frame, YuvFrame

CHUNK_SECONDS = 2.0
LOAD = 0.8
"""Share of the highest rate at which latencies are taken."""


async def measure_pipeline(config: Config, seconds: float, say: Say) -> None:
    """The highest rate, the rate without decoding, and latencies at a share of the highest.

    seconds: of each measurement.
    """
    data = wandering_face(CHUNK_SECONDS)
    ensure_untrained(config.classify)
    async with Pipeline(config) as pipeline:
        workers = pipeline.decode_pool.size
        say("path", pipeline.path)
        say("decode_workers", workers)
        await closed_loop(pipeline, data, 2 * workers, seconds=seconds / 4)  # warm
        with busy_share(config.gpu.device) as busy:
            full = await closed_loop(pipeline, data, 2 * workers, seconds=seconds)
        for key, value in full.items():
            say(key, value)
        say("streams_of_25_fps", full["source_frames_per_second"] / 25)
        say("gpu_busy", statistics.mean(busy) if busy else None)
        say("decoders", dict(pipeline.decoders))
        looked = await without_decoding(pipeline, data, config.sample, seconds=seconds)
        say("frames_per_second_without_decoding", looked)
        say("limit", "decoding" if looked > 1.2 * full["frames_per_second"] else "GPU and Python")
        latencies = await open_loop(pipeline, data, LOAD * full["chunks_per_second"], seconds=seconds)
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

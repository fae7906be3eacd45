"""Sampled frames a second, from chunk bytes to published score, against a plain baseline, in one run.

Through Kafka, with the broker on the same cores, and by the pipeline alone, for the share of each stage.

    python bench/throughput.py [--json] [--rates 30 10 4] [--precision int8] [--scan-every 8]

1080p H.264 at 30 frames/s, one face per frame, all windows on, the full-size two-member ensemble. Its members
are untrained, which costs the same time. Ratios are what counts: absolute figures change with the machine.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import psutil
import uvloop
from footage import wandering_face
from harness import FULL_SIZE, VIDEOS, running_service

from streamer.config import ClassifyConfig, Config
from streamer.engines import ensure_untrained
from streamer.load_config import load_config
from streamer.messages import VideoChunk, encode_score
from streamer.pipeline import Pipeline
from streamer.rolling import Arrival, RollingScores
from streamer.types import Frame

CHUNK_SECONDS = 2.0


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rates", type=float, nargs="+", default=[30, 10, 4], help="sampled frames a second")
    parser.add_argument("--precision", choices=["f32", "bf16", "int8"], default="int8")
    parser.add_argument(
        "--members",
        nargs="*",
        default=FULL_SIZE,
        metavar="NAME",
        help="of the ensemble, below engines/; none: those of the default ensemble",
    )
    parser.add_argument("--scan-every", type=int, help="matrix windows in one of so many frames; see config")
    parser.add_argument("--seconds", type=float, default=20, help="measured time for each rate")
    parser.add_argument("--no-baseline", action="store_true", help="for a machine without torch")
    parser.add_argument("--baseline-frames", type=int, default=30)
    arguments = parser.parse_args()
    arguments.members = arguments.members or ClassifyConfig().members
    data = wandering_face(CHUNK_SECONDS)
    rows = [measure(arguments, data, rate) for rate in arguments.rates]
    if arguments.json:
        json.dump({"cpus": os.cpu_count(), "precision": arguments.precision, "rows": rows}, sys.stdout)
        return
    members = ", ".join(arguments.members)
    print(f"{os.cpu_count()} CPUs, 1080p30 H.264, one face, {members}, precision {arguments.precision}")
    for row in rows:
        shares = ", ".join(
            f"{stage} {share:.0%} ({row['stage_cpu_ms_per_frame'][stage]:.1f} ms)"
            for stage, share in row["stage_share"].items()
        )
        versus = (
            f", baseline {row['baseline_frames_per_second']:.2f}, ratio {row['ratio']:.1f}"
            if "ratio" in row
            else ""
        )
        print(
            f"sampling {row['rate']:g}/s: {row['published_frames_per_second']:.1f} frames/s to the published "
            f"score{versus}; pipeline alone {row['frames_per_second']:.1f} frames/s, "
            f"CPU time per frame {row['cpu_ms_per_frame']:.1f} ms, each stage alone: {shares}"
        )


def measure(arguments: argparse.Namespace, data: bytes, rate: float) -> dict[str, Any]:
    """Service and baseline at one sampling rate."""
    overrides: dict[str, Any] = {
        "sample": {"frames_per_second": rate},
        "classify": {
            "members": arguments.members,
            "precision": arguments.precision,
            "allow_untrained": True,
        },
    }
    if arguments.scan_every:
        overrides["faces"] = {"scan_every": arguments.scan_every}
    config = load_config(None, overrides)
    ensure_untrained(config.classify)
    ours = uvloop.run(run_service(config, data, arguments.seconds))
    ours["published_frames_per_second"] = uvloop.run(run_through_kafka(config, data, rate, arguments.seconds))
    if arguments.no_baseline:
        return {"rate": rate, **ours}
    from baseline import run_baseline  # imports torch

    with tempfile.TemporaryDirectory() as folder:
        video = Path(folder, "video.ts")
        video.write_bytes(data)
        baseline = run_baseline(config, video, rate, arguments.baseline_frames)
    theirs = baseline.frames / baseline.seconds
    return {
        "rate": rate,
        **ours,
        "baseline_frames_per_second": theirs,
        "baseline_faces_per_frame": baseline.faces / baseline.frames,
        "baseline_share": {k: v / baseline.seconds for k, v in baseline.stages.items()},
        "ratio": ours["published_frames_per_second"] / theirs,
    }


async def run_through_kafka(config: Config, data: bytes, rate: float, seconds: float) -> float:
    """Sampled frames a second from Kafka to Kafka; about `seconds` of work at 25 frames/s."""
    settings = [f"sample.frames_per_second={rate:g}", f"classify.precision={config.classify.precision}"]
    settings.append(f"faces.scan_every={config.faces.scan_every}")
    chunks = max(VIDEOS, round(25 * seconds / (rate * CHUNK_SECONDS)))
    async with running_service(config, settings) as bench:
        return (await bench.full_load(data, chunks)).frames_per_second


async def run_service(config: Config, data: bytes, seconds: float) -> dict[str, Any]:
    """Keep as many chunks under way as the service would; then each stage alone, for its share."""
    async with Pipeline(config) as pipeline:
        rolling = RollingScores(config.rolling, config.alert, config.faces, pipeline.ensemble)
        sequence = count()
        faces = 0

        async def whole() -> int:
            nonlocal faces
            seq = next(sequence)
            prediction = await pipeline.predict(VideoChunk(video_id=f"video-{seq % 8}", seq=seq, data=data))
            encode_score(rolling.apply(prediction, last=False, arrival=Arrival(seq, 0)))
            faces += sum(len(frame.faces) for frame in prediction.frames)
            return len(prediction.frames)

        async def decode() -> int:
            chunk = VideoChunk(video_id="decode", seq=next(sequence), data=data)
            return sum([len(b.frames) async for b in pipeline.decode_pool.decode(chunk, config.sample)])

        async def detect() -> int:
            await pipeline.detect_batcher.submit(frames)
            return len(frames)

        async def classify() -> int:
            await asyncio.gather(*[pipeline.classify_batcher.submit(f.crops) for f in found if len(f.crops)])
            return len(found)

        whole_rate, whole_cpu_ms = await measure_work(whole, config, seconds)
        chunk = VideoChunk(video_id="one", seq=0, data=data)
        frames = []
        async for batch in pipeline.decode_pool.decode(chunk, config.sample):
            frames += [Frame(frame.rgb.copy(), frame.time_seconds) for frame in batch.frames]
        frames = frames[: config.faces.batch_frames]
        found = await pipeline.detect_batcher.submit(frames)
        alone = {
            stage.__name__: (await measure_work(stage, config, seconds / 4))[1]
            for stage in (decode, detect, classify)
        }
    return {
        "frames_per_second": whole_rate,
        "cpu_ms_per_frame": whole_cpu_ms,
        "stage_cpu_ms_per_frame": alone,
        "stage_share": {stage: ms / sum(alone.values()) for stage, ms in alone.items()},
        "faces_per_frame": sum(len(f.faces) for f in found) / len(found),
    }


async def measure_work(
    work: Callable[[], Awaitable[int]], config: Config, seconds: float
) -> tuple[float, float]:
    """Run `work` in as many tasks as the service has chunks in flight; `work` returns its sampled frames.

    Returns frames a second, and milliseconds of CPU time (decode workers included) per frame.
    """

    async def run_for(duration: float) -> tuple[float, float]:
        started, cpu_started = time.perf_counter(), cpu_seconds()
        frames = 0

        async def repeat() -> None:
            nonlocal frames
            while time.perf_counter() < started + duration:
                done = await work()  # not `frames += await`: others add meanwhile
                frames += done

        async with asyncio.TaskGroup() as group:
            for _ in range(config.service.max_chunks_in_flight):
                group.create_task(repeat())
        return (
            frames / (time.perf_counter() - started),
            1000 * (cpu_seconds() - cpu_started) / frames,
        )

    await run_for(min(3.0, seconds / 2))  # burn in: kernels, allocators, worker processes
    return await run_for(seconds)


def cpu_seconds() -> float:
    """CPU time of this process and its decode workers so far."""
    own = psutil.Process()
    times = [process.cpu_times() for process in [own, *own.children()]]
    return sum(t.user + t.system for t in times)


if __name__ == "__main__":
    main()

"""Through Kafka: chunks a second at full load, then chunk published -> score published at 80 % of it.

    python bench/latency.py [--json] [--rate 10] [--seconds 60]

1080p H.264 chunks of two seconds with one face, from 8 videos; arrivals at random (exponential gaps), which
is harder than a steady stream. The broker runs on the same cores, as in a demo, which costs it some of them.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from typing import Any

import uvloop
from footage import wandering_face
from harness import FULL_SIZE, Bench, running_service

from streamer.engines import ensure_untrained
from streamer.load_config import load_config

CHUNK_SECONDS = 2.0
LOAD = 0.8


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rate", type=float, default=10, help="sampled frames per second of video")
    parser.add_argument("--precision", choices=["f32", "bf16", "int8"], default="int8")
    parser.add_argument("--seconds", type=float, default=60, help="measured time at 80 %% load")
    parser.add_argument("--full-load-chunks", type=int, default=24)
    arguments = parser.parse_args()
    result = uvloop.run(measure(arguments))
    if arguments.json:
        json.dump(result, sys.stdout)
    else:
        print(
            f"full load: {result['frames_per_second']:.1f} sampled frames/s from Kafka to Kafka\n"
            f"at {LOAD:.0%} of it, published -> score published: p50 {result['p50_ms']:.0f} ms, "
            f"p99 {result['p99_ms']:.0f} ms over {result['chunks']} chunks of {CHUNK_SECONDS:g} s"
        )


async def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Full load first, for the rate; then 80 % of it."""
    config = load_config(None, {"classify": {"members": FULL_SIZE}})
    ensure_untrained(config.classify)
    data = wandering_face(CHUNK_SECONDS)
    overrides = [
        f"sample.frames_per_second={arguments.rate}",
        f"classify.precision={arguments.precision}",
    ]
    async with running_service(config, overrides) as bench:
        full = await bench.full_load(data, arguments.full_load_chunks)
        rate = LOAD * full.chunks_per_second
        return {
            "frames_per_second": full.frames_per_second,
            "chunks_per_second": full.chunks_per_second,
            **await under_load(bench, data, rate, arguments.seconds),
        }


async def under_load(bench: Bench, data: bytes, rate: float, seconds: float) -> dict[str, Any]:
    """Publish `rate` chunks a second and return the quantiles of their latency."""
    rng = random.Random(1)
    done = len(bench.updates)
    deadline = time.perf_counter() + seconds
    sending: list[asyncio.Task[None]] = []
    while time.perf_counter() < deadline:
        await asyncio.sleep(rng.expovariate(rate))
        sending.append(asyncio.create_task(bench.publish_next(data)))
    await asyncio.gather(*sending)
    await bench.wait_for(done + len(sending))
    latencies_ms = [
        1000 * (at - bench.published[update.video_id, update.seq]) for at, update in bench.updates[done:]
    ]
    quantiles = statistics.quantiles(latencies_ms, n=100, method="inclusive")
    return {
        "chunks": len(sending),
        "p50_ms": quantiles[49],
        "p99_ms": quantiles[98],
        "max_ms": max(latencies_ms),
    }


if __name__ == "__main__":
    main()

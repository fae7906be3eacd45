"""What `sample.lag_policy = "thin"` saves: CPU seconds a chunk at each share of the sampling rate.

    python bench/thinning.py [--rate 4] [--precision int8] [--rounds 4] [--json]

Through the whole pipeline, decode workers included, at the shares of `streamer.thinning`: 1, which is the
baseline, 1/2, 1/4 and 1/8. 1080p H.264 chunks of two seconds with one face. The shares take turns, so that
other work on the machine falls on all of them; ratios are what counts.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from itertools import count
from typing import Any

import uvloop
from footage import wandering_face
from harness import FULL_SIZE, VIDEOS
from throughput import CHUNK_SECONDS, cpu_seconds

from streamer.config import Config
from streamer.engines import ensure_untrained
from streamer.load_config import load_config
from streamer.messages import VideoChunk
from streamer.pipeline import Pipeline
from streamer.thinning import SHARES


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--rate", type=float, default=4, help="sampled frames per second of video at share 1")
    parser.add_argument("--precision", choices=["f32", "bf16", "int8"], default="int8")
    parser.add_argument("--rounds", type=int, default=4, help="turns of each share")
    parser.add_argument("--chunks", type=int, default=8, help="in a turn")
    arguments = parser.parse_args()
    config = load_config(
        None,
        {
            "sample": {"frames_per_second": arguments.rate},
            "classify": {
                "members": FULL_SIZE,
                "precision": arguments.precision,
                "allow_untrained": True,
            },
        },
    )
    ensure_untrained(config.classify)
    rows = uvloop.run(measure(config, arguments.rounds, arguments.chunks))
    if arguments.json:
        json.dump({"cpus": os.cpu_count(), "precision": arguments.precision, "rows": rows}, sys.stdout)
        return
    print(
        f"{os.cpu_count()} CPUs, 1080p30 H.264, {CHUNK_SECONDS:g} s a chunk, precision {arguments.precision}"
    )
    for row in rows:
        print(
            f"{row['frames_per_second']:g} frames/s: {row['frames_per_chunk']:.1f} frames and "
            f"{row['cpu_seconds_per_chunk']:.3f} CPU seconds a chunk, ratio {row['ratio']:.2f}, "
            f"{row['times_the_chunks']:.1f} times the chunks for the same time"
        )


async def measure(config: Config, rounds: int, chunks: int) -> list[dict[str, Any]]:
    """One row for each share, after a turn of each to burn in."""
    data, seqs = wandering_face(CHUNK_SECONDS), count(1)
    spent, frames = dict.fromkeys(SHARES, 0.0), dict.fromkeys(SHARES, 0)
    async with Pipeline(config) as pipeline:
        at_once = asyncio.Semaphore(config.service.max_chunks_in_flight)

        async def look(share: float) -> int:
            seq = next(seqs)
            chunk = VideoChunk(video_id=f"video-{seq % VIDEOS}", seq=seq, data=data)
            async with at_once:
                return len((await pipeline.predict(chunk, sampling_share=share)).frames)

        for turn in range(rounds + 1):
            for share in SHARES:
                before = cpu_seconds()
                seen = sum(await asyncio.gather(*(look(share) for _ in range(chunks))))
                if turn:
                    spent[share] += cpu_seconds() - before
                    frames[share] += seen
    return [
        {
            "share": share,
            "frames_per_second": share * config.sample.frames_per_second,
            "frames_per_chunk": frames[share] / (rounds * chunks),
            "cpu_seconds_per_chunk": spent[share] / (rounds * chunks),
            "ratio": spent[share] / spent[1.0],
            "times_the_chunks": spent[1.0] / spent[share],
        }
        for share in SHARES
    ]


if __name__ == "__main__":
    main()

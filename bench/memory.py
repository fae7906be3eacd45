"""Resident memory while one stream goes on for an hour of video, five minutes by five minutes.

    python bench/memory.py [--json] [--minutes 60]

The hour is published as fast as it is processed, in chunks of ten seconds, through the embedded broker.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
from typing import Any

import uvloop
from footage import wandering_face
from harness import FULL_SIZE, running_service

from streamer.engines import ensure_untrained
from streamer.load_config import load_config
from streamer.messages import VideoChunk

CHUNK_SECONDS = 10
AHEAD = 8
"""Chunks published and not yet scored."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--minutes", type=float, default=60)
    arguments = parser.parse_args()
    result = uvloop.run(measure(arguments.minutes))
    if arguments.json:
        json.dump(result, sys.stdout)
    else:
        print(
            "resident set by five minutes of video, MiB: "
            + ", ".join(f"{mib:.0f}" for mib in result["mib_by_five_minutes"])
            + f"; last to second: {result['ratio']:.3f}"
        )


async def measure(minutes: float) -> dict[str, Any]:
    """Publish the stream, keeping a few chunks ahead; sample the resident set at every chunk."""
    config = load_config(None, {"classify": {"members": FULL_SIZE}})
    ensure_untrained(config.classify)
    data = wandering_face(CHUNK_SECONDS, width=640, height=360)
    chunks = round(60 * minutes / CHUNK_SECONDS)
    resident: list[float] = []
    async with running_service(config, ["sample.frames_per_second=1", "classify.precision=int8"]) as bench:
        for seq in range(chunks):
            chunk = VideoChunk(
                video_id="stream",
                seq=seq,
                data=data,
                start_seconds=float(seq * CHUNK_SECONDS),
                last=seq == chunks - 1,
            )
            await bench.publish(chunk)
            await bench.wait_for(seq + 1 - AHEAD)
            resident.append(bench.resident_mib())
        await bench.wait_for(chunks)
        await asyncio.sleep(1)
        resident.append(bench.resident_mib())
        final = bench.updates[-1][1]
    five_minutes = 300 // CHUNK_SECONDS
    medians = [statistics.median(resident[i : i + five_minutes]) for i in range(0, chunks, five_minutes)]
    return {
        "mib_by_five_minutes": medians,
        "ratio": medians[-1] / medians[1],
        "chunks": final.chunks,
        "frames": final.frames,
    }


if __name__ == "__main__":
    main()

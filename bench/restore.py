"""How long a process takes to restore the state of many videos from the changelog, before its first chunk.

    python bench/restore.py [--videos 100000] [--partitions 8] [--json]

States are those of videos with two minutes of one face: score, window, spread, a track. Against a baseline in
the same run: a consumer that reads the same records and does nothing with them.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import uvloop
from aiokafka import AIOKafkaConsumer, TopicPartition

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from fakes import fresh_names
from kafka_broker import restartable_kafka

from streamer.config import AlertConfig, FacesConfig, RollingConfig
from streamer.kafka.changelog import restore
from streamer.kafka.deliver import Batch, ExactlyOnce
from streamer.kafka.held import FETCH_BYTES
from streamer.kafka.topics import create_topics
from streamer.rolling import Arrival, RollingScores
from streamer.types import ChunkPrediction, EnsembleInfo, FacePrediction, FramePrediction

ENSEMBLE = EnsembleInfo(("one", "two"), "bench", trained=True)
TRANSACTION_VIDEOS = 2000


def new_rolling() -> RollingScores:
    """Without a video."""
    return RollingScores(RollingConfig(), AlertConfig(), FacesConfig(), ENSEMBLE)


def a_state() -> bytes:
    """The state of a video with two minutes of one face."""
    rolling = new_rolling()
    for seq in range(60):
        frames = tuple(
            FramePrediction(k / 4, (FacePrediction((10.0, 10.0, 90.5, 99.5), (0.25 + k / 100, 0.5)),))
            for k in range(8)
        )
        prediction = ChunkPrediction("v", seq, 2.0 * seq, 2.0, frames)
        rolling.apply(prediction, last=False, arrival=Arrival(0.0, 0, seq))
    state = rolling.take_changed()["v"]
    assert state is not None
    return state


async def measure(bootstrap_servers: str, videos: int, partitions: int) -> dict[str, Any]:
    """Write the states, read them plainly, restore them."""
    kafka = fresh_names(bootstrap_servers)
    await create_topics(kafka, partitions=partitions)
    state = a_state()
    async with ExactlyOnce(kafka) as delivery:
        await delivery.open(range(partitions))
        for partition in range(partitions):
            mine = range(partition, videos, partitions)
            for first in range(0, len(mine), TRANSACTION_VIDEOS):
                some = mine[first : first + TRANSACTION_VIDEOS]
                await delivery.deliver(Batch(partition, states={f"video-{n}": state for n in some}))

    started = time.perf_counter()
    await read_plainly(bootstrap_servers, kafka.state_topic, partitions, videos)
    plain_seconds = time.perf_counter() - started

    started = time.perf_counter()
    restored = await restore(kafka, range(partitions))
    rollings = [new_rolling() for _ in range(partitions)]
    for rolling, each in zip(rollings, restored.values(), strict=True):
        rolling.restore(each.states, now_seconds=0.0)
    restore_seconds = time.perf_counter() - started
    assert sum(map(len, rollings)) == videos
    return {
        "videos": videos,
        "partitions": partitions,
        "state_bytes": len(state),
        "restore_seconds": restore_seconds,
        "baseline_seconds": plain_seconds,
        "ratio": restore_seconds / plain_seconds,
    }


async def read_plainly(bootstrap_servers: str, topic: str, partitions: int, count: int) -> None:
    """Read that many records and forget them."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=bootstrap_servers,
        auto_offset_reset="earliest",
        max_partition_fetch_bytes=FETCH_BYTES,
        isolation_level="read_committed",
    )
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, partition) for partition in range(partitions)])
        while count > 0:
            count -= sum(map(len, (await consumer.getmany(timeout_ms=100)).values()))
    finally:
        await consumer.stop()


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=int, default=100_000)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with restartable_kafka() as broker:
        result = uvloop.run(measure(broker.kafka.bootstrap_servers, arguments.videos, arguments.partitions))
    if arguments.json:
        json.dump(result, sys.stdout)
    else:
        print(
            f"{result['videos']} videos of {result['state_bytes']} bytes, {result['partitions']} partitions: "
            f"restored in {result['restore_seconds']:.1f} s; "
            f"reading alone {result['baseline_seconds']:.1f} s, ratio {result['ratio']:.1f}"
        )


if __name__ == "__main__":
    main()

"""What the guarantees cost: chunks a second under exactly-once, at-least-once, and without publishing at all.

    python bench/delivery.py [--chunks 4000] [--partitions 8] [--json]

Through a real Apache Kafka and the whole service, with a pipeline that predicts at once, so that delivery is
all there is to do. The baseline throws results away and commits nothing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Iterable
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Self
from unittest.mock import patch

import uvloop

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from fakes import FakePipeline, chunk, fresh_names, publish, running, service_config, until
from kafka_broker import restartable_kafka

from streamer.config import LogConfig
from streamer.kafka.deliver import Batch
from streamer.kafka.topics import create_topics
from streamer.log import set_up_logging

VIDEOS = 64


class Nothing:
    """Delivers nothing."""

    commits_offsets = True

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: Any) -> None:
        pass

    async def open(self, partitions: Iterable[int]) -> None:
        """Nothing to do."""

    async def close(self) -> None:
        """Nothing to do."""

    async def deliver(self, batch: Batch) -> None:
        """Nothing to do."""


async def measure(bootstrap_servers: str, mode: str, chunks: int, partitions: int) -> float:
    """Chunks a second, from the moment the service is ready to the last chunk's delivery."""
    kafka = fresh_names(bootstrap_servers, "exactly_once" if mode == "exactly_once" else "at_least_once")
    await create_topics(kafka, partitions=partitions)
    await publish(kafka, *(chunk(f"video-{n % VIDEOS}", n // VIDEOS) for n in range(chunks)))
    config = service_config(kafka, max_chunks_in_flight=64)

    def done() -> bool:
        return (value("streamer_chunks_total", {"status": "scored"}) or 0) >= chunks

    with patch("streamer.service.make_delivery", Nothing) if mode == "none" else nullcontext():
        async with running(config, FakePipeline()) as service:
            value = service.metrics.registry.get_sample_value
            started = time.perf_counter()
            before = value("streamer_chunks_total", {"status": "scored"}) or 0
            await until(done, seconds=300)
            return (chunks - before) / (time.perf_counter() - started)


def main() -> None:
    """Measure each mode twice, interleaved, and print the better."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=4000)
    parser.add_argument("--partitions", type=int, default=8)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    set_up_logging(LogConfig(level="warning"))  # a line for every chunk would be measured, too
    rates: dict[str, float] = {}
    with restartable_kafka() as broker:
        for mode in ("none", "at_least_once", "exactly_once") * 2:
            rate = uvloop.run(
                measure(broker.kafka.bootstrap_servers, mode, arguments.chunks, arguments.partitions)
            )
            rates[mode] = max(rate, rates.get(mode, 0.0))
    result = {
        mode: {"chunks_per_second": rate, "ratio": rate / rates["none"]} for mode, rate in rates.items()
    }
    if arguments.json:
        json.dump(result, sys.stdout)
        return
    for mode, row in result.items():
        print(f"{mode}: {row['chunks_per_second']:.0f} chunks/s, {row['ratio']:.2f} of none")


if __name__ == "__main__":
    main()

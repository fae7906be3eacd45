"""Half an hour near full load, with bad chunks and decode workers that die: what grows, and what is lost?

    python bench/soak.py [--minutes 30] [--json]

The real service, with its full-size ensemble, against a real Apache Kafka with transactions: eight videos at
a time, which end and are followed by others, published at 80 % of the rate that was measured just before. One
chunk in twenty is damaged, and once a minute a decode worker is killed. Memory, file descriptors, threads and
tasks are sampled meanwhile; what leaks is higher in the second half than in the first. At the end every good
chunk must have been scored once, and every bad one be a dead letter once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import uvloop
from footage import wandering_face
from harness import FULL_SIZE, VIDEOS, Bench, running_service

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from fakes import dead_letters, fresh_names
from kafka_broker import free_ports, restartable_kafka

from streamer.engines import ensure_untrained
from streamer.load_config import load_config
from streamer.messages import VideoChunk

LOAD = 0.8
"""Of the measured full load."""
BAD_EVERY = 20
LENGTH = 30
"""Chunks of one video."""
IDLE_SECONDS = 60
"""Ended videos are forgotten after this, so that their number is steady long before the middle."""
BACKLOG = 40
"""Chunks that may wait; where the machine has become slower, the load follows it."""
SAMPLE_SECONDS = 5.0
KILL_SECONDS = 60.0
BURN_IN = 0.1
"""Share of the samples that counts for neither half: caches fill."""
GROWTH = 1.10
"""Median of the second half against that of the first, beyond which something leaks."""
GROWING_UNDER_LOAD = ("service MiB", "service descriptors", "service threads", "workers MiB")
GROWING_AT_REST = (
    "service descriptors",
    "service threads",
    "asyncio tasks",
    "workers",
    "workers descriptors",
)
"""Tasks follow the number of waiting chunks, so they are compared when nothing is under way."""
SLACK = 3
"""Connections and tasks that are there at one moment and not at another."""
TS_PACKET = 188

Sample = dict[str, float]
Chunk = tuple[str, int]
"""(video_id, seq)."""


@dataclass
class Run:
    """What was published, and what was seen meanwhile."""

    good: set[Chunk] = field(default_factory=set)
    bad: set[Chunk] = field(default_factory=set)
    samples: list[Sample] = field(default_factory=list)
    kills: int = 0
    seconds: float = 0.0


def damage(data: bytes, rng: random.Random) -> bytes:
    """One of five ways in which a chunk cannot be decoded."""
    packets = len(data) // TS_PACKET
    at = rng.randrange(3, packets) * TS_PACKET
    kind = rng.randrange(5)
    if kind == 0:  # the transfer broke off
        return data[: at + rng.randrange(1, TS_PACKET)]
    if kind == 1:  # a sync byte is wrong
        return data[:at] + b"\x00" + data[at + 1 :]
    if kind == 2:  # scrambled
        return data[: 3 * TS_PACKET] + bytes(
            rng.randrange(256) if n % 8 == 0 else byte for n, byte in enumerate(data[3 * TS_PACKET :])
        )
    return rng.randbytes(50_000) if kind == 3 else b"<!doctype html><title>404 Not Found</title>"


async def publish_for(bench: Bench, run: Run, data: bytes, rate: float, seconds: float) -> None:
    """Publish `rate` chunks a second at random moments; slower while too many wait."""
    rng = random.Random(1)
    answered = len(bench.updates)
    started = due = time.monotonic()
    number = bad_one = 0
    while due < started + seconds:
        due += rng.expovariate(rate)
        await asyncio.sleep(max(0.0, due - time.monotonic()))
        await bench.wait_for(answered + number - BACKLOG)
        due = max(due, time.monotonic() - 1.0)  # what the waiting has cost is not made up for
        if number % BAD_EVERY == 0:
            bad_one = number + rng.randrange(BAD_EVERY)
        turn = number // VIDEOS
        video_id, seq = f"soak-{number % VIDEOS}-{turn // LENGTH}", turn % LENGTH
        is_bad = number == bad_one
        (run.bad if is_bad else run.good).add((video_id, seq))
        await bench.publish(
            VideoChunk(
                video_id=video_id,
                seq=seq,
                data=damage(data, rng) if is_bad else data,
                last=seq == LENGTH - 1,
            )
        )
        number += 1
    run.seconds = time.monotonic() - started


async def look(bench: Bench, port: int) -> Sample:
    """The figures of this moment. Raises psutil.NoSuchProcess if a worker has just died."""
    workers = bench.service.children(recursive=True)
    url = f"http://127.0.0.1:{port}/metrics"
    async with aiohttp.ClientSession() as http, http.get(url) as answer:
        lines = [line for line in (await answer.text()).splitlines() if not line.startswith("#")]
    metrics = dict(line.rsplit(" ", 1) for line in lines)
    return {
        "service MiB": bench.service.memory_info().rss / 2**20,
        "service descriptors": float(bench.service.num_fds()),
        "service threads": float(bench.service.num_threads()),
        "asyncio tasks": float(metrics["streamer_asyncio_tasks"]),
        "workers": float(len(workers)),
        "workers MiB": sum(worker.memory_info().rss for worker in workers) / 2**20,
        "workers descriptors": float(sum(worker.num_fds() for worker in workers)),
    }


async def watch(bench: Bench, run: Run, port: int) -> None:
    """Take samples until cancelled."""
    while True:
        with suppress(psutil.NoSuchProcess):
            run.samples.append(sample := await look(bench, port))
            if len(run.samples) % 12 == 0:
                figures = ", ".join(f"{name} {value:.0f}" for name, value in sample.items())
                print(f"{len(bench.updates)} updates; {figures}", file=sys.stderr, flush=True)
        await asyncio.sleep(SAMPLE_SECONDS)


async def kill_workers(bench: Bench, run: Run) -> None:
    """Kill a decode worker now and then, until cancelled."""
    rng = random.Random(2)
    while True:
        await asyncio.sleep(KILL_SECONDS)
        with suppress(psutil.NoSuchProcess, IndexError):
            rng.choice(bench.service.children()).send_signal(signal.SIGKILL)
            run.kills += 1


async def measure(bootstrap_servers: str, minutes: float) -> dict[str, Any]:
    """Full load first, for the rate; then 80 % of it for `minutes`."""
    kafka = fresh_names(bootstrap_servers)
    config = load_config(None, {"classify": {"members": FULL_SIZE}}).model_copy(update={"kafka": kafka})
    ensure_untrained(config.classify)
    data = wandering_face(2.0, width=640, height=360)
    (port,) = free_ports(1)
    overrides = [
        *(
            f"kafka.{key}={value}"
            for key, value in kafka.model_dump(exclude={"security"}, exclude_defaults=True).items()
        ),
        f"service.http_port={port}",
        "log.level=error",
        f"rolling.idle_seconds={IDLE_SECONDS}",
        "classify.precision=int8",
        "sample.frames_per_second=1",
    ]
    run = Run()
    async with running_service(config, overrides, bootstrap_servers) as bench:
        full = await bench.full_load(data, 150)
        print(f"full load: {full.chunks_per_second:.1f} chunks/s", file=sys.stderr, flush=True)
        await asyncio.sleep(SAMPLE_SECONDS)
        before = await look(bench, port)
        side_tasks = [
            asyncio.create_task(work) for work in (watch(bench, run, port), kill_workers(bench, run))
        ]
        await publish_for(bench, run, data, LOAD * full.chunks_per_second, 60 * minutes)
        for task in side_tasks:
            task.cancel()
        await asyncio.gather(*side_tasks, return_exceptions=True)
        everything = run.good | run.bad
        with suppress(TimeoutError):
            async with asyncio.timeout(120):
                while not everything <= {(u.video_id, u.seq) for _, u in bench.updates}:  # noqa: ASYNC110
                    await asyncio.sleep(0.5)
        await asyncio.sleep(SAMPLE_SECONDS)
        after = await look(bench, port)
        letters = await dead_letters(kafka, len(run.bad))
        updates = [update for _, update in bench.updates]
    crashed = {(each.video_id, each.seq) for each in letters if each.reason == "decoder_crashed"}
    lettered = Counter((each.video_id, each.seq) for each in letters)
    scored = Counter((u.video_id, u.seq) for u in updates if u.status in ("scored", "no_face", "final"))
    spared = run.good - crashed
    return {
        "minutes": run.seconds / 60,
        "full_load_chunks_per_second": full.chunks_per_second,
        "chunks_per_second": len(everything) / run.seconds,
        "workers_killed": run.kills,
        "good": len(run.good),
        "good_scored_once": sum(scored[chunk] == 1 for chunk in spared),
        "good_lost_to_a_killed_worker": len(run.good & crashed),
        "bad": len(run.bad),
        "bad_dead_lettered_once": sum(lettered[chunk] == 1 for chunk in run.bad),
        "dead_letters": len(letters),
        "counts_right": (
            all(scored[chunk] == 1 for chunk in spared)
            and all(lettered[chunk] == 1 for chunk in run.bad)
            and lettered.keys() == run.bad | crashed
            and len(run.good & crashed) <= run.kills
        ),
        "at_rest": {name: [before[name], after[name]] for name in before},
        "under_load": {name: growth([sample[name] for sample in run.samples]) for name in before},
    }


def growth(values: list[float]) -> dict[str, float]:
    """First and last tenth, and the second half against the first; medians, the burn-in left out."""
    steady = values[round(BURN_IN * len(values)) :]
    tenth, middle = max(1, len(steady) // 10), len(steady) // 2
    first, second = statistics.median(steady[:middle]), statistics.median(steady[middle:])
    return {
        "begin": statistics.median(steady[:tenth]),
        "end": statistics.median(steady[-tenth:]),
        "most": max(steady),
        "ratio": second / first if first else 1.0,
    }


def main() -> int:
    """Run and print; exit status 1 if anything grew, was lost or came twice."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with restartable_kafka() as broker:
        result = uvloop.run(measure(broker.kafka.bootstrap_servers, arguments.minutes))
    under_load, at_rest = result.pop("under_load"), result.pop("at_rest")
    grows = [name for name in GROWING_UNDER_LOAD if under_load[name]["ratio"] > GROWTH]
    grows += [name for name in GROWING_AT_REST if at_rest[name][1] > at_rest[name][0] + SLACK]
    if arguments.json:
        json.dump({**result, "under_load": under_load, "at_rest": at_rest, "grows": grows}, sys.stdout)
    else:
        print("\n".join(f"{key}: {value:.4g}" for key, value in result.items()))
        for name, row in under_load.items():
            first, then = at_rest[name]
            print(
                f"{name}: {row['begin']:.0f} -> {row['end']:.0f}, most {row['most']:.0f}, halves "
                f"{row['ratio']:.3f}; at rest {first:.0f} -> {then:.0f}: "
                f"{'GROWS' if name in grows else 'steady'}"
            )
        print(f"counts: {'right' if result['counts_right'] else 'WRONG'}")
    return 0 if not grows and result["counts_right"] else 1


if __name__ == "__main__":
    sys.exit(main())

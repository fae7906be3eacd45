"""Processes killed, frozen and restarted, and the broker with them: is every chunk still counted just once?

    python bench/chaos.py [--delivery exactly_once] [--seed 1] [--faults 50] [--uneven 1] [--json]

Publishes chunks of many videos to a real Apache Kafka, has three processes of `streamer run` work on them
while faults strike at random moments, and compares the last score update of every video with that of a run in
which nothing happened. Under `exactly_once` a reader of committed records must also see each chunk's update
exactly once; under `at_least_once`, repeats must say the same as the first, and may come late. With
`--uneven 20` one video has 20 times the chunks of each other one, and they come before those of the others.

The processes are real and so is decoding and face detection; the classifier is a small linear one, since what
is tested is who counts what, not what is counted.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvloop
from footage import wandering_face

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from fakes import fresh_names, publish, watching
from kafka_broker import RunningKafka, restartable_kafka
from members import make_engines, make_member

from streamer.config import KafkaConfig
from streamer.kafka.topics import create_topics
from streamer.messages import ScoreUpdate, VideoChunk

ROOT = Path(__file__).parents[1]
PARTITIONS = 8
PROCESSES = 3
FROZEN_SECONDS = 9.0
"""Longer than the session timeout, so that a frozen process loses its partitions and comes back a zombie."""
SETTLE_SECONDS = 240.0
"""For the last chunks after the last fault."""
SAME = (
    "fake_score",
    "window_score",
    "interval",
    "frames",
    "faces",
    "chunks",
    "missing_chunks",
    "models",
    "tracks",
)
"""Fields of a video's last update that must not depend on what happened."""
REPEATED = (*SAME, "status", "start_seconds", "end_seconds")
"""Fields in which an update that comes again must equal the first."""


class Fleet:
    """Processes of the consumer group, started again when they end, as a supervisor would."""

    def __init__(self, settings: dict[str, str], log: Path) -> None:
        self._settings, self._log = settings, log
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self.exits: Counter[int] = Counter()
        """Exit status of processes that ended, negative for signals."""

    async def keep(self, number: int) -> None:
        """Run process `number` until the task is cancelled."""
        try:
            while True:
                with self._log.open("ab") as log:
                    process = self._processes[number] = await asyncio.create_subprocess_exec(
                        *(sys.executable, "-m", "streamer", "run"),
                        cwd=ROOT,
                        env=os.environ | self._settings,
                        stdout=log,
                        stderr=log,
                    )
                self.exits[await process.wait()] += 1
        finally:
            with suppress(ProcessLookupError):
                self._processes[number].kill()
            await self._processes[number].wait()

    def signal(self, number: int, what: signal.Signals) -> None:
        """Send a signal, if the process is there."""
        with suppress(KeyError, ProcessLookupError):
            self._processes[number].send_signal(what)


async def strike(fleet: Fleet, broker: RunningKafka, rng: random.Random) -> str:
    """One fault; returns its name."""
    kind = rng.choices(("kill", "freeze", "restart", "broker"), (40, 25, 25, 10))[0]
    victim = rng.randrange(PROCESSES)
    if kind == "kill":
        fleet.signal(victim, signal.SIGKILL)
    elif kind == "restart":
        fleet.signal(victim, signal.SIGTERM)
    elif kind == "freeze":
        fleet.signal(victim, signal.SIGSTOP)
        await asyncio.sleep(FROZEN_SECONDS)
        fleet.signal(victim, signal.SIGCONT)
    else:
        await asyncio.to_thread(broker.stop)
        await asyncio.to_thread(broker.start)
    return kind


async def run(
    kafka: KafkaConfig,
    settings: dict[str, str],
    chunks: list[VideoChunk],
    broker: RunningKafka,
    arguments: argparse.Namespace,
    *,
    faults: int,
    log: Path,
) -> tuple[list[ScoreUpdate], Counter[str], Counter[int]]:
    """All score updates of one run, the faults by kind, and the exit status of processes that ended."""
    await create_topics(kafka, partitions=PARTITIONS)
    rng = random.Random(arguments.seed)
    names = {
        f"STREAMER_KAFKA__{key.upper()}": str(v) for key, v in kafka.model_dump(exclude={"security"}).items()
    }
    fleet = Fleet(settings | names, log)
    struck: Counter[str] = Counter()
    expected = {(each.video_id, each.seq) for each in chunks}
    async with watching(kafka) as scores, asyncio.TaskGroup() as group:
        keepers = [group.create_task(fleet.keep(number)) for number in range(PROCESSES)]
        # The first half is there at once; the second comes while faults strike.
        half = len(chunks) // 2
        await publish(kafka, *chunks[:half])
        for number in range(faults):
            await asyncio.sleep(rng.uniform(*arguments.gap))
            struck[await strike(fleet, broker, rng)] += 1
            share = chunks[
                half + (len(chunks) - half) * number // faults : half
                + (len(chunks) - half) * (number + 1) // faults
            ]
            await publish(kafka, *share)
        if not faults:
            await publish(kafka, *chunks[half:])
        deadline = time.monotonic() + SETTLE_SECONDS
        while scores.chunks() != expected and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(0.2)
        await asyncio.sleep(5)  # repeats, if any, would come now
        for keeper in keepers:
            keeper.cancel()
    return scores.updates, struck, fleet.exits


def compare(calm: list[ScoreUpdate], struck: list[ScoreUpdate], chunks: list[VideoChunk]) -> dict[str, Any]:
    """What differs between the two runs."""
    expected = Counter((each.video_id, each.seq) for each in chunks)
    seen = Counter((update.video_id, update.seq) for update in struck)
    last_calm, last = latest(calm), latest(struck)
    different = {
        video: [field for field in SAME if getattr(last[video], field) != getattr(last_calm[video], field)]
        for video in last_calm
        if video in last
    }
    by_chunk: dict[tuple[str, int], list[ScoreUpdate]] = defaultdict(list)
    for update in struck:
        by_chunk[update.video_id, update.seq].append(update)
    unlike = sum(
        any(getattr(again, field) != getattr(first, field) for field in REPEATED)
        for first, *repeats in by_chunk.values()
        for again in repeats
    )
    return {
        "videos": len(last_calm),
        "videos_equal": sum(not fields for fields in different.values()),
        "different": {video: fields for video, fields in different.items() if fields},
        "chunks": len(expected),
        "chunks_missing": len(expected.keys() - seen.keys()),
        "chunks_repeated": sum(count > 1 for count in seen.values()),
        "repeats_unlike_the_first": unlike,
    }


def latest(updates: list[ScoreUpdate]) -> dict[str, ScoreUpdate]:
    """The update of each video that counts the most chunks: a repeat may come after later ones."""
    return {update.video_id: update for update in sorted(updates, key=lambda update: update.chunks)}


async def both_runs(arguments: argparse.Namespace, broker: RunningKafka) -> dict[str, Any]:
    """Both runs on one broker."""
    data = wandering_face(1.0, width=480, height=270, fps=15)
    length = -(-arguments.chunks // (arguments.videos - 1 + arguments.uneven))
    chunks = [
        VideoChunk(video_id=f"video-{n}", seq=seq, data=data, start_seconds=float(seq))
        for step in range(length)
        for n in range(arguments.videos)
        for seq in (range(step * arguments.uneven, (step + 1) * arguments.uneven) if n == 0 else (step,))
    ]
    with tempfile.TemporaryDirectory() as folder:
        engines = make_engines(Path(folder, "engines"))
        make_member(engines, "linear", -2.0, weight=2.0)
        settings = {
            "STREAMER_CLASSIFY__ENGINES": str(engines),
            "STREAMER_CLASSIFY__MEMBERS": '["linear"]',
            "STREAMER_FACES__WINDOWS": "[]",
            "STREAMER_DECODE__WORKERS": "1",
            "STREAMER_SERVICE__HTTP_PORT": "0",
            "STREAMER_SERVICE__DRAIN_SECONDS": "5",
            "STREAMER_LOG__FORMAT": "json",
        }
        outcomes = []
        for faults in (0, arguments.faults):
            kafka = fresh_names(broker.kafka.bootstrap_servers, arguments.delivery)
            started = time.monotonic()
            outcome = await run(kafka, settings, chunks, broker, arguments, faults=faults, log=arguments.log)
            print(f"{faults} faults: {time.monotonic() - started:.0f} s", file=sys.stderr)
            outcomes.append(outcome)
    (calm, _, _), (struck, kinds, exits) = outcomes
    found = compare(calm, struck, chunks)
    perfect = found["videos_equal"] == found["videos"] == arguments.videos and not found["chunks_missing"]
    perfect &= not found["repeats_unlike_the_first"]
    if arguments.delivery == "exactly_once":
        perfect &= not found["chunks_repeated"]
    return {
        "delivery": arguments.delivery,
        "seed": arguments.seed,
        "uneven": arguments.uneven,
        "faults": dict(kinds),
        "exits": {str(status): count for status, count in exits.items()},
        **found,
        "perfect": perfect,
    }


def main() -> int:
    """Run and print; exit status 1 if anything was lost, repeated or counted differently."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--delivery", choices=["exactly_once", "at_least_once"], default="exactly_once")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--faults", type=int, default=50)
    parser.add_argument("--videos", type=int, default=50)
    parser.add_argument("--chunks", type=int, default=500)
    parser.add_argument("--uneven", type=int, default=1, help="times the chunks of others that video-0 has")
    parser.add_argument("--gap", type=float, nargs=2, default=(1.0, 4.0), help="seconds between two faults")
    parser.add_argument("--log", type=Path, default=Path(tempfile.gettempdir(), "streamer-chaos.log"))
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    arguments.log.write_bytes(b"")
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # the broker is away on purpose
    with restartable_kafka() as broker:
        result = uvloop.run(both_runs(arguments, broker))
    if arguments.json:
        json.dump(result, sys.stdout)
    else:
        print("\n".join(f"{key}: {value}" for key, value in result.items()))
    return 0 if result["perfect"] else 1


if __name__ == "__main__":
    sys.exit(main())

"""The service as a process of its own, with the real pipeline: signals in the midst of work."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest
from clips import make_clip
from fakes import committed, publish, until, watching
from kafka_broker import ON_KAFKA, each_delivery
from members import make_engines

from streamer.config import KafkaConfig
from streamer.messages import ScoreUpdate, VideoChunk

ROOT = Path(__file__).parents[1]
VIDEOS, LENGTH = 4, 20


@pytest.fixture
def settings(tmp_path: Path, kafka: KafkaConfig) -> dict[str, str]:
    """Environment of the process: this test's topics, and members that take no time."""
    return {
        **{
            f"STREAMER_KAFKA__{key.upper()}": str(value)
            for key, value in kafka.model_dump(exclude={"security"}, exclude_defaults=True).items()
        },
        "STREAMER_CLASSIFY__ENGINES": str(make_engines(tmp_path / "engines", sure=2.0)),
        "STREAMER_CLASSIFY__MEMBERS": json.dumps(["sure"]),
        "STREAMER_FACES__WINDOWS": "[]",
        "STREAMER_SERVICE__HTTP_PORT": "0",
        "STREAMER_SERVICE__MAX_CHUNKS_IN_FLIGHT": "2",
        "STREAMER_LOG__FORMAT": "json",
    }


@pytest.fixture
def chunks(tmp_path: Path) -> list[VideoChunk]:
    """Chunks of several videos, all of the same two seconds without a face."""
    data = make_clip(tmp_path / "clip.mp4", seconds=2.0, size=256).read_bytes()
    return [
        VideoChunk(video_id=f"video-{n}", seq=seq, data=data, last=seq == LENGTH - 1)
        for seq in range(LENGTH)
        for n in range(VIDEOS)
    ]


@asynccontextmanager
async def process(settings: dict[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m streamer run`, killed at the end if it still runs."""
    running = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streamer", "run"),
        cwd=ROOT,
        env=os.environ | settings,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield running
    finally:
        with suppress(ProcessLookupError):
            running.kill()
        print((await running.communicate())[1].decode())  # shown when the test fails


async def stopped(running: asyncio.subprocess.Process, number: signal.Signals) -> tuple[int | None, str]:
    """Send the signal; exit status and what it logged."""
    running.send_signal(number)
    async with asyncio.timeout(30):
        _, said = await running.communicate()
    return running.returncode, said.decode()


def lengths(updates: list[ScoreUpdate]) -> list[int]:
    """seq numbers in the order of their updates."""
    return [update.seq for update in updates]


@each_delivery
async def test_signal_in_mid_work_loses_and_repeats_nothing(
    kafka: KafkaConfig, settings: dict[str, str], chunks: list[VideoChunk]
) -> None:
    """Each way to deliver with one of the signals, which are the same to the service."""
    number = signal.SIGTERM if kafka.delivery == "exactly_once" else signal.SIGINT
    await publish(kafka, *chunks)
    async with watching(kafka) as scores:
        async with process(settings) as first:
            await until(lambda: len(scores.updates) >= 3, seconds=60)
            status, said = await stopped(first, number)
        assert status == 0, said
        done = sum((await committed(kafka)).values())
        await until(lambda: len(scores.updates) == done)
        assert 3 <= done < len(chunks), said
        async with process(settings) as second:
            await until(lambda: len(scores.updates) == len(chunks), seconds=60)
            assert (await stopped(second, number))[0] == 0
    for n in range(VIDEOS):
        assert lengths(scores.of(f"video-{n}")) == list(range(LENGTH))
    assert {update.status for update in scores.updates} == {"no_face", "final"}
    assert sum((await committed(kafka)).values()) == len(chunks)


@each_delivery
async def test_killed_in_mid_work_loses_nothing(
    kafka: KafkaConfig, settings: dict[str, str], chunks: list[VideoChunk]
) -> None:
    await publish(kafka, *chunks)
    async with watching(kafka) as scores:
        async with process(settings) as first:
            await until(lambda: len(scores.updates) >= 3, seconds=60)
            assert (await stopped(first, signal.SIGKILL))[0] == -signal.SIGKILL
        async with process(settings) as second:
            await until(lambda: len(scores.chunks()) == len(chunks), seconds=90)
            await stopped(second, signal.SIGTERM)
    assert sum((await committed(kafka)).values()) == len(chunks)
    for n in range(VIDEOS):
        seqs = lengths(scores.of(f"video-{n}"))
        if kafka.delivery == "exactly_once":
            assert seqs == list(range(LENGTH))
        # else what was scored and is not yet in the changelog is scored again, from there on in order
        assert seqs[-1] == LENGTH - 1
        assert all(after <= before + 1 for before, after in itertools.pairwise(seqs))
        assert scores.of(f"video-{n}")[-1].chunks == LENGTH


@pytest.mark.parametrize("names", ON_KAFKA[:1], indirect=True)
async def test_unusable_configuration_is_one_line(settings: dict[str, str]) -> None:
    async with process(settings | {"STREAMER_KAFKA__SCORES_TOPIC": "absent"}) as running:
        async with asyncio.timeout(60):
            _, said = await running.communicate()
    assert running.returncode not in (0, None)
    assert "no topic absent; make the topics with `streamer topics create`" in said.decode()
    assert "Traceback" not in said.decode()

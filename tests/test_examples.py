"""The examples, each as a process of its own, as their first lines say."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fakes import chunks_in, fresh_names
from media import cut_at_keyframes, encode
from members import make_engines
from updates import update

from streamer.config import KafkaConfig
from streamer.demo_clips import demo_clips
from streamer.kafka.publish import OutRecord, Publisher
from streamer.kafka.topics import create_topics
from streamer.messages import decode_chunk, encode_score

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_score_a_file(tmp_path: Path) -> None:
    engines = make_engines(tmp_path / "engines", sure=2.0)
    config = tmp_path / "config.toml"
    config.write_text(f"[classify]\nengines = '{engines}'\nmembers = ['sure']\n[decode]\nworkers = 1\n")
    result = subprocess.run(
        [sys.executable, EXAMPLES / "score_file.py", demo_clips()[1], config],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert result.stdout.startswith("fake score 0.881 from "), result.stderr
    assert "\nperson 0: 0.881 from " in result.stdout


async def test_produce_chunks(embedded_broker: str, tmp_path: Path) -> None:
    names = fresh_names(embedded_broker, "at_least_once")
    await create_topics(names, partitions=2)
    pieces = [tmp_path / f"{number}.ts" for number in range(3)]
    for path, data in zip(pieces, cut_at_keyframes(encode(frames=90, gop=30), "mpegts"), strict=True):
        path.write_bytes(data)
    code = "import asyncio, sys, producer; asyncio.run(producer.main(*sys.argv[2:], topic=sys.argv[1]))"
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", code, names.chunks_topic, embedded_broker, "door", *pieces],
        cwd=EXAMPLES,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0
    records = await chunks_in(names, 3)
    for seq, (record, path) in enumerate(zip(records, pieces, strict=True)):
        chunk = decode_chunk(record.value, record.key, record.headers, offset=record.offset, max_bytes=10**6)
        assert (record.key, chunk.video_id, chunk.seq, chunk.last) == (b"door", "door", seq, seq == 2)
        assert chunk.data == path.read_bytes()
        assert chunk.captured_at_ms == pytest.approx(1000 * time.time(), abs=120_000)


@pytest.mark.needs_kafka
async def test_read_scores(real_kafka: KafkaConfig) -> None:
    updates = [
        update("door", 0, 0.25),
        update("door", 1, None, status="no_face"),
        update("door", 2, 0.9, trained=False),
        update("door", 3, 0.75, alert="raised"),
    ]
    async with Publisher(real_kafka) as publisher:
        await publisher.send(
            [OutRecord(real_kafka.scores_topic, b"door", encode_score(one)) for one in updates]
        )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, EXAMPLES / "read_scores.py", real_kafka.bootstrap_servers, real_kafka.scores_topic),
        stdout=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        async with asyncio.timeout(60):
            lines = [(await process.stdout.readline()).decode().split() for _ in updates]
            process.send_signal(signal.SIGINT)
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
    assert lines == [
        ["door", "0", "scored", "0.250"],
        ["door", "1", "no_face", "no", "score"],
        ["door", "2", "scored", "no", "score"],
        ["door", "3", "scored", "0.750", "ALERT"],
    ]

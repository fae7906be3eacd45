from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.embedded import EmbeddedBroker
from streamer.kafka.topics import create_topics, describe_broker


async def test_starts_answers_and_stops() -> None:
    async with EmbeddedBroker() as broker:
        pid = broker.pid
        kafka = KafkaConfig(bootstrap_servers=broker.bootstrap_servers)
        assert all(topic.new for topic in (await create_topics(kafka, partitions=3)).values())
        assert not any(topic.new for topic in (await create_topics(kafka, partitions=3)).values())
        assert (await describe_broker(kafka)).topics[kafka.chunks_topic] == 3
    assert pid is not None
    assert not psutil.pid_exists(pid)
    assert broker.pid is None


async def test_stops_when_the_block_fails() -> None:
    broker, pid = EmbeddedBroker(), None
    with suppress(RuntimeError):
        async with broker:
            pid = broker.pid
            raise RuntimeError
    assert pid is not None
    assert not psutil.pid_exists(pid)


async def test_two_at_once() -> None:
    async with EmbeddedBroker() as one, EmbeddedBroker() as two:
        assert one.bootstrap_servers != two.bootstrap_servers


async def test_dies_with_its_parent() -> None:
    script = textwrap.dedent("""
        import asyncio
        from streamer.kafka.embedded import EmbeddedBroker

        async def main():
            async with EmbeddedBroker() as broker:
                print(broker.pid, flush=True)
                await asyncio.sleep(60)

        asyncio.run(main())
    """)
    root = Path(__file__).parents[2]
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=subprocess.PIPE, cwd=root, env=os.environ | {"PYTHONPATH": "."}
    )
    assert parent.stdout is not None
    broker = psutil.Process(int(await parent.stdout.readline()))
    assert broker.is_running()
    parent.send_signal(signal.SIGKILL)
    await parent.wait()
    await asyncio.to_thread(broker.wait, 5)
    parent.stdout.feed_eof()
    del parent


@pytest.mark.parametrize("says", ["cannot bind", ""])
async def test_broker_that_ends_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str) -> None:
    binary = tmp_path / "tansu"
    binary.write_text(f"#!/bin/sh\nprintf '{says}'\nexit 3\n")
    binary.chmod(0o755)
    monkeypatch.setenv("CALF_TANSU_BIN", str(binary))
    with pytest.raises(BrokerError, match=f"ended with status 3: {says or 'it said nothing'}"):
        async with EmbeddedBroker():
            pass


async def test_missing_binary(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CALF_TANSU_BIN", "/no/such/file")
    with pytest.raises(BrokerError, match=r"cannot run here: .*no/such/file"):
        async with EmbeddedBroker():
            pass

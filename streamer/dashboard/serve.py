"""The page as a process: readers of the topics, ticks and an HTTP server in one event loop."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import aclosing, asynccontextmanager, contextmanager

import structlog
import uvicorn

from streamer.config import Config, DashboardConfig
from streamer.dashboard.feed import Feed, now_ms
from streamer.dashboard.store import MAX_LETTERS, Store, Unreadable
from streamer.dashboard.web import make_app
from streamer.errors import BrokerError, ConfigError, MessageError, NoTopicError
from streamer.kafka.presence import SILENT_SECONDS
from streamer.kafka.tail import Tailed, tail
from streamer.messages import decode_dead_letter, decode_evidence, decode_score
from streamer.tasks import call_on_signal, cancel_all, gather_or_cancel
from streamer.terminal import CONNECT_SECONDS

RETRY_SECONDS = 5.0
"""After a topic could not be read."""

LOOK_SECONDS = 60.0
"""Between looks for the topic of evidence while there is none, as where nobody publishes any."""

BACK_SCORES, BACK_LETTERS, BACK_EVIDENCE = 20_000, MAX_LETTERS, 1_000
"""Records of a partition that are read at the start, at most. Of scores, what a minute at the greatest rate
brings; dead letters are whole chunks, and evidence pictures: not more than is shown."""

CLOSE_SECONDS = 3
"""For open connections, at the end."""

MAX_SCORE_BYTES = 64 * 1024
"""Of a score update; with `rolling.max_tracks` people it has 5 kB."""

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class _Server(uvicorn.Server):
    """Leaves the signals to us."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run_dashboard(config: Config, show: Callable[[str], None]) -> None:
    """Serve the page until SIGTERM or SIGINT.

    show: told the address. Raises BrokerError if the scores cannot be read at the start.
    """
    stop = asyncio.Event()
    async with dashboard(config) as (address, failed):
        show(address)
        with call_on_signal(stop.set):
            stopped = asyncio.create_task(stop.wait())
            await asyncio.wait({stopped, failed}, return_when=asyncio.FIRST_COMPLETED)
            await cancel_all([stopped])
        if failed.done():
            failed.result()


@asynccontextmanager
async def dashboard(config: Config) -> AsyncIterator[tuple[str, asyncio.Task[None]]]:
    """The page in the block: its address, and a task that ends, raising, if it cannot go on."""
    store = Store(max_videos=config.dashboard.max_videos)
    async with serving(Feed(store), config.dashboard) as address:
        reading = asyncio.create_task(read_topics(config, store))
        try:
            yield address, reading
        finally:
            await cancel_all([reading])


@asynccontextmanager
async def serving(feed: Feed, config: DashboardConfig) -> AsyncIterator[str]:
    """The feed over HTTP in the block; gives the address. Raises ConfigError if it cannot be listened on."""
    app = make_app(feed, config)
    listening = _listen(config)
    server = _Server(
        uvicorn.Config(
            app,
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # who is at the other end decides about trust
            lifespan="off",
            ws="none",
            timeout_graceful_shutdown=CLOSE_SECONDS,
        )
    )
    tasks = [asyncio.create_task(server.serve([listening])), asyncio.create_task(feed.run())]
    host, port = listening.getsockname()[:2]
    try:
        yield f"http://{f'[{host}]' if ':' in host else host}:{port}/"
    finally:
        feed.close()
        server.should_exit = True
        await asyncio.gather(tasks[0], return_exceptions=True)
        await cancel_all(tasks)


def _listen(config: DashboardConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise ConfigError(
            f"dashboard.port: cannot listen on {config.host}:{config.port}: {error.strerror or error}"
        ) from error


async def read_topics(config: Config, store: Store) -> None:
    """Read the topics into the store, for ever. Raises BrokerError if the scores cannot be read at first."""

    def take_score(value: bytes) -> None:
        if len(value) > MAX_SCORE_BYTES:
            raise ValueError(f"a score update of {len(value)} bytes, at most {MAX_SCORE_BYTES} are read")
        store.apply(decode_score(value), now_ms())

    def take_letter(value: bytes) -> None:
        letter = decode_dead_letter(value)
        store.add_letter(letter, len(letter.value), now_ms())

    def take_evidence(value: bytes) -> None:
        store.gallery.add(decode_evidence(value), now_ms())

    kafka = config.kafka
    await gather_or_cancel(
        [
            _read(config, store, kafka.scores_topic, take_score, BACK_SCORES, must_start=True),
            _read(config, store, kafka.dead_letters_topic, take_letter, BACK_LETTERS),
            _read(config, store, kafka.evidence_topic, take_evidence, BACK_EVIDENCE, may_lack=True),
        ]
    )


async def _read(
    config: Config,
    store: Store,
    topic: str,
    take: Callable[[bytes], None],
    back_records: int,
    *,
    must_start: bool = False,
    may_lack: bool = False,
) -> None:
    """Read a topic for ever; while it cannot be read, the store says why.

    must_start: raise BrokerError if that is so from the beginning. may_lack: that there is no such topic is
    nothing to speak of.
    """
    heard_seconds = time.time() - config.dashboard.back_seconds
    where = f"Kafka at {config.kafka.bootstrap_servers}"

    def note_silence(seconds: float) -> None:
        nonlocal heard_seconds
        heard_seconds = time.time()
        if seconds > SILENT_SECONDS:
            heard_seconds -= seconds  # should it end with an error, what was published meanwhile is read
            store.trouble[topic] = f"{where} has not answered for {seconds:.0f} s"
        else:
            store.trouble.pop(topic, None)

    while True:
        try:
            batches = tail(
                config.kafka,
                topic,
                back_seconds=time.time() - heard_seconds,
                back_records=back_records,
                connect_seconds=CONNECT_SECONDS,
                on_behind=lambda records: store.behind.update({topic: records}),
                on_silent=note_silence,
            )
            async with aclosing(batches):
                async for batch in batches:
                    must_start = False
                    take_batch(store, batch, take)
                    await asyncio.sleep(0)
        except BrokerError as error:
            if may_lack and isinstance(error, NoTopicError):
                store.trouble.pop(topic, None)
                await asyncio.sleep(LOOK_SECONDS)
                continue
            if must_start:
                raise
            log.warning("cannot be read; trying again", topic=topic, error=str(error))
            store.trouble[topic] = str(error)
            store.behind.pop(topic, None)
        await asyncio.sleep(RETRY_SECONDS)


def take_batch(store: Store, batch: list[Tailed], take: Callable[[bytes], None]) -> None:
    """Hand records over; those that are none of ours are counted."""
    for record in batch:
        error = record.unreadable
        if error is None:
            try:
                take(record.value or b"")
            except (MessageError, ValueError, OverflowError) as raised:
                error = str(raised)
        if error is not None:
            store.add_unreadable(Unreadable(record.topic, record.partition, record.offset, error, now_ms()))

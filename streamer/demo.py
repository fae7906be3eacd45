"""The demo: a broker, the service, two cameras and the watch view in one process; ends by itself."""

from __future__ import annotations

import asyncio
import os
import secrets
import statistics
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.text import Text

from streamer.config import Config
from streamer.demo_clips import demo_clips
from streamer.engines import missing_untrained, prepare_members
from streamer.errors import StreamerError
from streamer.files import FileError
from streamer.kafka.embedded import EmbeddedBroker
from streamer.kafka.publish import ChunkPublisher
from streamer.kafka.scores import read_scores
from streamer.kafka.topics import create_topics
from streamer.log import printable, set_up_logging
from streamer.messages import ScoreUpdate
from streamer.pipeline import Pipeline
from streamer.publish import publish_source
from streamer.service import Service
from streamer.sources import Clip
from streamer.tasks import cancel_all, gather_or_cancel
from streamer.terminal import CONNECT_SECONDS, count, duration
from streamer.watch import UNTRAINED, View, make_view, people_in

CHUNK_SECONDS = 1.0
INTERRUPTED = 130

READY_SECONDS = 120.0
"""For loading the networks, on a slow machine."""

KEEP_PAGE_SECONDS = 60.0
"""For looking at the live page, when the clips are over."""

FINISH_SECONDS = 300.0
"""After the last chunk was published, for the last score."""

PREFIX = "streamer-demo-"
"""Of topics and group on a Kafka of yours, where the demo must not meddle with real ones."""


class DemoError(StreamerError):
    """The demo could not go on."""


@dataclass(slots=True)
class Tally:
    """What came out, for the summary."""

    awaited: set[str]
    updates: dict[str, ScoreUpdate] = field(default_factory=dict)
    total_ms: list[float] = field(default_factory=list)

    def add(self, update: ScoreUpdate) -> None:
        """Count an update; one with `last` ends its video."""
        if "total" in update.latency_ms:
            self.total_ms.append(update.latency_ms["total"])
        self.updates[update.video_id] = update
        if update.last:
            self.awaited.discard(update.video_id)


async def run_demo(config: Config, *, embedded: bool, page: bool = False) -> int:
    """Run all of it; returns the exit status. Raises StreamerError if a part of it cannot work.

    page: serve the live page, too, with pictures of suspicious faces; on a terminal it stays for a while
    after the clips.
    """
    console = _console()
    config = _for_demo(config, embedded=embedded, page=page)
    set_up_logging(config.log)
    clips = [Clip(path, _video_id(path, embedded=embedded)) for path in demo_clips()]
    async with AsyncExitStack() as resources:
        making = missing_untrained(config.classify)
        doing = "making untrained full-size ones, this once" if making else "checking"
        with _step(console, "members of the ensemble", doing):
            await asyncio.to_thread(prepare_members, config.classify)
        with _step(console, "Kafka", "starting an embedded broker" if embedded else "connecting"):
            if embedded:
                broker = await resources.enter_async_context(EmbeddedBroker())
                # It has no transactions.
                config = _with_kafka(
                    config, bootstrap_servers=broker.bootstrap_servers, delivery="at_least_once"
                )
            await create_topics(config.kafka, connect_seconds=CONNECT_SECONDS)
        service = Service(config, lambda: Pipeline(config))
        with _step(console, "service", "loading networks"):
            serving = await resources.enter_async_context(_serving(service))
        if page:
            address = await resources.enter_async_context(_live_page(config))
            console.print(Text.assemble("  live page: ", (address, "bold underline")))
        console.print()
        tally = Tally({clip.video_id for clip in clips})
        title = f"demo · {'embedded broker' if embedded else config.kafka.bootstrap_servers}"
        showing = asyncio.create_task(_show(config, clips, tally, make_view(title, json=False)))
        # the service ends before its time when it fails, or without an error when a signal told it to
        await first_of(showing, asyncio.create_task(_wait_for(serving)))
        if tally.awaited:
            return INTERRUPTED
        _summarise(console, tally, embedded=embedded)
        if page and console.is_terminal:
            console.print(f"\nThe live page stays for {duration(KEEP_PAGE_SECONDS)}; Ctrl-C ends it.")
            await asyncio.wait({serving}, timeout=KEEP_PAGE_SECONDS)
    return 0


@asynccontextmanager
async def _live_page(config: Config) -> AsyncIterator[str]:
    """The live page of this process on any free port; gives its address."""
    from streamer.dashboard.serve import dashboard

    anywhere = config.dashboard.model_copy(update={"port": 0})
    async with dashboard(config.model_copy(update={"dashboard": anywhere})) as (address, _):
        yield address


def _console() -> Console:
    """Lines are broken at words on a terminal, and not at all in a file."""
    console = Console(highlight=False)
    console.soft_wrap = not console.is_terminal
    return console


def _for_demo(config: Config, *, embedded: bool, page: bool) -> Config:
    """Untrained members allowed, since their scores are withheld; any port; quiet, since a table is drawn.

    page: there is one, to show evidence on.
    """
    kafka = config.kafka
    if not embedded:
        names = (
            "chunks_topic",
            "scores_topic",
            "dead_letters_topic",
            "state_topic",
            "evidence_topic",
            "group_id",
        )
        kafka = kafka.model_copy(update={name: PREFIX + getattr(kafka, name) for name in names})
    level = config.log.level if config.log.level in ("debug", "error") else "warning"
    return config.model_copy(
        update={
            "kafka": kafka,
            "classify": config.classify.model_copy(update={"allow_untrained": True}),
            "service": config.service.model_copy(update={"http_port": 0}),
            "evidence": config.evidence.model_copy(update={"publish": page or config.evidence.publish}),
            "log": config.log.model_copy(update={"level": level}),
        }
    )


def _with_kafka(config: Config, **changes: str) -> Config:
    return config.model_copy(update={"kafka": config.kafka.model_copy(update=changes)})


def _video_id(path: Path, *, embedded: bool) -> str:
    """On a Kafka that outlives the demo each run shows new videos, else their chunks would be duplicates."""
    return path.stem if embedded else f"{path.stem}-{secrets.token_hex(3)}"


@contextmanager
def _step(console: Console, name: str, doing: str) -> Iterator[None]:
    """A line while something is prepared, and how long it took."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    with console.status(f"{name}: {doing} …"):
        if not console.is_terminal:
            console.print(f"{name}: {doing} …")
            sys.stdout.flush()
        yield
    took = duration(loop.time() - started)
    console.print(Text.assemble(("✓ ", "green"), f"{name} ready", (f"  {took}", "dim")))


@asynccontextmanager
async def _serving(service: Service) -> AsyncIterator[asyncio.Task[None]]:
    """The service as a task, from its being ready on; stopped and drained at the end of the block."""
    serving = asyncio.create_task(service.run())
    try:
        async with asyncio.timeout(READY_SECONDS):
            while not serving.done() and service.why_not_ready() is not None:
                await asyncio.wait({serving}, timeout=0.05)
        if serving.done():
            await serving
            raise KeyboardInterrupt  # it ends without an error before it was ready when told to by a signal
        yield serving
    except TimeoutError as error:
        raise DemoError(f"the service is not ready after {READY_SECONDS:.0f} s") from error
    finally:
        if not serving.done():
            service.stop()
        await asyncio.gather(serving, return_exceptions=True)


async def _show(config: Config, clips: Sequence[Clip], tally: Tally, view: View) -> None:
    """Publish the clips as cameras would, and show what comes back until each has had its last score."""
    ready = asyncio.Event()
    known = frozenset(tally.awaited)

    async def follow() -> None:
        async with aclosing(read_scores(config.kafka, ready=ready)) as updates:
            with view:
                async for update in updates:
                    if update.video_id in known:
                        view.show(update)
                        tally.add(update)
                    if not tally.awaited:
                        return

    async def shoot(publisher: ChunkPublisher) -> None:
        await ready.wait()
        try:
            await gather_or_cancel(
                publish_source(publisher, clip, CHUNK_SECONDS, realtime=True) for clip in clips
            )
        except FileError as error:
            raise DemoError(f"{error.path}: {error}") from error
        await asyncio.sleep(FINISH_SECONDS)
        missing = ", ".join(sorted(tally.awaited))
        raise DemoError(f"no last score for {missing} after {FINISH_SECONDS:.0f} s")

    async with ChunkPublisher(config.kafka) as publisher:
        following, shooting = asyncio.create_task(follow()), asyncio.create_task(shoot(publisher))
        await first_of(following, shooting)


async def _wait_for(task: asyncio.Task[None]) -> None:
    """Wait without passing cancellation on."""
    await asyncio.shield(task)


async def first_of(*tasks: asyncio.Task[None]) -> None:
    """Wait until one task ends, cancel the others; raises what it raised."""
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        await cancel_all(tasks)


def _summarise(console: Console, tally: Tally, *, embedded: bool) -> None:
    updates = [tally.updates[name] for name in sorted(tally.updates)]
    console.print()
    console.print(Text("Summary", style="bold"))
    for update in updates:
        if not update.trained:
            score = Text(f"fake score {UNTRAINED}", style="italic")
        elif update.fake_score is None:
            score = Text("no face, so no score")
        else:
            interval = update.interval
            about = f" ({interval[0]:.2f}–{interval[1]:.2f})" if interval else ""
            score = Text(f"fake score {update.fake_score:.2f}{about}", style="bold")
        found = f"{count(update.chunks, 'chunk')}, {count(update.frames, 'frame')} looked at"
        people = f"{count(update.faces, 'face')} of {count(people_in(update), 'person', 'people')}"
        console.print(Text.assemble(f"  {printable(update.video_id)}: ", score, f"; {found}, {people}"))
    if tally.total_ms:
        median, worst = statistics.median(tally.total_ms), max(tally.total_ms)
        console.print(
            f"  published to scored: median {duration(median / 1000)}, at worst {duration(worst / 1000)}, "
            f"on {count(os.cpu_count() or 1, 'core')}"
        )
    if not all(update.trained for update in updates):
        console.print(
            "\nThe scores are withheld because the ensemble is untrained: its numbers would "
            "be random. Put trained members into engines/ and name them in classify.members. Everything else "
            "you saw is real: cutting, Kafka, decoding, faces, people, delivery."
        )
    if not embedded:
        console.print(f"\nThe topics {PREFIX}* are left on your broker.")
    console.print(
        "\nNext: streamer score FILE … for files, streamer doctor for what this machine can do, "
        "streamer run for your own Kafka."
    )

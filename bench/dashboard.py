"""What the live page costs: CPU and memory of its server, frames per second of the page in Chromium.

    python bench/dashboard.py [--videos 2000] [--rate 5] [--seconds 20] [--pages 1] [--no-browser]

Score messages, made beforehand as bytes, are decoded and put into the store directly, at a steady rate, in
the server's own event loop: no broker and no Kafka client, whose cost comes on top. Server, feed and streams
are those of `streamer dashboard`. In the browser, requestAnimationFrame counts frames while the table is
live, and while it is scrolled too.
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import os
import statistics
import sys
import time
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

sys.path.append(str(Path(__file__).parents[1] / "tests"))

import aiohttp
from browser import EXECUTABLE, Page, chromium, tab
from scenes import cameras

from streamer.config import DashboardConfig
from streamer.dashboard.feed import Feed, now_ms
from streamer.dashboard.serve import serving, take_batch
from streamer.dashboard.store import HISTORY_UPDATES, Store
from streamer.kafka.tail import BATCH_RECORDS, Tailed
from streamer.messages import decode_score, encode_score

ROUNDS = 12
"""Different messages of a video; they are repeated."""

FRAMES = """
(async () => {
  const seconds = %d, scroll = %s, gaps = [];
  const scroller = document.querySelector("#scroller");
  let last = performance.now();
  const end = last + 1000 * seconds;
  while (last < end) {
    const now = await new Promise(requestAnimationFrame);
    gaps.push(now - last);
    last = now;
    if (scroll) scroller.scrollTop = (scroller.scrollTop + 37) %% (scroller.scrollHeight - 500);
  }
  return gaps;
})()
"""


def make_messages(videos: int) -> list[list[bytes]]:
    """By round, a message of every video."""
    shown = cameras(videos)
    return [[encode_score(camera.next(now_ms())) for camera in shown] for _ in range(ROUNDS)]


async def serve(videos: int, rate: float, history: int, pipe: Connection) -> None:
    """The server, fed at the rate; tells its address, then how many messages it took whenever it is asked."""
    rounds = make_messages(videos)
    store = Store(max_videos=5000)
    taken = 0

    def take(value: bytes) -> None:
        store.apply(decode_score(value), now_ms())

    for n in range(history):
        take_batch(store, [Tailed("scores", 0, 0, value) for value in rounds[n % ROUNDS]], take)
    async with serving(Feed(store), DashboardConfig(port=0)) as address:
        pipe.send(address)
        loop = asyncio.get_running_loop()
        loop.add_reader(pipe.fileno(), lambda: pipe.send((pipe.recv(), taken)[1]))
        started = loop.time()
        for n in range(10**9):
            values = rounds[n % ROUNDS]
            for at in range(0, videos, BATCH_RECORDS):
                batch = [Tailed("scores", 0, 0, value) for value in values[at : at + BATCH_RECORDS]]
                take_batch(store, batch, take)
                taken += len(batch)
                due = started + taken / (videos * rate)
                await asyncio.sleep(max(0.0, due - loop.time()))


def run_server(videos: int, rate: float, history: int, pipe: Connection) -> None:
    """In a process of its own."""
    import uvloop

    uvloop.run(serve(videos, rate, history, pipe))


async def read_stream(address: str, seconds: float) -> tuple[int, int]:
    """Events and bytes of a page's stream."""
    events = size = 0
    async with aiohttp.ClientSession() as session, session.get(f"{address}events") as response:
        end = time.monotonic() + seconds
        async for part in response.content.iter_any():
            size += len(part)
            events += part.count(b"event: change")
            if time.monotonic() > end:
                break
    return events, size


async def ask(pipe: Connection) -> int:
    """Messages taken so far."""
    pipe.send(None)
    return int(await asyncio.to_thread(pipe.recv))


async def measure(
    name: str, process: psutil.Process, pipe: Connection, address: str, pages: int, seconds: float
) -> None:
    """A row: the server's CPU share while so many pages follow."""
    cpu, wall, before = sum(process.cpu_times()[:2]), time.monotonic(), await ask(pipe)
    read = await asyncio.gather(
        *(read_stream(address, seconds) for _ in range(pages)), asyncio.sleep(seconds)
    )
    took, count = time.monotonic() - wall, await ask(pipe) - before
    cpu = sum(process.cpu_times()[:2]) - cpu
    stream = ""
    if pages:
        events, size = read[0]  # type: ignore[misc]
        stream = f", {events / took:.1f} events/s and {size / took / 1e6:.2f} MB/s to each"
    rss = process.memory_info().rss / 2**20
    print(
        f"{name}: {count / took:,.0f} messages/s, CPU {100 * cpu / took:.0f} % of a core "
        f"({1e6 * cpu / count:.0f} us per message), RSS {rss:.0f} MiB{stream}",
        flush=True,
    )


async def main_thread_seconds(page: Page) -> float:
    """CPU time that the page's main thread has spent, whatever else the machine does."""
    metrics = (await page.send("Performance.getMetrics"))["metrics"]
    return next(float(metric["value"]) for metric in metrics if metric["name"] == "TaskDuration")


async def frames(address: str, port: int, seconds: int) -> None:
    """Rows: frames per second of the page."""
    async with tab(port) as page:
        await page.size(1280, 800)
        await page.open(address)
        await page.until("document.querySelectorAll('#videos tr').length > 10")
        await page.send("Performance.enable", timeDomain="threadTicks")
        for name, scroll in (("live", "false"), ("live and scrolled", "true")):
            before = await main_thread_seconds(page)
            gaps: list[float] = await page.eval(FRAMES % (seconds, scroll))
            spent = await main_thread_seconds(page) - before
            gaps = sorted(gaps[1:])
            worst = gaps[int(0.99 * len(gaps))]
            print(
                f"page, {name}: {1000 * len(gaps) / sum(gaps):.0f} frames/s; between two frames median "
                f"{statistics.median(gaps):.0f} ms, p99 {worst:.0f} ms, longest {gaps[-1]:.0f} ms; "
                f"main thread: {1000 * spent / len(gaps):.1f} ms of CPU per frame",
                flush=True,
            )


async def main(options: argparse.Namespace) -> None:
    """All rows."""
    ours, theirs = multiprocessing.Pipe()
    context: Any = multiprocessing.get_context("spawn")
    arguments = (options.videos, options.rate, options.history, theirs)
    server = context.Process(target=run_server, args=arguments, daemon=True)
    server.start()
    try:
        address = await asyncio.to_thread(ours.recv)
        process = psutil.Process(server.pid)
        print(
            f"{options.videos:,} videos, {options.rate:g} updates/s each, put into the store directly; "
            f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f} before",
            flush=True,
        )
        await asyncio.sleep(2)  # burn-in
        await measure("server, no page", process, ours, address, 0, options.seconds)
        await measure(
            f"server, {options.pages} page(s)", process, ours, address, options.pages, options.seconds
        )
        if EXECUTABLE is None or options.no_browser:
            print("page: no Chromium, not measured")
            return
        with ExitStack() as browsers:
            port = await asyncio.to_thread(browsers.enter_context, chromium())
            await frames(address, port, int(options.seconds))
    finally:
        server.terminate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--videos", type=int, default=2000)
    parser.add_argument("--rate", type=float, default=5.0)
    parser.add_argument(
        "--history", type=int, default=HISTORY_UPDATES, help="updates of each video beforehand; default: full"
    )
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--pages", type=int, default=1)
    parser.add_argument("--no-browser", action="store_true")
    asyncio.run(main(parser.parse_args()))

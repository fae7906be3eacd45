"""Writes docs/screenshots/*.png: the live page with made-up videos, and once with the demo's, in Chromium.

    python scripts/make_screenshots.py

Chromium must be on the machine. The pictures are reduced to a palette, so that they stay small.
"""

from __future__ import annotations

import asyncio
import io
import re
import sys
from pathlib import Path

from PIL import Image

sys.path.append(str(Path(__file__).parents[1] / "tests"))

from browser import Page, chromium, tab
from scenes import Camera, cameras, letters

from streamer.config import DashboardConfig
from streamer.dashboard.feed import Feed, now_ms
from streamer.dashboard.serve import serving
from streamer.dashboard.store import Store

OUTPUT = Path(__file__).parents[1] / "docs" / "screenshots"
VIDEOS = 110
UPDATES = 62
LIVE = "document.querySelector('#connection')?.dataset.state === 'live'"
SETTLE_SECONDS = 2.0
COLOURS = 224
MAX_BYTES = 300_000
"""Of all pictures together."""

PICTURES = (
    ("videos-light", "", "light", (1180, 640)),
    ("videos-dark", "", "dark", (1180, 640)),
    ("videos-narrow", "", "dark", (390, 640)),
    ("video-light", "video?id={fake}", "light", (1180, 820)),
    ("dead-letters-dark", "dead-letters", "dark", (1180, 480)),
)
FACES = ("faces-light", "light", (1180, 480))
"""Of the demo's manipulated clip, with their heat maps."""


def fill(store: Store, shown: list[Camera]) -> str:
    """Made-up videos, of which one is returned that turned fake."""
    start = now_ms() - 2000 * UPDATES
    for n in range(UPDATES):
        at_ms = start + 2000 * (n + 1)
        for camera in shown:
            camera.ended = n == UPDATES - 1 and camera.video_id.endswith("7")
            store.apply(camera.next(at_ms), at_ms + 30)
    for letter in letters(now_ms()):
        store.add_letter(letter, len(letter.value), now_ms())
    return next(row.video_id for row in store.rows() if row.raised and len(row.update.tracks) > 1)


async def go_on(store: Store, shown: list[Camera]) -> None:
    """Updates, until cancelled."""
    while True:
        for camera in shown:
            if not camera.ended:
                store.apply(camera.next(now_ms()), now_ms() + 30)
        await asyncio.sleep(1)


async def take(page: Page, address: str, fake: str) -> int:
    """All pictures; their size in bytes."""
    total = 0
    for name, path, scheme, (width, height) in PICTURES:
        await page.size(width, height)
        await page.colours(scheme)
        await page.open("about:blank")
        await page.open(address + path.format(fake=fake))
        await page.until(LIVE)
        await asyncio.sleep(SETTLE_SECONDS)
        await page.until(LIVE)
        small = reduced(await page.picture())
        (OUTPUT / f"{name}.png").write_bytes(small)
        total += len(small)
    return total


async def take_faces(page: Page) -> int:
    """The picture of the demo's faces; its size in bytes."""
    name, scheme, (width, height) = FACES
    demo = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "streamer", "demo", "--page"), stdout=asyncio.subprocess.PIPE
    )
    assert demo.stdout is not None
    while (found := re.search(r"live page: (\S+)", (await demo.stdout.readline()).decode())) is None:
        pass
    reading = asyncio.create_task(demo.stdout.read())  # lest it wait for a reader
    await page.size(width, height)
    await page.colours(scheme)
    await page.open(f"{found[1]}video?id=manipulated")
    await page.until("document.querySelectorAll('#faces > li').length >= 10")
    await page.eval("document.querySelector('#heat').click()")
    await page.eval("document.querySelector('#faces-title').scrollIntoView()")
    await page.until(
        "[...document.querySelectorAll('#faces img')].every((i) => i.complete && i.naturalWidth > 0)"
    )
    small = reduced(await page.picture())
    (OUTPUT / f"{name}.png").write_bytes(small)
    await page.open("about:blank")
    await asyncio.wait_for(reading, 120)
    await demo.wait()
    return len(small)


def reduced(png: bytes) -> bytes:
    """The same in COLOURS colours."""
    small = io.BytesIO()
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    picture.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
        small, "PNG", optimize=True
    )
    return small.getvalue()


async def main(port: int) -> None:
    """Serve, look, write."""
    OUTPUT.mkdir(parents=True, exist_ok=True)
    store = Store(max_videos=5000)
    shown = cameras(VIDEOS, seed=3)
    fake = fill(store, shown)
    going = asyncio.create_task(go_on(store, shown))
    async with serving(Feed(store), DashboardConfig(port=0)) as address, tab(port) as page:
        total = await take(page, address, fake) + await take_faces(page)
        if page.problems:
            raise SystemExit("\n".join(page.problems))
    going.cancel()
    print(f"{len(PICTURES) + 1} pictures, {total:,} bytes")
    if total > MAX_BYTES:
        raise SystemExit(f"more than {MAX_BYTES:,} bytes")


if __name__ == "__main__":
    with chromium() as devtools:
        asyncio.run(main(devtools))

"""The page in a real browser: order, hostile names, themes, keyboard, many videos, the form."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import EXECUTABLE, Page, chromium, tab
from clips import clip_chunks
from fakes import publish, running, service_config, until
from members import make_engines, make_member
from PIL import Image
from scenes import evidence, letters
from updates import update

from streamer.config import ClassifyConfig, DashboardConfig, EvidenceConfig, KafkaConfig
from streamer.dashboard.feed import Feed, now_ms
from streamer.dashboard.serve import dashboard, serving
from streamer.dashboard.store import Store, Unreadable
from streamer.messages import ShadowScore
from streamer.pipeline import Pipeline
from streamer.suspects import HEAT_PX, jpeg_of, png_of_heat

pytestmark = [
    pytest.mark.needs_chromium,
    pytest.mark.timeout(600),  # a browser on a busy machine
    pytest.mark.skipif(EXECUTABLE is None, reason="no Chromium on this machine"),
]

HOSTILE = "<img src=x onerror=\"document.title='owned'\">/../?a=b&c#d%2F\u202egpj.\n\x00"
LIVE = "document.querySelector('#connection').dataset.state === 'live'"
NAMES = "[...document.querySelectorAll('#videos a.video')].map((link) => link.textContent)"


@dataclass
class Screen:
    """A page, and the store behind it."""

    page: Page
    store: Store
    feed: Feed
    address: str
    own_problems: int = 0

    def tell(self, video_id: str, seq: int = 0, score: float | None = 0.5, **changes: Any) -> None:
        """An update arrives now."""
        changes = {"processed_at_ms": now_ms() - 20} | changes
        self.store.apply(update(video_id, seq, score, **changes), now_ms())

    async def open(self, path: str = "") -> None:
        await self.page.open("about:blank")
        await self.page.open(self.address + path)
        await self.page.until(LIVE)

    async def names(self) -> list[str]:
        found: list[str] = await self.page.eval(NAMES)
        return found

    async def until_first(self, name: str) -> None:
        await self.page.until(f"({NAMES})[0] === {json.dumps(name)}")


@pytest.fixture(scope="module")
def browser() -> Iterator[int]:
    """One for all tests; each has a tab, and an address and so a storage of its own."""
    with chromium() as port:
        yield port


@pytest.fixture
async def screen(browser: int) -> AsyncIterator[Screen]:
    async with AsyncExitStack() as resources:
        store = Store(max_videos=5000)
        feed = Feed(store, tick_seconds=0.1)
        address = await resources.enter_async_context(serving(feed, DashboardConfig(port=0)))
        page = await resources.enter_async_context(tab(browser))
        await page.size(1280, 800)
        yield Screen(page, store, feed, address)
        assert page.problems == []  # no exception, nothing that the policy refused


async def test_rows_alerts_and_order(screen: Screen) -> None:
    page = screen.page
    screen.tell("calm", score=0.1)
    screen.tell("high", score=0.72)
    screen.tell("random", score=0.99, trained=False)
    await screen.open()
    await screen.until_first("high")
    assert await screen.names() == ["high", "calm", "random"]
    assert await page.eval("document.querySelector('#announcement').textContent") == ""
    text = await page.eval("document.querySelector('#table').innerText")
    assert "0.72" in text
    assert "0.67–0.77" in text
    assert "untrained" in text
    assert "0.99" not in text
    cells = await page.eval(
        "[...document.querySelector('#videos tr:not([aria-hidden])').children]"
        ".map((cell) => cell.getBoundingClientRect().toJSON())"
    )
    assert len({(cell["top"], cell["bottom"]) for cell in cells if cell["width"]}) == 1  # one straight row
    screen.tell("calm", 1, 0.9, alert="raised", changed=True)
    await screen.until_first("calm")
    await page.until("document.querySelector('#announcement').textContent === 'Alert raised: calm'")
    assert "▲ ALERT" in await page.eval("document.querySelector('#videos tr.alert').innerText")
    assert await page.eval("document.title") == "▲ 1 · streamer"
    assert await page.eval("document.querySelectorAll('[aria-live]').length") == 1
    inked = "c.getContext('2d').getImageData(0, 0, c.width, c.height).data.some((value) => value)"
    assert await page.eval(f"(() => {{ const c = document.querySelector('canvas'); return {inked}; }})()")


async def test_any_name_is_harmless_and_leads_to_its_page(screen: Screen) -> None:
    page = screen.page
    screen.tell(HOSTILE, 3, 0.25, models={HOSTILE: 0.25}, status="undecodable", error=HOSTILE)
    screen.tell("", 0, 0.1)
    await screen.open()
    await page.until(f"({NAMES}).length === 2")
    first, empty = await screen.names()
    assert first.startswith("<img src=x onerror=")
    assert first.endswith(r"%2F\u{202e}gpj.\u{a}\u{0}")
    assert empty == "(empty)"
    assert await page.eval("document.images.length") == 0
    await page.eval("document.querySelector('#videos a.video').click()")
    await page.until(
        f"location.pathname === '/video' && {LIVE} && !document.querySelector('#content').hidden"
    )
    assert await page.eval("document.querySelector('#name').textContent") == first
    assert await page.eval("document.images.length") == 0
    assert (await page.eval("document.title")).startswith("<img")
    assert await page.eval("document.querySelectorAll('.uplot').length") == 3
    text = await page.eval("document.querySelector('main').innerText")
    assert "No pictures: " in text
    assert "0.25" in text


async def test_an_ensemble_in_shadow_is_a_dashed_line_and_two_figures(screen: Screen) -> None:
    page = screen.page
    screen.tell("cam", 0, 0.25)
    await screen.open("video?id=cam")
    await page.until("document.querySelector('#timeline .uplot') !== null")
    tiles = "document.querySelector('#tiles').innerText"
    assert "shadow" not in (await page.eval(tiles)).lower()
    told = {"model_set": "next", "fake_score": 0.625, "window_score": 0.75, "faces": 5}
    screen.tell("cam", 1, 0.25, shadow=ShadowScore(**told, trained=True))
    await page.until(f"{tiles}.toLowerCase().includes('shadow overall')")
    assert (await page.eval(tiles)).split()[-6:] == ["shadow", "now", "0.75", "shadow", "overall", "0.63"]
    legend = "document.querySelector('#timeline .u-legend').innerText"
    await page.until(f"{legend}.includes('shadow now')")
    assert "shadow.model_set" in await page.eval("document.querySelector('#latest').innerText")
    screen.tell("cam", 2, 0.25, shadow=ShadowScore(**told, trained=False))
    await page.until(f"{tiles}.includes('untrained')")
    await page.until(f"!{legend}.includes('shadow now')")


def face_of(level: int) -> dict[str, bytes]:
    """Pictures of one grey level, the heat map that of its right half."""
    heat = np.zeros((64, 64), np.float32)
    heat[:, 32:] = 1
    return {"jpeg": jpeg_of(np.full((64, 64, 3), level, np.uint8), 85), "heat": png_of_heat(heat)}


LOADED = "[...document.querySelectorAll('#faces img')].every((i) => i.complete && i.naturalWidth > 0)"
ALTS = "[...document.querySelectorAll('#faces img')].map((i) => i.alt)"


async def test_faces_with_their_heat_maps(screen: Screen) -> None:
    page, gallery = screen.page, screen.store.gallery
    await page.size(1280, 2000)
    screen.tell("cam", 3, 0.9)
    gallery.add(evidence("cam", 3, (0.91,), track=2, **face_of(120)), now_ms())
    await screen.open("video?id=cam")
    await page.until(f"document.querySelectorAll('#faces > li').length === 1 && {LOADED}")
    assert await page.eval("document.querySelector('#no-faces').hidden")
    assert await page.eval(ALTS) == ["Face of track 2 at 0:06", "Heat map of the face of track 2 at 0:06"]
    text = await page.eval("document.querySelector('#faces').innerText")
    assert "0.91 track 2 at 0:06" in text
    assert "densenet121 0.91" in text
    # a more suspicious one comes: it is put first, and the other's pictures stay as they are
    await page.eval("document.querySelector('#faces img').dataset.mine = 'yes'")
    no_map = {"jpeg": face_of(60)["jpeg"], "heat": None}
    gallery.add(evidence("cam", 4, (0.97,), track=0, **no_map), now_ms())
    await page.until(f"document.querySelectorAll('#faces > li').length === 2 && {LOADED}")
    assert (await page.eval(ALTS))[:2] == ["Face of track 0 at 0:08", "Face of track 2 at 0:06"]
    assert await page.eval("document.querySelectorAll('#faces img')[1].dataset.mine") == "yes"
    # the maps are shown by a button, for the keyboard too
    shown = "getComputedStyle(document.querySelector('#faces img.heat')).display"
    assert await page.eval(shown) == "none"
    await page.eval("document.querySelector('#heat').focus()")
    await page.press("Enter")
    await page.until(f"{shown} === 'block'")
    assert await page.eval("document.querySelector('#heat').ariaPressed") == "true"
    crop, heat = [
        await page.eval(f"(({{left, top, width}}) => [left, top, width])({where}.getBoundingClientRect())")
        for where in (
            "document.querySelectorAll('#faces .stack')[1].querySelector('.crop')",
            "document.querySelector('#faces img.heat')",
        )
    ]
    assert crop == heat  # one upon the other
    left, right = await colours_of(page, crop)
    assert max(left) - min(left) <= 3  # grey where nothing is seen
    assert right[0] > right[2] + 30  # glowing where it is
    await page.press("Enter")
    await page.until(f"{shown} === 'none'")


@pytest.mark.needs_kafka
async def test_from_a_chunk_to_the_picture_in_the_browser(
    real_kafka: KafkaConfig, browser: int, tmp_path: Path
) -> None:
    """Service, broker, dashboard, browser: the real ones."""
    folder = make_engines(tmp_path / "engines", plain=2.0)
    make_member(folder, "seer", 1.0, mask=True)
    config = service_config(real_kafka).model_copy(
        update={
            "classify": ClassifyConfig(engines=folder, members=("plain", "seer")),
            "evidence": EvidenceConfig(publish=True, crops_per_chunk=1),
            "dashboard": DashboardConfig(port=0),
        }
    )
    chunks = clip_chunks("cam/1")[:3]
    async with running(config, Pipeline(config)), dashboard(config) as (address, _), tab(browser) as page:
        await publish(real_kafka, *chunks)
        await page.open(f"{address}video?id=cam%2F1")
        await page.until(f"document.querySelectorAll('#faces > li').length === 3 && {LOADED}")
        assert set(
            await page.eval("[...document.querySelectorAll('#faces img')].map((i) => i.naturalWidth)")
        ) == {*(32, HEAT_PX)}
        assert "seer 0.73" in await page.eval("document.querySelector('#faces').innerText")
        assert page.problems == []


async def colours_of(page: Page, place: list[float]) -> list[list[int]]:
    """RGB in the middle of the left and of the right half of a picture, which is in the window."""
    left, top, width = place
    shown = Image.open(io.BytesIO(await page.picture())).convert("RGB")
    at = [(round(left + width * share), round(top + width / 2)) for share in (0.25, 0.75)]
    return [[*shown.getpixel(each)] for each in at]


async def test_the_order_waits_for_the_pointer(screen: Screen) -> None:
    page = screen.page
    for n in range(6):
        screen.tell(f"v{n}", score=0.9 - n / 10)
    await screen.open()
    await page.until(f"({NAMES}).length === 6")
    x, y = await page.eval(
        "(({left, top}) => [left + 5, top + 5])"
        "(document.querySelector('#videos a.video').getBoundingClientRect())"
    )
    await page.point(x, y)
    screen.tell("v5", 1, 0.99, alert="raised", changed=True)
    await page.until("!document.querySelector('#held').hidden")
    await page.until("document.querySelector('#videos').innerText.includes('0.99')")  # values go on
    assert (await screen.names())[0] == "v0"
    await page.eval("document.querySelector('#sort-now').click()")
    await screen.until_first("v5")


async def test_filter_order_pins_and_keys(screen: Screen) -> None:
    page = screen.page
    for n in range(30):
        screen.tell(f"cam {n:02}", score=n / 30, faces=1000 - n)
    await screen.open()
    await screen.until_first("cam 29")
    await page.eval("document.querySelector('[data-order=faces] button').click()")
    await screen.until_first("cam 00")
    assert await page.eval("document.querySelector('[data-order=faces]').ariaSort") == "descending"
    await page.eval("document.activeElement.blur()")
    await page.press("/")
    await page.send("Input.insertText", text="CAM 1")
    await page.until(f"({NAMES}).length === 10")
    await screen.until_first("cam 10")
    await page.press("Escape")
    await screen.until_first("cam 00")
    await page.eval("document.querySelector('#scroller').focus()")
    await page.press("ArrowDown")
    await page.press("ArrowDown")
    assert await page.eval("document.activeElement.textContent") == "cam 01"
    await page.press("p")
    await page.eval("document.activeElement.blur()")
    await screen.until_first("cam 01")
    await screen.open()
    await screen.until_first("cam 01")  # kept
    assert await page.eval("document.querySelector('.pin').ariaPressed") == "true"


async def test_thousands_of_videos_are_a_few_rows(screen: Screen) -> None:
    page = screen.page
    for n in range(2000):
        screen.tell(f"v{n:04}", score=(2000 - n) / 4000)
    await screen.open()
    await page.until(f"({NAMES}).length > 10")
    assert await page.eval("document.querySelectorAll('#videos tr').length") < 60
    assert await page.eval("document.querySelector('#table').ariaRowCount") == "2001"
    await page.eval("document.querySelector('#scroller').focus()")
    await page.press("End")
    first, *_, last = (row.video_id for row in screen.store.rows())
    await page.until(f"document.activeElement.textContent === '{last}'")
    assert await page.eval("document.activeElement.closest('tr').ariaRowIndex") == "2001"
    await page.press("Home")
    await page.until(f"document.activeElement.textContent === '{first}'")


@pytest.mark.parametrize("width", [1280, 390])
async def test_nothing_is_wider_than_the_window(screen: Screen, width: int) -> None:
    screen.tell("a name that is far too long for a narrow window " * 4, score=0.9, alert="raised")
    for letter in letters(now_ms()):
        screen.store.add_letter(letter, 1, now_ms())
    await screen.page.size(width, 700)
    for path in ("", "dead-letters", "video?id=nobody"):
        await screen.open(path)
        assert await screen.page.eval("document.documentElement.scrollWidth") <= width, path
    await screen.open()
    scroller = "document.querySelector('#scroller')"
    assert await screen.page.eval(f"{scroller}.scrollWidth <= {scroller}.clientWidth")


async def test_dark_and_light(screen: Screen) -> None:
    page = screen.page
    background = "getComputedStyle(document.body).backgroundColor"
    await page.colours("light")
    await screen.open()
    light = await page.eval(background)
    await page.colours("dark")
    await page.until(f"{background} !== {json.dumps(light)}")
    dark = await page.eval(background)
    await page.eval("document.querySelector('#theme').click()")
    assert await page.eval(background) == light
    await screen.open("dead-letters")
    assert await page.eval(background) == light  # kept, whatever the system prefers
    await page.eval("document.querySelector('#theme').click()")
    assert await page.eval(background) == dark


async def test_dead_letters_and_unreadable_records(screen: Screen) -> None:
    page = screen.page
    await screen.open("dead-letters")
    assert "None yet" in await page.eval("document.querySelector('main').innerText")
    for letter in letters(now_ms()):
        screen.store.add_letter(letter, len(letter.value), now_ms())
    screen.store.add_unreadable(Unreadable("scores", 1, 77, "<b>no</b> score update", now_ms()))
    await page.until("document.querySelectorAll('#rows tr').length === 18")
    text = await page.eval("document.querySelector('main').innerText")
    for said in ("decoder crashed", "no keyframe", "gate-0015", "scores/1@77", "<b>no</b> score update"):
        assert said in text


async def test_counts_silence_and_a_broken_stream(screen: Screen) -> None:
    page = screen.page
    screen.store.apply(update("quiet"), now_ms() - 60_000)
    screen.tell("ended", last=True, status="final")
    screen.store.trouble["scores"] = "no broker <b>"
    screen.store.behind["scores"] = 1234
    await screen.open()
    await page.until("document.querySelector('#behind').textContent === '1,234'")
    assert await page.eval("document.querySelector('#trouble').textContent") == "scores: no broker <b>"
    text = await page.eval("document.querySelector('#videos').innerText")
    assert "silent 1 min" in text
    assert "ended" in text


async def test_a_video_in_a_tab_that_nobody_sees_takes_no_connection(screen: Screen) -> None:
    def hidden(value: str) -> str:
        return (
            f"Object.defineProperty(document, 'hidden', {{value: {value}, configurable: true}});"
            "document.dispatchEvent(new Event('visibilitychange'))"
        )

    page = screen.page
    screen.tell("cam", 0, 0.25)
    await screen.open("video?id=cam")
    await page.eval(hidden("true"))
    await until(lambda: screen.feed.streams == 0)
    screen.tell("cam", 1, 0.75)
    await page.eval(hidden("false"))
    await page.until("document.querySelector('#tiles').innerText.includes('0.75')")
    await screen.open()
    await page.eval(hidden("true"))
    screen.tell("cam", 2, 0.9, alert="raised", changed=True)
    await page.until("document.title === '▲ 1 · streamer'")


async def test_the_form_lets_in_with_the_token_only(browser: int) -> None:
    store = Store(max_videos=5)
    store.apply(update("secret video"), now_ms())
    store.gallery.add(evidence("secret video", 1, (0.9,), **face_of(99)), now_ms())
    config = DashboardConfig(port=0, auth="token", token="a token of the test")
    async with serving(Feed(store), config) as address, tab(browser) as page:
        await page.open(f"{address}video?id=secret%20video")
        await page.until("document.querySelector('#token') !== null && document.readyState === 'complete'")
        await page.eval("document.querySelector('#token').value = 'wrong'")
        await page.eval("document.querySelector('form').requestSubmit()")
        await page.until("document.querySelector('#wrong')?.hidden === false")
        await page.eval("document.querySelector('#token').value = 'a token of the test'")
        await page.eval("document.querySelector('form').requestSubmit()")
        await page.until(f"document.querySelector('#connection') && {LIVE}")
        assert await page.eval("document.querySelector('#name').textContent") == "secret video"
        await page.until(f"document.querySelectorAll('#faces img').length === 2 && {LOADED}")
        assert page.problems == []

"""A headless Chromium that is on the machine, spoken to by the DevTools protocol over aiohttp."""

from __future__ import annotations

import asyncio
import base64
import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp

EXECUTABLE = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

START_SECONDS = 120.0
WAIT_SECONDS = 120.0
"""For a condition to hold, on a busy machine."""


class PageError(Exception):
    """The page raised, or did not do what was waited for."""


class Page:
    """A tab."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._number = 0
        self.problems: list[str] = []
        """Exceptions and errors of the console, those of the content security policy among them."""

    async def send(self, method: str, **params: Any) -> dict[str, Any]:
        """A command of the protocol, and its result."""
        self._number += 1
        await self._socket.send_json({"id": self._number, "method": method, "params": params})
        while True:
            answer = json.loads(await self._socket.receive_str())
            self._note(answer)
            if answer.get("id") == self._number:
                if "error" in answer:
                    raise PageError(f"{method}: {answer['error']}")
                result: dict[str, Any] = answer["result"]
                return result

    def _note(self, message: dict[str, Any]) -> None:
        params = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                details = params["exceptionDetails"]
                self.problems.append(details.get("exception", {}).get("description", details["text"]))
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.problems.append(params["entry"]["text"])

    async def open(self, address: str) -> None:
        """Go there; returns before it is loaded."""
        await self.send("Page.navigate", url=address)

    async def eval(self, expression: str) -> Any:
        """Value of a JavaScript expression; a promise is awaited."""
        result = await self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        if "exceptionDetails" in result:
            raise PageError(f"{expression}: {result['exceptionDetails']}")
        return result["result"].get("value")

    async def until(self, expression: str) -> Any:
        """Wait until an expression is true; gives its value."""
        value = None
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                while not value:
                    await asyncio.sleep(0.05)
                    try:
                        value = await self.eval(expression)
                    except PageError as error:  # e.g. the page is being replaced
                        value = None
                        self.last = error
        except TimeoutError as error:
            text = await self.eval("document.body?.innerText.slice(0, 800)")
            raise PageError(f"never true: {expression}\n{self.problems}\n{text}") from error
        return value

    async def size(self, width: int, height: int) -> None:
        """Size of the window, CSS pixels."""
        await self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    async def colours(self, scheme: str) -> None:
        """`dark` or `light`."""
        await self.send(
            "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}]
        )

    async def press(self, key: str) -> None:
        """A key, by its name in JavaScript."""
        text = {"text": "\r" if key == "Enter" else key} if len(key) == 1 or key == "Enter" else {}
        codes = {"ArrowDown": 40, "ArrowUp": 38, "End": 35, "Home": 36, "Escape": 27, "Enter": 13, "Tab": 9}
        code = {"windowsVirtualKeyCode": codes[key]} if key in codes else {}
        await self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **text, **code)
        await self.send("Input.dispatchKeyEvent", type="keyUp", key=key, **code)

    async def point(self, x: float, y: float) -> None:
        """Move the mouse there."""
        await self.send("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)

    async def picture(self) -> bytes:
        """PNG of the window."""
        await self.until("document.readyState === 'complete'")
        taken = await self.send("Page.captureScreenshot", format="png")
        return base64.b64decode(taken["data"])


@contextmanager
def chromium() -> Iterator[int]:
    """A browser in the block, with a profile of its own: the port of its protocol."""
    assert EXECUTABLE is not None
    with tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [
                EXECUTABLE,
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
                *("--no-first-run", "--disable-background-networking", "--remote-debugging-port=0"),
                *("--remote-allow-origins=*", f"--user-data-dir={profile}", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            yield _port(Path(profile) / "DevToolsActivePort")
        finally:
            process.terminate()
            process.wait()


def _port(file: Path) -> int:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.05)
    raise PageError(f"Chromium does not start within {START_SECONDS:.0f} s")


@asynccontextmanager
async def tab(port: int) -> AsyncIterator[Page]:
    """A tab of the browser there, in front; closed after the block."""
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session:
        async with session.put("/json/new?about:blank") as response:
            made = await response.json(content_type=None)
        async with session.ws_connect(made["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            page = Page(socket)
            for domain in ("Page", "Runtime", "Log"):
                await page.send(f"{domain}.enable")
            await page.send("Page.bringToFront")
            yield page
        async with session.get(f"/json/close/{made['id']}"):
            pass

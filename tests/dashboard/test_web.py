"""The page over HTTP: who gets in, which names it answers to, headers, files, streams."""

from __future__ import annotations

import asyncio
import json
import re
from html.parser import HTMLParser
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from scenes import evidence
from starlette.testclient import TestClient
from updates import update

from streamer.config import DashboardConfig
from streamer.dashboard import feed as feed_module
from streamer.dashboard.auth import COOKIE, SESSION_SECONDS, Guard
from streamer.dashboard.feed import Feed
from streamer.dashboard.store import Store
from streamer.dashboard.web import PAGES, STATIC, host_names, make_app
from streamer.errors import ConfigError
from streamer.messages import JPEG_START

TOKEN = "correct horse battery staple"
BEARER = {"Authorization": f"Bearer {TOKEN}"}
DATA = ("/events", "/events/video?id=a", "/events/dead-letters")


class EndingFeed(Feed):
    """Its streams end by themselves after the first event: TestClient reads a response to its end."""

    def _frame(self, version: int, content: dict[str, Any]) -> bytes:
        self.close()
        return super()._frame(version, content)


def client(peer: str = "127.0.0.1", base: str = "http://127.0.0.1:9465", **config: Any) -> TestClient:
    store = Store(max_videos=10)
    store.apply(update("a", score=0.25), feed_module.now_ms())
    store.gallery.add(evidence("a", 0, (0.9,), jpeg=JPEG_START + b"face"), feed_module.now_ms())
    app = make_app(EndingFeed(store), DashboardConfig(**config))
    return TestClient(app, base_url=base, client=(peer, 5000), follow_redirects=False)


@pytest.fixture
def guarded() -> TestClient:
    return client(auth="token", token=TOKEN)


# ------------------------------------------------------------------ without authentication


@pytest.mark.parametrize("path", PAGES)
def test_pages(path: str) -> None:
    response = client().get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/html")
    assert response.headers["cache-control"] == "no-store"


def test_events() -> None:
    response = client().get("/events")
    assert response.status_code == 200
    assert response.headers["content-type"].startswith("text/event-stream")
    data = next(line for line in response.text.splitlines() if line.startswith("data: "))
    assert json.loads(data.removeprefix("data: "))["videos"][0]["id"] == "a"


@pytest.mark.parametrize("video_id", ["../../etc/passwd", "a b&c=d#e?f", "<script>", "%00", "\u202e💡", ""])
def test_events_of_a_video_of_any_name(video_id: str) -> None:
    store = Store(max_videos=10)
    store.apply(update(video_id, 7), 1)
    app = make_app(EndingFeed(store), DashboardConfig())
    response = TestClient(app, base_url="http://localhost").get("/events/video", params={"id": video_id})
    data = next(line for line in response.text.splitlines() if line.startswith("data: "))
    assert json.loads(data.removeprefix("data: "))["video"]["id"] == video_id


def shown_of(asking: TestClient, **headers: str) -> list[dict[str, Any]]:
    """What the page of the video says of its pictures."""
    response = asking.get("/events/video", params={"id": "a"}, headers=headers)
    data = next(line for line in response.text.splitlines() if line.startswith("data: "))
    shown: list[dict[str, Any]] = json.loads(data.removeprefix("data: "))["evidence"]
    return shown


def test_pictures() -> None:
    asking = client()
    (face,) = shown_of(asking)
    crop = asking.get(f"/evidence/{face['key']}/crop")
    assert (crop.content, crop.headers["content-type"]) == (JPEG_START + b"face", "image/jpeg")
    assert crop.headers["cache-control"] == "no-store"
    assert crop.headers["x-content-type-options"] == "nosniff"
    assert not face["heat"]
    for nothing in (f"{face['key']}/heat", "0/crop", "../evidence/crop", f"{face['key']}/", f"{face['key']}"):
        assert asking.get(f"/evidence/{nothing}").status_code == 404, nothing


def test_too_many_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MAX_STREAMS", 0)
    for path in DATA:
        assert client().get(path).status_code == 503


@pytest.mark.parametrize(
    "path", ["/static/../web.py", "/static/%2e%2e/web.py", "/static/..%2fauth.py", "/static/", "/etc/passwd"]
)
def test_nothing_beside_the_pages_own_files(path: str) -> None:
    assert client().get(path).status_code == 404


def test_nothing_can_be_sent() -> None:
    for path in (*PAGES, *DATA):
        assert client().post(path).status_code == 405


# ------------------------------------------------------------------ headers


@pytest.mark.parametrize("path", [*PAGES, *DATA, "/static/videos.js", "/login", "/nowhere"])
def test_security_headers_are_everywhere(path: str) -> None:
    headers = client(auth="token", token=TOKEN).get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == policy["base-uri"] == "'none'"
    assert "unsafe" not in headers["content-security-policy"]
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["referrer-policy"] == "same-origin"


class Collector(HTMLParser):
    """What the policy would forbid, and what is loaded."""

    def __init__(self) -> None:
        super().__init__()
        self.inline: list[str] = []
        self.loaded: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        by_name = dict(attrs)
        self.inline += [name for name in by_name if name.startswith("on") or name == "style"]
        if tag == "style" or (tag == "script" and "src" not in by_name):
            self.inline.append(tag)
        wanted = by_name.get("src") or (by_name.get("href") if tag == "link" else None)
        if wanted:
            self.loaded.append(wanted)
        if "id" in by_name:
            self.ids.append(by_name["id"] or "")


@pytest.mark.parametrize("file", [path.name for path in STATIC.glob("*.html")])
def test_pages_load_own_files_only_and_have_nothing_inline(file: str) -> None:
    found = Collector()
    found.feed((STATIC / file).read_text())
    assert found.inline == []
    assert found.loaded
    for address in found.loaded:
        assert (STATIC.parent / address).is_file(), address
    assert len(found.ids) == len(set(found.ids))


def own_scripts() -> list[Path]:
    return sorted(STATIC.glob("*.js"))


@pytest.mark.parametrize("script", own_scripts(), ids=lambda path: path.name)
def test_scripts_never_make_markup_from_text_and_load_own_files_only(script: Path) -> None:
    source = script.read_text()
    for forbidden in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "Function("):
        assert forbidden not in source
    assert "http://" not in source
    assert "https://" not in source
    for imported in re.findall(r'from "(.+?)"', source):
        assert (STATIC / imported).is_file()


def test_the_vendored_library_brings_its_licence() -> None:
    assert "MIT License" in (STATIC / "vendor" / "uPlot-LICENSE").read_text()
    assert "v1.6.32" in (STATIC / "vendor" / "uPlot.esm.js").read_text()[:400]


# ------------------------------------------------------------------ Host


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil", "", "10.0.0.1"])
def test_foreign_names_are_turned_away_before_anything_else(host: str) -> None:
    for path in ("/", "/events", "/static/videos.js", "/healthz", "/login"):
        assert client().get(path, headers={"Host": host}).status_code == 400


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.1:9465", "localhost:1", "[::1]:9465", "LOCALHOST"])
def test_own_names_are_answered(host: str) -> None:
    assert client().get("/healthz", headers={"Host": host}).status_code == 200


def test_more_names_can_be_allowed() -> None:
    config = {
        "auth": "token",
        "token": TOKEN,
        "host": "0.0.0.0",
        "allowed_hosts": ["a.example", "*.b.example"],
    }
    for host, status in (("a.example", 200), ("x.b.example:80", 200), ("b.example", 400), ("127.0.0.1", 400)):
        assert client(**config).get("/healthz", headers={"Host": host}).status_code == status
    assert "0.0.0.0" in host_names(DashboardConfig(**config))


# ------------------------------------------------------------------ configuration


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"host": "0.0.0.0"}, "needs auth"),
        ({"host": "192.168.1.5"}, "needs auth"),
        ({"host": "::"}, "needs auth"),
        ({"host": "example.org"}, "needs auth"),
        ({"host": "0.0.0.0", "auth": "token", "token": TOKEN}, "needs allowed_hosts"),
        ({"auth": "token"}, "belong together"),
        ({"token": TOKEN}, "belong together"),
        ({"auth": "token", "token": TOKEN, "token_file": "x"}, "exclude each other"),
        ({"allowed_hosts": ["*"]}, "allowed_hosts"),
        ({"auth": "proxy", "trusted_proxies": ["10.0.0.1/8"]}, "valid IPv4 or IPv6 network"),
    ],
)
def test_what_would_be_open_to_anyone_is_refused(config: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        DashboardConfig(**config)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_loopback_needs_no_authentication(host: str) -> None:
    assert DashboardConfig(host=host).auth == "none"


def test_tokens_are_checked_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "token"
    config = DashboardConfig(auth="token", token_file=file)
    with pytest.raises(ConfigError, match="cannot be read"):
        Guard(config)
    file.write_text("short\n")
    with pytest.raises(ConfigError, match="at least 16"):
        Guard(config)
    file.write_text(f"{TOKEN}\n")
    assert Guard(config).knows(TOKEN)
    assert TOKEN not in repr(DashboardConfig(auth="token", token=TOKEN))


# ------------------------------------------------------------------ token


@pytest.mark.parametrize("path", DATA)
def test_data_needs_the_token(guarded: TestClient, path: str) -> None:
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Authorization": f"Basic {TOKEN}"},
        {"Authorization": TOKEN},
        {"X-Forwarded-User": "root"},
        {"Cookie": f"{COOKIE}={TOKEN}"},
    ):
        response = guarded.get(path, headers=headers)
        assert response.status_code == 401, headers
        assert response.headers["www-authenticate"] == "Bearer"
        assert "data:" not in response.text
    assert guarded.get(path, headers=BEARER).status_code == 200


def test_pictures_need_the_token(guarded: TestClient) -> None:
    (face,) = shown_of(guarded, **BEARER)
    address = f"/evidence/{face['key']}/crop"
    response = guarded.get(address)
    assert response.status_code == 401
    assert JPEG_START not in response.content
    assert guarded.get(address, headers=BEARER).status_code == 200


def test_a_browser_is_led_to_the_form_and_back(guarded: TestClient) -> None:
    response = guarded.get("/video?id=a%2Fb%26c")
    assert (response.status_code, response.headers["location"]) == (
        303,
        "login?next=video%3Fid%3Da%252Fb%2526c",
    )
    form = guarded.get("/login")
    assert form.status_code == 200
    assert TOKEN not in form.text
    wrong = guarded.post("/login", data={"token": "wrong", "next": "video?id=a"})
    assert (wrong.status_code, wrong.headers["location"]) == (303, "login?wrong=1&next=video%3Fid%3Da")
    assert "set-cookie" not in wrong.headers
    right = guarded.post("/login", data={"token": f" {TOKEN}\n", "next": "video?id=a%2Fb"})
    assert (right.status_code, right.headers["location"]) == (303, "video?id=a%2Fb")
    cookie = right.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=lax" in cookie
    assert "secure" not in cookie
    assert TOKEN not in cookie
    assert guarded.get("/events").status_code == 200
    assert guarded.get("/").status_code == 200


def test_behind_https_the_cookie_is_secure(guarded: TestClient) -> None:
    response = guarded.post("/login", data={"token": TOKEN}, headers={"Origin": "https://a.example"})
    assert "secure" in response.headers["set-cookie"].lower()


@pytest.mark.parametrize(
    "wanted",
    [
        "//evil.example",
        "https://evil.example/",
        "/\\evil.example",
        "\\\\evil",
        "javascript:alert(1)",
        "///x",
        "x",
        "//[",
        "video\r\nSet-Cookie: a=b",
    ],
)
def test_the_form_leads_nowhere_else(guarded: TestClient, wanted: str) -> None:
    assert guarded.post("/login", data={"token": TOKEN, "next": wanted}).headers["location"] == "./"


def test_large_and_odd_forms_are_wrong_tokens(guarded: TestClient) -> None:
    for content in (b"token=" + b"x" * 5000, b"\xff\xfe", b"", b"&" * 4000, b"token=%ff"):
        response = guarded.post("/login", content=content)
        assert response.status_code in (303, 400)
        assert "set-cookie" not in response.headers


def test_sessions_end_and_cannot_be_forged(monkeypatch: pytest.MonkeyPatch) -> None:
    guard = Guard(DashboardConfig(auth="token", token=TOKEN))
    session = guard.new_session()
    assert guard.allows({}, {COOKIE: session}, None)
    issued, signature = session.split(".")
    for forged in (f"{int(issued) + 9}.{signature}", f"{issued}.", f".{signature}", "", "é.ü", f"{issued}.é"):
        assert not guard.allows({}, {COOKIE: forged}, None)
    assert not Guard(DashboardConfig(auth="token", token=TOKEN)).allows({}, {COOKIE: session}, None)
    monkeypatch.setattr("time.time", lambda: int(issued) + SESSION_SECONDS + 1)
    assert not guard.allows({}, {COOKIE: session}, None)


def test_static_files_and_health_need_no_token(guarded: TestClient) -> None:
    assert guarded.get("/static/style.css").status_code == 200
    assert guarded.get("/healthz").text == "ok\n"


# ------------------------------------------------------------------ reverse proxy


def test_a_proxy_names_the_user() -> None:
    config = {"auth": "proxy", "trusted_proxies": [ip_network("10.1.0.0/16")]}
    user = {"X-Forwarded-User": "eve"}
    assert client("10.1.2.3", **config).get("/events", headers=user).status_code == 200
    for peer, headers in (
        ("10.1.2.3", {}),
        ("10.1.2.3", {"X-Forwarded-User": " "}),
        ("10.2.2.3", user),
        ("10.2.2.3", user | {"X-Forwarded-For": "10.1.2.3"}),
        ("testclient", user),
    ):
        for path in ("/", *DATA):
            assert client(peer, **config).get(path, headers=headers).status_code == 403


def test_the_proxys_header_can_be_named() -> None:
    asking = client(auth="proxy", proxy_header="X-Auth-Request-Email")
    assert asking.get("/", headers={"X-Auth-Request-Email": "a@b"}).status_code == 200
    assert asking.get("/", headers={"X-Forwarded-User": "a"}).status_code == 403


# ------------------------------------------------------------------ clients that do not read


async def test_a_page_that_takes_nothing_loses_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("streamer.dashboard.web.SEND_SECONDS", 0.1)
    store = Store(max_videos=10)
    store.apply(update("a"), 1)
    feed = Feed(store)
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/events",
        "query_string": b"",
        "headers": [(b"host", b"localhost")],
        "client": ("127.0.0.1", 5000),
        "server": ("127.0.0.1", 9465),
    }

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(3600)
        raise AssertionError

    async def send(message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(3600)

    async with asyncio.timeout(60):
        await make_app(feed, DashboardConfig())(scope, receive, send)  # type: ignore[arg-type]
    assert feed.streams == 0

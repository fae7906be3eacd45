"""The page over HTTP: files, streams of events, the form for the token. All addresses in it are relative."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qs, urlencode, urlsplit

import structlog
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.applications import Starlette
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import FileResponse, PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from streamer.addresses import is_loopback
from streamer.config import DashboardConfig
from streamer.dashboard.auth import COOKIE, Guard
from streamer.dashboard.feed import Feed

STATIC = Path(__file__).parent / "static"

PAGES = {"/": "index.html", "/video": "video.html", "/dead-letters": "dead-letters.html"}
OPEN_PATHS = ("/login", "/healthz")
"""Shown to anyone, beside /static/, which holds nothing that is not in the repository."""

MAX_FORM_BYTES = 4096
SEND_SECONDS = 30.0
"""A page that takes nothing for so long is gone."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",  # with no-referrer the form's Origin would be null
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def make_app(feed: Feed, config: DashboardConfig) -> Starlette:
    """The application. Raises ConfigError if the token cannot be read."""
    guard = Guard(config)

    async def videos(request: Request) -> Response:
        return _stream(feed, feed.videos(request.headers.get("last-event-id")))

    async def video(request: Request) -> Response:
        return _stream(feed, feed.video(request.query_params.get("id", "")))

    async def letters(request: Request) -> Response:
        return _stream(feed, feed.letters(request.headers.get("last-event-id")))

    async def picture(request: Request) -> Response:
        kind: Literal["crop", "heat"] = "crop" if request.url.path.endswith("/crop") else "heat"
        found = feed.store.gallery.picture(request.path_params["key"], kind)
        if found is None:
            return PlainTextResponse("no such picture (any more)\n", 404)
        return Response(found, media_type="image/jpeg" if kind == "crop" else "image/png")

    async def login(request: Request) -> Response:
        if guard.mode != "token":
            return RedirectResponse("./", 303)
        if request.method != "POST":
            return FileResponse(STATIC / "login.html")
        form = await _read_form(request)
        if not guard.knows(form.get("token", "").strip()):
            return RedirectResponse("login?" + urlencode({"wrong": "1", "next": form.get("next", "")}), 303)
        response = RedirectResponse(_own_address(form.get("next", "")), 303)
        https = request.headers.get("origin", "").startswith("https:")  # a proxy may hide it from us
        response.set_cookie(COOKIE, guard.new_session(), httponly=True, samesite="lax", secure=https)
        return response

    async def healthz(_: Request) -> Response:
        return PlainTextResponse("ok\n")

    def page(path: str, file: str) -> BaseRoute:
        async def show(_: Request) -> Response:
            return FileResponse(STATIC / file)

        return Route(path, show)

    return Starlette(
        routes=[
            *(page(path, file) for path, file in PAGES.items()),
            Route("/events", videos),
            Route("/events/video", video),
            Route("/events/dead-letters", letters),
            Route("/evidence/{key}/crop", picture),
            Route("/evidence/{key}/heat", picture),
            Route("/login", login, methods=["GET", "POST"]),
            Route("/healthz", healthz),
            Mount("/static", StaticFiles(directory=STATIC)),
        ],
        middleware=[
            Middleware(_SafeHeaders),
            Middleware(TrustedHostMiddleware, allowed_hosts=host_names(config), www_redirect=False),
            Middleware(_Guarded, guard=guard),
        ],
    )


def host_names(config: DashboardConfig) -> list[str]:
    """Host headers that are answered: else a foreign page could reach this one by rebinding its name."""
    own = ("127.0.0.1", "[::1]", "localhost") if is_loopback(config.host) else (config.host,)
    return [*own, *config.allowed_hosts]


def _stream(feed: Feed, events: AsyncGenerator[bytes, None]) -> Response:
    """What the feed tells of its store, unless it tells too many already."""
    if feed.is_full:
        return PlainTextResponse("too many pages are open\n", 503)
    return EventSourceResponse(events, ping=60, send_timeout=SEND_SECONDS)


async def _read_form(request: Request) -> dict[str, str]:
    """Fields of a form; none of one that is too large."""
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAX_FORM_BYTES:
            return {}
    fields = parse_qs(body.decode("utf-8", "replace"), keep_blank_values=True)
    return {name: values[0] for name, values in fields.items()}


def _own_address(wanted: str) -> str:
    """Where to go after the form: one of our pages, relative, whatever was asked for."""
    try:
        parts = urlsplit(wanted)
    except ValueError:  # no address at all
        return "./"
    if parts.scheme or parts.netloc or f"/{parts.path}" not in PAGES:
        return "./"
    return parts.path + (f"?{parts.query}" if parts.query else "") or "./"


class _SafeHeaders:
    """Adds HEADERS to every response."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
                static = scope["path"].startswith("/static/")
                headers["Cache-Control"] = "no-cache" if static else "no-store"
            await send(message)

        try:
            await self._app(scope, receive, send_safely)
        except SendTimeoutError:  # e.g. a computer that was put to sleep with the page open
            log.info("a page took nothing for long; its stream is ended", path=scope["path"])


class _Guarded:
    """Turns away whom the guard does not let in."""

    def __init__(self, app: ASGIApp, guard: Guard) -> None:
        self._app = app
        self._guard = guard

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        request = Request(scope)
        peer = request.client.host if request.client else None
        path = request.url.path
        if (
            path in OPEN_PATHS
            or path.startswith("/static/")
            or self._guard.allows(request.headers, request.cookies, peer)
        ):
            await self._app(scope, receive, send)
            return
        await self._refusal(request)(scope, receive, send)

    def _refusal(self, request: Request) -> Response:
        if self._guard.mode == "proxy":
            return PlainTextResponse("the reverse proxy has named no user\n", 403)
        path = request.url.path
        if request.method == "GET" and path in PAGES:
            query = f"?{request.url.query}" if request.url.query else ""
            return RedirectResponse("login?" + urlencode({"next": path.removeprefix("/") + query}), 303)
        return PlainTextResponse("a bearer token is needed\n", 401, {"WWW-Authenticate": "Bearer"})

"""Who may see the page: nobody asked (loopback only), a bearer token, or a user named by a reverse proxy.

A browser cannot put a token into the header of a page's or a stream's request. So it gets a form, and for the
token a cookie that says when it was given, signed with a key that lives as long as the process.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
import time
from collections.abc import Mapping
from ipaddress import ip_address
from pathlib import Path

from streamer.config import DashboardConfig
from streamer.errors import ConfigError

COOKIE = "streamer_dashboard"
SESSION_SECONDS = 12 * 3600.0
MIN_TOKEN_CHARACTERS = 16
"""What can be guessed over the network is no token; `openssl rand -hex 16` gives 32."""


class Guard:
    """Decides about requests. Holds no connection, so it is tested without one."""

    def __init__(self, config: DashboardConfig) -> None:
        """Raises ConfigError if the token cannot be read or is too short."""
        self.mode = config.auth
        self._token = _read_token(config).encode() if config.auth == "token" else b""
        self._key = secrets.token_bytes(32)
        self._proxy_header = config.proxy_header.lower()
        self._trusted = config.trusted_proxies

    def allows(self, headers: Mapping[str, str], cookies: Mapping[str, str], peer: str | None) -> bool:
        """headers: with names in lower case. peer: address of the other end of the connection."""
        match self.mode:
            case "none":
                return True
            case "token":
                scheme, _, token = headers.get("authorization", "").partition(" ")
                if scheme.lower() == "bearer":
                    return self.knows(token.strip())
                return self._is_session(cookies.get(COOKIE, ""))
            case "proxy":
                return self._is_trusted(peer) and bool(headers.get(self._proxy_header, "").strip())

    def knows(self, token: str) -> bool:
        """Whether it is the token; takes as long whatever it has in common with it."""
        return self.mode == "token" and hmac.compare_digest(
            hashlib.sha256(token.encode("utf-8", "replace")).digest(), hashlib.sha256(self._token).digest()
        )

    def new_session(self) -> str:
        """Cookie for whoever has shown the token."""
        issued = str(int(time.time()))
        return f"{issued}.{self._signature(issued)}"

    def _is_session(self, cookie: str) -> bool:
        issued, _, signature = cookie.partition(".")
        if not hmac.compare_digest(signature.encode("utf-8", "replace"), self._signature(issued).encode()):
            return False
        return time.time() - int(issued) < SESSION_SECONDS

    def _signature(self, issued: str) -> str:
        return hmac.new(self._key, issued.encode("utf-8", "replace"), hashlib.sha256).hexdigest()

    def _is_trusted(self, peer: str | None) -> bool:
        try:
            address = ip_address(peer or "")
        except ValueError:
            return False
        return any(address in network for network in self._trusted)


def _read_token(config: DashboardConfig) -> str:
    if config.token is not None:
        token, where = config.token.get_secret_value(), "dashboard.token"
    else:
        where = f"dashboard.token_file {config.token_file}"
        try:
            token = Path(config.token_file or "").read_text()
        except (OSError, UnicodeError) as error:
            raise ConfigError(f"{where} cannot be read: {error}") from error
    token = token.strip()
    if len(token) < MIN_TOKEN_CHARACTERS:
        raise ConfigError(f"{where} has {len(token)} characters, at least {MIN_TOKEN_CHARACTERS} are needed")
    return token

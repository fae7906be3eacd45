"""Network addresses in settings."""

from __future__ import annotations

import re
from ipaddress import ip_address


def is_broker_address(text: str) -> bool:
    """Whether Kafka's client can read it: a host, or `[::1]`, and a port unless it is the usual one."""
    found = re.fullmatch(r"(?:\[[^\[\]\s]+\]|[^\[\]:\s]+)(?::(\d{1,5}))?", text)
    if found is not None:
        return int(found[1] or 9092) <= 65535
    try:
        return ip_address(text).version == 6
    except ValueError:
        return False


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

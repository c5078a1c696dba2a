"""Network addresses of trackers and storages."""

from __future__ import annotations

from typing import NamedTuple

from fdfsfuse.errors import UsageError

TRACKER_PORT = 22122
STORAGE_PORT = 23000


class Address(NamedTuple):
    """``host`` is a name or an IPv4 or IPv6 address without brackets."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def parse_address(text: str, default_port: int = TRACKER_PORT) -> Address:
    """``HOST``, ``HOST:PORT``, ``[IPV6]:PORT``, ``[IPV6]`` or a bare IPv6 address.

    Raises:
        UsageError: it is none of these, or the port is not 1..65535.
    """
    text = text.strip()
    host, port = text, ""
    if text.startswith("["):
        host, bracket, rest = text[1:].partition("]")
        if not bracket or (rest and not rest.startswith(":")):
            raise UsageError(f"{text!r} is not an address such as [::1]:{default_port}")
        port = rest[1:]
        if rest == ":":
            port = "?"
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
        port = port or "?"
    number = int(port) if port.isascii() and port.isdigit() else 0 if port else default_port
    if not host or any(c.isspace() or c in "/,@" for c in host):
        raise UsageError(f"{text!r} is not an address such as 192.168.0.1:{default_port}")
    if not 1 <= number <= 65535:
        raise UsageError(f"the port of {text!r} is not a number from 1 to 65535")
    return Address(host, number)

"""Addresses of trackers and storages as text, most of them with a port.

Source: protocol/cluster.md section 1.
"""

from __future__ import annotations

import ipaddress

from fdfsfuse.errors import ProtocolError

MAX_ADDRESS_TEXT = 52
"""Most bytes of an address as text."""


def is_ip(text: str) -> bool:
    """True for the text of an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def check_port(port: int) -> int:
    """*port*. Raises ProtocolError, also for port 0."""
    if not 0 < port < 65536:
        raise ProtocolError(f"{port} is not a port")
    return port


def decode_address(text: str) -> tuple[str, int]:
    """``ip:port`` or ``[v6]:port`` -> (ip, port). Raises ProtocolError; port 0 is refused."""
    ip, colon, port = text.rpartition(":")
    if not colon or not ip or not port.isascii() or not port.isdigit() or len(port) > 5:
        raise ProtocolError(f"{text!r} is not ip:port")
    return ip.strip("[]"), check_port(int(port))


def encode_address(ip: str, port: int) -> str:
    """``ip:port``, or ``[ip]:port`` for IPv6."""
    return f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}"

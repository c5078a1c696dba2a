"""Network addresses of trackers and storages."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

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


def parse_addresses(addresses: str | Address | Sequence[str | Address]) -> list[Address]:
    """One address or several: as a sequence, or as text with commas. Raises UsageError."""
    if isinstance(addresses, Address):
        return [addresses]
    items = addresses.split(",") if isinstance(addresses, str) else addresses
    return [item if isinstance(item, Address) else parse_address(item) for item in items]


AddressMap: TypeAlias = "Mapping[str, str] | Callable[[Address], Address]"
"""How storages are reached that trackers name by addresses of another network.

``{"10.0.0.3": "203.0.113.7", "10.0.0.4:23000": "203.0.113.7:23001"}``: a host keeps its port, a
host with a port gets another one if one is said. Or a function from one `Address` to the other.
"""


def address_mapper(address_map: AddressMap | None) -> Callable[[Address], Address]:
    """The function that *address_map* stands for. Raises UsageError."""
    if address_map is None:
        return lambda address: address
    if callable(address_map):
        return address_map
    hosts: dict[str, str] = {}
    addresses: dict[Address, Address] = {}
    for key, value in address_map.items():
        if not _has_port(key):
            if _has_port(value):
                raise UsageError(f"{value!r} has a port, but {key!r} has none")
            hosts[parse_address(key).host] = parse_address(value).host
        else:
            named = parse_address(key)
            addresses[named] = parse_address(value, named.port)

    def find(address: Address) -> Address:
        found = addresses.get(address)
        if found is not None:
            return found
        host = hosts.get(address.host)
        return address if host is None else Address(host, address.port)

    return find


def _has_port(text: str) -> bool:
    return text.rpartition("]")[2].count(":") == 1

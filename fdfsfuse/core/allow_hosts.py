"""allow_hosts: who may connect (protocol/config.md: ``*``, ip, CIDR, ranges, host names)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from dataclasses import dataclass

_Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Range = tuple[frozenset[int], frozenset[int], frozenset[int], frozenset[int]]
_HOST_NAME = re.compile(r"(?!-)[A-Za-z0-9._-]{1,253}\Z")
_RANGE_SHAPE = re.compile(r"[0-9.,\[\]-]+\Z")
ALLOWED = "*, an ip, a CIDR such as 10.0.0.0/8, a range such as 10.0.1.[1-15,20], or a host name"


def _octet(text: str) -> frozenset[int]:
    """``20`` or ``[1-15,20]`` -> the numbers it allows."""
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    numbers: set[int] = set()
    for part in inner.split(","):
        first, dash, last = part.strip().partition("-")
        low, high = int(first), int(last if dash else first)
        if not 0 <= low <= high <= 255:
            raise ValueError(text)
        numbers.update(range(low, high + 1))
    return frozenset(numbers)


def _split_list(value: str) -> list[str]:
    """Split at commas that are outside brackets."""
    return [item.strip() for item in re.split(r",(?![^\[]*\])", value) if item.strip()]


@dataclass(frozen=True, slots=True)
class AllowHosts:
    """A set of addresses. Host names count only once `resolved` has given their addresses."""

    everyone: bool = True
    networks: tuple[_Network, ...] = ()
    ranges: tuple[_Range, ...] = ()
    host_names: tuple[str, ...] = ()

    @classmethod
    def parse(cls, values: Iterable[str]) -> AllowHosts:
        """Parse the values of all ``allow_hosts`` lines; none at all allows everyone.

        Raises:
            ValueError: an item is none of the allowed forms; the text names it.
        """
        everyone = False
        networks: list[_Network] = []
        ranges: list[_Range] = []
        names: list[str] = []
        items = [item for value in values for item in _split_list(value)]
        for item in items:
            if item == "*":
                everyone = True
                continue
            try:
                networks.append(ipaddress.ip_network(item, strict=False))
                continue
            except ValueError:
                pass
            if "[" in item and _RANGE_SHAPE.match(item):
                ranges.append(_parse_range(item))
            elif _HOST_NAME.match(item) and not re.fullmatch(r"[0-9.]+", item):
                names.append(item)
            else:
                raise ValueError(f"{item!r} is none of {ALLOWED}")
        return cls(everyone or not items, tuple(networks), tuple(ranges), tuple(names))

    def resolved(self, addresses: Iterable[str]) -> AllowHosts:
        """This set plus *addresses* (ip texts), which the host names were found to mean."""
        more = tuple(ipaddress.ip_network(address) for address in addresses)
        return AllowHosts(self.everyone, self.networks + more, self.ranges)

    def allows(self, ip: str) -> bool:
        """True when a client at *ip* may connect. IPv4-mapped IPv6 counts as IPv4."""
        if self.everyone:
            return True
        try:
            address = ipaddress.ip_address(ip.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        if any(address in network for network in self.networks):
            return True
        if isinstance(address, ipaddress.IPv6Address):
            return False
        octets = address.packed
        return any(
            all(octets[position] in allowed for position, allowed in enumerate(allowed_range))
            for allowed_range in self.ranges
        )


def _parse_range(item: str) -> _Range:
    parts = re.split(r"\.(?![^\[]*\])", item)
    try:
        first, second, third, fourth = (_octet(part) for part in parts)
    except ValueError:
        raise ValueError(f"{item!r} is none of {ALLOWED}") from None
    return first, second, third, fourth

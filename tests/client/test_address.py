"""Addresses as people write them."""

from __future__ import annotations

import pytest

from fdfsfuse.client.address import Address, parse_address
from fdfsfuse.errors import UsageError


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.0.0.1", Address("10.0.0.1", 22122)),
        (" tracker.example:80 ", Address("tracker.example", 80)),
        ("[::1]:23000", Address("::1", 23000)),
        ("[fe80::2]", Address("fe80::2", 22122)),
        ("fe80::2", Address("fe80::2", 22122)),
    ],
)
def test_addresses_are_parsed_and_shown(text: str, address: Address) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    "text",
    [
        "",
        ":80",
        "host:",
        "host:x",
        "host:0",
        "host:65536",
        "[::1",
        "[::1]80",
        "[::1]:",
        "a b",
        "a/b",
    ],
)
def test_bad_addresses_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_address(text)

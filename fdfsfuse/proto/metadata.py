"""Metadata text: ``name 0x02 value 0x01 name 0x02 value ...``, no trailing 0x01.

Source: protocol/wire.md, commands 13 and 15, and its trap 8. Names and values are bytes: the
protocol says nothing of their encoding.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Iterable

NAME_MAX = 64
VALUE_MAX = 256
_FIELD = b"\x02"
_RECORD = b"\x01"
_SEPARATORS = re.compile(rb"[\0\1\2]")
_name_of = operator.itemgetter(0)

Pairs = list[tuple[bytes, bytes]]


def fits(name: bytes, value: bytes) -> bool:
    """True when a pair survives storing unchanged: lengths, and no separator or NUL in it."""
    return (
        0 < len(name) <= NAME_MAX
        and len(value) <= VALUE_MAX
        and not _SEPARATORS.search(name)
        and not _SEPARATORS.search(value)
    )


def decode(text: bytes) -> Pairs:
    """The pairs of a metadata text; reading stops at a NUL, pairs without 0x02 are dropped.

    Longer names and values are cut to 64 and 256 bytes, as the reference does.
    """
    pairs: Pairs = []
    for record in text.split(b"\0", 1)[0].split(_RECORD):
        name, separator, value = record.partition(_FIELD)
        if separator:
            pairs.append((name[:NAME_MAX], value[:VALUE_MAX]))
    return pairs


def encode(pairs: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The metadata text of *pairs*, sorted by name (byte order); equal names keep their order."""
    return _RECORD.join(n + _FIELD + v for n, v in sorted(pairs, key=_name_of))


def merge(old: Iterable[tuple[bytes, bytes]], new: Iterable[tuple[bytes, bytes]]) -> Pairs:
    """*old* with the pairs of *new* added or, for equal names, replaced. Sorted by name."""
    merged = dict(old)
    merged.update(new)
    return sorted(merged.items())

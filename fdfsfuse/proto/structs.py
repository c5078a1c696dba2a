"""The MessagePack bodies of our own commands, which are msgspec structs."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from fdfsfuse.errors import ProtocolError

_T = TypeVar("_T")

# Fields that we do not know are skipped by msgspec recursively, so deep nesting ends there.
BAD_BYTES = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that are not the struct that they are to be."""

encode = msgspec.msgpack.Encoder().encode


def decode(kind: type[_T], data: bytes | memoryview) -> _T:
    """Decode a whole body. Raises ProtocolError."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except BAD_BYTES as exc:
        raise ProtocolError(f"bad {kind.__name__}: {exc}") from exc

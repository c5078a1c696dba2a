"""Waiting until a file is on several servers of its group: command 160 of a storage.

Our addition to FastDFS; stock storages answer with status 22 and close. Bodies are MessagePack
arrays; new fields are appended with defaults.

=== =============== ======================== ==============================================
cmd name            request                  response
=== =============== ======================== ==============================================
160 WAIT_FOR_COPIES WaitForCopies            Copies; 2 no such file, 66 (EREMOTE) the file was
                                             not uploaded to this storage: ask its source
=== =============== ======================== ==============================================
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from fdfsfuse.errors import ProtocolError

WAIT_FOR_COPIES = 160
REQUEST_MAX = 512
WAIT_MAX_S = 3600.0


class WaitForCopies(msgspec.Struct, array_like=True, frozen=True):
    """Wait until ``count`` servers have the file as it is now, the asked one included.

    ``name`` is a file name with ``Mxx/``. After ``timeout_s`` (up to an hour) the answer comes in
    any case.
    """

    group: str
    name: str
    count: int
    timeout_s: float


class Copies(msgspec.Struct, array_like=True, frozen=True):
    """``count`` servers have the file; fewer than asked for when the time was over."""

    count: int


def encode(message: WaitForCopies | Copies) -> bytes:
    """The body."""
    return msgspec.msgpack.encode(message)


def decode_request(body: bytes) -> WaitForCopies:
    """Raises ProtocolError."""
    request = _decode(WaitForCopies, body)
    if not 1 <= request.count <= 32 or not 0 <= request.timeout_s <= WAIT_MAX_S:
        raise ProtocolError(f"{request.count} servers within {request.timeout_s} s")
    return request


def decode_answer(body: bytes) -> Copies:
    """Raises ProtocolError."""
    return _decode(Copies, body)


_Message = TypeVar("_Message", WaitForCopies, Copies)


def _decode(kind: type[_Message], body: bytes) -> _Message:
    try:
        return msgspec.msgpack.decode(body, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise ProtocolError(f"malformed {kind.__name__}: {exc}") from exc

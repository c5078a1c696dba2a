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

import msgspec

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto import structs

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


def decode_request(body: bytes) -> WaitForCopies:
    """Raises ProtocolError."""
    request = structs.decode(WaitForCopies, body)
    if not 1 <= request.count <= 32 or not 0 <= request.timeout_s <= WAIT_MAX_S:
        raise ProtocolError(f"{request.count} servers within {request.timeout_s} s")
    return request

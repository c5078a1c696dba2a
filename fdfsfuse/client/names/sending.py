"""Sending the requests of a names session, so that the storage knows which ones somebody waits for.

Changes that are posted, one behind the other, cost the storage less when it looks at several of
them at a time. So after a few they are marked as patient (see `fdfsfuse.proto.names`). As soon as
somebody waits after all, padding goes behind what was sent.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable

import trio

from fdfsfuse.client.names.frames import FrameWriter
from fdfsfuse.proto import names
from fdfsfuse.proto.header import pack_header

PATIENT_AFTER = 4
"""After so many changes in a row that nobody waits for there will be more of them."""

_HEAD = struct.Struct(">QBBQQ")
"""A header, the id of the request, and the ids below which all have been answered."""
_PADDING = pack_header(names.PADDING_SIZE, names.PADDING) + bytes(names.PADDING_SIZE)


class Sending:
    """Sends the requests of one connection; see `FrameWriter` for the arguments.

    ``all_sent``: `FrameWriter.all_sent`.
    """

    __slots__ = ("_patient", "_posted", "_writer", "all_sent")

    def __init__(
        self, sock: socket.socket, nursery: trio.Nursery, failed: Callable[[], None]
    ) -> None:
        self._writer = FrameWriter(sock, nursery, failed)
        # It is called for each change that is answered ahead.
        self.all_sent = self._writer.all_sent
        self._posted = 0
        self._patient = False

    def write(self, number: int, done_below: int, body: bytes, *, posted: bool = False) -> None:
        """Send a request behind all others; never waits. *posted*: nobody waits for its answer."""
        self._posted = self._posted + 1 if posted else 0
        patient = self._posted > PATIENT_AFTER
        length = names.FRAME_IDS.size + len(body)
        if self._patient and not patient:
            body += _PADDING
        self._patient = patient
        status = names.PATIENT if patient else 0
        self._writer.write(_HEAD.pack(length, names.REQUEST, status, number, done_below), body)

    def hurry(self) -> None:
        """Somebody has begun to wait for what was posted."""
        self._posted = 0
        if self._patient:
            self._patient = False
            self._writer.write(_PADDING, b"")

    def close(self) -> None:
        """Send nothing more. The socket may be closed then."""
        self._writer.close()

"""The frames that arrive on a session's connection, cut out of its bytes without ever waiting."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, Final

import trio

from fdfsfuse.errors import ConnectionBroken, ProtocolError
from fdfsfuse.proto import names
from fdfsfuse.proto.header import HEADER_SIZE

if TYPE_CHECKING:
    from fdfsfuse.server.connection import FramedConnection

_HEADER: Final = struct.Struct(">qBB")
_FRAME_MIN: Final = names.FRAME_IDS.size + 1


class Frames:
    """Receives for one connection; when it is readable is told by `fdfsfuse.server.hub.Hub.watch`.

    Attributes:
        patient: whether the last frame, even one that has not arrived whole, is a request for whose
            answer nobody waits, so that reading more may be put off. False after padding.
    """

    def __init__(self, connection: FramedConnection) -> None:
        self.patient = False
        self._connection = connection
        self._data: bytes | bytearray = connection.take_buffered()
        self._pos = 0
        self._end = len(self._data)
        """The end of what was received into ``_data``; the rest of it is room for a long frame."""

    def receive(self) -> bool:
        """Receive what is there, once; False at the end of the connection.

        Raises:
            ConnectionBroken: it ended in the middle of a frame, or was reset.
        """
        sock = self._connection.sock
        data, end = self._data, self._end
        try:
            if end < len(data):
                count = sock.recv_into(memoryview(data)[end:])
                self._end = end + count
            else:
                chunk = sock.recv(self._connection.recv_size)
                count = len(chunk)
                self._data = data[self._pos :] + chunk if self._pos < end else chunk
                self._pos, self._end = 0, len(self._data)
        except BlockingIOError:
            return True
        except OSError as exc:
            raise ConnectionBroken(f"{self._connection.peer_ip}: {exc.strerror}") from exc
        if not count and self._pos < end:
            raise ConnectionBroken(f"{self._connection.peer_ip} closed in the middle of a frame")
        return count > 0

    def take(self) -> memoryview | None:
        """The body of the next request, empty for padding; None if it has not arrived whole yet.

        Raises:
            ProtocolError: it is no request frame, or of a length that none can have.
        """
        data, pos, end = self._data, self._pos, self._end
        start = pos + HEADER_SIZE
        if end < start:
            self._note_waiting(end > pos)
            return None
        length, command, status = _HEADER.unpack_from(data, pos)
        if command == names.PADDING and length == names.PADDING_SIZE:
            pass
        elif command != names.REQUEST or not _FRAME_MIN <= length <= names.FRAME_MAX:
            raise ProtocolError(f"no request frame: command {command}, {length} bytes")
        self.patient = status == names.PATIENT
        stop = start + length
        if end < stop:
            if len(data) < stop:
                room = bytearray(HEADER_SIZE + length)
                room[: end - pos] = data[pos:end]
                self._data, self._pos, self._end = room, 0, end - pos
            self._note_waiting(True)
            return None
        self._pos = stop
        self._connection.requests += 1
        self._connection.reading_since = 0.0
        if command == names.PADDING:
            return memoryview(b"")
        return memoryview(data)[start:stop]

    def _note_waiting(self, begun: bool) -> None:
        """For the server's watchdog, which ends a connection that is silent inside a frame."""
        self._connection.idle = not begun
        self._connection.reading_since = trio.current_time() if begun else 0.0

"""Answers command 26: the files of one store path, for a member that lost its disk.

Source: protocol/cluster.md section 7.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterator

import trio

from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.store import Store
from fdfsfuse.core.recovery import list_entry
from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.fileid import Location
from fdfsfuse.proto.header import RESPONSE, pack_header
from fdfsfuse.proto.recovery import STREAM_LENGTH, PathBinlogRequest
from fdfsfuse.proto.trunk import is_trunk_name
from fdfsfuse.server.connection import FramedConnection

_PIECE = 64 << 10


class PathBinlog:
    """The handler over one store."""

    def __init__(self, store: Store, group: str) -> None:
        self._store = store
        self._group = group

    async def send(self, connection: FramedConnection, body: bytes) -> None:
        """Answer with the list; the connection has to be closed afterwards.

        Raises:
            ProtocolError: nothing has been sent.
        """
        request = PathBinlogRequest.decode(body)
        if request.group != self._group or request.path_index >= self._store.path_count:
            raise ProtocolError("the list of another group or of a missing store path")
        await connection.send(pack_header(STREAM_LENGTH, RESPONSE))
        pieces = self._pieces(request.path_index)
        count = 0
        while piece := await trio.to_thread.run_sync(next, pieces, b""):
            await connection.send(piece)
            count += len(piece)
        await connection.send(struct.pack(">q", count))

    def _pieces(self, path_index: int) -> Iterator[bytes]:
        """The text, in pieces. Runs in threads: it reads the binlog and looks at each file."""
        lines: list[bytes] = []
        size = 0
        for record, _ in self._store.binlog.read(BinlogPosition(0, 0)):
            entry = list_entry(record, path_index, self._look, self._store.path_count)
            if entry is None:
                continue
            lines.append(entry.encode())
            size += len(lines[-1])
            if size >= _PIECE:
                yield b"".join(lines)
                lines, size = [], 0
        yield b"".join(lines)

    def _look(self, location: Location) -> str | None:
        """See `list_entry`."""
        if is_trunk_name(location) and (slot := self._store.slot(location)) is not None:
            return "" if slot.exists() else None
        path = self._store.path(location)
        try:
            mode = os.lstat(path).st_mode
            if not stat.S_ISLNK(mode):
                return "" if stat.S_ISREG(mode) else None
            target = self._store.paths.located_at(os.readlink(path))
        except (OSError, ProtocolError):
            return None
        return target.name if target is not None else None

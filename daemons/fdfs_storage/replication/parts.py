"""Requests of other storages that change a part of a file (protocol/cluster.md section 5).

As in `fdfs_storage.replication.receiver`: functions from body to response where nothing has to be
waited for, and handlers that read their request from the connection.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from fdfs_storage.files import status_of
from fdfs_storage.replication.replicas import Replicas
from fdfs_storage.replication.senders import Senders, receive_small
from fdfs_storage.transfer import INLINE_MAX, Received, receive_content
from fdfsfuse.core.replicas import RangeVerdict, judge_append, judge_modify, judge_truncate
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.header import FILE_NAME_MAX, Header, pack_response
from fdfsfuse.proto.sync import RANGE_HEAD_SIZE, RangeHead, name_length

if TYPE_CHECKING:
    from fdfs_storage.store import Store
    from fdfsfuse.proto.fileid import Location
    from fdfsfuse.server.connection import FramedConnection

_OK = pack_response()
_KEPT = pack_response(status=errno.EEXIST)
_MISSING = pack_response(status=errno.ENOENT)
_RANGE_MAX = RANGE_HEAD_SIZE + FILE_NAME_MAX


class Parts:
    """The handlers of 25 (append), 35 (modify) and 37 (truncate)."""

    def __init__(self, store: Store, replicas: Replicas, senders: Senders) -> None:
        self._store = store
        self._replicas = replicas
        self._senders = senders

    async def append(self, connection: FramedConnection, header: Header) -> bytes:
        """25: bytes behind the end."""
        return await self._part(connection, header, "a")

    async def modify(self, connection: FramedConnection, header: Header) -> bytes:
        """35: bytes at an offset up to the end."""
        return await self._part(connection, header, "m")

    def small(self, op: str, connection: FramedConnection, flags: int, body: bytes) -> bytes | None:
        """25 and 35 whose content has arrived; None when they have to wait for something."""
        end = RANGE_HEAD_SIZE + name_length(body[:RANGE_HEAD_SIZE], RANGE_HEAD_SIZE)
        head = RangeHead.decode(body[:end])
        content = memoryview(body)[end:]
        location = self._check_part(head, len(content))
        if len(content) > INLINE_MAX or not self._store.locks.is_free(location):
            return None
        self._store.counters.total_sync_in_bytes += head.second
        return self._part_now(connection, location, head, content, op)

    def _part_now(
        self,
        connection: FramedConnection,
        location: Location,
        head: RangeHead,
        content: memoryview,
        op: str,
    ) -> bytes:
        """Deal with a part in memory. Without an await, so a free lock need not be taken."""
        verdict = self._judge_part(connection, location, head, op)
        if verdict is RangeVerdict.WRITE:
            self._replicas.write(location, head.first, content, head.timestamp, op)
        return self._part_done(connection, head, verdict)

    def _check_part(self, head: RangeHead, content_length: int) -> Location:
        if head.second != content_length:
            raise ProtocolError(f"a change of {head.second} bytes in {content_length}")
        if head.first + head.second >= 1 << 63:
            raise ProtocolError(f"no file can have {head.first} + {head.second} bytes")
        self._senders.check_group(head.group)
        return self._replicas.locate(head.name)

    def _judge_part(
        self, connection: FramedConnection, location: Location, head: RangeHead, op: str
    ) -> RangeVerdict:
        found = self._replicas.size(location)
        if op == "a":
            return judge_append(head.first, head.second, found)
        return judge_modify(head.first, found, holes=connection.is_own_kind)

    def _part_done(
        self, connection: FramedConnection, head: RangeHead, verdict: RangeVerdict
    ) -> bytes:
        self._senders.heard(connection, head.timestamp)
        if verdict is RangeVerdict.MISSING:
            return _MISSING
        self._store.counters.success_sync_in_bytes += head.second
        return _KEPT if verdict is RangeVerdict.DONE else _OK

    async def _part(self, connection: FramedConnection, header: Header, op: str) -> bytes:
        length = header.length
        fixed = await connection.recv_exactly(min(length, RANGE_HEAD_SIZE))
        size = name_length(fixed, RANGE_HEAD_SIZE)
        if size > length - RANGE_HEAD_SIZE:
            raise ProtocolError("the request ends inside of its file name")
        head = RangeHead.decode(fixed + await connection.recv_exactly(size))
        location = self._check_part(head, length - RANGE_HEAD_SIZE - size)
        self._store.counters.total_sync_in_bytes += head.second
        content: memoryview | None = None
        if head.second <= INLINE_MAX:
            content = memoryview(await connection.recv_exactly(head.second))
            if self._store.locks.is_free(location):
                return self._part_now(connection, location, head, content, op)
        async with self._store.locks.hold(location):
            if content is not None:
                return self._part_now(connection, location, head, content, op)
            verdict = self._judge_part(connection, location, head, op)
            if verdict is RangeVerdict.WRITE:
                await self._write_large(connection, location, head, op)
            else:
                await connection.discard(head.second)
        return self._part_done(connection, head, verdict)

    async def _write_large(
        self, connection: FramedConnection, location: Location, head: RangeHead, op: str
    ) -> None:
        fd = self._store.paths.open_to_change(location)
        try:
            try:
                await receive_content(connection, fd, head.first, head.second, Received())
            except BaseException:
                if op == "a":  # half of it would look like bytes that are done
                    os.ftruncate(fd, head.first)
                raise
            numbers = head.first, head.second
            self._replicas.wrote(location, fd, numbers, head.timestamp, op)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        finally:
            os.close(fd)

    async def truncate(self, connection: FramedConnection, header: Header) -> bytes:
        """37: another size."""
        body = await receive_small(connection, header.length, _RANGE_MAX)
        head = RangeHead.decode(body)
        async with self._store.locks.hold(self._replicas.locate(head.name)):
            return self._truncate_now(connection, head)

    def truncate_small(self, connection: FramedConnection, flags: int, body: bytes) -> bytes | None:
        """37 at once; None while something else changes the file."""
        head = RangeHead.decode(body)
        if not self._store.locks.is_free(self._replicas.locate(head.name)):
            return None
        return self._truncate_now(connection, head)

    def _truncate_now(self, connection: FramedConnection, head: RangeHead) -> bytes:
        self._senders.check_group(head.group)
        location = self._replicas.locate(head.name)
        verdict = judge_truncate(head.first, self._replicas.size(location))
        if verdict is RangeVerdict.WRITE:
            self._replicas.truncate(location, head.first, head.second, head.timestamp)
        self._senders.heard(connection, head.timestamp)
        return _OK if verdict is RangeVerdict.WRITE else _KEPT

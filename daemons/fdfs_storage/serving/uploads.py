"""Answers to requests that carry content: uploads, append, modify (protocol/wire.md section 4).

Each handler reads the head of the body from the connection, checks it, and then the content. It
returns the whole response. ProtocolError stands for status 22, StatusError for its status; the
service reads and forgets what is left of the body then.
"""

from __future__ import annotations

import errno
import os

import trio

from fdfs_storage.files import reserve
from fdfs_storage.intents import Intent
from fdfs_storage.new_file import NewFile
from fdfs_storage.serving.derived import slave_location
from fdfs_storage.serving.objects import check_appender
from fdfs_storage.store import Store
from fdfs_storage.transfer import INLINE_MAX, Received, crc32, receive_content
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.fileid import STORE_PATHS, Location
from fdfsfuse.proto.header import pack_response, pack_text
from fdfsfuse.proto.storage import (
    ANY_STORE_PATH,
    APPEND_HEAD_SIZE,
    MODIFY_HEAD_SIZE,
    SLAVE_HEAD_SIZE,
    UPLOAD_HEAD_SIZE,
    AppendHead,
    ModifyHead,
    SlaveHead,
    UploadHead,
)
from fdfsfuse.server.connection import FramedConnection

_OK = pack_response()
_decode_upload = UploadHead.decode
_MAX_FILE_SIZE = (1 << 63) - 1


class Uploads:
    """Handlers over one store."""

    def __init__(self, store: Store, group: str) -> None:
        self._store = store
        self._group_field = pack_text(group, 16)

    async def upload(self, connection: FramedConnection, length: int) -> bytes:
        """11: a normal file."""
        return await self._upload(connection, length, appender=False)

    async def upload_appender(self, connection: FramedConnection, length: int) -> bytes:
        """23: a file that may be appended to, modified, truncated."""
        return await self._upload(connection, length, appender=True)

    async def _upload(self, connection: FramedConnection, length: int, *, appender: bool) -> bytes:
        head = UploadHead.decode(
            await connection.recv_exactly(min(length, UPLOAD_HEAD_SIZE)), length
        )
        new = self._begin(head)
        try:
            crc = await receive_whole(connection, new, head.size)
            return self._commit(new, head, crc, appender)
        finally:
            new.close()

    def upload_small(self, body: bytes, _flags: int) -> bytes:
        """11 with all its content."""
        path_index, size, extension = _decode_upload(body, len(body))
        content = body[UPLOAD_HEAD_SIZE:]
        store = self._store
        counters = store.counters
        wanted = self._wanted_path(path_index)
        counters.total_upload_count += 1
        counters.total_upload_bytes += size
        location = store.creations.create(wanted, content, crc32(content), extension)
        counters.success_upload_count += 1
        counters.success_upload_bytes += size
        return self._stored(location)

    def upload_small_appender(self, body: bytes, _flags: int) -> bytes:
        """23 with all its content."""
        head = UploadHead.decode(body, len(body))
        content = body[UPLOAD_HEAD_SIZE:]
        new = self._begin(head)
        try:
            new.write(content)
            return self._commit(new, head, crc32(content), appender=True)
        finally:
            new.close()

    def _begin(self, head: UploadHead) -> NewFile:
        store, counters = self._store, self._store.counters
        path_index = self._wanted_path(head.path_index)
        new = store.creations.open_new(path_index, head.size)
        counters.total_upload_count += 1
        counters.total_upload_bytes += head.size
        return new

    def _wanted_path(self, index: int) -> int | None:
        if index == ANY_STORE_PATH:
            return None
        if index >= self._store.path_count:
            raise ProtocolError(f"store path {index} of {self._store.path_count}")
        return index

    def _commit(self, new: NewFile, head: UploadHead, crc: int, appender: bool) -> bytes:
        location = self._store.creations.commit(
            new, head.size, crc, head.extension, appender=appender
        )
        counters = self._store.counters
        counters.success_upload_count += 1
        counters.success_upload_bytes += head.size
        return self._stored(location)

    def _stored(self, location: Location) -> bytes:
        name = STORE_PATHS[location.path_index] + location.relative
        return pack_response(self._group_field + name.encode())

    async def upload_slave(self, connection: FramedConnection, length: int) -> bytes:
        """21: a file whose name is derived from its master's."""
        store, counters = self._store, self._store.counters
        fixed = await connection.recv_exactly(min(length, SLAVE_HEAD_SIZE))
        name = await connection.recv_exactly(SlaveHead.name_length(fixed, length))
        head = SlaveHead.decode(fixed + name, length)
        master = store.locate(head.master)
        store.check_space(master.path_index, head.size)
        location = slave_location(store, master, head.prefix, head.extension)
        new = store.creations.open_new_at(master)
        try:
            counters.total_upload_count += 1
            counters.total_upload_bytes += head.size
            await receive_whole(connection, new, head.size)
            store.creations.commit_at(new, location)
        finally:
            new.close()
        counters.success_upload_count += 1
        counters.success_upload_bytes += head.size
        return self._stored(location)

    async def append(self, connection: FramedConnection, length: int) -> bytes:
        """24: data behind the end; rolled back when the client goes away in the middle."""
        fixed = await connection.recv_exactly(min(length, APPEND_HEAD_SIZE))
        name = await connection.recv_exactly(AppendHead.name_length(fixed, length))
        head = AppendHead.decode(fixed + name, length)
        location = self._begin_append(head)
        await self._change(connection, location, None, head.length)
        return self._appended(head)

    def append_small(self, body: bytes, _flags: int) -> bytes | None:
        """24 with all its data; None while another change of the file is under way."""
        start = APPEND_HEAD_SIZE + AppendHead.name_length(body[:APPEND_HEAD_SIZE], len(body))
        head = AppendHead.decode(body[:start], len(body))
        if not self._store.locks.is_free(self._store.locate(head.name)):
            return None
        self._change_small(self._begin_append(head), None, body[start:])
        return self._appended(head)

    def _begin_append(self, head: AppendHead) -> Location:
        location = self._store.locate(head.name)
        check_appender(self._store, location)
        self._store.counters.total_append_count += 1
        self._store.counters.total_append_bytes += head.length
        return location

    def _appended(self, head: AppendHead) -> bytes:
        self._store.counters.success_append_count += 1
        self._store.counters.success_append_bytes += head.length
        return _OK

    async def modify(self, connection: FramedConnection, length: int) -> bytes:
        """34: data at an offset up to the end; what was written stays if the client goes away."""
        fixed = await connection.recv_exactly(min(length, MODIFY_HEAD_SIZE))
        name = await connection.recv_exactly(ModifyHead.name_length(fixed, length))
        head = ModifyHead.decode(fixed + name, length)
        location = self._begin_modify(head)
        await self._change(connection, location, head.offset, head.length)
        return self._modified(head)

    def modify_small(self, body: bytes, _flags: int) -> bytes | None:
        """34 with all its data; None while another change of the file is under way."""
        start = MODIFY_HEAD_SIZE + ModifyHead.name_length(body[:MODIFY_HEAD_SIZE], len(body))
        head = ModifyHead.decode(body[:start], len(body))
        if not self._store.locks.is_free(self._store.locate(head.name)):
            return None
        self._change_small(self._begin_modify(head), head.offset, body[start:])
        return self._modified(head)

    def _begin_modify(self, head: ModifyHead) -> Location:
        location = self._store.locate(head.name)
        size = check_appender(self._store, location)
        if head.offset > size or head.offset + head.length > _MAX_FILE_SIZE:
            raise ProtocolError(f"offset {head.offset} in a file of {size} bytes")
        self._store.counters.total_modify_count += 1
        self._store.counters.total_modify_bytes += head.length
        return location

    def _modified(self, head: ModifyHead) -> bytes:
        self._store.counters.success_modify_count += 1
        self._store.counters.success_modify_bytes += head.length
        return _OK

    async def _change(
        self, connection: FramedConnection, location: Location, offset: int | None, length: int
    ) -> None:
        """Write *length* bytes of the body at *offset* (None: at the end)."""
        if not length:
            return
        self._store.check_space(location.path_index, length)
        if length <= INLINE_MAX:
            data = await connection.recv_exactly(length)
            if self._store.locks.is_free(location):
                self._change_inline(location, offset, data)
                return
            async with self._store.locks.hold(location):
                self._change_inline(location, offset, data)
            return
        async with self._store.locks.hold(location):
            await self._change_streamed(connection, location, offset, length)

    def _change_small(self, location: Location, offset: int | None, data: bytes) -> None:
        if data:
            self._store.check_space(location.path_index, len(data))
            self._change_inline(location, offset, data)

    def _change_inline(self, location: Location, offset: int | None, data: bytes) -> None:
        size = self._store.stat(location).st_size
        if offset is not None and offset > size:
            raise StatusError(errno.EINVAL, "the file has become shorter")
        start = size if offset is None else offset
        try:
            if offset is not None:
                self._store.appenders.reserve(location, start, len(data))
            self._store.appenders.pwrite(location, start, data)
        except StatusError:
            self._store.appenders.take_back(location, size, start + len(data))
            raise

    async def _change_streamed(
        self, connection: FramedConnection, location: Location, offset: int | None, length: int
    ) -> None:
        store = self._store
        fd = store.paths.open_to_change(location)
        received = Received()
        try:
            old_size = os.fstat(fd).st_size
            start = old_size if offset is None else offset
            if start > old_size:
                raise StatusError(errno.EINVAL, "the file has become shorter")
            intent = Intent(location.name, start, length, old_size, offset is None)
            with store.intents.noted(intent):
                try:
                    if offset is not None:
                        await trio.to_thread.run_sync(reserve, fd, start, length)
                    await receive_content(connection, fd, start, length, received)
                except BaseException:
                    # Nor does a part of a piece stay, or what was reserved.
                    kept = 0 if offset is None else received.length
                    try:
                        os.ftruncate(fd, max(old_size, start + kept))
                    finally:
                        if kept:
                            store.appenders.record_write(location, start, kept, old_size)
                    raise
                store.appenders.record_write(location, start, length, old_size)
        finally:
            os.close(fd)


async def receive_whole(connection: FramedConnection, new: NewFile, size: int) -> int:
    """Receive *size* bytes of the body into *new*; returns their CRC-32.

    Raises:
        ConnectionBroken: the client went away.
        OSError: the disk failed.
    """
    if size <= INLINE_MAX:
        data = await connection.recv_exactly(size)
        new.write(data)
        return crc32(data)
    received = Received()
    await receive_content(connection, new.fd, 0, size, received)
    return received.crc32

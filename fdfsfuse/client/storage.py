"""Calls to one storage.

Source: protocol/wire.md section 4; WRITE_OBJECT, TRUNCATE_OBJECT and QUERY_VIEW are described in
fdfsfuse/proto/names.py. File names are those behind the group: ``M00/00/0C/...``.
"""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import TypeVar

from fdfsfuse.client.address import Address
from fdfsfuse.client.bodies import CHUNK_SIZE, Progress, Source
from fdfsfuse.client.connection import AnswerStream, Connection, write_file
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.views import query_view
from fdfsfuse.errors import ConnectionBroken
from fdfsfuse.proto import metadata, names
from fdfsfuse.proto.header import FILE_NAME_MAX, GROUP_NAME_SIZE
from fdfsfuse.proto.storage import (
    ANY_STORE_PATH,
    AppendHead,
    Download,
    FileInfo,
    FileRequest,
    ModifyHead,
    SetMetadata,
    SlaveHead,
    StorageCommand,
    StoredFile,
    Truncate,
    UploadHead,
)

METADATA_MAX = 256 << 10
"""Longest metadata text that is accepted; a storage's own limit is its buff_size."""

_HEAD_LENGTH = struct.Struct(">I")
_NAME_MAX = GROUP_NAME_SIZE + FILE_NAME_MAX
_INFO_MAX = 70
_T = TypeVar("_T")


class StorageClient:
    """The storage at *address*, over connections of *pool*.

    All methods raise StatusError (2: no such file), ConnectionProblem or ProtocolError. Reading
    is tried again, once, when a kept connection turns out to be stale; changes never are.
    """

    __slots__ = ("_pool", "address")

    def __init__(self, pool: Pool, address: Address) -> None:
        self._pool = pool
        self.address = address

    # --- reading ---------------------------------------------------------------------------------

    async def download(
        self, group: str, name: str, offset: int = 0, count: int = 0, *, max_bytes: int
    ) -> bytes:
        """*count* bytes from *offset* on (0: all), fewer at the end of the file.

        More than *max_bytes* are a ProtocolError. An offset at or behind the end, so every
        download of an empty file, is status 22 (wire.md section 5, trap 6).
        """
        body = Download(group, name, offset, count).encode()

        async def exchange(connection: Connection) -> bytes:
            return await connection.request(StorageCommand.DOWNLOAD, body, max_answer=max_bytes)

        return await self._read(exchange)

    async def download_into(
        self, group: str, name: str, buffer: memoryview, offset: int = 0
    ) -> int:
        """Fill *buffer* with content from *offset* on; return the number of bytes."""
        if not buffer:
            return 0
        body = Download(group, name, offset, len(buffer)).encode()

        async def exchange(connection: Connection) -> int:
            return await connection.request_into(StorageCommand.DOWNLOAD, body, buffer)

        return await self._read(exchange)

    @asynccontextmanager
    async def open_download(
        self, group: str, name: str, offset: int = 0, count: int = 0
    ) -> AsyncIterator[AnswerStream]:
        """The content as a stream, whose ``remaining`` is the number of bytes to come."""
        body = Download(group, name, offset, count).encode()
        connection = await self._pool.borrow(self.address)
        try:
            try:
                stream = await connection.start_stream(StorageCommand.DOWNLOAD, body)
            except ConnectionBroken:
                if not connection.reused or connection.answered:
                    raise
                self._pool.give_back(connection)
                connection = await self._pool.borrow(self.address, fresh=True)
                stream = await connection.start_stream(StorageCommand.DOWNLOAD, body)
            try:
                yield stream
            finally:
                stream.end()
        finally:
            self._pool.give_back(connection)

    async def download_to_file(
        self,
        group: str,
        name: str,
        fd: int,
        offset: int = 0,
        count: int = 0,
        *,
        file_offset: int = 0,
        progress: Progress | None = None,
    ) -> int:
        """Write the content to *fd* from *file_offset* on; return the number of bytes."""
        position = file_offset
        async with self.open_download(group, name, offset, count) as stream:
            buffer = memoryview(bytearray(min(CHUNK_SIZE, stream.remaining)))
            while stream.remaining:
                got = await stream.receive_into(buffer)
                await write_file(fd, buffer[:got], position)
                position += got
                if progress is not None:
                    progress(got)
        return position - file_offset

    async def query_info(self, group: str, name: str, *, flags: int = 0) -> FileInfo:
        """Size, time, crc and source of a file; *flags*: NO_CRC, QUIET_WHEN_MISSING."""
        body = FileRequest(group, name).encode()

        async def exchange(connection: Connection) -> bytes:
            return await connection.request(
                StorageCommand.FILE_INFO, body, max_answer=_INFO_MAX, status=flags
            )

        return FileInfo.decode(await self._read(exchange))

    async def get_metadata(self, group: str, name: str) -> metadata.Pairs:
        """The metadata; status 2 when there is no file *or* it has no metadata."""
        body = FileRequest(group, name).encode()

        async def exchange(connection: Connection) -> bytes:
            return await connection.request(
                StorageCommand.GET_METADATA, body, max_answer=METADATA_MAX
            )

        return metadata.decode(await self._read(exchange))

    async def query_view(self) -> names.View:
        """The names view; NoNamesError from a stock server."""
        return await query_view(self.address)

    # --- changing --------------------------------------------------------------------------------

    async def upload(
        self,
        source: Source,
        size: int,
        *,
        extension: str = "",
        path_index: int = ANY_STORE_PATH,
        appender: bool = False,
        progress: Progress | None = None,
    ) -> StoredFile:
        """Store *size* bytes of *source* as a new file, or as an appender."""
        command = StorageCommand.UPLOAD_APPENDER if appender else StorageCommand.UPLOAD
        head = UploadHead(path_index, size, extension).encode()
        async with self._pool.connection(self.address) as connection:
            answer = await connection.send_stream(
                command, head, source, size, max_answer=_NAME_MAX, progress=progress
            )
        return StoredFile.decode(answer)

    async def upload_slave(
        self,
        master: str,
        prefix: str,
        source: Source,
        size: int,
        *,
        extension: str = "",
        progress: Progress | None = None,
    ) -> StoredFile:
        """Store *size* bytes of *source* under a name made of *master*'s and *prefix*."""
        head = SlaveHead(master, size, prefix, extension).encode()
        async with self._pool.connection(self.address) as connection:
            answer = await connection.send_stream(
                StorageCommand.UPLOAD_SLAVE,
                head,
                source,
                size,
                max_answer=_NAME_MAX,
                progress=progress,
            )
        return StoredFile.decode(answer)

    async def delete(self, group: str, name: str) -> None:
        """Delete a file and its metadata."""
        await self._command(StorageCommand.DELETE, FileRequest(group, name).encode())

    async def set_metadata(
        self, group: str, name: str, pairs: metadata.Pairs, *, merge: bool = False
    ) -> None:
        """Replace the metadata, or add to it."""
        body = SetMetadata(group, name, metadata.encode(pairs), merge).encode()
        await self._command(StorageCommand.SET_METADATA, body)

    async def append(
        self, name: str, source: Source, size: int, *, progress: Progress | None = None
    ) -> None:
        """Append *size* bytes to an appender."""
        head = AppendHead(name, size).encode()
        await self._send(StorageCommand.APPEND, head, source, size, progress)

    async def modify(
        self,
        name: str,
        offset: int,
        source: Source,
        size: int,
        *,
        progress: Progress | None = None,
    ) -> None:
        """Overwrite *size* bytes of an appender, from *offset* (at most its size) on."""
        head = ModifyHead(name, offset, size).encode()
        await self._send(StorageCommand.MODIFY, head, source, size, progress)

    async def truncate(self, name: str, size: int) -> None:
        """Set the size of an appender."""
        await self._command(StorageCommand.TRUNCATE, Truncate(name, size).encode())

    async def write_object(self, head: names.WriteObject, data: bytes | Sequence[bytes]) -> None:
        """Write the ``head.length`` bytes of *data* to an object of a names session."""
        encoded = names.encode(head)
        front = _HEAD_LENGTH.pack(len(encoded)) + encoded
        await self._send(names.WRITE_OBJECT, front, data, head.length, None)

    async def truncate_object(self, request: names.TruncateObject) -> None:
        """Set the size of an object of a names session."""
        await self._command(names.TRUNCATE_OBJECT, names.encode(request))

    # --- helpers ---------------------------------------------------------------------------------

    async def _read(self, exchange: Callable[[Connection], Awaitable[_T]]) -> _T:
        return await self._pool.call(self.address, exchange, repeatable=True)

    async def _command(self, command: int, body: bytes) -> None:
        async with self._pool.connection(self.address) as connection:
            await connection.command(command, body)

    async def _send(
        self, command: int, head: bytes, source: Source, size: int, progress: Progress | None
    ) -> None:
        async with self._pool.connection(self.address) as connection:
            await connection.command_stream(command, head, source, size, progress=progress)

"""Serves the connections of a storage: reads requests, answers them, keeps the manners.

Manners (protocol/wire.md sections 1 and 5): every status 22 closes the connection once it has
arrived; after other errors it stays open, and what is left of the request's body is read and
forgotten. Requests that arrive back to back are answered in order.

Requests that are small by nature are functions from body to answer, without an await (`objects`,
`derived`); those with content stream it (`uploads`, `downloads`), unless it is small and has
arrived already. Commands from 128 up belong to the names engine.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Mapping
from typing import Protocol

from fdfs_storage.files import status_of
from fdfs_storage.serving.derived import Derived
from fdfs_storage.serving.downloads import Downloads
from fdfs_storage.serving.objects import Objects
from fdfs_storage.serving.path_binlog import PathBinlog
from fdfs_storage.serving.uploads import Uploads
from fdfs_storage.store import Store
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.header import HEADER_SIZE, RESPONSE, Header, pack_header, pack_response
from fdfsfuse.proto.recovery import FETCH_PATH_BINLOG, REQUEST_SIZE
from fdfsfuse.proto.storage import StorageCommand
from fdfsfuse.server.connection import FramedConnection
from fdfsfuse.server.hub import EndConnection

logger = logging.getLogger(__name__)

SmallHandler = Callable[[bytes, int], "bytes | bytearray | None"]
"""(body, request status) -> the whole response; None: ask the matching slow handler."""
SlowHandler = Callable[[bytes, int], Awaitable[bytes]]
StreamHandler = Callable[[FramedConnection, int], Awaitable[bytes]]
"""(connection, body length) -> the whole response. Reads as much of the body as it wants."""
SyncHandler = Callable[[FramedConnection, Header], Awaitable[bytes]]
"""As StreamHandler, for requests of other storages, whose header may say more than a length."""
SyncAnswer = Callable[[FramedConnection, int, bytes], bytes | None]
"""As SmallHandler, for such requests: (connection, request status, body)."""

_ANSWERS_MAX = 1 << 10
_OK = pack_response()
_REFUSED = pack_response(status=errno.EINVAL)


class NamesHandler(Protocol):
    """What the service wants of the names engine."""

    def handles(self, command: int) -> bool:
        """True for the commands that `serve` answers."""

    async def serve(self, connection: FramedConnection, header: Header) -> None:
        """Serve one request, or a whole session; what is behind the header is still unread.

        Raises ProtocolError (answered with 22, then closed) and StatusError (body read whole).
        """


class StorageService:
    """The handler of a storage's `TcpServer`.

    Args:
        store: the objects.
        group: this storage's group.
        ip_size: width of ip fields in responses, 16 or 46.
        source_ip: maps the source in a file name (ip or id) to an ip; '' when it is unknown.
        buff_size: a request that is not streamed must be smaller, header included.
        names: the names engine, if this storage has one.
        sync: handlers for requests of the other storages of the group.
        sync_at_once: those among them that are answered when they have arrived whole.
    """

    def __init__(
        self,
        store: Store,
        group: str,
        *,
        ip_size: int = 16,
        source_ip: Callable[[str], str] = str,
        buff_size: int = 256 << 10,
        names: NamesHandler | None = None,
        sync: Mapping[int, SyncHandler] | None = None,
        sync_at_once: Mapping[int, SyncAnswer] | None = None,
    ) -> None:
        self._sync = sync or {}
        self._sync_at_once = sync_at_once or {}
        self._length_limit = buff_size - HEADER_SIZE
        self._names = names
        objects = Objects(store, group, ip_size, source_ip)
        uploads = Uploads(store, group)
        derived = Derived(store, group)
        self._path_binlog = PathBinlog(store, group)
        command = StorageCommand
        self._small: dict[int, SmallHandler] = {
            command.DELETE: objects.delete,
            command.SET_METADATA: objects.set_metadata,
            command.GET_METADATA: objects.get_metadata,
            command.FILE_INFO: objects.file_info,
            command.TRUNCATE: objects.truncate,
            command.CREATE_LINK: derived.create_link,
            command.REGENERATE: derived.regenerate,
        }
        self._slow: dict[int, SlowHandler] = {
            command.FILE_INFO: objects.file_info_with_crc,
            command.TRUNCATE: objects.truncate_when_free,
            command.REGENERATE: derived.regenerate_large,
        }
        self._streams: dict[int, StreamHandler] = {
            command.UPLOAD: uploads.upload,
            command.UPLOAD_APPENDER: uploads.upload_appender,
            command.UPLOAD_SLAVE: uploads.upload_slave,
            command.APPEND: uploads.append,
            command.MODIFY: uploads.modify,
        }
        downloads = Downloads(store, group)
        self._download = downloads.download
        self._at_once: dict[int, SmallHandler] = {
            **self._small,
            command.DOWNLOAD: downloads.download_small,
            command.UPLOAD: uploads.upload_small,
            command.UPLOAD_APPENDER: uploads.upload_small_appender,
            command.APPEND: uploads.append_small,
            command.MODIFY: uploads.modify_small,
            command.ACTIVE_TEST: lambda body, _flags: None if body else _OK,
        }

    def answer(
        self, connection: FramedConnection, command: int, flags: int, body: bytes
    ) -> bytes | bytearray | None:
        """The response to a request that has arrived whole; None: `serve` is to see to it."""
        handler = self._at_once.get(command)
        try:
            if handler is not None:
                return handler(body, flags)
            sync = self._sync_at_once.get(command)
            return None if sync is None else sync(connection, flags, body)
        except StatusError as exc:
            if exc.errno == errno.EINVAL:
                raise EndConnection(_REFUSED) from None
            return pack_header(0, RESPONSE, exc.errno or errno.EIO)
        except ProtocolError as exc:
            logger.debug("refused a request of %s: %s", connection.peer_ip, exc)
            raise EndConnection(_REFUSED) from None
        except OSError as exc:
            logger.error("a disk failed: %s", exc)
            return pack_header(0, RESPONSE, status_of(exc))

    async def serve(self, connection: FramedConnection) -> None:
        """Serve one connection until it ends, or has no request under way."""
        small, limit = self._small, self._length_limit
        while True:
            try:
                header = await connection.recv_header(wait=False)
            except ProtocolError:
                return  # a negative length gets no answer
            if header is None:
                return
            length, command, flags = header
            try:
                answer = small.get(command)
                if answer is None:
                    if not await self._serve_large(connection, header):
                        return
                    continue
                if length >= limit:
                    await self._refuse(connection)
                    return
                body = await connection.recv_exactly(length)
                response = answer(body, flags) or await self._slow[command](body, flags)
            except StatusError as exc:
                if exc.errno == errno.EINVAL:
                    await self._refuse(connection)
                    return
                response = pack_header(0, RESPONSE, exc.errno or errno.EIO)
            except ProtocolError as exc:
                logger.debug("refused a request of %s: %s", connection.peer_ip, exc)
                await self._refuse(connection)
                return
            await connection.send(response)

    async def _serve_large(self, connection: FramedConnection, header: Header) -> bool:
        """Answer a request that is not small by nature; False closes the connection."""
        length, command, _ = header
        if command in self._sync:
            await self._serve_sync(connection, header)
            return True
        stream = self._streams.get(command)
        if stream is not None:
            return await self._serve_stream(connection, length, stream(connection, length))
        if command != StorageCommand.DOWNLOAD:
            return await self._serve_other(connection, header)
        if length >= self._length_limit:
            await self._refuse(connection)
            return False
        await self._download(connection, await connection.recv_exactly(length))
        return True

    async def _serve_stream(
        self, connection: FramedConnection, length: int, answer: Awaitable[bytes]
    ) -> bool:
        """A request with content: if it fails early, the rest of its body is read all the same."""
        response, rest = await _respond(connection, length, answer)
        await connection.send(response)
        if rest:
            await connection.discard(rest)
        return True

    async def _serve_sync(self, connection: FramedConnection, header: Header) -> None:
        """Requests of another storage, as many as have arrived: answers go out together, since
        each packet would wake the sender."""
        answers = bytearray()
        try:
            while True:
                answer = self._sync[header.command](connection, header)
                response, rest = await _respond(connection, header.length, answer)
                answers += response
                following = None if rest else connection.next_whole()
                if (
                    following is None
                    or following.command not in self._sync
                    or len(answers) >= _ANSWERS_MAX
                ):
                    break
                next_header = await connection.recv_header()
                assert next_header is not None
                header = next_header
        except (StatusError, ProtocolError):
            await connection.send(answers)
            raise
        await connection.send(answers)
        if rest:
            await connection.discard(rest)

    async def _serve_other(self, connection: FramedConnection, header: Header) -> bool:
        if header.command == StorageCommand.ACTIVE_TEST and not header.length:
            await connection.send(_OK)
            return True
        if header.command == StorageCommand.QUIT:
            return False
        if header.command == FETCH_PATH_BINLOG and header.length == REQUEST_SIZE:
            body = await connection.recv_exactly(header.length)
            await self._path_binlog.send(connection, body)
            return False
        if self._names is not None and self._names.handles(header.command):
            await self._names.serve(connection, header)
            return True
        await self._refuse(connection)
        return False

    async def _refuse(self, connection: FramedConnection) -> None:
        """Status 22, after which a storage closes; the answer must arrive before that."""
        await connection.send(_REFUSED)
        await connection.linger()


async def _respond(
    connection: FramedConnection, length: int, answer: Awaitable[bytes]
) -> tuple[bytes, int]:
    """The response to a request, and how many of the *length* bytes of its body are unread.

    Raises ProtocolError, StatusError 22.
    """
    before = connection.received()
    try:
        response = await answer
    except StatusError as exc:
        if exc.errno == errno.EINVAL:
            raise
        response = pack_header(0, RESPONSE, exc.errno or errno.EIO)
    except OSError as exc:
        logger.error("a disk failed: %s", exc)
        response = pack_header(0, RESPONSE, status_of(exc))
    return response, length - (connection.received() - before)

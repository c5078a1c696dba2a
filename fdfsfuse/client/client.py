"""`Client`: files by their id, on any FastDFS cluster.

::

    async with fdfsfuse.Client("10.0.0.1") as client:
        file_id = await client.upload("photo.jpg", metadata={"width": "1024"})
        content = await client.download(file_id)

Each operation asks a tracker for the right storage. What cannot be reached is tried elsewhere;
reading goes on with another storage of the group. A change is sent to one storage only, once:
when its connection breaks before the answer, ConnectionBroken says that nobody knows.
"""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, TypeVar

import trio

from fdfsfuse.client.address import Address, parse_address
from fdfsfuse.client.bodies import Progress
from fdfsfuse.client.connection import CONNECT_TIMEOUT_S, AnswerStream
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.sources import Content, extension_of, open_content, replacing
from fdfsfuse.client.storage import StorageClient
from fdfsfuse.client.tracker import TrackerClient, UploadTarget
from fdfsfuse.errors import (
    ConnectFailed,
    ConnectionProblem,
    DeadlineExceeded,
    FdfsError,
    ProtocolError,
    StatusError,
    UsageError,
)
from fdfsfuse.proto.fileid import PREFIX, FileKind, decode_name, split_file_id
from fdfsfuse.proto.metadata import NAME_MAX, VALUE_MAX, fits
from fdfsfuse.proto.storage import NO_CRC, QUIET_WHEN_MISSING, FileInfo, StoredFile

TIMEOUT_S = 30.0
MEMORY_MAX = 256 << 20
"""Most bytes that `Client.download` returns."""
_UPLOAD_TRIES = 3
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class FileDetails:
    """What is known of a file.

    ``created`` in Unix seconds. ``crc32`` is that of the content (zlib); the storage reads an
    appender or a slave for it. ``source`` is the address or the id of the storage that took the
    upload. ``kind`` is NORMAL for slaves with short names (protocol/wire.md section 5, trap 10).
    """

    file_id: str
    kind: FileKind
    size: int
    created: int
    crc32: int
    source: str


class Client:
    """A client of the cluster that *trackers* schedule.

    Args:
        trackers: ``host[:port]``, several as a sequence or separated by commas.
        timeout_s: how long an operation may take without any progress; each method takes another
            one for itself. Long transfers may take as long as they want while bytes move.
        connections: most connections to one server.
    """

    def __init__(
        self,
        trackers: str | Address | Sequence[str | Address],
        *,
        timeout_s: float = TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        connections: int = 64,
    ) -> None:
        self._timeout_s = timeout_s
        self.pool = Pool(limit=connections, connect_timeout_s=connect_timeout_s)
        self.tracker = TrackerClient(_addresses(trackers), self.pool)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all idle connections."""
        self.pool.close()

    # --- uploading -------------------------------------------------------------------------------

    async def upload(
        self,
        content: Content,
        *,
        extension: str | None = None,
        group: str | None = None,
        appender: bool = False,
        metadata: Mapping[str, str] | None = None,
        size: int | None = None,
        timeout_s: float | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Store *content* as a new file and return its id.

        Args:
            extension: without the dot, at most 6 of ``[A-Za-z0-9._-]``; that of the path if None.
            appender: make a file that can be changed later.
            metadata: stored with the file; if that fails, the file is deleted again.
            size: bytes of an async iterable; without it, it is first written to a temporary file.

        Raises:
            StatusError: 28 no space, 2 no such group, 22 refused.
            ConnectionProblem: no server could be reached, or it broke off.
        """
        if extension is None:
            is_path = isinstance(content, (str, os.PathLike))
            extension = extension_of(content) if is_path else ""  # type: ignore[arg-type]
        async with open_content(content, size) as opened:
            with self._limit(timeout_s, "upload", progress) as touch:

                async def send(storage: StorageClient, path_index: int) -> StoredFile:
                    return await storage.upload(
                        opened.source,
                        opened.size,
                        extension=extension or "",
                        path_index=path_index,
                        appender=appender,
                        progress=touch,
                    )

                storage, stored = await self._upload(group, send)
                if metadata:
                    await self._attach(storage, stored, metadata)
        return f"{stored.group}/{stored.name}"

    async def upload_slave(
        self,
        master_id: str,
        prefix: str,
        content: Content,
        *,
        extension: str | None = None,
        metadata: Mapping[str, str] | None = None,
        size: int | None = None,
        timeout_s: float | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Store *content* as a slave of the file *master_id* and return its id.

        The slave's id is that of the master with *prefix* behind it (``..._small.jpg``), so that
        whoever knows the master's id can tell it. Deleting the master keeps its slaves.

        Args:
            prefix: 1 to 16 of ``[A-Za-z0-9._-]``. Take at least 6, or 5 with an extension: servers
                take slaves with very short ids for normal files (wire.md section 5, trap 10).
            extension: as in `upload`; that of a path if None, else that of the master.

        Raises:
            StatusError: 2 no such master, 17 it has this slave already.
        """
        if not PREFIX.match(prefix):
            raise UsageError(f"{prefix!r} is not a prefix: 1 to 16 of A-Z a-z 0-9 . _ - are")
        group, master = split_file_id(master_id)
        if extension is None:
            is_path = isinstance(content, (str, os.PathLike))
            extension = extension_of(content if is_path else master)  # type: ignore[arg-type]
        async with open_content(content, size) as opened:
            with self._limit(timeout_s, f"upload of a slave of {master_id}", progress) as touch:
                storage = await self._where_to_change(group, master)
                stored = await storage.upload_slave(
                    master,
                    prefix,
                    opened.source,
                    opened.size,
                    extension=extension,
                    progress=touch,
                )
                if metadata:
                    await self._attach(storage, stored, metadata)
        return f"{stored.group}/{stored.name}"

    async def _upload(
        self, group: str | None, send: Callable[[StorageClient, int], Awaitable[StoredFile]]
    ) -> tuple[StorageClient, StoredFile]:
        """Upload to the storage that a tracker names; to another one if it is not reachable."""
        for attempt in range(_UPLOAD_TRIES):
            target = await self._where_to_store(group)
            storage = StorageClient(self.pool, target.address)
            try:
                return storage, await send(storage, target.path_index)
            except ConnectFailed:
                if attempt == _UPLOAD_TRIES - 1:
                    raise
        raise AssertionError("unreachable")

    async def _where_to_store(self, group: str | None) -> UploadTarget:
        try:
            return await self.tracker.query_store(group)
        except StatusError as exc:
            if exc.errno != errno.ENOENT:
                raise
            raise await self._no_server(group, "takes uploads") from exc

    async def _attach(
        self, storage: StorageClient, stored: StoredFile, metadata: Mapping[str, str]
    ) -> None:
        try:
            await storage.set_metadata(stored.group, stored.name, _pairs(metadata))
        except FdfsError:
            with trio.move_on_after(CONNECT_TIMEOUT_S):
                try:
                    await storage.delete(stored.group, stored.name)
                except FdfsError:
                    pass  # the first error tells more
            raise

    # --- reading ---------------------------------------------------------------------------------

    async def download(
        self,
        file_id: str,
        offset: int = 0,
        count: int | None = None,
        *,
        timeout_s: float | None = None,
    ) -> bytes:
        """*count* bytes from *offset* on (None: to the end), fewer at the end of the file.

        Raises:
            UsageError: it is more than `MEMORY_MAX`; use `download_to` or `open`.
            StatusError: 2, there is no such file.
        """
        group, name = split_file_id(file_id)
        with self._limit(timeout_s, f"download of {file_id}") as touch:

            async def read(storage: StorageClient) -> bytes:
                async with storage.open_download(group, name, offset, count or 0) as stream:
                    if stream.remaining > MEMORY_MAX:
                        raise UsageError(
                            f"{file_id} has {stream.remaining} bytes: too many for the memory"
                        )
                    buffer = bytearray(stream.remaining)
                    view = memoryview(buffer)
                    while view:
                        got = await stream.receive_into(view[: 1 << 20])
                        view = view[got:]
                        touch(got)
                    return bytes(buffer)

            try:
                return await self._read(group, name, read)
            except StatusError as exc:
                await self._check_behind_end(exc, group, name, offset)
                return b""

    async def download_to(
        self,
        file_id: str,
        target: str | os.PathLike[str] | BinaryIO | int,
        offset: int = 0,
        count: int | None = None,
        *,
        timeout_s: float | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Write *count* bytes from *offset* on (None: to the end) to *target*; return how many.

        A path is replaced when the content is complete. A file object or descriptor of a regular
        file is written from its start on. When a storage breaks off, another one goes on.
        """
        if isinstance(target, (str, os.PathLike)):
            async with replacing(target) as fd:
                return await self._download_to(file_id, fd, offset, count, timeout_s, progress)
        fd = target if isinstance(target, int) else target.fileno()
        return await self._download_to(file_id, fd, offset, count, timeout_s, progress)

    async def _download_to(
        self,
        file_id: str,
        fd: int,
        offset: int,
        count: int | None,
        timeout_s: float | None,
        progress: Progress | None,
    ) -> int:
        group, name = split_file_id(file_id)
        done = 0
        with self._limit(timeout_s, f"download of {file_id}", progress) as touch:

            def advance(size: int) -> None:
                nonlocal done
                done += size
                touch(size)

            async def read(storage: StorageClient) -> None:
                if count and done == count:
                    return
                await storage.download_to_file(
                    group,
                    name,
                    fd,
                    offset + done,
                    count - done if count else 0,
                    file_offset=done,
                    progress=advance,
                )

            try:
                await self._read(group, name, read)
            except StatusError as exc:
                await self._check_behind_end(exc, group, name, offset + done)
        return done

    @asynccontextmanager
    async def open(
        self, file_id: str, offset: int = 0, count: int | None = None
    ) -> AsyncIterator[AnswerStream]:
        """The content as a stream: ``await stream.receive_some()`` until b"" comes.

        No deadline applies inside the block.
        """
        group, name = split_file_id(file_id)
        async with AsyncExitStack() as stack:

            async def start(storage: StorageClient) -> AnswerStream:
                return await stack.enter_async_context(
                    storage.open_download(group, name, offset, count or 0)
                )

            with self._limit(None, f"download of {file_id}"):
                try:
                    stream = await self._read(group, name, start)
                except StatusError as exc:
                    await self._check_behind_end(exc, group, name, offset)
                    stream = AnswerStream.empty()
            yield stream

    async def info(
        self, file_id: str, *, flags: int = 0, timeout_s: float | None = None
    ) -> FileDetails:
        """Describe a file. StatusError 2 when it does not exist."""
        group, name = split_file_id(file_id)
        with self._limit(timeout_s, f"info of {file_id}"):
            found = await self._info(group, name, flags)
        try:
            decoded = decode_name(name)
        except ProtocolError:
            return FileDetails(
                file_id, FileKind.SLAVE, found.size, found.mtime, found.crc32, found.source_ip
            )
        source = decoded.source if decoded.source_is_id else found.source_ip or decoded.source
        return FileDetails(file_id, decoded.kind, found.size, found.mtime, found.crc32, source)

    async def exists(self, file_id: str, *, timeout_s: float | None = None) -> bool:
        """Whether a storage of the group has the file."""
        try:
            await self.info(file_id, flags=NO_CRC | QUIET_WHEN_MISSING, timeout_s=timeout_s)
        except StatusError as exc:
            if exc.errno != errno.ENOENT:
                raise
            return False
        return True

    async def get_metadata(self, file_id: str, *, timeout_s: float | None = None) -> dict[str, str]:
        """The metadata of a file; {} when it has none. StatusError 2 when it does not exist."""
        group, name = split_file_id(file_id)
        with self._limit(timeout_s, f"metadata of {file_id}"):
            storage = await self._where_to_change(group, name)
            try:
                pairs = await storage.get_metadata(group, name)
            except StatusError as exc:
                if exc.errno != errno.ENOENT:
                    raise
                # "No metadata" and "no file" are the same status (wire.md section 5, trap 7).
                await storage.query_info(group, name)
                return {}
        return {_text(key): _text(value) for key, value in pairs}

    # --- changing --------------------------------------------------------------------------------

    async def set_metadata(
        self,
        file_id: str,
        metadata: Mapping[str, str],
        *,
        merge: bool = False,
        timeout_s: float | None = None,
    ) -> None:
        """Replace the metadata, or with *merge* add to it."""
        group, name = split_file_id(file_id)
        pairs = _pairs(metadata)
        with self._limit(timeout_s, f"setting metadata of {file_id}"):
            storage = await self._where_to_change(group, name)
            await storage.set_metadata(group, name, pairs, merge=merge)

    async def delete(self, file_id: str, *, timeout_s: float | None = None) -> None:
        """Delete a file and its metadata. StatusError 2 when it does not exist."""
        group, name = split_file_id(file_id)
        with self._limit(timeout_s, f"deletion of {file_id}"):
            storage = await self._where_to_change(group, name)
            await storage.delete(group, name)

    async def append(
        self,
        file_id: str,
        content: Content,
        *,
        size: int | None = None,
        timeout_s: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Append to an appender. UsageError when the file is none."""
        group, name = _split_appender(file_id)
        async with open_content(content, size) as opened:
            with self._limit(timeout_s, f"append to {file_id}", progress) as touch:
                storage = await self._where_to_change(group, name)
                await storage.append(name, opened.source, opened.size, progress=touch)

    async def modify(
        self,
        file_id: str,
        offset: int,
        content: Content,
        *,
        size: int | None = None,
        timeout_s: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Overwrite a part of an appender; *offset* is at most its size."""
        group, name = _split_appender(file_id)
        async with open_content(content, size) as opened:
            with self._limit(timeout_s, f"change of {file_id}", progress) as touch:
                storage = await self._where_to_change(group, name)
                await storage.modify(name, offset, opened.source, opened.size, progress=touch)

    async def truncate(self, file_id: str, size: int, *, timeout_s: float | None = None) -> None:
        """Set the size of an appender."""
        group, name = _split_appender(file_id)
        with self._limit(timeout_s, f"truncation of {file_id}"):
            storage = await self._where_to_change(group, name)
            await storage.truncate(name, size)

    # --- helpers ---------------------------------------------------------------------------------

    @contextmanager
    def _limit(
        self, timeout_s: float | None, what: str, progress: Progress | None = None
    ) -> Iterator[Progress]:
        """Raise DeadlineExceeded when the yielded function is not called for *timeout_s*.

        Statuses of servers are raised on with *what*.
        """
        seconds = self._timeout_s if timeout_s is None else timeout_s

        def touch(count: int) -> None:
            scope.deadline = trio.current_time() + seconds
            if progress is not None:
                progress(count)

        with trio.move_on_after(seconds) as scope:
            try:
                yield touch
            except StatusError as exc:
                raise StatusError(exc.errno or 0, f"{what}: {exc.what}") from exc
        if scope.cancelled_caught:
            raise DeadlineExceeded(f"{what}: no progress for {seconds:g} s")

    async def _read(
        self, group: str, name: str, read: Callable[[StorageClient], Awaitable[_T]]
    ) -> _T:
        """Read from the storage that a tracker names, then from any other that has the file.

        A tracker may name one that lacks a file still (load-balancing.md section 4).
        """
        first = await self._where_to_read(group, name)
        try:
            return await read(StorageClient(self.pool, first))
        except (ConnectionProblem, StatusError) as exc:
            if isinstance(exc, StatusError) and exc.errno != errno.ENOENT:
                raise
            problem: FdfsError = exc
        for address in await self._other_servers(group, name, first):
            try:
                return await read(StorageClient(self.pool, address))
            except ConnectionProblem:
                continue
            except StatusError as exc:
                if exc.errno != errno.ENOENT:
                    raise
        raise problem

    async def _other_servers(self, group: str, name: str, tried: Address) -> list[Address]:
        try:
            found = await self.tracker.query_fetch_all(group, name)
            found.append(await self.tracker.query_update(group, name))
        except (ConnectionProblem, StatusError):
            return []
        return [address for address in dict.fromkeys(found) if address != tried]

    async def _info(self, group: str, name: str, flags: int = 0) -> FileInfo:
        async def read(storage: StorageClient) -> FileInfo:
            return await storage.query_info(group, name, flags=flags)

        return await self._read(group, name, read)

    async def _check_behind_end(
        self, refused: StatusError, group: str, name: str, offset: int
    ) -> None:
        """Raise *refused* again unless it means that *offset* is the end of the file or behind.

        Storages refuse such a download with status 22 (wire.md section 5, trap 6).
        """
        if refused.errno != errno.EINVAL or (await self._info(group, name)).size > offset:
            raise refused

    async def _where_to_read(self, group: str, name: str) -> Address:
        try:
            return await self.tracker.query_fetch(group, name)
        except StatusError as exc:
            if exc.errno != errno.ENOENT:
                raise
            raise await self._no_server(group, "can be read from") from exc

    async def _where_to_change(self, group: str, name: str) -> StorageClient:
        try:
            return StorageClient(self.pool, await self.tracker.query_update(group, name))
        except StatusError as exc:
            if exc.errno != errno.ENOENT:
                raise
            raise await self._no_server(group, "takes changes") from exc

    async def _no_server(self, group: str | None, what: str) -> FdfsError:
        """A tracker's status 2 means an unknown group, or that no server can be handed out."""
        groups = [stat.group for stat in await self.tracker.list_groups()]
        if group is not None and group not in groups:
            return StatusError(errno.ENOENT, f"there is no volume {group}")
        volume = f"of volume {group} " if group else ""
        return ConnectionProblem(f"no storage {volume}{what} now")


def _addresses(trackers: str | Address | Sequence[str | Address]) -> list[Address]:
    if isinstance(trackers, Address):
        return [trackers]
    items = trackers.split(",") if isinstance(trackers, str) else trackers
    return [item if isinstance(item, Address) else parse_address(item) for item in items]


def _split_appender(file_id: str) -> tuple[str, str]:
    group, name = split_file_id(file_id)
    try:
        kind = decode_name(name).kind
    except ProtocolError:
        kind = FileKind.NORMAL
    if kind is not FileKind.APPENDER:
        raise UsageError(f"{file_id} is not an appender: only a file uploaded as one can change")
    return group, name


def _pairs(metadata: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    pairs = [(_bytes(key), _bytes(value)) for key, value in metadata.items()]
    for key, value in pairs:
        if not fits(key, value):
            raise UsageError(
                f"metadata {_text(key)!r} does not fit: names have 1 to {NAME_MAX} bytes, values "
                f"at most {VALUE_MAX}, without the bytes 0, 1 and 2"
            )
    return pairs


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")

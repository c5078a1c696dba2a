"""A storage without tracker and names, in the test's own process, on real files and sockets."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from fdfs_storage.replication.deleted import Deleted
from fdfs_storage.replication.receiver import Receiver
from fdfs_storage.replication.replicas import Replicas
from fdfs_storage.serving.service import StorageService
from fdfs_storage.store import Store
from fdfsfuse.core.conf_file import ReservedSpace
from fdfsfuse.core.config import StorageConfig, StorePath
from fdfsfuse.proto.header import pack_header
from fdfsfuse.proto.storage import (
    AppendHead,
    Download,
    FileRequest,
    SetMetadata,
    StorageCommand,
    StoredFile,
    UploadHead,
)
from fdfsfuse.server.tcp import TcpServer, open_listeners

GROUP = "group1"


def make_config(
    directory: Path,
    *,
    paths: int = 2,
    subdirs: int = 4,
    readonly: tuple[int, ...] = (),
    by_hash: bool = False,
    rotate_count: int = 100,
) -> StorageConfig:
    """A configuration below *directory* with small numbers."""
    return StorageConfig(
        group_name=GROUP,
        base_path=str(directory / "base"),
        store_paths=tuple(
            StorePath(str(directory / f"path{index}"), index in readonly) for index in range(paths)
        ),
        tracker_servers=(),
        subdir_count_per_path=subdirs,
        file_distribute_path_mode=int(by_hash),
        file_distribute_rotate_count=rotate_count,
    )


async def open_store(config: StorageConfig, source: str = "127.0.0.11") -> Store:
    """Open a store that may use nearly all space."""
    store = await Store.open(config)
    store.configure(source, ReservedSpace(1))
    return store


class Client:
    """A raw connection to a storage."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._data = b""

    async def send(self, data: bytes) -> None:
        """Send bytes as they are."""
        await self.stream.send_all(data)

    async def call(self, command: int, body: bytes = b"", *, flags: int = 0) -> tuple[int, bytes]:
        """One exchange: (status, response body)."""
        await self.send(pack_header(len(body), command, flags) + body)
        return await self.receive()

    async def receive(self) -> tuple[int, bytes]:
        """The next response: (status, body). Raises EOFError when the server closed before."""
        length, command, status = struct.unpack(">qBB", await self.read(10))
        assert command == 100
        return status, await self.read(length)

    async def read(self, count: int) -> bytes:
        """Exactly *count* bytes."""
        while len(self._data) < count:
            chunk = await self.stream.receive_some(1 << 20)
            if not chunk:
                raise EOFError(f"closed after {len(self._data)} of {count} bytes")
            self._data += bytes(chunk)
        data, self._data = self._data[:count], self._data[count:]
        return data

    async def closed(self) -> bool:
        """Wait until the server closes; True when it sent nothing before."""
        try:
            return not await self.stream.receive_some(1)
        except trio.BrokenResourceError:
            return True

    async def is_open(self) -> bool:
        """True when the server still answers."""
        status, body = await self.call(StorageCommand.ACTIVE_TEST)
        return (status, body) == (0, b"")

    # --- requests that must succeed ---------------------------------------------------------

    async def upload(
        self, content: bytes, extension: str = "txt", *, appender: bool = False, path: int = 0
    ) -> str:
        """Upload; returns the file name."""
        command = StorageCommand.UPLOAD_APPENDER if appender else StorageCommand.UPLOAD
        head = UploadHead(path, len(content), extension).encode()
        status, body = await self.call(command, head + content)
        assert status == 0
        return StoredFile.decode(body).name

    async def download(self, name: str, offset: int = 0, count: int = 0) -> bytes:
        """Content of a file."""
        request = Download(GROUP, name, offset, count).encode()
        status, body = await self.call(StorageCommand.DOWNLOAD, request)
        assert status == 0
        return body

    async def append(self, name: str, data: bytes) -> None:
        """Append to an appender."""
        head = AppendHead(name, len(data)).encode()
        assert await self.call(StorageCommand.APPEND, head + data) == (0, b"")

    async def set_metadata(self, name: str, text: bytes, *, merge: bool = False) -> None:
        """Set metadata."""
        body = SetMetadata(GROUP, name, text, merge).encode()
        assert await self.call(StorageCommand.SET_METADATA, body) == (0, b"")

    async def get_metadata(self, name: str) -> tuple[int, bytes]:
        """(status, metadata text)."""
        return await self.call(StorageCommand.GET_METADATA, FileRequest(GROUP, name).encode())

    async def delete(self, name: str) -> int:
        """Delete; returns the status."""
        body = FileRequest(GROUP, name).encode()
        return (await self.call(StorageCommand.DELETE, body))[0]


class StorageServer:
    """A running storage."""

    def __init__(self, store: Store, receiver: Receiver, server: TcpServer, port: int) -> None:
        self.store = store
        self.receiver = receiver
        self.server = server
        self.port = port

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        """A new connection."""
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            yield Client(stream)

    def files(self) -> list[str]:
        """Paths of all files below the store paths' data, but for marks."""
        found = []
        for index in range(self.store.path_count):
            data = Path(self.store.data_directory(index))
            found += [str(path.relative_to(data)) for path in data.rglob("*") if path.is_file()]
        return sorted(found)


@asynccontextmanager
async def run_storage(
    config: StorageConfig,
    *,
    source: str = "127.0.0.11",
    ip_size: int = 16,
    source_ip: Callable[[str], str] = str,
    network_timeout_s: float = 30.0,
    max_connections: int = 64,
    boot_id: str = "boot",
) -> AsyncIterator[StorageServer]:
    """Serve until the block is left."""
    store = await open_store(config, source)
    deleted = Deleted.load(store.changes)
    receiver = Receiver(
        store, Replicas(store, deleted), GROUP, boot_id=boot_id, member_at=lambda ip: ""
    )
    service = StorageService(
        store,
        GROUP,
        ip_size=ip_size,
        source_ip=source_ip,
        sync=receiver.handlers,
        sync_at_once=receiver.at_once,
    )
    server = TcpServer(
        service.serve,
        service.answer,
        network_timeout_s=network_timeout_s,
        max_connections=max_connections,
    )
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            port = await nursery.start(server.serve, open_listeners(["127.0.0.1"]))
            yield StorageServer(store, receiver, server, port)
            nursery.cancel_scope.cancel()
    finally:
        store.close()

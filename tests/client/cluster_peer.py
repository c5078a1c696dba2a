"""A scripted tracker and storages that keep files in memory."""

from __future__ import annotations

import errno
import zlib

from fdfsfuse.client.address import Address
from fdfsfuse.proto import copies, fileid, storage, structs
from fdfsfuse.proto.tracker import (
    Endpoint,
    FileTargets,
    GroupStat,
    ServerStatus,
    StorageStat,
    StoreTarget,
    StoreTargets,
    TrackerCommand,
)
from tests.client.peers import PeerConnection, Request

GROUP = "group1"


class MemoryStorage:
    """Answers the storage commands that the client uses.

    Attributes:
        files, metadata: by file name.
        echo: the body of answers that have none.
        cuts: close the connection after so many bytes of the next downloads.
        refuse: status of all answers, if not 0.
        copies: the next answers about how many servers have a file.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.metadata: dict[str, bytes] = {}
        self.cuts: list[int] = []
        self.echo = b""
        self.refuse: dict[int, int] = {}
        self.copies: list[int] = []
        self.requests: list[int] = []

    async def handle(self, connection: PeerConnection) -> None:
        while True:
            request = await connection.receive()
            self.requests.append(request.command)
            if request.command in self.refuse:
                await connection.answer(status=self.refuse[request.command])
                continue
            if request.command == storage.StorageCommand.DOWNLOAD:
                if not await self._download(connection, request.body):
                    return
                continue
            status, body = self._serve(request)
            await connection.answer(body, status)
            if status == errno.EINVAL:
                return

    def _serve(self, request: Request) -> tuple[int, bytes]:
        command, body = request.command, request.body
        if command == copies.WAIT_FOR_COPIES and self.copies:
            assert copies.decode_request(body).name in self.files
            return 0, structs.encode(copies.Copies(self.copies.pop(0)))
        if command in (storage.StorageCommand.UPLOAD, storage.StorageCommand.UPLOAD_APPENDER):
            head = storage.UploadHead.decode(body[:15], len(body))
            appender = command == storage.StorageCommand.UPLOAD_APPENDER
            return 0, storage.StoredFile(GROUP, self.store(body[15:], head, appender)).encode()
        if command == storage.StorageCommand.UPLOAD_SLAVE:
            length = storage.SlaveHead.name_length(body[:38], len(body))
            slave = storage.SlaveHead.decode(body[: 38 + length], len(body))
            name = fileid.slave_name(slave.master, slave.prefix, slave.extension)
            if slave.master not in self.files or name in self.files:
                return errno.EEXIST if name in self.files else errno.ENOENT, b""
            self.files[name] = body[38 + length :]
            return 0, storage.StoredFile(GROUP, name).encode()
        if command == storage.StorageCommand.SET_METADATA:
            change = storage.SetMetadata.decode(body)
            self.metadata[change.name] = change.text
            return 0, self.echo
        if command == storage.StorageCommand.APPEND:
            length = storage.AppendHead.name_length(body[:16], len(body))
            name = body[16 : 16 + length].decode()
            self.files[name] += body[16 + length :]
            return 0, self.echo
        name = storage.FileRequest.decode(body).name
        if name not in self.files:
            return errno.ENOENT, b""
        if command == storage.StorageCommand.FILE_INFO:
            content = self.files[name]
            info = storage.FileInfo(len(content), 7, zlib.crc32(content), "127.0.0.1")
            return 0, info.encode(16)
        if command == storage.StorageCommand.GET_METADATA:
            if not self.metadata.get(name):
                return errno.ENOENT, b""
            return 0, self.metadata[name]
        assert command == storage.StorageCommand.DELETE
        del self.files[name]
        return 0, b""

    def store(self, content: bytes, head: storage.UploadHead, appender: bool = False) -> str:
        """Keep a new file; returns its name."""
        base = fileid.encode_base(
            fileid.encode_source("127.0.0.1"),
            1700000000,
            len(content),
            zlib.crc32(content),
            fileid.make_suffix(head.extension, len(self.files)),
            len(self.files),
            appender=appender,
        )
        name = f"M00/00/00/{base}"
        self.files[name] = content
        return name

    async def _download(self, connection: PeerConnection, body: bytes) -> bool:
        request = storage.Download.decode(body)
        content = self.files.get(request.name)
        if content is None:
            await connection.answer(status=errno.ENOENT)
            return True
        if request.offset >= len(content):
            await connection.answer(status=errno.EINVAL)
            return False
        end = request.offset + request.length if request.length else len(content)
        part = content[request.offset : end]
        if self.cuts:
            start = part[: self.cuts.pop(0)]
            await connection.send(len(part).to_bytes(8, "big") + b"\x64\0" + start)
            return False
        await connection.answer(part)
        return True


class MemoryTracker:
    """Names the storages of one group, in turn for uploads."""

    def __init__(self, *storages: Address) -> None:
        self.storages = list(storages)
        self.requests: list[int] = []
        self.knows_group = True

    async def handle(self, connection: PeerConnection) -> None:
        while True:
            request = await connection.receive()
            self.requests.append(request.command)
            status, body = self._serve(request)
            await connection.answer(body, status)

    def _serve(self, request: Request) -> tuple[int, bytes]:
        command = request.command
        if command == TrackerCommand.LIST_ALL_GROUPS:
            stat = GroupStat(GROUP, 100, 50, 1, 0, 1, 1, 1, 1, 0, 1, 256, -1)
            return 0, stat.encode() if self.knows_group else b""
        if not self.storages or not self.knows_group:
            return errno.ENOENT, b""
        endpoints = tuple(Endpoint(a.host, a.port) for a in self.storages)
        if command in (
            TrackerCommand.QUERY_STORE_ONE,
            TrackerCommand.QUERY_STORE_ONE_IN_GROUP,
        ):
            self.storages.append(self.storages.pop(0))
            return 0, StoreTarget(GROUP, endpoints[0], 0).encode(16)
        if command == TrackerCommand.QUERY_STORE_ALL_IN_GROUP:
            return 0, StoreTargets(GROUP, endpoints, 0).encode(16)
        if command == TrackerCommand.QUERY_FETCH_ALL:
            return 0, FileTargets(GROUP, endpoints).encode(16)
        if command in (TrackerCommand.QUERY_FETCH_ONE, TrackerCommand.QUERY_UPDATE):
            return 0, FileTargets(GROUP, endpoints[:1]).encode(46)
        assert command == TrackerCommand.LIST_STORAGES
        return 0, b"".join(
            StorageStat(
                ServerStatus.ACTIVE, 6, f"s{number}", endpoint.ip, "", "6.16", 1, 1, 100, 50, 1, 0,
                1, 256, 0, endpoint.port,
            ).encode(16)
            for number, endpoint in enumerate(endpoints)
        )  # fmt: skip

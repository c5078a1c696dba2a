"""Requests to a storage: content, bad input, clients that break off or keep us waiting."""

from __future__ import annotations

import os
import random
import struct
import zlib
from pathlib import Path

import pytest
import trio

from fdfs_storage import appenders
from fdfs_storage.store import Store
from fdfsfuse.proto.fileid import FileKind, decode_name
from fdfsfuse.proto.header import pack_header
from fdfsfuse.proto.storage import (
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
from tests.common.small_disk import SmallDisk
from tests.daemons.storage_server import (
    GROUP,
    Client,
    StorageServer,
    make_config,
    run_storage,
)

LARGE = 3 * (1 << 20) + 17
EINVAL, ENOENT, ENOSPC, EEXIST, EISDIR = 22, 2, 28, 17, 21


def content_of(size: int) -> bytes:
    return random.Random(size).randbytes(size)


def binlog(server: StorageServer, directory: Path) -> list[str]:
    """(op, name, extra) of all records, as lines without the time."""
    lines = (directory / "base/data/sync/binlog.000").read_text().splitlines()
    return [line.split(" ", 1)[1] for line in lines]


@pytest.mark.parametrize("size", [1, 4096, 65536, 65537, LARGE])
async def test_content_comes_back_with_its_crc_in_the_name(tmp_path: Path, size: int) -> None:
    content = content_of(size)
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        name = await client.upload(content, "bin")
        info = decode_name(name)
        assert (info.size, info.crc32) == (size, zlib.crc32(content))
        assert await client.download(name) == content
        assert await client.download(name, size // 2, 100) == content[size // 2 :][:100]
        assert binlog(server, tmp_path) == [f"C {name}"]
        assert os.stat(server.store.path(server.store.locate(name))).st_mode & 0o777 == 0o644


async def test_appender_grows_changes_and_shrinks(tmp_path: Path) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        expected = bytearray(b"begin")
        name = await client.upload(bytes(expected), "log", appender=True)
        for data in (b"-more", content_of(LARGE)):
            await client.append(name, data)
            expected += data
        for offset, data in ((2, b"XY"), (100, content_of(200_000)), (len(expected), b"tail")):
            head = ModifyHead(name, offset, len(data)).encode()
            assert await client.call(StorageCommand.MODIFY, head + data) == (0, b"")
            expected[offset : offset + len(data)] = data
        assert await client.download(name) == expected
        body = Truncate(name, 1000).encode()
        assert await client.call(StorageCommand.TRUNCATE, body) == (0, b"")
        assert await client.download(name) == expected[:1000]
        size = 5 + 5 + LARGE
        assert binlog(server, tmp_path) == [
            f"C {name}",
            f"A {name} 5 5",
            f"A {name} 10 {LARGE}",
            f"M {name} 2 2",
            f"M {name} 100 200000",
            f"A {name} {size} 4",
            f"T {name} {size + 4} 1000",
        ]
        info_request = FileRequest(GROUP, name).encode()
        status, answer = await client.call(StorageCommand.FILE_INFO, info_request)
        info = FileInfo.decode(answer)
        assert (status, info.size, info.crc32) == (0, 1000, zlib.crc32(expected[:1000]))


async def test_crc_of_a_large_appender_is_computed(tmp_path: Path) -> None:
    content = content_of(LARGE)
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        name = await client.upload(content, "log", appender=True)
        _, answer = await client.call(StorageCommand.FILE_INFO, FileRequest(GROUP, name).encode())
        assert FileInfo.decode(answer).crc32 == zlib.crc32(content)


async def test_metadata_is_stored_clean_and_logged(tmp_path: Path) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        name = await client.upload(b"x")
        await client.set_metadata(name, b"b\x022\x01a\x021\x01")
        assert await client.get_metadata(name) == (0, b"a\x021\x01b\x022")
        await client.set_metadata(name, b"b\x023\x01c\x02" + b"v" * 300, merge=True)
        expected = b"a\x021\x01b\x023\x01c\x02" + b"v" * 256
        assert await client.get_metadata(name) == (0, expected)
        await client.set_metadata(name, b"")
        assert await client.get_metadata(name) == (ENOENT, b"")
        await client.set_metadata(name, b"no pair at all")
        assert await client.get_metadata(name) == (ENOENT, b"")
        await client.set_metadata(name, b"k\x02v")
        assert await client.delete(name) == 0
        assert server.files() == []
        assert binlog(server, tmp_path) == [
            f"C {name}",
            f"C {name}-m",
            f"U {name}-m",
            f"D {name}-m",
            f"C {name}-m",
            f"D {name}",
            f"D {name}-m",
        ]


async def test_slave_is_named_after_its_master(tmp_path: Path) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        master = await client.upload(b"master", "tar.gz")
        content = content_of(100_000)
        head = SlaveHead(master, len(content), "_150x150", "jpg").encode()
        status, answer = await client.call(StorageCommand.UPLOAD_SLAVE, head + content)
        name = StoredFile.decode(answer).name
        assert (status, name) == (0, master[:-7] + "_150x150.jpg")
        assert decode_name(name).kind is FileKind.SLAVE
        assert await client.download(name) == content
        status, _ = await client.call(StorageCommand.UPLOAD_SLAVE, head + content)
        assert status == EEXIST
        assert await client.is_open()


async def test_pipelined_requests_are_answered_in_order(tmp_path: Path) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        contents = [content_of(size) for size in (10, 5000, 0, 70_000, 3)]
        packets = b""
        for content in contents:
            body = UploadHead(0, len(content), "").encode() + content
            packets += pack_header(len(body), StorageCommand.UPLOAD) + body
        packets += pack_header(0, StorageCommand.ACTIVE_TEST)
        await client.send(packets)
        for content in contents:
            status, answer = await client.receive()
            info = decode_name(StoredFile.decode(answer).name)
            assert (status, info.size, info.crc32) == (0, len(content), zlib.crc32(content))
        assert await client.receive() == (0, b"")


async def test_a_request_may_arrive_byte_by_byte(tmp_path: Path) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        body = UploadHead(255, 5, "txt").encode() + b"hello"
        packet = pack_header(len(body), StorageCommand.UPLOAD) + body
        for byte in packet:
            await client.send(bytes([byte]))
            await trio.lowlevel.checkpoint()
        status, answer = await client.receive()
        assert status == 0
        assert await client.download(StoredFile.decode(answer).name) == b"hello"


@pytest.mark.parametrize("size", [1000, LARGE])
async def test_a_broken_upload_leaves_nothing(tmp_path: Path, size: int) -> None:
    async with run_storage(make_config(tmp_path)) as server:
        async with server.connect() as client:
            head = UploadHead(0, size, "bin").encode()
            await client.send(pack_header(len(head) + size, StorageCommand.UPLOAD) + head)
            await client.send(content_of(size)[: size - 1])
            await client.stream.send_eof()
            assert await client.closed()
        assert server.files() == []
        assert binlog(server, tmp_path) == []


@pytest.mark.parametrize("size", [1000, LARGE])
async def test_a_broken_append_is_rolled_back(tmp_path: Path, size: int) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as other:
        name = await other.upload(b"begin", appender=True)
        async with server.connect() as client:
            head = AppendHead(name, size).encode()
            await client.send(pack_header(len(head) + size, StorageCommand.APPEND) + head)
            await client.send(content_of(size)[: size - 1])
            await client.stream.send_eof()
            assert await client.closed()
        assert await other.download(name) == b"begin"
        assert binlog(server, tmp_path) == [f"C {name}"]


async def test_a_broken_modification_stays_and_is_logged(tmp_path: Path) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as other:
        name = await other.upload(b"begin", appender=True)
        content = content_of(LARGE)
        async with server.connect() as client:
            head = ModifyHead(name, 2, LARGE).encode()
            await client.send(pack_header(len(head) + LARGE, StorageCommand.MODIFY) + head)
            await client.send(content[:-1])
            await client.stream.send_eof()
            assert await client.closed()
        data = await other.download(name)
        written = len(data) - 2
        assert written > LARGE // 2
        assert data == b"be" + content[:written]
        assert binlog(server, tmp_path)[1:] == [f"M {name} 2 {written}"]


async def test_appends_at_the_same_time_do_not_mix(tmp_path: Path) -> None:
    pieces = [bytes([number]) * 300_000 for number in range(1, 5)]
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        name = await client.upload(b"", appender=True)

        async def append(data: bytes) -> None:
            async with server.connect() as own:
                await own.append(name, data)

        async with trio.open_nursery() as nursery:
            for piece in pieces:
                nursery.start_soon(append, piece)
                nursery.start_soon(append, piece[:1])
        data = await client.download(name)
        assert len(data) == sum(len(piece) + 1 for piece in pieces)
        rest = data
        for piece in pieces:
            assert piece in rest


def bad_requests(name: str, other_group: str = "group2") -> dict[str, tuple[int, bytes, int]]:
    """Requests with one thing wrong each: (command, body, status)."""
    long_name = name + "x" * 128
    upload = UploadHead(0, 3, "txt").encode()
    return {
        "unknown command": (99, b"", EINVAL),
        "names command without names": (128, b"", EINVAL),
        "active test with a body": (111, b"x", EINVAL),
        "upload without a head": (11, b"", EINVAL),
        "upload to a missing path": (11, b"\x02" + upload[1:] + b"abc", EINVAL),
        "upload with a slash": (11, upload[:9] + b"a/b\0\0\0abc", EINVAL),
        "upload of a negative size": (11, struct.pack(">Bq6s", 0, -3, b"") + b"abc", EINVAL),
        "upload with a huge size": (11, struct.pack(">Bq6s", 0, 2**62, b"") + b"abc", EINVAL),
        "delete elsewhere": (12, FileRequest(other_group, name).encode(), EINVAL),
        "delete without a name": (12, b"group1".ljust(16, b"\0"), EINVAL),
        "delete of a directory": (12, FileRequest(GROUP, "M00/00/00/..").encode(), EINVAL),
        "delete outside": (12, FileRequest(GROUP, "M00/00/00/../../x").encode(), EINVAL),
        "delete on a missing path": (12, FileRequest(GROUP, "M02" + name[3:]).encode(), EINVAL),
        "name of 128 bytes": (12, FileRequest(GROUP, long_name[:128]).encode(), EINVAL),
        "name with a NUL": (12, b"group1".ljust(16, b"\0") + b"M00/00/00/a\0b", EINVAL),
        "name that is not ASCII": (14, bytes(32) + b"M00/00/00/\xff\xfe", EINVAL),
        "download behind the end": (14, Download(GROUP, name, 5).encode(), EINVAL),
        "download before the start": (14, Download(GROUP, name, -1).encode(), EINVAL),
        "download of a missing file": (14, Download(GROUP, name[:-3] + "xyz").encode(), ENOENT),
        "download of a directory": (14, Download(GROUP, "M00/00/00/..").encode(), EISDIR),
        "metadata with a bad flag": (
            13,
            SetMetadata(GROUP, name, b"a\x021").encode().replace(b"O", b"X", 1),
            EINVAL,
        ),
        "metadata of a missing file": (
            13,
            SetMetadata(GROUP, name[:-3] + "xyz", b"a\x021").encode(),
            ENOENT,
        ),
        "info with a short name": (22, FileRequest(GROUP, "M00/00/00/abc").encode(), ENOENT),
        "append to a normal file": (24, AppendHead(name, 1).encode() + b"x", EINVAL),
        "append with a short name": (24, struct.pack(">qq", 10, 1) + b"M00/00/00/x", EINVAL),
        "append of a negative length": (24, struct.pack(">qq", 44, -1) + name.encode(), EINVAL),
        "append with an endless name": (24, struct.pack(">qq", 2**62, 1) + b"x", EINVAL),
        "modify at a negative offset": (34, ModifyHead(name, -1, 1).encode() + b"x", EINVAL),
        "truncate to a negative size": (36, Truncate(name, -1).encode(), EINVAL),
        "truncate of a normal file": (36, Truncate(name, 1).encode(), EINVAL),
        "slave without a prefix": (21, SlaveHead(name, 1, "", "jpg").encode() + b"x", EINVAL),
        "slave with a path": (21, SlaveHead(name, 1, "/..", "jpg").encode() + b"x", EINVAL),
        "slave of a missing file": (
            21,
            SlaveHead(name[:-3] + "xyz", 1, "_s", "jpg").encode() + b"x",
            ENOENT,
        ),
    }


async def test_bad_requests_cost_their_own_connection_at_most(tmp_path: Path) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as other:
        name = await other.upload(b"hello")
        before = server.files()
        for what, (command, body, expected) in bad_requests(name).items():
            async with server.connect() as client:
                status, answer = await client.call(command, body)
                assert (what, status, answer) == (what, expected, b"")
                if status == EINVAL:
                    assert await client.closed(), what
                else:
                    assert await client.is_open(), what
            assert await other.is_open()
        assert server.files() == before
        assert await other.download(name) == b"hello"


async def test_garbage_does_not_stop_the_others(tmp_path: Path) -> None:
    rng = random.Random(7)
    async with run_storage(make_config(tmp_path)) as server, server.connect() as other:
        name = await other.upload(b"hello")
        for _ in range(150):
            async with server.connect() as client:
                command = rng.choice([*StorageCommand, rng.randrange(256)])
                body = rng.randbytes(rng.choice([0, 3, 16, 40, 90]))
                length = rng.choice([len(body), len(body) + 5, rng.getrandbits(63), -1])
                packet = struct.pack(">qBB", length, command, rng.randrange(256)) + body
                if rng.random() < 0.2:
                    packet = rng.randbytes(rng.randrange(1, 60))
                try:
                    await client.send(packet)
                    await client.stream.send_eof()
                    while await client.stream.receive_some(65536):
                        pass
                except trio.BrokenResourceError:
                    pass
        assert await other.download(name) == b"hello"


async def test_oversized_small_request_is_refused_before_it_is_read(tmp_path: Path) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        await client.send(pack_header(262144 - 10, StorageCommand.SET_METADATA))
        assert await client.receive() == (EINVAL, b"")
        assert await client.closed()


async def test_an_upload_larger_than_the_disk_is_refused(tmp_path: Path) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        size = 1 << 50
        head = UploadHead(0, size, "bin").encode()
        await client.send(pack_header(len(head) + size, StorageCommand.UPLOAD) + head)
        assert await client.receive() == (ENOSPC, b"")
        assert server.files() == []


async def test_after_an_early_error_the_rest_of_the_body_is_skipped(tmp_path: Path) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        name = await client.upload(b"", appender=True)
        assert await client.delete(name) == 0
        head = AppendHead(name, LARGE).encode()
        status, _ = await client.call(StorageCommand.APPEND, head + content_of(LARGE))
        assert status == ENOENT
        assert await client.is_open()


class TestWaiting:
    """wire.md section 1: who keeps us waiting, and where."""

    TIMEOUT_S = 1.0

    async def _ends(self, client: Client) -> bool:
        with trio.move_on_after(60):
            return await client.closed()
        return False

    async def test_no_first_request(self, tmp_path: Path) -> None:
        async with (
            run_storage(make_config(tmp_path), network_timeout_s=self.TIMEOUT_S) as server,
            server.connect() as client,
        ):
            assert await self._ends(client)

    @pytest.mark.parametrize("sent", [3, 10, 20, 40])
    async def test_in_the_middle_of_a_request(self, tmp_path: Path, sent: int) -> None:
        async with (
            run_storage(make_config(tmp_path), network_timeout_s=self.TIMEOUT_S) as server,
            server.connect() as client,
        ):
            assert await client.is_open()
            body = UploadHead(0, 100, "bin").encode() + bytes(100)
            packet = pack_header(len(body), StorageCommand.UPLOAD) + body
            await client.send(packet[:sent])
            assert await self._ends(client)
            assert server.files() == []

    async def test_never_between_requests(self, tmp_path: Path) -> None:
        async with (
            run_storage(make_config(tmp_path), network_timeout_s=self.TIMEOUT_S) as server,
            server.connect() as quiet,
            server.connect() as silent,
        ):
            assert await quiet.is_open()
            # The other one, which never asked anything, shows that the time has passed.
            assert await self._ends(silent)
            assert await quiet.is_open()

    async def test_an_answer_that_nobody_takes(self, tmp_path: Path) -> None:
        async with (
            run_storage(make_config(tmp_path), network_timeout_s=self.TIMEOUT_S) as server,
            server.connect() as client,
        ):
            name = await client.upload(bytes(32 << 20))
            request = Download(GROUP, name).encode()
            await client.send(pack_header(len(request), StorageCommand.DOWNLOAD) + request)
            with trio.fail_after(60):
                while len(server.server.connections):  # noqa: ASYNC110 - nothing to wait on
                    await trio.sleep(0.02)


async def test_file_deleted_while_downloaded_arrives_whole(tmp_path: Path) -> None:
    content = content_of(8 << 20)
    async with (
        run_storage(make_config(tmp_path)) as server,
        server.connect() as client,
        server.connect() as other,
    ):
        name = await client.upload(content)
        request = Download(GROUP, name).encode()
        await client.send(pack_header(len(request), StorageCommand.DOWNLOAD) + request)
        assert (await client.read(10))[9] == 0
        assert await other.delete(name) == 0
        assert await client.read(len(content)) == content


async def test_an_append_that_is_refused_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk takes some of it."""

    def half(fd: int, pieces: list[tuple[int, int]], data: bytes) -> None:
        ((offset, length),) = pieces
        os.pwrite(fd, bytes(data[: length // 2]), offset)
        raise OSError(ENOSPC, os.strerror(ENOSPC))

    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        name = await client.upload(b"one", appender=True)
        with monkeypatch.context() as patch:
            patch.setattr(appenders, "pwrite_pieces", half)
            head = AppendHead(name, 7).encode()
            assert await client.call(StorageCommand.APPEND, head + b"refused") == (ENOSPC, b"")
        await client.append(name, b", two")
        assert await client.download(name) == b"one, two"


@pytest.mark.parametrize("length", [20_000, 2 << 20], ids=["small", "streamed"])
async def test_a_modification_that_is_refused_changes_nothing(
    disk: SmallDisk, length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full by the time of the request."""
    monkeypatch.setattr(Store, "check_space", lambda *_: None)
    old = random.Random(1).randbytes(1000)
    new = random.Random(2).randbytes(length)
    async with run_storage(make_config(disk.path)) as server, server.connect() as client:
        name = await client.upload(old, appender=True)
        # So that there is room for the note of what is being changed.
        other = ModifyHead(await client.upload(b"1", appender=True), 0, length).encode()
        assert await client.call(StorageCommand.MODIFY, other + new) == (0, b"")
        disk.fill()
        request = ModifyHead(name, 500, length).encode() + new
        assert await client.call(StorageCommand.MODIFY, request) == (ENOSPC, b"")
        assert await client.download(name) == old
        disk.make_room()
        assert await client.call(StorageCommand.MODIFY, request) == (0, b"")
        assert await client.download(name) == old[:500] + new


async def test_statistics_count_what_was_not_refused(tmp_path: Path) -> None:
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        name = await client.upload(b"12345")
        await client.download(name)
        await client.set_metadata(name, b"a\x021")
        assert (await client.get_metadata(name))[0] == 0
        assert await client.delete(name) == 0
        assert await client.delete(name) == ENOENT
        async with server.connect() as bad:
            await bad.call(StorageCommand.DELETE, b"")
        counters = server.store.counters
        assert (counters.total_upload_count, counters.success_upload_count) == (1, 1)
        assert (counters.total_upload_bytes, counters.success_download_bytes) == (5, 5)
        assert (counters.total_delete_count, counters.success_delete_count) == (2, 1)
        assert (counters.total_set_meta_count, counters.success_get_meta_count) == (1, 1)


async def test_a_slow_client_is_not_taken_for_a_silent_one(tmp_path: Path) -> None:
    content = content_of(200_000)
    pieces = 10
    pause_s = 0.25  # all together longer than the timeout
    async with (
        run_storage(make_config(tmp_path), network_timeout_s=2.0) as server,
        server.connect() as client,
    ):
        head = UploadHead(0, len(content), "bin").encode()
        await client.send(pack_header(len(head) + len(content), StorageCommand.UPLOAD) + head)
        for number in range(pieces):
            await client.send(content[number * 20_000 :][:20_000])
            await trio.sleep(pause_s)
        status, answer = await client.receive()
        assert status == 0
        assert await client.download(StoredFile.decode(answer).name) == content

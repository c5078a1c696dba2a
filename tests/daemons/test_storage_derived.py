"""Links, appenders that become normal files, and files in adopted trunk files."""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.paths import metadata_location
from fdfsfuse.errors import StatusError
from fdfsfuse.proto.derived import CreateLink, Regenerate
from fdfsfuse.proto.fileid import FileKind, decode_name
from fdfsfuse.proto.storage import (
    AppendHead,
    FileInfo,
    FileRequest,
    ModifyHead,
    SlaveHead,
    StorageCommand,
    StoredFile,
    Truncate,
)
from tests.daemons.storage_server import (
    GROUP,
    Client,
    StorageServer,
    make_config,
    open_store,
    run_storage,
)
from tests.daemons.trunk_file import trunk_name, write_slot

LARGE = 3_000_000


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[StorageServer]:
    async with run_storage(make_config(tmp_path)) as running:
        yield running


@pytest.fixture
async def client(server: StorageServer) -> AsyncIterator[Client]:
    async with server.connect() as connected:
        yield connected


def log_lines(server: StorageServer) -> list[str]:
    records = server.store.binlog.read(BinlogPosition(0, 0))
    return [f"{r.op} {r.name} {r.other_name}".strip() for r, _ in records]


async def link(
    client: Client, source: str, *, master: str = "", prefix: str = "", extension: str = "txt"
) -> tuple[int, str]:
    """Status and name of a new link."""
    request = CreateLink(GROUP, source, b"signature", extension, master, prefix)
    status, body = await client.call(StorageCommand.CREATE_LINK, request.encode())
    return status, "" if status else StoredFile.decode(body).name


async def regenerate(client: Client, name: str) -> tuple[int, str]:
    """Status and new name of an appender."""
    status, body = await client.call(StorageCommand.REGENERATE, Regenerate(name).encode())
    return status, "" if status else StoredFile.decode(body).name


async def status_of_info(client: Client, name: str) -> int:
    return (await client.call(StorageCommand.FILE_INFO, FileRequest(GROUP, name).encode()))[0]


# --- links ----------------------------------------------------------------------------------------


async def test_a_plain_link(server: StorageServer, client: Client) -> None:
    source = await client.upload(b"content", path=1)
    status, name = await link(client, source)
    assert status == 0
    assert await client.download(name, 3) == b"tent"
    info = decode_name(name)
    assert (info.size, info.kind, info.crc32) == (7, FileKind.NORMAL, zlib.crc32(b"content"))
    assert name[:3] == "M01"
    path = server.store.path(server.store.locate(name))
    assert os.readlink(path) == server.store.path(server.store.locate(source))
    assert log_lines(server)[-1] == f"L {name} {source}"
    assert server.store.counters.success_create_link_count == 1
    assert await client.delete(name) == 0
    assert await client.download(source) == b"content"


async def test_a_link_to_a_link_outlives_it(client: Client) -> None:
    source = await client.upload(b"content")
    _, first = await link(client, source)
    _, second = await link(client, first)
    await client.delete(first)
    assert await client.download(second) == b"content"
    await client.delete(source)
    assert await status_of_info(client, second) == errno.ENOENT
    assert await client.delete(second) == 0


async def test_deleting_a_slave_link_deletes_its_target(client: Client) -> None:
    master, source = await client.upload(b"master"), await client.upload(b"content")
    status, name = await link(client, source, master=master, prefix="_small", extension="jpg")
    assert (status, name) == (0, master[:-4] + "_small.jpg")
    assert (await link(client, source, master=master, prefix="_small", extension="jpg"))[0] == 17
    assert await client.download(name) == b"content"
    assert await client.delete(name) == 0
    assert await status_of_info(client, source) == errno.ENOENT
    assert await client.download(master) == b"master"


async def test_nothing_is_changed_through_a_link(server: StorageServer) -> None:
    async with server.connect() as client:
        source = await client.upload(b"content")
        master = await client.upload(b"master", "log", appender=True)
        status, name = await link(client, source, master=master, prefix="_link")
        assert status == 0
        assert decode_name(name).kind is FileKind.APPENDER
    for command, body in (
        (StorageCommand.APPEND, AppendHead(name, 1).encode() + b"x"),
        (StorageCommand.MODIFY, ModifyHead(name, 0, 1).encode() + b"x"),
        (StorageCommand.TRUNCATE, Truncate(name, 1).encode()),
        (StorageCommand.REGENERATE, Regenerate(name).encode()),
    ):
        async with server.connect() as client:
            assert (await client.call(command, body))[0] == errno.EINVAL
    async with server.connect() as client:
        assert await client.download(source) == b"content"
        await client.delete(source)
        body = Truncate(name, 1).encode()
        assert (await client.call(StorageCommand.TRUNCATE, body))[0] == errno.ENOENT


async def test_links_of_an_appender_differ(client: Client) -> None:
    source = await client.upload(b"content", appender=True)
    names = {(await link(client, source))[1] for _ in range(3)}
    assert len({decode_name(name).crc32 for name in names}) == 3


@pytest.mark.parametrize("missing", ["source", "master"])
async def test_links_need_what_they_name(client: Client, missing: str) -> None:
    name, gone = await client.upload(b"x"), await client.upload(b"y")
    await client.delete(gone)
    source, master = (gone, name) if missing == "source" else (name, gone)
    assert (await link(client, source, master=master, prefix="_x"))[0] == errno.ENOENT


# --- regenerate -----------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 13, LARGE])
async def test_an_appender_becomes_a_normal_file(
    server: StorageServer, client: Client, size: int
) -> None:
    content = os.urandom(size)
    old = await client.upload(content[: size // 2], "log", appender=True)
    if size:
        await client.append(old, content[size // 2 :])
    await client.set_metadata(old, b"a\x021")
    status, new = await regenerate(client, old)
    assert status == 0
    info = decode_name(new)
    assert (info.kind, info.size, info.crc32) == (FileKind.NORMAL, size, zlib.crc32(content))
    assert (new[:10], new[-7:]) == (old[:10], old[-7:])
    assert await status_of_info(client, old) == errno.ENOENT
    assert await client.get_metadata(new) == (errno.ENOENT, b"")
    if size:
        assert await client.download(new) == content
    # The metadata goes with a record of its own, so that replicas lose it as well.
    assert log_lines(server)[-2:] == [f"R {new} {old}", f"D {old}-m"]
    assert [file for file in server.files() if not file.startswith(".")] == [new[4:]]


async def test_regenerate_waits_for_an_append(server: StorageServer, client: Client) -> None:
    old = await client.upload(b"begin", "log", appender=True)
    head = AppendHead(old, LARGE).encode()
    async with server.connect() as writer:
        length = len(head) + LARGE
        await writer.send(length.to_bytes(8, "big") + b"\x18\0" + head + bytes(1000))
        with trio.fail_after(60):
            while server.store.locks.is_free(server.store.locate(old)):  # noqa: ASYNC110
                await trio.sleep(0.005)
        async with trio.open_nursery() as nursery:
            new = ""

            async def rename() -> None:
                nonlocal new
                _, new = await regenerate(client, old)

            nursery.start_soon(rename)
            await writer.send(bytes(LARGE - 1000))
            assert await writer.receive() == (0, b"")
    assert decode_name(new).size == LARGE + 5
    assert decode_name(new).crc32 == zlib.crc32(b"begin" + bytes(LARGE))


async def test_what_the_log_says_is_carried_out_at_start(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    store = await open_store(config)
    old = store.creations.make_name(0, 0, 0, "log", appender=True, path_index=0)
    store.creations.write_at(old, b"content")
    store.write_metadata(old, b"a\x021")
    new = store.creations.make_normal_name(old, 7, zlib.crc32(b"content"), 0)
    # Killed between the line and the rename.
    store.binlog.append(f"1 R {new.name} {old.name}\n".encode())
    store.close()
    store = await open_store(config)
    assert not store.exists(old)
    assert Path(store.path(new)).read_bytes() == b"content"
    assert store.read_metadata(old) is None
    # Killed between the rename and the end of the metadata.
    Path(store.path(metadata_location(old))).write_bytes(b"a\x021")
    store.binlog.append(f"1 R {new.name} {old.name}\n".encode())
    store.close()
    store = await open_store(config)
    assert store.read_metadata(old) is None
    assert store.exists(new)
    store.close()


# --- trunk files ----------------------------------------------------------------------------------


async def test_files_in_a_trunk_file_are_served(
    server: StorageServer, client: Client, tmp_path: Path
) -> None:
    first = trunk_name(b"first", offset=0)
    second = trunk_name(b"second content", offset=256, slot_size=512)
    trunk_path = write_slot(tmp_path / "path0", first, b"first")
    write_slot(tmp_path / "path0", second, b"second content")
    assert await client.download(first) == b"first"
    assert await client.download(second) == b"second content"
    assert await client.download(second, 7, 100) == b"content"
    status, body = await client.call(StorageCommand.FILE_INFO, FileRequest(GROUP, second).encode())
    assert status == 0
    crc = zlib.crc32(b"second content")
    assert FileInfo.decode(body) == FileInfo(14, 1_700_000_000, crc, "127.0.0.51")
    await client.set_metadata(second, b"a\x021")
    assert await client.get_metadata(second) == (0, b"a\x021")
    # Deleting fills the slot with zeros, and only that.
    assert await client.delete(second) == 0
    assert await client.delete(second) == errno.ENOENT
    assert await client.get_metadata(second) == (errno.ENOENT, b"")
    data = trunk_path.read_bytes()
    assert data[256:] == bytes(len(data) - 256)
    assert await client.download(first) == b"first"


async def test_slaves_of_a_file_in_a_trunk_file(client: Client, tmp_path: Path) -> None:
    master = trunk_name(b"master")
    write_slot(tmp_path / "path0", master, b"master")
    head = SlaveHead(master, 5, "_big", "jpg").encode()
    status, body = await client.call(StorageCommand.UPLOAD_SLAVE, head + b"slave")
    assert (status, StoredFile.decode(body).name) == (0, master[:-4] + "_big.jpg")
    assert await client.download(master[:-4] + "_big.jpg") == b"slave"
    assert await client.delete(master) == 0
    assert (await client.call(StorageCommand.UPLOAD_SLAVE, head + b"slave"))[0] == errno.ENOENT


@pytest.mark.parametrize(
    "wrong",
    [
        {"offset": 256},
        {"offset": -1},
        {"offset": 1 << 30},
        {"slot_size": 512},
        {"slot_size": 24},
        {"number": 2},
        {"number": -1},
    ],
    ids=str,
)
async def test_a_place_that_is_not_the_files(
    server: StorageServer, client: Client, tmp_path: Path, wrong: dict[str, int]
) -> None:
    path = write_slot(tmp_path / "path0", trunk_name(b"content"), b"content")
    before = path.read_bytes()
    name = trunk_name(b"content", **wrong)
    assert await status_of_info(client, name) == errno.ENOENT
    assert await client.delete(name) == errno.ENOENT
    with pytest.raises(StatusError):
        server.store.stat(server.store.locate(name))
    assert path.read_bytes() == before


async def test_files_in_trunk_files_do_not_change(server: StorageServer, tmp_path: Path) -> None:
    name = trunk_name(b"content")
    write_slot(tmp_path / "path0", name, b"content")
    for command, body in (
        (StorageCommand.TRUNCATE, Truncate(name, 1).encode()),
        (StorageCommand.APPEND, AppendHead(name, 1).encode() + b"x"),
        (StorageCommand.MODIFY, ModifyHead(name, 0, 1).encode() + b"x"),
        (StorageCommand.REGENERATE, Regenerate(name).encode()),
    ):
        async with server.connect() as client:
            assert (await client.call(command, body))[0] == errno.EINVAL
    async with server.connect() as client:
        assert (await link(client, name))[0] == errno.EOPNOTSUPP
        assert await client.download(name) == b"content"


async def test_a_deletion_cut_off_by_a_crash(tmp_path: Path) -> None:
    config = make_config(tmp_path)
    store = await open_store(config)
    name = trunk_name(b"content")
    write_slot(tmp_path / "path0", name, b"content")
    location = store.locate(name)
    assert store.exists(location)
    store.binlog.append(f"1 D {name}\n".encode())
    store.close()
    store = await open_store(config)
    assert not store.exists(location)
    store.close()

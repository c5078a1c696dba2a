"""Large files with holes: what is not there is not sent, to peers that can do without."""

from __future__ import annotations

import os
import random
import zlib
from pathlib import Path

import pytest
import trio

from fdfs_storage import files
from fdfs_storage.transfer import content_crc32, file_crc32
from fdfsfuse.client.address import Address
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.storage import StorageClient
from fdfsfuse.proto import structs, sync
from fdfsfuse.proto.fileid import Location
from fdfsfuse.proto.header import pack_header
from tests.daemons.storage_server import GROUP, Client
from tests.daemons.sync_pair import Node, run_node

HUGE = 1 << 40


def make(node: Node, size: int, parts: dict[int, bytes]) -> Location:
    """An appender of *size* bytes, which are zero but for *parts*."""
    location = node.store.creations.make_name(0, 0, 1, "", appender=True)
    node.store.creations.create_empty(location)
    node.store.appenders.truncate(location, size)
    for offset, data in parts.items():
        node.store.appenders.pwrite(location, offset, data)
    return location


@pytest.mark.parametrize(
    "parts",
    [
        {},
        {0: b"begin"},
        {HUGE - 3: b"end"},
        {5_000_000: b"x" * 3_000_000, 1 << 33: b"middle", (1 << 33) + 10_000_000: b"more"},
    ],
    ids=["nothing", "begin", "end", "between"],
)
async def test_a_huge_file_reaches_a_peer_that_was_away(
    tmp_path: Path, parts: dict[int, bytes]
) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            location = make(a, HUGE, parts)
            later = make(a, 10, {})
            a.meet(b)
            await a.wait_until_has_all(b)
            assert b.content(later.name) == bytes(10)
            info = b.path(location.name).stat()
            assert info.st_size == HUGE
            assert info.st_blocks * 512 < 10 << 20
            with b.path(location.name).open("rb") as file:
                for offset, data in {100_000: bytes(1000), **parts}.items():
                    file.seek(max(0, offset - 10))
                    assert file.read(len(data) + min(offset, 10)) == bytes(min(offset, 10)) + data
            a.store.appenders.pwrite(location, 7_000_000, b"afterwards")
            await a.wait_until_has_all(b)
            with b.path(location.name).open("rb") as file:
                file.seek(7_000_000)
                assert file.read(10) == b"afterwards"


@pytest.mark.parametrize("peer", ["stock", "older", "new"])
async def test_content_is_the_same_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peer: str
) -> None:
    """Also where zeros have to be sent, and where there are more extents than are looked for."""
    monkeypatch.setattr(files, "_EXTENTS_MAX", 3)
    if peer == "older":
        monkeypatch.setattr(sync, "VERSION", 1)
    stock = peer == "stock"
    with trio.fail_after(60):
        async with (
            run_node(tmp_path / "a", "1") as a,
            run_node(tmp_path / "b", "2", stock=stock) as b,
        ):
            page = b"x" * 4096
            for count in (1, 2, 3, 4, 8):
                make(a, 2 << 20, {number << 17: page for number in range(count)})
                make(a, 2 << 20, {1 << 17 | number << 18: page for number in range(count)})
            make(a, 100_000, {99_000: b"1000 bytes" * 100})
            a.meet(b)
            await a.wait_until_has_all(b)
            assert a.files() == b.files()
            _, first = a.lines()[0].split()
            assert (b.path(first).stat().st_blocks * 512 < 1 << 20) == (peer == "new")


async def test_a_lost_disk_gets_holes_again(tmp_path: Path) -> None:
    parts = {0: b"begin", 3 << 20: b"x" * 700_000, 9 << 20: b"end"}
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, Pool() as pool:
            source = StorageClient(pool, Address("127.0.0.1", a.port))
            for size in (64 << 20, (9 << 20) + 3):
                location, path = make(a, size, parts), tmp_path / str(size)
                with path.open("wb") as file:
                    fd = file.fileno()
                    assert await source.download_to_file(GROUP, location.name, fd) == size
                assert path.read_bytes() == a.content(location.name)
                assert path.stat().st_blocks * 512 < 4 << 20


@pytest.mark.parametrize("seed", range(5))
def test_the_crc_of_files_with_holes(tmp_path: Path, seed: int) -> None:
    draw, path = random.Random(seed), tmp_path / "file"
    with path.open("wb") as file:
        size = draw.choice((0, 1, 4096, 1_000_001, 3 << 20))
        file.truncate(size)
        for _ in range(draw.randrange(5)):
            offset = draw.randrange(size + 1)
            file.seek(offset)
            file.write(draw.randbytes(min(draw.choice((1, 5000, 100_000)), size - offset)))
    content = path.read_bytes()
    assert file_crc32(str(path)) == zlib.crc32(content)
    with path.open("rb") as file:
        for start, length in ((0, size), (size // 2, 10), (size // 3, size)):
            found = content[start : start + length]
            expected = len(found), zlib.crc32(found)
            assert content_crc32(file.fileno(), start, len(found)) == expected


def test_extents_of_a_file_that_is_emptied_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lseek = os.lseek

    def cut_first(fd: int, offset: int, whence: int) -> int:
        if whence == os.SEEK_HOLE:
            os.ftruncate(fd, 0)
            os.ftruncate(fd, 10_000)
        return lseek(fd, offset, whence)

    monkeypatch.setattr(os, "lseek", cut_first)
    path = tmp_path / "file"
    path.write_bytes(b"x" * 10_000)
    with path.open("r+b") as file:
        assert files.extents(file.fileno(), 0, 10_000) == []


def test_the_crc_of_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    with path.open("rb") as file:
        assert content_crc32(file.fileno(), 2, 50) == (8, zlib.crc32(b"23456789"))
        assert content_crc32(file.fileno(), 11, 50) == (0, 0)


def extent(offset: int, data: bytes) -> bytes:
    return sync.pack_extent(offset, len(data)) + data


async def test_requests_that_are_wrong(tmp_path: Path) -> None:
    async with run_node(tmp_path / "b", "2") as b:
        name = b.store.creations.make_name(0, 0, 1, "", appender=True).name
        head = sync.FileHead(name, 1000, 1, GROUP).encode()
        fixed = b.store.creations.make_name(1000, 1, 1, "").name
        wrong = [
            sync.FileHead(fixed, 1000, 1, GROUP).encode() + extent(0, b"x"),
            sync.FileHead(name, 1000, 1, "other").encode(),
            head[:20],
            head[:-1],
            head + extent(0, b"x")[:-2],
            head + extent(0, b"x") + b"more",
            head + extent(0, b""),
            head + extent(-1, b"x"),
            head + extent(996, b"12345"),
            head + extent(1 << 62, b"x"),
            head + extent(10, b"12") + extent(11, b"1"),
            head + sync.pack_extent(0, 1 << 62) + b"x",
            head + sync.pack_extent(0, -5),
        ]
        for body in wrong:
            async with b.connect() as client:
                await hello(client)
                await client.send(pack_header(len(body), sync.SyncCommand.CREATE, sync.SPARSE))
                await client.send(body)
                assert (await client.receive())[0] == 22
        assert not b.files()
        async with b.connect() as client:
            await hello(client)
            body = head + extent(10, b"12") + extent(12, b"3") + extent(999, b"4")
            assert await client.call(16, body, flags=sync.SPARSE) == (0, b"")
        assert b.content(name) == bytes(10) + b"123" + bytes(986) + b"4"


async def test_sizes_that_are_announced_do_not_break_the_statistics(tmp_path: Path) -> None:
    async with run_node(tmp_path / "b", "2") as b:
        name = b.store.creations.make_name(0, 0, 1, "", appender=True).name
        body = sync.FileHead(name, (1 << 63) - 1, 1, GROUP).encode() + b"no extent"
        for _ in range(3):
            async with b.connect() as client:
                await hello(client)
                assert (await client.call(16, body, flags=sync.SPARSE))[0]
        b.store.counters.statistics().encode()


async def hello(client: Client) -> None:
    body = structs.encode(sync.Hello(sync.VERSION, GROUP, "127.0.0.9"))
    status, _ = await client.call(sync.SyncCommand.HELLO, body)
    assert status == 0

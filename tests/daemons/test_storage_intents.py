"""A storage that dies while it receives a change: what is here afterwards is in the binlog."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest
import trio

from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.intents import Intent
from fdfs_storage.names.objects import Objects
from fdfs_storage.names.writes import PIECE, ObjectWriter
from fdfs_storage.store import Store
from fdfsfuse.proto.fileid import Location
from fdfsfuse.server.connection import FramedConnection
from tests.daemons.storage_server import make_config, open_store

if TYPE_CHECKING:
    from fdfs_storage.names.reads import Reads


def lines(store: Store) -> list[str]:
    records = [record for record, _ in store.binlog.read(BinlogPosition(0, 0))]
    return [record.encode().decode().split(" ", 1)[1].strip() for record in records]


async def left_by_crash(
    directory: Path,
    intent: Intent,
    received: bytes,
    *,
    before: Callable[[Store, Location], None] = lambda store, location: None,
) -> tuple[Store, str]:
    """A store after a start behind a crash, and the name of its only object."""
    config = make_config(directory, paths=1)
    store = await open_store(config)
    new = store.creations.open_new(None, 10)
    new.write(b"0123456789")
    location = store.creations.commit(new, 10, 0, "bin", appender=True)
    new.close()
    before(store, location)
    with store.intents.noted(intent._replace(name=location.name)):
        with open(store.path(location), "r+b") as file:
            file.seek(intent.offset)
            file.write(received)
        # What is left on the disk when the process ends here.
        kept = (directory / "base/data/changing.dat").read_bytes()
    store.close()
    (directory / "base/data/changing.dat").write_bytes(kept)
    return await open_store(config), location.name


@pytest.mark.parametrize("received", [b"", b"abc", b"abcdef"])
async def test_what_was_written_is_logged(tmp_path: Path, received: bytes) -> None:
    store, name = await left_by_crash(tmp_path, Intent("", 8, 6, 10, False), received)
    size = 8 + len(received) if len(received) > 2 else 10
    assert lines(store) == [f"C {name}", f"M {name} 8 {min(6, size - 8)}"]
    store.close()
    # Once.
    store = await open_store(make_config(tmp_path, paths=1))
    assert len(lines(store)) == 2
    store.close()


@pytest.mark.parametrize("received", [b"", b"abc", b"abcdef"])
async def test_what_was_being_appended_is_taken_back(tmp_path: Path, received: bytes) -> None:
    store, name = await left_by_crash(tmp_path, Intent("", 10, 6, 10, True), received)
    assert lines(store) == [f"C {name}"]
    assert Path(store.path(store.locate(name))).read_bytes() == b"0123456789"
    store.close()


async def test_what_was_written_is_logged_where_the_same_was_written_before(tmp_path: Path) -> None:
    def write(store: Store, location: Location) -> None:
        store.appenders.pwrite(location, 2, b"xxxx")

    store, name = await left_by_crash(tmp_path, Intent("", 2, 4, 10, False), b"yy", before=write)
    assert lines(store) == [f"C {name}", f"M {name} 2 4", f"M {name} 2 4"]
    store.close()


async def test_an_append_is_taken_back_where_the_same_was_appended_and_cut_off_before(
    tmp_path: Path,
) -> None:
    def append_and_truncate(store: Store, location: Location) -> None:
        store.appenders.pwrite(location, 10, b"123456")
        store.appenders.truncate(location, 10)

    store, name = await left_by_crash(
        tmp_path, Intent("", 10, 6, 10, True), b"abc", before=append_and_truncate
    )
    assert Path(store.path(store.locate(name))).read_bytes() == b"0123456789"
    store.close()


async def test_an_append_that_was_logged_stays(tmp_path: Path) -> None:
    def append(store: Store, location: Location) -> None:
        store.appenders.pwrite(location, 10, b"abcdef")

    store, name = await left_by_crash(
        tmp_path, Intent("", 10, 6, 10, True), b"abcdef", before=append
    )
    assert Path(store.path(store.locate(name))).read_bytes() == b"0123456789abcdef"
    assert lines(store) == [f"C {name}", f"A {name} 10 6"]
    store.close()


async def test_slots_are_used_again_and_garbage_is_skipped(tmp_path: Path) -> None:
    config = make_config(tmp_path, paths=1)
    store = await open_store(config)
    path = tmp_path / "base/data/changing.dat"
    for number in range(5):
        with store.intents.noted(Intent(f"M00/00/00/{number}", 0, 1, 1, False)):
            assert [intent.name for intent in store.intents.take_left()] == [f"M00/00/00/{number}"]
    assert path.stat().st_size == 256
    store.close()
    path.write_bytes(b"M00/../../etc/passwd 0 5 5 0\n" + bytes(300) + b"\xff\xfe 1 2 x 4\n")
    store = await open_store(config)
    assert lines(store) == []
    assert path.stat().st_size == 0
    store.close()


async def test_a_write_of_a_mount_that_is_cancelled_is_logged(tmp_path: Path) -> None:
    store = await open_store(make_config(tmp_path, paths=1))
    location = store.creations.make_name(0, 0, 1, "", appender=True)
    store.creations.create_empty(location)
    writer = ObjectWriter(cast("Reads", None), Objects(store), 1)
    ours, theirs = socket.socketpair()
    fd = store.paths.open_to_change(location)
    with ours, theirs, trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            pieces = [(0, 2 * PIECE)]
            connection = FramedConnection(ours)
            nursery.start_soon(writer._receive_pieces, connection, fd, location.name, pieces)
            stream = trio.SocketStream(trio.socket.from_stdlib_socket(theirs.dup()))
            async with stream:
                await stream.send_all(bytes(PIECE + 10))
                while os.fstat(fd).st_size < PIECE:  # noqa: ASYNC110
                    await trio.sleep(0.001)
                scope.cancel()
    os.close(fd)
    assert lines(store) == [f"C {location.name}", f"A {location.name} 0 {PIECE}"]
    store.close()

"""A file that its storage cannot read is left out, told of, and brought later; the rest goes on."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
from pathlib import Path
from typing import Any

import pytest
import trio

from fdfs_storage.replication import requests, stream
from fdfsfuse.proto import structs
from fdfsfuse.proto.cluster_status import REPLICATION_STATUS, ReplicationStatus
from fdfsfuse.proto.copies import WAIT_FOR_COPIES, WaitForCopies
from tests.common.waiting import wait_for
from tests.daemons.storage_server import GROUP
from tests.daemons.sync_pair import Node, run_node, sync_config
from tests.daemons.trunk_file import trunk_name, write_slot

LARGE = random.Random(1).randbytes(3 << 20)


class BadDisk:
    """Reading the files in ``bad`` gives EIO; of a large one the beginning can be read."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.bad: set[str] = set()
        self.problem = errno.EIO
        self._open, self._sendfile, self._pread = os.open, os.sendfile, os.pread
        patch.setattr(os, "open", self.open)
        patch.setattr(os, "sendfile", self.sendfile)
        patch.setattr(os, "pread", self.pread)

    def open(self, path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        if flags == requests._FLAGS and path in self.bad and os.stat(path).st_size < len(LARGE):
            raise OSError(self.problem, "bad sector")
        return self._open(path, flags, *args, **kwargs)

    def sendfile(self, out: int, fd: int, offset: int, count: int) -> int:
        if offset and os.readlink(f"/proc/self/fd/{fd}") in self.bad:
            raise OSError(errno.EIO, "bad sector")
        return self._sendfile(out, fd, offset, min(count, 1 << 20))

    def pread(self, fd: int, count: int, offset: int) -> bytes:
        if offset and os.readlink(f"/proc/self/fd/{fd}") in self.bad:
            raise OSError(errno.EIO, "bad sector")
        return self._pread(fd, count, offset)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> BadDisk:
    return BadDisk(monkeypatch)


async def told(node: Node) -> int:
    """How many files the storage says it cannot bring to its peer."""
    async with node.connect() as client:
        status, body = await client.call(REPLICATION_STATUS, b"")
    assert status == 0
    (peer,) = structs.decode(ReplicationStatus, body).peers
    return peer.unreadable


async def test_the_rest_goes_on(
    tmp_path: Path, disk: BadDisk, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(stream, "LEFT_OUT_S", 0.0)
    config = dataclasses.replace(sync_config(tmp_path / "a"), names_replica_timeout_s=0.0)
    with trio.fail_after(60):
        async with run_node(tmp_path / "b", "2") as b:
            async with run_node(tmp_path / "a", "1", config=config) as a, a.connect() as client:
                names = [await client.upload(content) for content in (b"bad", LARGE, b"gone")]
                appender = await client.upload(b"begin", appender=True)
                disk.bad = {str(a.path(name)) for name in (*names, appender)}
                good = await client.upload(b"good")
                # What is changed in a file that is left out is left out with it.
                await client.append(appender, b" and end")
                a.meet(b)
                b.meet(a)
                await a.wait_until_has_all(b)
                assert b.content(good) == b"good"
                assert all(b.content(name) is None for name in (*names, appender))
                assert await told(a) == 4
                wait = structs.encode(WaitForCopies(GROUP, names[0], 2, 0.01))
                assert (await client.call(WAIT_FOR_COPIES, wait))[1][-1] == 1
                assert await client.delete(names[2]) == 0
                await a.wait_until_has_all(b)
            errors = [record for record in caplog.records if record.levelname == "ERROR"]
            assert len(errors) == 4
            # It is remembered, and tried again at the start; one is still bad.
            disk.bad = {str(a.path(names[0]))}
            async with run_node(tmp_path / "a", "1", config=config) as a:
                a.meet(b)
                await wait_for(lambda: b.content(names[1]) == LARGE)
                await wait_for(lambda: b.content(appender) == b"begin and end")
                while await told(a) != 1:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                assert b.content(names[0]) is None
                disk.bad.clear()
                a.cut(b)
                await wait_for(lambda: b.content(names[0]) == b"bad")
                while await told(a):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert not list((tmp_path / "a").rglob("*.unreadable"))


async def test_what_somebody_may_wait_for_is_not_left_out(tmp_path: Path, disk: BadDisk) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            async with a.connect() as client:
                name = await client.upload(b"new")
                disk.bad = {str(a.path(name))}
                a.meet(b)
                b.meet(a)
                pusher = a.replication.pushers[b.id]
                await wait_for(lambda: "bad sector" in pusher.problem)
                assert await told(a) == 0
                disk.bad.clear()
                await a.wait_until_has_all(b)
            assert b.content(name) == b"new"


async def test_a_new_change_of_a_file_that_was_left_out_is_brought_at_once(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            async with a.connect() as client:
                name = await client.upload(b"content")
            a.meet(b)
            pusher = a.replication.pushers[b.id]
            await wait_for(lambda: pusher.caught_up)
            assert pusher.unreadable is not None
            location = a.store.locate(name)
            a.store.write_metadata(location, b"a\x021")
            await a.wait_until_has_all(b)
            (*_, set_before) = a.store.binlog.tail()
            pusher.unreadable.add(set_before, OSError(errno.EIO, "bad sector"))
            a.store.write_metadata(location, b"a\x022")
            await a.wait_until_has_all(b)
            assert b.content(f"{name}-m") == b"a\x022"


async def test_no_file_is_left_out_because_too_many_are_open(
    tmp_path: Path, disk: BadDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "LEFT_OUT_S", 0.0)
    config = dataclasses.replace(sync_config(tmp_path / "a"), names_replica_timeout_s=0.0)
    with trio.fail_after(60):
        async with (
            run_node(tmp_path / "a", "1", config=config) as a,
            run_node(tmp_path / "b", "2") as b,
        ):
            async with a.connect() as client:
                name = await client.upload(bytes(100_000))
            disk.bad, disk.problem = {str(a.path(name))}, errno.EMFILE
            a.meet(b)
            pusher = a.replication.pushers[b.id]
            await wait_for(lambda: bool(pusher.problem))
            assert await told(a) == 0
            disk.bad.clear()
            await a.wait_until_has_all(b)
            assert b.content(name) == bytes(100_000)


@pytest.mark.parametrize("size", [5, 100_000, 1 << 40], ids=["small", "large", "sparse"])
@pytest.mark.parametrize("kind", ["append", "truncate", "new"])
async def test_a_file_that_is_too_large_for_the_peer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, size: int
) -> None:
    monkeypatch.setattr(stream, "LEFT_OUT_S", 0.0)
    config = dataclasses.replace(sync_config(tmp_path / "a"), names_replica_timeout_s=0.0)

    def refuse(*args: Any) -> None:
        raise OSError(errno.EFBIG, "File too large")

    with trio.fail_after(60):
        async with (
            run_node(tmp_path / "a", "1", config=config) as a,
            run_node(tmp_path / "b", "2") as b,
            a.connect() as client,
        ):
            name = await client.upload(b"begin", appender=True)
            location = a.store.locate(name)
            if kind != "new":
                a.meet(b)
                await a.wait_until_has_all(b)
            with monkeypatch.context() as patch:
                if kind == "append" and size < 1 << 40:
                    await client.append(name, bytes(size))
                else:
                    a.store.appenders.truncate(location, size + 5)
                patch.setattr(b.store.paths, "open_to_change", refuse)
                patch.setattr(b.store.paths, "open_new", refuse)
                a.meet(b)
                good = await client.upload(b"good")
                await a.wait_until_has_all(b)
                assert await told(a) == 1
            assert b.content(good) == b"good"
            a.cut(b)
            while await told(a):  # noqa: ASYNC110
                await trio.sleep(0.01)
            assert b.path(name).stat().st_size == size + 5


@pytest.mark.parametrize("offset", [0, 256])
async def test_a_file_in_a_trunk_file(tmp_path: Path, disk: BadDisk, offset: int) -> None:
    """Content that cannot be read, or what is in front of it."""
    content = b"inside a trunk file"
    name = trunk_name(content, offset=offset)
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, run_node(tmp_path / "b", "2") as b:
            disk.bad = {str(write_slot(tmp_path / "a" / "path0", name, content))}
            a.store.binlog.append(f"1700000000 C {name}\n".encode())
            a.meet(b)
            await a.wait_until_has_all(b)
            assert await told(a) == 1
            disk.bad.clear()
            a.cut(b)
            while await told(a):  # noqa: ASYNC110
                await trio.sleep(0.01)
            async with b.connect() as client:
                assert await client.download(name) == content

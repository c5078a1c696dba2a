"""Grants: a mount makes files on its own, and nobody can tell."""

from __future__ import annotations

import errno
import socket
import stat
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from fdfs_storage.names import connection as session_connection
from fdfs_storage.names.reads import Reads
from fdfsfuse.client.address import Address
from fdfsfuse.client.connection import connect
from fdfsfuse.client.names import NamesSession, open_session
from fdfsfuse.client.names.frames import FrameReader
from fdfsfuse.client.names.opening import exchange_open
from fdfsfuse.client.names.sending import PATIENT_AFTER
from fdfsfuse.core import acl
from fdfsfuse.proto import names, names_record
from fdfsfuse.proto.header import pack_header
from fdfsfuse.server.connection import FramedConnection
from fdfsfuse.server.hub import Hub
from tests.common.names_calls import DIRECTORY, FILE, NOW, ROOT, content, make, status_of
from tests.common.names_server import HOST, NamesServer, names_server
from tests.common.waiting import wait_for

DATA = b"made without asking"


class Maker:
    """A session with grants. It has made ``unborn``, (directory, name), which nobody was told of.

    Attributes:
        recalled: the grants that were recalled.
        tells: whether it tells what it has made, and confirms.
    """

    def __init__(self, nursery: trio.Nursery) -> None:
        self.unborn: list[tuple[int, bytes]] = []
        self.recalled: list[names.Recall] = []
        self.tells = True
        self.session: NamesSession
        self._nursery = nursery
        self._next = 0

    def push(self, push: names.Push) -> None:
        if isinstance(push, names.InSync):
            return
        assert isinstance(push, names.Recall)
        if push.grants or push.all_grants:
            self.recalled.append(push)
            if self.tells:
                self._nursery.start_soon(self.give_back, push)
        else:
            self.session.recalled(push.number, ())

    async def give_back(self, recall: names.Recall) -> None:
        for parent, name in self.unborn:
            if recall.all_grants or parent in recall.grants:
                await self.tell(parent, name)
        self.session.recalled(recall.number, ())

    async def number(self) -> int:
        if not self._next:
            reserved: names.Reserved = await self.session.call(names.ReserveInodes(100))
            self._next = reserved.first
        self._next += 1
        return self._next - 1

    async def tell(
        self,
        parent: int,
        name: bytes,
        data: bytes = DATA,
        xattrs: dict[bytes, bytes] | None = None,
    ) -> names.Attr:
        ino, times = await self.number(), (NOW + 1, NOW, NOW + 2, NOW)
        attr: names.Attr = await self.session.call(
            names.CreateFile(parent, name, ino, 0o600, 5, 6, *times, data, xattrs or {})
        )
        return attr


@asynccontextmanager
async def maker(server: NamesServer, **options: Any) -> AsyncIterator[Maker]:
    async with trio.open_nursery() as nursery:
        found = Maker(nursery)
        async with server.session(on_push=found.push, **options) as session:
            found.session = session
            yield found


async def test_a_file_is_stored_with_all_that_it_has(server: NamesServer) -> None:
    async with maker(server) as one:
        attr = await one.tell(ROOT, b"file.txt")
        assert content(server, attr) == DATA
        assert attr.file_id.endswith(".txt")
        assert attr == names.Attr(
            attr.ino, stat.S_IFREG | 0o600, 1, 5, 6, 0, len(DATA), NOW + 1, NOW, NOW + 2, 1,
            attr.file_id,
        )  # fmt: skip
        assert await one.session.call(names.Lookup(ROOT, b"file.txt")) == attr
        assert (await one.session.call(names.GetAttr(ROOT))).mtime_ns == NOW
        empty = await one.tell(ROOT, b"empty", b"")
        assert (empty.size, empty.file_id, empty.ino) == (0, "", attr.ino + 1)
        # Other numbers are given to other files.
        assert await make(one.session, b"other") == attr.ino + 100
        assert server.tree.state.inodes == 4


@pytest.mark.parametrize("data", [b"", DATA])
async def test_xattrs_come_along_with_a_file(server: NamesServer, data: bytes) -> None:
    fitting = {b"user.k": b"v", b"user.a": b""}
    others = {b"user.binary": b"\1", b"user." + b"n" * 65: b"v", b"security.x": b"label"}
    async with maker(server) as one:
        attr = await one.tell(ROOT, b"a", data, xattrs=fitting | others)
        found: names.Xattrs = await one.session.call(names.ListXattrs(attr.ino))
        assert found.xattrs == fitting | others
        if data:
            assert server.tree.objects.stored_metadata(attr.file_id) == b"a\2\1k\2v"
        rows = server.tree.state.db.execute("SELECT name, value FROM xattr").fetchall()
        assert dict(rows) == (others if data else fitting | others)
        # The next object gets what it can hold.
        attr = await one.session.call(names.StoreContent(attr.ino, b"new", NOW))
        assert server.tree.objects.stored_metadata(attr.file_id) == b"a\2\1k\2v"
        for xattrs, status in (
            ({acl.ACCESS: b""}, errno.EINVAL),
            ({acl.DEFAULT: b""}, errno.EINVAL),
            ({b"user.fdfs.file_id": b"x"}, errno.EPERM),
            ({b"other.x": b"x"}, errno.EOPNOTSUPP),
            ({b"user." + b"n" * 251: b"x"}, errno.ERANGE),
            ({b"user.x": b"x" * names.XATTRS_SMALL_MAX}, errno.E2BIG),
        ):
            assert await status_of(one.tell(ROOT, b"b", data, xattrs=xattrs)) == status
        full = {b"user.x": b"\1" * (names.XATTRS_SMALL_MAX - 6)}
        attr = await one.tell(ROOT, b"b", data, xattrs=full)
        assert (await one.session.call(names.ListXattrs(attr.ino))).xattrs == full


async def test_what_cannot_be_made(server: NamesServer) -> None:
    async with maker(server) as one:
        ino = await one.number()
        await make(one.session, b"taken")
        gone = await make(one.session, b"gone", DIRECTORY)
        await one.session.call(names.Remove(ROOT, b"gone", True, NOW))

        async def refused(parent: int, name: bytes, number: int = ino, mode: int = 0o600) -> int:
            times = (NOW, NOW, NOW, NOW)
            request = names.CreateFile(parent, name, number, mode, 0, 0, *times, b"data")
            return await status_of(one.session.call(request))

        assert await refused(ROOT, b"taken") == errno.EEXIST
        assert await status_of(one.session.call(names.GetAttr(ino))) == errno.ESTALE
        assert await refused(gone, b"a") == errno.ENOENT
        assert await refused(ino, b"a") == errno.ESTALE
        assert await refused(ROOT, b"a", ROOT) == errno.EINVAL
        assert await refused(ROOT, b"a", gone) == errno.EINVAL
        assert await refused(ROOT, b"a", ino + 10_000) == errno.EINVAL
        assert await refused(ROOT, b"a", mode=0o10600) == errno.EINVAL
        assert await refused(ROOT, b"M00") == errno.EPERM
        assert await refused(ROOT, b"a/b") == errno.EINVAL
        for count in (0, 65_537):
            assert await status_of(one.session.call(names.ReserveInodes(count))) == errno.EINVAL
        assert (await one.tell(ROOT, b"a")).ino == ino + 1


async def test_only_who_alone_holds_a_directory_gets_it(server: NamesServer) -> None:
    async with maker(server) as one, server.session() as other:
        d = await make(one.session, b"d", DIRECTORY)
        f = await make(one.session, b"f")
        await one.session.call(names.Grant(d))
        await one.session.call(names.Grant(d))
        assert await status_of(one.session.call(names.Grant(f))) == errno.ENOTDIR
        assert await status_of(one.session.call(names.Grant(99))) == errno.ESTALE
        assert await status_of(other.call(names.Grant(d))) == errno.EAGAIN
        await other.call(names.Lookup(ROOT, b"d"))
        assert [recall.grants for recall in one.recalled] == [[d]]
        assert await status_of(one.session.call(names.Grant(d))) == errno.EAGAIN
        # Recalled from the other one, it is held by one session again.
        await one.session.call(names.SetAttr(d, NOW, mode=0o700))
        await one.session.call(names.Grant(d))
        entries = acl.encode(
            [acl.Entry(tag, 5) for tag in (acl.OWNER, acl.OWNING_GROUP, acl.OTHERS)]
        )
        await one.session.call(names.SetXattr(d, acl.DEFAULT, entries, 0, NOW))
        assert await status_of(one.session.call(names.Grant(d))) == errno.EAGAIN


async def test_whoever_looks_or_changes_waits_for_what_was_made(server: NamesServer) -> None:
    """Each request is the first that another session makes of its directory."""
    async with maker(server) as one, server.session() as other:

        async def seen(number: int, request: Any) -> Any:
            name = b"d%d" % number
            d = await make(one.session, name, DIRECTORY)
            await one.session.call(names.Grant(d))
            one.unborn.append((d, b"x"))
            return await other.call(request(d, name))

        found = await seen(1, lambda d, name: names.Lookup(d, b"x"))
        assert found.size == len(DATA)
        found = await seen(2, lambda d, name: names.ReadDir(d, 0, 10))
        assert [entry.name for entry in found.entries] == [b"x"]
        found = await seen(3, lambda d, name: names.GetAttr(d))
        assert found.mtime_ns == NOW
        found = await seen(4, lambda d, name: names.Lookup(ROOT, name))
        assert found.mtime_ns == NOW
        later = NOW + 5
        status = status_of(seen(5, lambda d, name: names.Create(d, b"x", 0o100600, 0, 0, later)))
        assert await status == errno.EEXIST
        await seen(6, lambda d, name: names.Rename(d, b"x", ROOT, b"moved", 0, later))
        status = status_of(seen(7, lambda d, name: names.Remove(ROOT, name, True, later)))
        assert await status == errno.ENOTEMPTY
        status = status_of(seen(8, lambda d, name: names.Rename(ROOT, b"e", ROOT, name, 0, later)))
        await make(other, b"e", DIRECTORY)
        assert await status == errno.ENOTEMPTY
        await seen(9, lambda d, name: names.SetAttr(d, later, mode=0o700))
        await seen(10, lambda d, name: names.Remove(d, b"x", False, later))
        await seen(11, lambda d, name: names.Rename(ROOT, name, ROOT, b"other", 0, later))
        assert len(one.recalled) == 11
        assert await status_of(other.call(names.Lookup(ROOT, b"none"))) == errno.ENOENT


async def test_a_change_that_was_sent_before_the_grant_waits_as_well(server: NamesServer) -> None:
    async with maker(server) as one, server.session() as other:
        d = await make(one.session, b"d", DIRECTORY)
        one.unborn.append((d, b"x"))
        request = names.Create(d, b"x", 0o100600, 0, 0, NOW)
        async with trio.open_nursery() as nursery, server.tree.engine.paused():
            nursery.start_soon(one.session.call, names.Grant(d))
            await wait_for(lambda: server.tree.engine.is_busy)
            nursery.start_soon(status_of, other.call(request))
            await wait_for(lambda: bool(server.tree.engine._queue))
        assert [recall.grants for recall in one.recalled] == [[d]]


async def test_who_changes_a_directory_right_before_it_is_granted_holds_it(
    server: NamesServer,
) -> None:
    async with maker(server) as one, server.session() as other:
        d = await make(one.session, b"d", DIRECTORY)
        engine = server.tree.engine
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append(await status_of(one.session.call(names.Grant(d))))

        async with trio.open_nursery() as nursery, engine.paused():
            nursery.start_soon(make, one.session, b"f")
            await wait_for(lambda: engine.is_busy and not engine._queue)
            # Both are in one batch.
            nursery.start_soon(make, other, b"x", DIRECTORY, d)
            await wait_for(lambda: len(engine._queue) == 1)
            nursery.start_soon(ask)
            await wait_for(lambda: len(engine._queue) == 2)
        assert statuses == [errno.EAGAIN]


async def test_a_session_that_ends_in_the_same_batch_gets_no_grant(server: NamesServer) -> None:
    async with maker(server) as one, server.session() as other:
        d = await make(one.session, b"d", DIRECTORY)
        engine = server.tree.engine
        session = next(s for s in server.tree.sessions if s.high)
        async with trio.open_nursery() as nursery, engine.paused():
            nursery.start_soon(make, other, b"f")
            await wait_for(lambda: engine.is_busy and not engine._queue)
            nursery.start_soon(status_of, one.session.call(names.Grant(d)))
            await wait_for(lambda: len(engine._queue) == 1)
            nursery.start_soon(engine.change, names_record.EndSession(session.number))
            await wait_for(lambda: len(engine._queue) == 2)
        assert await status_of(other.call(names.Lookup(d, b"x"))) == errno.ENOENT


async def test_who_waits_may_break_off_and_ask_again(server: NamesServer) -> None:
    async with maker(server) as one, server.session() as other:
        d = await make(one.session, b"d", DIRECTORY)
        await one.session.call(names.Grant(d))
        one.tells = False
        answers: list[names.Attr] = []

        async def create() -> None:
            answers.append(await other.call(names.Create(d, b"y", 0o100600, 0, 0, NOW)))

        async def look() -> None:
            assert await status_of(other.call(names.Lookup(d, b"none"))) == errno.ENOENT

        async with trio.open_nursery() as nursery:
            nursery.start_soon(create)
            nursery.start_soon(look)
            await wait_for(lambda: len(one.recalled) == 1)
            connected = other._socket
            other._disconnect()
            await wait_for(lambda: other.connected and other._socket is not connected)
            await other.call(names.KeepAlive())
            assert not answers
            await one.give_back(one.recalled[0])
        listing = await other.call(names.ReadDir(d, 0, 10))
        assert [entry.attr for entry in listing.entries] == answers


async def test_a_silent_session_loses_its_grants_with_its_lease(tmp_path: Path) -> None:
    async with (
        names_server(tmp_path, names_session_lease_s=0.5) as server,
        maker(server) as one,
        server.session() as other,
    ):
        d = await make(one.session, b"d", DIRECTORY)
        await one.session.call(names.Grant(d))
        one.tells = False
        with trio.fail_after(60):
            await make(other, b"x", parent=d)
        # Too late: the name is taken.
        assert await status_of(one.tell(d, b"x")) == errno.EEXIST
        # Other names are as good as ever.
        await one.tell(d, b"y")
        assert (await other.call(names.Lookup(d, b"y"))).size == len(DATA)


async def test_the_end_of_a_session_ends_its_grants(server: NamesServer) -> None:
    async with server.session() as other:
        async with maker(server) as one:
            d = await make(one.session, b"d", DIRECTORY)
            await one.session.call(names.Grant(d))
        assert await status_of(other.call(names.Lookup(d, b"x"))) == errno.ENOENT
        await other.call(names.Grant(d))
        assert not server.tree.state.db.execute("SELECT 1 FROM inode_block").fetchone()


async def test_a_restarted_storage_asks_who_may_have_made_files(tmp_path: Path) -> None:
    async with trio.open_nursery() as nursery:
        one, other = Maker(nursery), Maker(nursery)
        async with names_server(tmp_path) as server:
            port = server.port
            find = server.find

        async with (
            open_session(find, client="one", on_push=one.push) as one.session,
            open_session(find, client="other", on_push=other.push) as other.session,
        ):
            async with names_server(tmp_path, port=port):
                d = await make(one.session, b"d", DIRECTORY)
                e = await make(other.session, b"e", DIRECTORY)
                await one.session.call(names.Grant(d))
                await other.session.call(names.Grant(e))
                await one.number()
                await other.number()
            one.unborn.append((d, b"x"))
            other.unborn.append((e, b"y"))
            one.tells = False
            answers: list[names.Attr] = []

            async def look() -> None:
                answers.append(await other.session.call(names.Lookup(d, b"x")))

            async with names_server(tmp_path, port=port) as server:
                async with trio.open_nursery() as looking:
                    looking.start_soon(look)
                    await wait_for(lambda: len(one.recalled) + len(other.recalled) == 2)
                    assert one.recalled[0].all_grants
                    assert other.recalled[0].all_grants
                    # Nobody waits to tell what it has made.
                    await wait_for(lambda: bool(server.tree.state.inodes == 4))
                    assert not answers
                    await one.give_back(one.recalled[0])
                assert answers[0].size == len(DATA)
                assert (await one.session.call(names.Lookup(e, b"y"))).size == len(DATA)


async def test_after_a_restart_what_was_answered_ahead_waits_for_nobody(tmp_path: Path) -> None:
    """Else who has the grant and who wants to look before it confirms would wait for each other."""
    async with trio.open_nursery() as nursery:
        one = Maker(nursery)
        one.tells = False
        async with names_server(tmp_path) as server:
            port = server.port
            find = server.find

        async with (
            open_session(find, client="one", on_push=one.push) as one.session,
            open_session(find, client="other", on_push=lambda push: None) as other,
        ):
            async with names_server(tmp_path, port=port):
                d = await make(one.session, b"d", DIRECTORY)
                ino = await one.number()
                await one.session.call(names.Grant(d))
                await other.call(names.GetAttr(ROOT))
            async with names_server(tmp_path, port=port) as server:
                await wait_for(lambda: bool(one.recalled))
                with trio.fail_after(server.tree.sessions.lease_s / 2):
                    for change in (
                        names.Create(d, b"a", DIRECTORY, 0, 0, NOW, ino=ino),
                        names.Rename(d, b"a", d, b"b", 0, NOW, ino, 0),
                        names.Remove(d, b"b", True, NOW, ino),
                    ):
                        await one.session.call(change)
                with trio.move_on_after(0.2) as waiting:
                    await one.session.call(names.Create(d, b"c", DIRECTORY, 0, 0, NOW))
                assert waiting.cancelled_caught


@asynccontextmanager
async def two_after_a_restart(
    tmp_path: Path,
) -> AsyncIterator[tuple[NamesServer, list[tuple[Maker, int, int]]]]:
    """The storage, and each maker with a directory that it had a grant of and a number in reserve.

    None of them has confirmed yet that all grants are recalled.
    """
    async with trio.open_nursery() as nursery:
        one, two = Maker(nursery), Maker(nursery)
        async with names_server(tmp_path) as server:
            port, find = server.port, server.find
        async with (
            open_session(find, client="one", on_push=one.push) as one.session,
            open_session(find, client="two", on_push=two.push) as two.session,
        ):
            found = []
            async with names_server(tmp_path, port=port):
                for maker in (one, two):
                    maker.tells = False
                    ino = await maker.number()
                    d = await make(maker.session, b"d%d" % ino, DIRECTORY)
                    await maker.session.call(names.Grant(d))
                    found.append((maker, d, ino))
            async with names_server(tmp_path, port=port) as server:
                await wait_for(lambda: bool(one.recalled and two.recalled))
                yield server, found


@pytest.mark.parametrize("kind", ["create", "set attributes", "set xattr"])
async def test_after_a_restart_nobody_waits_for_each_other(tmp_path: Path, kind: str) -> None:
    async with two_after_a_restart(tmp_path) as (server, makers):

        async def tell(maker: Maker, d: int, ino: int) -> None:
            requests: dict[str, names.Request] = {
                "create": names.Create(d, b"a", DIRECTORY, 0, 0, NOW, ino=ino),
                "set attributes": names.SetAttr(d, NOW, mode=0o700, granted=True),
                "set xattr": names.SetXattr(d, b"user.x", b"1", 0, NOW, granted=True),
            }
            await maker.session.call(requests[kind])
            maker.session.recalled(maker.recalled[0].number, ())

        with trio.fail_after(server.tree.sessions.lease_s / 2):
            async with trio.open_nursery() as nursery:
                for maker, d, ino in makers:
                    nursery.start_soon(tell, maker, d, ino)
            (one, _, _), (_, other, _) = makers
            await one.session.call(names.GetAttr(other))


async def test_after_a_restart_the_order_of_sending_counts(tmp_path: Path) -> None:
    """A directory, its mode, and a file in it, while it is not known what others have made."""
    async with two_after_a_restart(tmp_path) as (_, ((one, d, ino), _)):
        child = await one.number()
        errors: list[Exception | None] = []
        for request in (
            names.Create(d, b"a", DIRECTORY, 0, 0, NOW, ino=ino),
            names.SetAttr(ino, NOW, mode=0o2700, gid=9, granted=True),
            names.Create(ino, b"b", DIRECTORY, 0, 0, NOW, ino=child),
            names.SetXattr(child, b"user.x", b"1", 0, NOW, granted=True),
            names.SetXattr(child, b"user.y", b"2", 0, NOW, granted=True),
            names.RemoveXattr(child, b"user.x", NOW, granted=True),
            names.Rename(d, b"a", d, b"c", 0, NOW, ino, 0),
        ):
            one.session.post(request, errors.append)
        attr = await one.tell(ino, b"x")
        assert errors == [None] * 7
        assert attr.size == len(DATA)
        one.session.recalled(one.recalled[0].number, ())
        assert (await one.session.call(names.GetAttr(child))).gid == 9
        assert (await one.session.call(names.ListXattrs(child))).xattrs == {b"user.y": b"2"}


async def test_sessions_without_numbers_are_not_waited_for(tmp_path: Path) -> None:
    async with names_server(tmp_path) as server, server.session() as session:
        await make(session, b"f")
        session._closed = True  # it dies: no CloseSession
    async with names_server(tmp_path) as server, server.session() as other:
        with trio.fail_after(server.tree.sessions.lease_s / 2):
            assert await status_of(other.call(names.Lookup(ROOT, b"x"))) == errno.ENOENT


async def test_a_directory_made_with_a_reserved_number_is_granted(server: NamesServer) -> None:
    async with maker(server) as one, server.session() as other:
        ino = await one.number()
        mode = DIRECTORY | 0o770
        request = names.Create(ROOT, b"d", mode, 5, 6, NOW, umask=0o022, ino=ino)
        attr = await one.session.call(request)
        assert attr == request.made_in(0o755, 0, ino)
        assert await one.session.call(names.GetAttr(ino)) == attr
        one.unborn.append((ino, b"x"))
        assert (await other.call(names.Lookup(ino, b"x"))).size == len(DATA)
        assert [recall.grants for recall in one.recalled] == [[ino]]
        # A removed one is not granted any more; nor is anything but a directory.
        second, third = await one.number(), await one.number()
        for number, kind in ((second, mode), (third, stat.S_IFIFO | 0o600)):
            name = b"%d" % number
            await one.session.call(names.Create(ROOT, name, kind, 5, 6, NOW, ino=number))
        assert len(server.tree.callbacks.grants) == 1
        await one.session.call(names.Remove(ROOT, b"%d" % second, True, NOW))
        assert len(server.tree.callbacks.grants) == 0
        assert server.tree.state.inodes == 5  # with the root, x, and what is garbage now
        for number in (ino, third, ROOT, third + 10_000):
            status = status_of(
                one.session.call(names.Create(ROOT, b"e", mode, 5, 6, NOW, ino=number))
            )
            assert await status == errno.EINVAL
        assert await status_of(one.session.call(names.Lookup(ROOT, b"e"))) == errno.ENOENT


async def test_who_makes_too_many_directories_gives_grants_back(
    server: NamesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.tree.callbacks.grants.limit = 5
    async with maker(server) as one:
        for number in range(12):
            ino = await one.number()
            name = b"%d" % number
            await one.session.call(names.Create(ROOT, name, DIRECTORY, 5, 6, NOW, ino=ino))
        await wait_for(lambda: len(server.tree.callbacks.grants) <= 5)
        assert one.recalled


async def test_a_set_group_id_directory_and_an_acl_are_inherited_with_a_number(
    server: NamesServer,
) -> None:
    async with maker(server) as one:
        await one.session.call(names.SetAttr(ROOT, NOW, mode=0o2755, gid=77))
        request = names.Create(
            ROOT, b"d", DIRECTORY | 0o777, 5, 6, NOW, umask=0o022, ino=await one.number()
        )
        attr = await one.session.call(request)
        assert (attr.mode, attr.gid) == (stat.S_IFDIR | 0o2755, 77)
        assert attr == request.made_in(stat.S_IFDIR | 0o2755, 77, attr.ino)
        entries = acl.encode(
            [acl.Entry(tag, 7) for tag in (acl.OWNER, acl.OWNING_GROUP, acl.OTHERS)]
        )
        await one.session.call(names.SetXattr(ROOT, acl.DEFAULT, entries, 0, NOW))
        attr = await one.session.call(
            names.Create(ROOT, b"e", DIRECTORY | 0o777, 5, 6, NOW, umask=0o022)
        )
        assert attr.mode == stat.S_IFDIR | 0o2777


async def test_a_change_that_comes_late_does_nothing_else(server: NamesServer) -> None:
    """The name stands for another inode by now."""
    async with server.session() as session:
        first = await make(session, b"a")
        second = await make(session, b"b")
        d = await make(session, b"d", DIRECTORY)

        async def refused(request: names.Request) -> int:
            return await status_of(session.call(request))

        assert await refused(names.Remove(ROOT, b"a", False, NOW, second)) == errno.ESTALE
        assert await refused(names.Remove(ROOT, b"d", True, NOW, first)) == errno.ESTALE
        assert await refused(names.Remove(ROOT, b"a", False, NOW, 0)) == errno.ESTALE
        for ino, replaces in ((second, second), (first, first), (first, 0), (first, d)):
            request = names.Rename(ROOT, b"a", ROOT, b"b", 0, NOW, ino, replaces)
            assert await refused(request) == errno.ESTALE
        request = names.Rename(ROOT, b"a", ROOT, b"new", 0, NOW, first, second)
        assert await refused(request) == errno.ESTALE
        assert await refused(names.Remove(ROOT, b"a", False, NOW, -2)) == errno.ESTALE
        assert [e.name for e in (await session.call(names.ReadDir(ROOT, 0, 10))).entries] == [
            b"a", b"b", b"d",
        ]  # fmt: skip
        renamed = await session.call(names.Rename(ROOT, b"a", ROOT, b"b", 0, NOW, first, second))
        assert renamed.moved.ino == first
        await session.call(names.Rename(ROOT, b"b", ROOT, b"c", 0, NOW, first, 0))
        await session.call(names.Remove(ROOT, b"c", False, NOW, first))
        await session.call(names.Remove(ROOT, b"d", True, NOW, d))
        assert not (await session.call(names.ReadDir(ROOT, 0, 10))).entries


async def test_what_is_left_to_gather_is_made_when_somebody_waits(
    server: NamesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PATIENCE_S", "PATIENCE_MIN_S"):
        monkeypatch.setattr(session_connection, name, 3600.0)
    count = 3 * PATIENT_AFTER
    made: list[Exception | None] = []
    async with server.session() as session:

        def post(name: str) -> None:
            session.post(names.Create(ROOT, name.encode(), DIRECTORY, 0, 0, NOW), made.append)

        with trio.fail_after(60):
            for number in range(count):
                post(f"a{number}")
                await trio.sleep(0.001)  # so that some come during the pause
            await make(session, b"behind")
            assert made == [None] * count
            for number in range(count):
                post(f"b{number}")
                await trio.sleep(0.001)
            session.hurry()
            await wait_for(lambda: made == [None] * 2 * count)
            (served,) = server.tree.sessions
            connection = served.connection
            await make(session, b"without padding")
            assert served.connection is connection  # not one that seemed to be broken


@pytest.mark.parametrize(
    ("idle_s", "expected"), [(3600.0, [0.001, 0.002, 0.004, 0.004]), (0.0, [0.001] * 4)]
)
async def test_requests_gather_for_a_short_time_at_first(
    server: NamesServer, idle_s: float, expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    pauses: list[float] = []

    def pause(hub: Hub, connection: FramedConnection, pause_s: float, enough: int) -> None:
        pauses.append(pause_s)

    monkeypatch.setattr(Hub, "pause", pause)
    monkeypatch.setattr(session_connection, "_SENDS_LESS_S", idle_s)
    async with server.session() as session:
        with trio.fail_after(60):
            number = 0
            while len(pauses) < len(expected):
                name = b"%d" % number
                number += 1
                session.post(names.Create(ROOT, name, DIRECTORY, 0, 0, NOW), lambda error: None)
                await trio.sleep(0.001)
    assert pauses[: len(expected)] == expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [
        (names.VERSION, ["made 1-3", "answer 4: 17", "made 5-6", "answer 7: 0"]),
        (6, [f"answer {number}: {errno.EEXIST if number == 4 else 0}" for number in range(1, 8)]),
    ],
)
async def test_patient_changes_that_were_made_are_told_together(
    server: NamesServer, version: int, expected: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "VERSION", version)
    connection = await connect(Address(HOST, server.port))
    sock = connection.detach()
    told: list[str] = []

    def dispatch(command: int, status: int, frame: bytes | bytearray) -> None:
        if command == names.ANSWER:
            told.append(f"answer {names.ANSWER_ID.unpack_from(frame)[0]}: {status}")
        elif command == names.MADE:
            told.extend(f"made {a}-{b}" for a, b in names.ID_RANGE.iter_unpack(frame))

    reader = FrameReader(sock, dispatch)
    try:
        await exchange_open(sock, 0, b"t" * 16, "test:/mnt:2", 0.0)
        frames = b""
        for number, name in enumerate((b"a", b"b", b"c", b"a", b"d", b"e", b"f"), 1):
            body = names.encode(names.Create(ROOT, name, DIRECTORY, 0, 0, NOW))
            status = names.PATIENT if number < 7 else 0
            frames += pack_header(names.FRAME_IDS.size + len(body), names.REQUEST, status)
            frames += names.FRAME_IDS.pack(number, 1) + body
        sock.sendall(frames)
        with trio.fail_after(60):
            while len(told) < len(expected):
                await trio.lowlevel.wait_readable(sock)
                reader.receive_nowait()
    finally:
        sock.close()
    assert told == expected


async def test_what_a_mount_that_is_gone_had_asked_is_not_looked_up(
    server: NamesServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[object] = []
    monkeypatch.setattr(Reads, "read_dir", lambda self, request: looked.append(request))
    async with server.session() as session:
        (served,) = server.tree.sessions
        assert isinstance(served.connection, session_connection.SessionConnection)
        served.connection._outbox.nobody_listens()  # as when a send fails
        for request in (names.ReadDir(ROOT, 0, 10), names.Create(ROOT, b"a", FILE, 0, 0, NOW)):
            session.post(request, lambda error: None)
        await wait_for(lambda: bool(server.tree.state.inodes == 2))
        assert not looked


@pytest.mark.parametrize("status", [0, names.PATIENT])
@pytest.mark.parametrize("takes_answers", [False, True])
async def test_what_a_mount_had_sent_is_carried_out_when_it_is_gone(
    server: NamesServer, takes_answers: bool, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PATIENCE_S", "PATIENCE_MIN_S"):
        monkeypatch.setattr(session_connection, name, 3600.0)
    count = 500
    connection = await connect(Address(HOST, server.port))
    sock = connection.detach()
    try:
        opened = await exchange_open(sock, 0, b"t" * 16, "test:/mnt:2", 0.0)
        frames = []
        for number in range(1, count + 1):
            body = names.encode(names.Create(ROOT, b"%d" % number, DIRECTORY, 0, 0, NOW))
            frames.append(
                pack_header(names.FRAME_IDS.size + len(body), names.REQUEST, status)
                + names.FRAME_IDS.pack(number, 1)
                + body
            )
        data = memoryview(b"".join(frames))
        while data:
            try:
                data = data[sock.send(data) :]
            except BlockingIOError:
                await trio.lowlevel.wait_writable(sock)
        if takes_answers:
            # Not all of them: the connection is reset.
            await trio.lowlevel.wait_readable(sock)
            sock.recv(10)
        else:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    finally:
        sock.close()
    async with server.session() as session:

        async def made() -> int:
            listing: names.Listing = await session.call(names.ReadDir(ROOT, 0, 1024))
            return len(listing.entries)

        with trio.fail_after(60):
            while await made() < count:  # noqa: ASYNC110 (no event tells)
                await trio.sleep(0.01)
    assert opened.session

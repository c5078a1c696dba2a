"""The names service over real sockets: the tree, sessions, and bad input."""

from __future__ import annotations

import errno
import os
import socket
import stat
import struct
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from fdfsfuse.client.names import NamesSession
from fdfsfuse.proto import names, names_record
from fdfsfuse.proto.header import pack_header
from tests.common.names_calls import (
    DIRECTORY,
    FILE,
    NOW,
    ROOT,
    all_objects,
    content,
    exchange,
    make,
    plain_upload,
    status_of,
    store,
    write_object,
)
from tests.common.names_server import HOST, NamesServer, names_server
from tests.common.session import BlockingSession
from tests.common.waiting import wait_for

# --- tree -------------------------------------------------------------------------------------


async def test_create_and_lookup(session: NamesSession) -> None:
    made = await session.call(names.Create(ROOT, b"a", FILE, 1, 2, NOW))
    assert made == names.Attr(made.ino, FILE, 1, 1, 2, 0, 0, NOW, NOW, NOW, 0)
    assert await session.call(names.Lookup(ROOT, b"a")) == made
    assert await session.call(names.GetAttr(made.ino)) == made
    root = await session.call(names.GetAttr(ROOT))
    assert (root.mtime_ns, root.ctime_ns, root.nlink) == (NOW, NOW, 2)


async def test_symlink_fifo_device(session: NamesSession) -> None:
    link = await session.call(
        names.Create(ROOT, b"l", stat.S_IFLNK | 0o777, 0, 0, NOW, 0, b"to/there")
    )
    assert (link.target, link.size) == (b"to/there", 8)
    fifo = await session.call(names.Create(ROOT, b"p", stat.S_IFIFO | 0o600, 0, 0, NOW))
    assert stat.S_ISFIFO(fifo.mode)
    device = await session.call(names.Create(ROOT, b"d", stat.S_IFCHR | 0o600, 0, 0, NOW, 0x103))
    assert (await session.call(names.Lookup(ROOT, b"d"))).rdev == 0x103 == device.rdev
    assert await status_of(store(session, fifo.ino, b"x")) == errno.EINVAL


async def test_set_group_id_directories(session: NamesSession) -> None:
    parent = await session.call(names.Create(ROOT, b"g", DIRECTORY | stat.S_ISGID, 0, 77, NOW))
    child = await session.call(names.Create(parent.ino, b"d", DIRECTORY, 0, 5, NOW))
    assert child.gid == 77
    assert child.mode & stat.S_ISGID
    file = await session.call(names.Create(parent.ino, b"f", FILE, 0, 5, NOW))
    assert (file.gid, file.mode) == (77, FILE)


@pytest.mark.parametrize(
    ("name", "status"),
    [
        (b"", errno.EINVAL),
        (b".", errno.EINVAL),
        (b"..", errno.EINVAL),
        (b"a/b", errno.EINVAL),
        (b"a\0b", errno.EINVAL),
        (b"x" * 256, errno.ENAMETOOLONG),
        (b"M00", errno.EPERM),
        (b"MfF", errno.EPERM),
    ],
)
async def test_bad_names(session: NamesSession, name: bytes, status: int) -> None:
    assert await status_of(make(session, name)) == status


async def test_reserved_names_are_free_below_the_root(session: NamesSession) -> None:
    directory = await make(session, b"d", DIRECTORY)
    await make(session, b"M00", parent=directory)
    await make(session, b"x" * 255)
    await make(session, b"MXX")


@pytest.mark.parametrize(
    "request_",
    [
        names.Create(ROOT, b"a", 0o644, 0, 0, NOW),
        names.Create(ROOT, b"a", 1 << 20, 0, 0, NOW),
        names.Create(ROOT, b"a", FILE, -1, 0, NOW),
        names.Create(ROOT, b"a", FILE, 0, 1 << 32, NOW),
        names.Create(ROOT, b"a", FILE, 0, 0, 1 << 63),
        names.Create(ROOT, b"a", FILE, 0, 0, NOW, rdev=-1),
        names.Create(ROOT, b"a", FILE, 0, 0, NOW, target=b"x"),
        names.SetAttr(ROOT, NOW, mode=-1),
        names.SetAttr(ROOT, NOW, mtime_ns=1 << 63),
        names.ReadDir(ROOT, -1, 5),
        names.ReadDir(ROOT, 0, 0),
        names.Rename(ROOT, b"a", ROOT, b"b", 3, NOW),
        names.Truncate(ROOT, -1, NOW),
        names.LookupObject("../../../etc/passwd-xxxxxxxxxxxxxxxxxxxxxxxxxxxxx"),
        names.LookupObject("M00/00/00/" + "x" * 10),
        names.ListObjects("M00/../..", "", 10),
    ],
)
async def test_impossible_values_are_refused(session: NamesSession, request_: Any) -> None:
    assert await status_of(session.call(request_)) == errno.EINVAL


async def test_unknown_inodes_are_stale(session: NamesSession) -> None:
    for request in (
        names.GetAttr(999),
        names.GetAttr(1 << 62),
        names.Lookup(999, b"a"),
        names.Create(999, b"a", FILE, 0, 0, NOW),
        names.Link(999, ROOT, b"x", NOW),
        names.StoreContent(999, b"x", NOW),
        names.ReadDir(999, 0, 10),
        names.Open(999, 10),
        names.SetXattr(999, b"user.a", b"", 0, NOW),
        names.Truncate(999, 0, NOW),
        names.MakeWritable(999),
        names.NewObject(999),
    ):
        assert await status_of(session.call(request)) == errno.ESTALE


async def test_listing_goes_on_while_entries_come_and_go(session: NamesSession) -> None:
    directory = await make(session, b"d", DIRECTORY)
    for number in range(10):
        await make(session, b"f%d" % number, parent=directory)
    first = await session.call(names.ReadDir(directory, 0, 4))
    assert [entry.name for entry in first.entries] == [b"f0", b"f1", b"f2", b"f3"]
    assert not first.end
    await session.call(names.Remove(directory, b"f3", False, NOW))
    await session.call(names.Remove(directory, b"f5", False, NOW))
    await make(session, b"new", parent=directory)
    rest = await session.call(names.ReadDir(directory, first.entries[-1].cookie, 100))
    assert [entry.name for entry in rest.entries] == [b"f4", b"f6", b"f7", b"f8", b"f9", b"new"]
    assert rest.end
    cookies = [entry.cookie for entry in first.entries + rest.entries]
    assert cookies == sorted(set(cookies))


async def test_a_listing_of_long_links_comes_in_pieces(session: NamesSession) -> None:
    directory = await make(session, b"d", DIRECTORY)
    target = b"t" * names.SYMLINK_MAX
    async with trio.open_nursery() as nursery:
        for number in range(300):
            request = names.Create(
                directory, b"%d" % number, stat.S_IFLNK | 0o777, 0, 0, NOW, 0, target
            )
            nursery.start_soon(session.call, request)
    found: set[bytes] = set()
    cookie, end, pages = 0, False, 0
    while not end:
        listing = await session.call(names.ReadDir(directory, cookie, 1024))
        found |= {entry.name for entry in listing.entries}
        cookie, end, pages = listing.entries[-1].cookie, listing.end, pages + 1
    assert len(found) == 300
    assert pages > 1


# --- sessions and garbage -------------------------------------------------------------------------


@pytest.fixture
async def quick(tmp_path: Path) -> AsyncIterator[NamesServer]:
    """A server with a short lease and grace period."""
    changes: dict[str, Any] = {"names_session_lease_s": 0.4, "names_garbage_grace_s": 0.4}
    async with names_server(tmp_path, **changes) as running:
        yield running


async def test_replaced_and_removed_objects_are_deleted(quick: NamesServer) -> None:
    plain = await plain_upload(quick, b"untouched")
    async with quick.session() as session:
        ino = await make(session, b"a")
        first = await store(session, ino, b"one")
        second = await store(session, ino, b"two")
        assert {first.file_id, second.file_id, plain} <= all_objects(quick)
        assert await status_of(session.call(names.LookupObject(first.file_id))) == errno.ENOENT
        await wait_for(lambda: all_objects(quick) == {second.file_id, plain})
        removed = await session.call(names.Remove(ROOT, b"a", False, NOW))
        assert removed.nlink == 0
        await wait_for(lambda: all_objects(quick) == {plain})
        assert await status_of(session.call(names.GetAttr(ino))) == errno.ESTALE
        assert (await session.call(names.StatFs())).files == 1
    count = quick.tree.state.db.execute("SELECT count(*) FROM garbage").fetchone()[0]
    assert count == 0


async def test_held_inodes_live_on(quick: NamesServer) -> None:
    async with quick.session() as session:
        ino = await make(session, b"a")
        attr = await store(session, ino, b"one")
        await session.call(names.Holds([ino], []))
        await session.call(names.Remove(ROOT, b"a", False, NOW))
        for _ in range(6):
            await trio.sleep(0.2)
            await session.call(names.KeepAlive())
        assert (await session.call(names.Open(ino, 10))).data == b"one"
        await session.call(names.Holds([], [ino]))
        await wait_for(lambda: attr.file_id not in all_objects(quick))


async def test_a_session_that_ends_leaves_nothing(quick: NamesServer) -> None:
    plain = await plain_upload(quick, b"untouched")
    async with quick.session() as session:
        made = await session.call(names.NewObject(await make(session, b"a")))
        assert await write_object(quick, made.file_id, 0, b"x" * 1000) == 0
        assert made.file_id in all_objects(quick)
    await wait_for(lambda: all_objects(quick) == {plain})


async def test_the_lease_runs_out(quick: NamesServer) -> None:
    def connect_and_die() -> tuple[int, bytes, str]:
        with BlockingSession((HOST, quick.port)) as session:
            ino = session.create(ROOT, b"a").ino
            made = session.call(names.NewObject(ino), names.ObjectMade)
            return session.number, session.token, made.file_id

    number, token, file_id = await trio.to_thread.run_sync(connect_and_die)
    await wait_for(lambda: len(quick.tree.sessions) == 0)
    await wait_for(lambda: file_id not in all_objects(quick))
    request = names.OpenSession(names.VERSION, number, token, "again")
    assert await exchange(quick, names.OPEN_SESSION, names.encode(request)) == names.SESSION_ENDED


async def test_repeated_requests_are_answered_once(server: NamesServer) -> None:
    def run() -> None:
        request = names.Create(ROOT, b"a", FILE, 0, 0, NOW)
        with BlockingSession((HOST, server.port)) as session:
            made = session.call(request, names.Attr)
            session.waiting[1] = request  # whose outcome the storage has to keep
            put = names.StoreContent(made.ino, b"x", NOW)
            stored = session.call(put, names.Attr)
            # The same ids again, as after a connection that broke before the answers came.
            session.waiting[2] = put
            session.take_up()
            answers = {
                number: answer for number, _, answer in (session.receive(), session.receive())
            }
            assert answers == {1: made, 2: stored}

    await trio.to_thread.run_sync(run)
    assert len(all_objects(server)) == 1


async def test_an_operation_with_steps_that_is_overtaken_by_its_repetition(
    server: NamesServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with server.session() as session:
        ino = await make(session, b"a")
        made = await session.call(names.NewObject(ino))
        await write_object(server, made.file_id, 0, b"x" * 1000)
        named = names.NameObject(ino, made.file_id, 1000, NOW)
        attr = await session.call(named)
    release, syncs = trio.Event(), 0
    sync_file = server.store.sync_file

    async def sync(*args: Any) -> None:
        nonlocal syncs
        syncs += 1
        if syncs == 1:
            await release.wait()
        await sync_file(*args)

    monkeypatch.setattr(server.store, "sync_file", sync)

    def run() -> None:
        with BlockingSession((HOST, server.port)) as again:
            again.send(names.CommitWrite(ino, attr.file_id, 1000, NOW))
            again.call(names.KeepAlive(), names.Done)
            again.take_up()
            assert isinstance(again.receive()[2], names.Attr)

    await trio.to_thread.run_sync(run)
    version = server.tree.reads.get_attr(names.GetAttr(ino)).version
    release.set()
    done = trio.Event()
    server.tree.engine.on_answered, before = done.set, server.tree.engine.on_answered
    await done.wait()
    server.tree.engine.on_answered = before
    assert server.tree.reads.get_attr(names.GetAttr(ino)).version == version
    assert "a change failed" not in caplog.text


async def test_what_became_of_the_changes_of_an_ended_session(quick: NamesServer) -> None:
    made: list[Any] = []

    def connect_and_die() -> tuple[int, bytes]:
        with BlockingSession((HOST, quick.port)) as session:
            made.append(session.create(ROOT, b"a"))
            return session.number, session.token

    number, token = await trio.to_thread.run_sync(connect_and_die)
    await wait_for(lambda: len(quick.tree.sessions) == 0)
    async with quick.session() as session:
        own = next(iter(quick.tree.sessions))

        async def ask(*question: Any) -> Any:
            return await session.call(names.FormerOutcome(*question))

        assert (await ask(number, token, 1)).answer == names.encode(made[0])
        assert (await ask(number, token, 2)).answer is None
        for question, status in (
            ((number, bytes(16), 1), errno.EPERM),
            ((own.number, own.token, 1), errno.EINVAL),
            ((number, token, 1 << 63), errno.EINVAL),
            ((number + 1000, token, 1), errno.ENOENT),
        ):
            assert await status_of(ask(*question)) == status
        await quick.tree.engine.change(names_record.ForgetSessions([number]))
        assert await status_of(ask(number, token, 1)) == errno.ENOENT


async def test_what_was_not_done_is_never_done(server: NamesServer) -> None:
    """Asking ends the session; its operation that is under way has no effect from then on."""
    async with server.session() as session:
        ino = await make(session, b"a")
        await store(session, ino, b"content")

    def leave_under_way() -> tuple[int, bytes]:
        with BlockingSession((HOST, server.port)) as old:
            old.send(names.MakeWritable(ino))
            old.call(names.KeepAlive(), names.Done)
            return old.number, old.token

    operations = server.tree.operations
    async with server.session() as session:
        # The operation with steps waits for its turn at the inode.
        async with operations.locks.hold(ino):
            number, token = await trio.to_thread.run_sync(leave_under_way)
            answer = await session.call(names.FormerOutcome(number, token, 1))
            assert answer.answer is None
            assert server.tree.sessions.get(number) is None
            again = names.OpenSession(names.VERSION, number, token, "again")
            status = await exchange(server, names.OPEN_SESSION, names.encode(again))
            assert status == names.SESSION_ENDED
        await wait_for(lambda: operations.locks.is_free(ino))
        attr = await session.call(names.GetAttr(ino))
        assert not attr.in_place
        assert (await session.call(names.FormerOutcome(number, token, 1))).answer is None
        assert (await session.call(names.MakeWritable(ino))).in_place


async def test_a_wrong_token_is_refused(server: NamesServer, session: NamesSession) -> None:
    number = next(iter(server.tree.sessions)).number
    request = names.OpenSession(names.VERSION, number, b"x" * 16, "thief")
    status = await exchange(server, names.OPEN_SESSION, names.encode(request))
    assert status == errno.EPERM
    short = names.OpenSession(names.VERSION, 0, b"x", "short")
    assert await exchange(server, names.OPEN_SESSION, names.encode(short)) == errno.EINVAL


# --- bad input ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame",
    [
        pack_header(names.FRAME_MAX + 1, names.REQUEST) + b"x" * 100,
        pack_header(5, names.REQUEST) + b"x" * 5,
        pack_header(20, names.ANSWER) + b"x" * 20,
        pack_header(20, names.REQUEST) + names.FRAME_IDS.pack(1, 0) + b"\xc1abc",
        pack_header(17, names.REQUEST) + names.FRAME_IDS.pack(0, 0) + b"\x91",
        pack_header(18, names.REQUEST) + names.FRAME_IDS.pack(1, 0) + b"\x91\x7f",
        b"\xff" * 10,
    ],
)
async def test_bad_frames_cost_the_connection_only(
    server: NamesServer, session: NamesSession, frame: bytes
) -> None:
    stream = await trio.open_tcp_stream(HOST, server.port)
    async with stream:
        body = names.encode(names.OpenSession(names.VERSION, 0, os.urandom(16), "bad"))
        await stream.send_all(pack_header(len(body), names.OPEN_SESSION) + body)
        await stream.receive_some(4096)
        await stream.send_all(frame)
        with trio.fail_after(60):
            try:
                while await stream.receive_some(4096):
                    pass
            except trio.BrokenResourceError:
                pass
    await make(session, b"still works")


async def test_plain_requests_that_are_wrong(server: NamesServer) -> None:
    assert await exchange(server, names.QUERY_VIEW, b"x") == errno.EINVAL
    assert await exchange(server, names.WRITE_OBJECT, b"") == errno.EINVAL
    assert await exchange(server, names.WRITE_OBJECT, b"\xff\xff\xff\xffxxxx") == errno.EINVAL
    assert await exchange(server, names.WRITE_OBJECT, b"\0\0\0\4xxxxyyy") == errno.EINVAL
    assert await exchange(server, names.TRUNCATE_OBJECT, b"x" * 5000) == errno.EINVAL
    assert await exchange(server, names.OPEN_SESSION, b"x" * 5000) == errno.EINVAL
    assert await exchange(server, names.QUERY_VIEW, b"") == 0


async def test_many_requests_in_flight(server: NamesServer, session: NamesSession) -> None:
    directory = await make(session, b"d", DIRECTORY)
    async with trio.open_nursery() as nursery:
        for number in range(300):
            nursery.start_soon(make, session, b"f%d" % number, FILE, directory)
    listing = await session.call(names.ReadDir(directory, 0, 1024))
    assert len(listing.entries) == 300
    assert len({entry.attr.ino for entry in listing.entries}) == 300


async def test_a_restart_keeps_everything(tmp_path: Path) -> None:
    started = time.monotonic()
    async with names_server(tmp_path) as server, server.session() as session:
        ino = await make(session, b"a")
        attr = await store(session, ino, b"kept")
        view = server.tree.stored_view
    async with names_server(tmp_path) as server, server.session() as session:
        assert server.tree.stored_view == view
        assert await session.call(names.Lookup(ROOT, b"a")) == attr
        assert (await session.call(names.Open(ino, 10))).data == b"kept"
        await make(session, b"b")
    assert time.monotonic() - started < 20


# --- more than one mount --------------------------------------------------------------------------


async def test_mounts_at_work_together(server: NamesServer) -> None:
    """Changes of several sessions go through the engine's task, those of one alone do not."""
    async with server.session() as first, server.session() as second:
        directory = await make(first, b"d", DIRECTORY)

        async def work(session: NamesSession, prefix: bytes) -> None:
            for number in range(50):
                ino = await make(session, prefix + b"%d" % number, parent=directory)
                await store(session, ino, prefix)

        async with trio.open_nursery() as nursery:
            for session, prefix in ((first, b"a"), (first, b"b"), (second, b"c")):
                nursery.start_soon(work, session, prefix)
        listing = await second.call(names.ReadDir(directory, 0, 1000))
        assert len(listing.entries) == 150
        contents = {content(server, entry.attr) for entry in listing.entries}
        assert contents == {b"a", b"b", b"c"}


async def test_what_one_mount_holds_another_may_remove(quick: NamesServer) -> None:
    async with quick.session() as first, quick.session() as second:
        ino = await make(first, b"a")
        attr = await store(first, ino, b"one")
        await first.call(names.Holds([ino], []))
        await second.call(names.Remove(ROOT, b"a", False, NOW))
        await second.call(names.Holds([ino], [ino]))
        for _ in range(5):
            await trio.sleep(0.2)
            assert (await first.call(names.Open(ino, 10))).data == b"one"
            await second.call(names.KeepAlive())
    await wait_for(lambda: attr.file_id not in all_objects(quick))


async def test_a_full_disk_is_an_error_and_no_more(
    server: NamesServer, session: NamesSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on the short way that a mount alone takes."""
    ino = await make(session, b"a")

    def full(records: object) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(server.tree.log, "write", full)
    assert await status_of(make(session, b"b")) == errno.ENOSPC
    assert await status_of(store(session, ino, b"data")) == errno.ENOSPC
    monkeypatch.undo()
    await make(session, b"b")
    assert content(server, await store(session, ino, b"data")) == b"data"


async def test_a_mount_that_takes_no_answers_is_not_read_from(server: NamesServer) -> None:
    """Its requests wait in its own socket; others are served."""
    directory = 0
    async with server.session() as session:
        directory = await make(session, b"d", DIRECTORY)
        for number in range(100):
            await make(session, b"x" * 200 + b"%d" % number, parent=directory)
        stream = await trio.open_tcp_stream(HOST, server.port)
        async with stream:
            body = names.encode(names.OpenSession(names.VERSION, 0, os.urandom(16), "slow"))
            await stream.send_all(pack_header(len(body), names.OPEN_SESSION) + body)
            await stream.receive_some(4096)
            request = names.encode(names.ReadDir(directory, 0, 100))
            with trio.move_on_after(1.0) as scope:
                for number in range(1, 100_000):
                    frame = names.FRAME_IDS.pack(number, number) + request
                    await stream.send_all(pack_header(len(frame), names.REQUEST) + frame)
            assert scope.cancelled_caught
            await session.call(names.KeepAlive())


async def test_a_mount_that_dies_with_answers_on_their_way(server: NamesServer) -> None:
    """Its connection was full: both who waits to read from it and who waits to write end."""
    async with server.session() as session:
        directory = await make(session, b"d", DIRECTORY)
        for number in range(100):
            await make(session, b"x" * 200 + b"%d" % number, parent=directory)
        stream = await trio.open_tcp_stream(HOST, server.port)
        body = names.encode(names.OpenSession(names.VERSION, 0, os.urandom(16), "dies"))
        await stream.send_all(pack_header(len(body), names.OPEN_SESSION) + body)
        await stream.receive_some(4096)
        request = names.encode(names.ReadDir(directory, 0, 100))
        with trio.move_on_after(1.0):
            for number in range(1, 100_000):
                frame = names.FRAME_IDS.pack(number, number) + request
                await stream.send_all(pack_header(len(frame), names.REQUEST) + frame)
        dead = next(s for s in server.tree.sessions if s.client == "dies")
        assert dead.connection is not None
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await stream.aclose()
        await wait_for(lambda: dead.connection is None)
        await session.call(names.KeepAlive())

"""Recalls: a change is acknowledged when nobody relies on what it has changed."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from fdfs_storage.names.state import StateDamaged
from fdfsfuse.client.names import NamesSession
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import names
from tests.common.names_calls import (
    DIRECTORY,
    NOW,
    ROOT,
    exchange,
    make,
    plain_upload,
    status_of,
    store,
)
from tests.common.names_server import NamesServer, names_server
from tests.common.waiting import wait_for


class Holder:
    """A session that notes its recalls, and confirms them when *confirms*."""

    def __init__(self) -> None:
        self.recalls: list[names.Recall] = []
        self.confirms = True
        self.kept: list[int] = []
        self.session: NamesSession | None = None

    def push(self, push: names.Push) -> None:
        if isinstance(push, names.InSync):
            return
        assert isinstance(push, names.Recall)
        self.recalls.append(push)
        if self.confirms:
            self.confirm(push)

    def confirm(self, recall: names.Recall) -> None:
        assert self.session is not None
        self.session.recalled(recall.number, self.kept)

    def take(self) -> list[tuple[list[int], list[int], list[tuple[int, bytes]]]]:
        """What was recalled since the last time."""
        taken, self.recalls = self.recalls, []
        return [(sorted(r.attrs), r.content, sorted(r.names)) for r in taken]

    async def call(self, request: names.Request) -> Any:
        assert self.session is not None
        return await self.session.call(request)


@asynccontextmanager
async def holder(server: NamesServer) -> AsyncIterator[Holder]:
    found = Holder()
    async with server.session(on_push=found.push) as session:
        found.session = session
        yield found


async def test_each_change_recalls_what_it_touches(server: NamesServer) -> None:
    async with server.session() as other, holder(server) as held:
        d = await make(other, b"d", DIRECTORY)
        e = await make(other, b"e", DIRECTORY)
        a = await make(other, b"a", parent=d)

        async def hold() -> None:
            await held.call(names.ReadDir(d, 0, 100))
            await held.call(names.ReadDir(e, 0, 100))
            await held.call(names.ReadDir(ROOT, 0, 100))
            assert held.take() == []

        await hold()
        b = await make(other, b"b", parent=d)
        assert held.take() == [([d], [], [(d, b"b")])]
        await hold()
        await other.call(names.SetAttr(a, NOW, mode=0o600))
        assert held.take() == [([a], [], [])]
        await hold()
        await store(other, a, b"data")
        assert held.take() == [([a], [a], [])]
        await hold()
        await other.call(names.SetXattr(a, b"user.x", b"y", 0, NOW))
        assert held.take() == [([a], [], [])]
        await hold()
        await other.call(names.Rename(d, b"a", e, b"c", 0, NOW))
        assert held.take() == [([d, e, a], [], [(d, b"a"), (e, b"c")])]
        await hold()
        await other.call(names.Link(a, d, b"l", NOW))
        assert held.take() == [([d, a], [], [(d, b"l")])]
        await hold()
        await other.call(names.Rename(d, b"b", d, b"l", 0, NOW))
        assert held.take() == [(sorted([d, a, b]), [], [(d, b"b"), (d, b"l")])]
        await hold()
        await other.call(names.Remove(d, b"l", False, NOW))
        assert held.take() == [([d, b], [], [(d, b"l")])]
        # What was recalled is not held any more.
        await other.call(names.Create(d, b"new", 0o100644, 0, 0, NOW))
        assert held.take() == []


async def test_what_follows_an_opened_file_is_held(server: NamesServer) -> None:
    async with server.session() as other, holder(server) as held:
        d = await make(other, b"d", DIRECTORY)
        a, b = [await make(other, name, parent=d) for name in (b"a", b"b")]
        await store(other, b, b"old")
        opened = await held.call(names.Open(a, 100, 1))
        assert [(entry.name, entry.data) for entry in opened.following] == [(b"b", b"old")]
        await store(other, b, b"new")
        assert held.take() == [([b], [b], [])]
        await other.call(names.Rename(d, b"b", d, b"c", 0, NOW))
        assert held.take() == [([d], [], [(d, b"b"), (d, b"c")])]


async def test_xattrs_that_follow_others_are_held(server: NamesServer) -> None:
    async with server.session() as other, holder(server) as held:
        d = await make(other, b"d", DIRECTORY)
        a, b, c = [await make(other, name, parent=d) for name in (b"a", b"b", b"c")]
        assert (await held.call(names.ListXattrs(a, following=1))).following == {b: {}}
        for ino in (b, c):
            await other.call(names.SetXattr(ino, b"user.k", b"v", 0, NOW))
        assert held.take() == [([b], [], [])]


async def test_that_a_name_is_missing_is_held(server: NamesServer) -> None:
    async with server.session() as other, holder(server) as held:
        d = await make(other, b"d", DIRECTORY)
        assert await status_of(held.call(names.Lookup(d, b"x"))) == errno.ENOENT
        await make(other, b"x", parent=d)
        assert held.take() == [([d], [], [(d, b"x")])]


async def test_a_kept_directory_stays_held(server: NamesServer) -> None:
    async with server.session() as other, holder(server) as held:
        d = await make(other, b"d", DIRECTORY)
        await held.call(names.ReadDir(d, 0, 100))
        held.kept = [d]
        for name in (b"x", b"y"):
            await make(other, name, parent=d)
            assert held.take() == [([d], [], [(d, name)])]


async def test_own_changes_are_not_recalled(server: NamesServer) -> None:
    async with holder(server) as held:
        assert held.session is not None
        a = await make(held.session, b"a")
        await held.call(names.ReadDir(ROOT, 0, 100))
        await store(held.session, a, b"data")
        await held.call(names.Remove(ROOT, b"a", False, NOW))
        assert held.take() == []


async def test_an_answer_waits_and_reading_does_not(server: NamesServer) -> None:
    async with server.session() as other, holder(server) as held, server.session() as third:
        await held.call(names.ReadDir(ROOT, 0, 100))
        held.confirms = False
        async with trio.open_nursery() as nursery:
            done = trio.Event()

            async def create() -> None:
                await make(other, b"a")
                done.set()

            nursery.start_soon(create)
            await wait_for(lambda: bool(held.recalls))
            found = await third.call(names.Lookup(ROOT, b"a"))
            assert found.nlink == 1
            assert await held.call(names.GetAttr(found.ino)) == found
            assert not done.is_set()
            waiting = server.tree.sessions.get(other._session)
            assert waiting is not None
            heard = waiting.seen
            held.confirm(held.recalls[0])
            with trio.fail_after(60):
                await done.wait()
            assert waiting.seen > heard, "it has its whole lease to go on"


async def test_a_change_that_waits_is_not_answered_early_when_repeated(
    server: NamesServer,
) -> None:
    async with server.session() as other, holder(server) as held:
        await held.call(names.ReadDir(ROOT, 0, 100))
        held.confirms = False
        async with trio.open_nursery() as nursery:
            done = trio.Event()

            async def create() -> None:
                await make(other, b"a")
                done.set()

            nursery.start_soon(create)
            await wait_for(lambda: bool(held.recalls))
            other._disconnect()
            await wait_for(lambda: other.connected)
            # Answered behind the repeated request, if that was answered at once.
            await other.call(names.GetAttr(ROOT))
            assert not done.is_set()
            held.confirm(held.recalls[0])
            with trio.fail_after(60):
                await done.wait()


async def test_a_recall_outlives_the_connection(server: NamesServer) -> None:
    async with server.session() as other, holder(server) as held:
        await held.call(names.ReadDir(ROOT, 0, 100))
        held.confirms = False
        async with trio.open_nursery() as nursery:
            nursery.start_soon(make, other, b"a")
            await wait_for(lambda: bool(held.recalls))
            held.recalls.clear()
            held.confirms = True
            assert held.session is not None
            held.session._disconnect()
            with trio.fail_after(60):
                await wait_for(lambda: bool(held.recalls))


async def test_a_silent_session_is_waited_for_no_longer_than_its_lease(tmp_path: Path) -> None:
    async with (
        names_server(tmp_path, names_session_lease_s=0.5) as server,
        server.session() as other,
        holder(server) as held,
    ):
        await held.call(names.ReadDir(ROOT, 0, 100))
        held.confirms = False
        with trio.fail_after(60):
            await make(other, b"a")
        # Its hold is gone: the next change does not wait again.
        held.recalls.clear()
        await make(other, b"b")
        assert held.recalls == []


async def test_a_lease_is_waited_for_as_long_as_it_was_granted(tmp_path: Path) -> None:
    """Although the configuration says less since the restart, or since the one before."""
    async with names_server(tmp_path, names_session_lease_s=60.0) as server:
        body = names.encode(names.OpenSession(names.VERSION, 0, b"t" * 16, "test:/mnt:1"))
        assert await exchange(server, names.OPEN_SESSION, body) == 0
    for _ in range(2):
        async with names_server(tmp_path, names_session_lease_s=0.5) as server:
            (old,) = server.tree.sessions
            assert old.lease_s == 60.0
            async with server.session() as new:
                assert new.lease_s == 0.5
    async with names_server(tmp_path, names_session_lease_s=0.5) as server:
        (old,) = server.tree.sessions
        await server.tree.engine.change(old.end())
    async with names_server(tmp_path, names_session_lease_s=0.5):
        assert (tmp_path / "data/names/lease").read_text() == "0.5\n"
    (tmp_path / "data/names/lease").write_text("soon")
    with pytest.raises(StateDamaged, match="no number"):
        async with names_server(tmp_path):
            pass


async def test_a_session_may_ask_for_a_shorter_lease(server: NamesServer) -> None:
    held = Holder()
    async with (
        server.session() as other,
        server.session(on_push=held.push, lease_s=0.5) as session,
    ):
        held.session = session
        assert (session.lease_s, other.lease_s) == (0.5, 10.0)
        await held.call(names.ReadDir(ROOT, 0, 100))
        held.confirms = False
        with trio.fail_after(60):
            await make(other, b"a")


async def test_changes_of_objects_by_their_id_are_recalled(server: NamesServer) -> None:
    async with server.session() as other, holder(server) as held:
        file_id = await plain_upload(server, b"content")
        request = names.Adopt(file_id, ROOT, b"named", False, 0, 0, NOW)
        renamed: names.Renamed = await other.call(request)
        ino = renamed.moved.ino
        await held.call(names.ReadDir(ROOT, 0, 100))
        server.store.delete(server.tree.objects.locate(file_id))
        await wait_for(lambda: bool(held.recalls))
        assert held.take() == [([ROOT, ino], [ino], [(ROOT, b"named")])]


async def test_a_restarted_storage_waits_for_sessions_it_knows_nothing_of(tmp_path: Path) -> None:
    async with names_server(tmp_path) as server:
        port = server.port
        held = Holder()
        async with server.session(on_push=held.push) as one, server.session() as other:
            held.session = one
            number, token = one._session, one._token
            await one.call(names.ReadDir(ROOT, 0, 100))
            assert number
            other_number, other_token = other._session, other._token
            for session in (one, other):
                # It dies: no CloseSession.
                session._closed = True
                session._disconnect()
    async with names_server(tmp_path, port=port) as server:
        done = trio.Event()
        again = Holder()
        async with trio.open_nursery() as nursery:

            async def create() -> None:
                async with server.session() as session:
                    await make(session, b"a")
                    done.set()

            nursery.start_soon(create)
            await wait_for(lambda: len(server.tree.sessions) == 3)
            for session_number, session_token in ((number, token), (other_number, other_token)):
                await trio.sleep(0.05)
                assert not done.is_set()
                await _confirm_everything(server, session_number, session_token, again)
            with trio.fail_after(60):
                await done.wait()
    assert [recall.everything for recall in again.recalls] == [True, True]


async def _confirm_everything(server: NamesServer, number: int, token: bytes, held: Holder) -> None:
    """Take a session up and confirm the recall that comes with that."""
    async with server.session(on_push=held.push) as session:
        # Taking up the session of an earlier process.
        session._disconnect()
        await wait_for(lambda: not session.connected)
        session._session, session._token = number, token
        held.session = session
        before = len(held.recalls)
        await wait_for(lambda: len(held.recalls) > before)
        session._closed = True


async def test_too_many_holds_are_given_up(server: NamesServer) -> None:
    async with server.session() as other, holder(server) as held:
        inos = [await make(other, b"f%d" % i) for i in range(5)]
        server.tree.callbacks._holds.limit = 3
        await held.call(names.ReadDir(ROOT, 0, 100))
        await wait_for(lambda: bool(held.recalls))
        assert {ino for recall in held.recalls for ino in recall.unused} >= set(inos)
        await wait_for(lambda: not server.tree.callbacks._recalls)
        assert len(server.tree.callbacks._holds) <= 3
        held.recalls.clear()
        await other.call(names.SetAttr(inos[0], NOW, mode=0o600))
        assert held.recalls == []


async def test_sessions_that_do_not_answer_are_asked_once_to_give_up(
    server: NamesServer,
) -> None:
    async with server.session() as other, holder(server) as held:
        for number in range(5):
            await make(other, b"f%d" % number)
        held.confirms = False
        callbacks = server.tree.callbacks
        callbacks._holds.limit = 3
        for _ in range(20):
            await held.call(names.ReadDir(ROOT, 0, 100))
        assert len(held.recalls) == 1
        held.confirms = True
        held.confirm(held.recalls[0])
        await wait_for(lambda: not callbacks._recalls)
        await held.call(names.ReadDir(ROOT, 0, 100))
        await wait_for(lambda: len(held.recalls) == 2)


async def test_a_short_lease_is_not_waited_for_as_long_as_a_longer_one(tmp_path: Path) -> None:
    """The recall of the session with the longer lease was there first."""
    short, long = Holder(), Holder()
    async with (
        names_server(tmp_path, names_session_lease_s=600.0) as server,
        server.session() as other,
        server.session(on_push=long.push) as long.session,
        server.session(on_push=short.push, lease_s=0.5) as short.session,
        trio.open_nursery() as nursery,
    ):
        for name in (b"a", b"b"):
            await make(other, name)
        short.confirms = long.confirms = False
        await long.call(names.Lookup(ROOT, b"a"))
        a, b = [(await other.call(names.Lookup(ROOT, name))).ino for name in (b"a", b"b")]
        nursery.start_soon(other.call, names.SetAttr(a, NOW, mode=0o600))
        await wait_for(lambda: bool(long.recalls))
        await short.call(names.GetAttr(b))
        with trio.fail_after(20):
            await other.call(names.SetAttr(b, NOW, mode=0o600))
        # The change that waits for the longer lease is not over.
        assert server.tree.callbacks._deferred
        for recall in long.recalls:
            long.confirm(recall)


async def test_a_frame_without_id_must_be_a_confirmation(server: NamesServer) -> None:
    async with server.session() as session:
        refused = session._socket
        assert session._sending is not None
        session._sending.write(0, 0, names.encode(names.KeepAlive()))
        await wait_for(lambda: session._socket is not refused)
        with pytest.raises(StatusError):
            await session.call(names.Lookup(ROOT, b"none"))

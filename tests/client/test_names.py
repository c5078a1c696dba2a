"""The names session against scripted primaries that break off, end sessions and move."""

from __future__ import annotations

import errno
import logging
import random
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from msgspec.structs import replace

from fdfsfuse.client.names import NamesSession, boottime, open_session
from fdfsfuse.client.names.sending import PATIENT_AFTER
from fdfsfuse.client.views import Candidate, find_primary
from fdfsfuse.errors import (
    ConnectFailed,
    ConnectionProblem,
    DeadlineExceeded,
    NoNamesError,
    NoTreeError,
    ProtocolError,
    StatusError,
    UsageError,
)
from fdfsfuse.proto import names
from fdfsfuse.proto.header import pack_header
from tests.client.names_peer import ATTR, NamesPeer, Received, answer_to, finder
from tests.client.peers import Peer, PeerConnection, running_peer, unused_address
from tests.common.waiting import wait_for

LOOKUP = names.Lookup(1, b"a")
MKDIR = names.Create(1, b"d", 0o40755, 0, 0, 7)
GETATTR = names.GetAttr(5)


@asynccontextmanager
async def session_with(peer: NamesPeer, **options: Any) -> AsyncIterator[NamesSession]:
    """A session at one scripted primary."""
    async with running_peer(peer.handle) as running:
        find = finder((peer.storage_id, running))
        async with open_session(find, client="test", **options) as session:
            yield session


async def test_calls_and_statuses() -> None:
    peer = NamesPeer()
    peer.respond = lambda r: errno.ENOENT if r.request == GETATTR else answer_to(r.request)
    async with session_with(peer) as session:
        assert await session.call(LOOKUP) == ATTR
        with pytest.raises(StatusError) as info:
            await session.call(GETATTR)
        assert info.value.errno == errno.ENOENT
        assert await session.call(names.KeepAlive()) == names.Done()
        assert session.connected
        assert session.problem == ""
        assert session.view == peer.view
        assert 0 < session.lease.until - boottime() <= peer.lease_s
    assert [r.number for r in peer.received] == [1, 2, 3, 4]
    assert [r.done_below for r in peer.received] == [1, 2, 3, 4]
    assert peer.requests[-1] == names.CloseSession()
    assert peer.opened[0].client == "test"


async def test_answers_in_any_order_and_done_below() -> None:
    peer = NamesPeer()
    held: list[Received] = []

    def respond(received: Received) -> Any:
        if isinstance(received.request, names.Lookup):
            held.append(received)
            return None
        return answer_to(received.request)

    peer.respond = respond
    results: dict[bytes, names.Attr] = {}
    async with session_with(peer) as session, trio.open_nursery() as nursery:

        async def look(name: bytes) -> None:
            results[name] = await session.call(names.Lookup(1, name))

        for name in (b"a", b"b", b"c"):
            nursery.start_soon(look, name)
        await wait_for(lambda: len(held) == 3)
        await session.call(GETATTR)
        assert peer.received[-1].done_below == 1
        for received in reversed(held):
            assert isinstance(received.request, names.Lookup)
            named = replace(ATTR, ino=ord(received.request.name))
            await peer.answer(peer.connections[0], received.number, named)
        await wait_for(lambda: len(results) == 3)
        assert {name: attr.ino for name, attr in results.items()} == {b"a": 97, b"b": 98, b"c": 99}
        await session.call(GETATTR)
        assert peer.received[-1].done_below == peer.received[-1].number


async def test_changes_that_nobody_waits_for_may_be_left_until_somebody_does() -> None:
    peer = NamesPeer()
    made: list[Exception | None] = []
    async with session_with(peer) as session:
        await session.wait_connected()
        for _ in range(PATIENT_AFTER + 2):
            session.post(MKDIR, made.append)
        assert await session.call(LOOKUP) == ATTR
        for _ in range(PATIENT_AFTER + 1):
            session.post(MKDIR, made.append)
        session.hurry()
        session.hurry()
        await wait_for(lambda: len(made) == 2 * PATIENT_AFTER + 3)
        session.post(MKDIR, made.append)
        await session.call(LOOKUP)
    patient = [r.status == names.PATIENT for r in peer.received]
    hasty = [False] * PATIENT_AFTER
    assert patient == [*hasty, True, True, False, *hasty, True, False, False, False]
    first = PATIENT_AFTER + 3
    assert peer.padded == [first, first + PATIENT_AFTER + 1]
    assert made == [None] * (2 * PATIENT_AFTER + 4)


async def test_small_frames_are_neither_paced_nor_held_back() -> None:
    async with session_with(NamesPeer()) as session:
        await session.wait_connected()
        assert session._socket is not None
        used = session._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    assert used.rstrip(b"\0") == b"reno"


async def test_changes_that_were_made_are_told_together() -> None:
    peer = NamesPeer()
    peer.respond = lambda received: None
    ended: list[tuple[int, Exception | None]] = []
    async with session_with(peer) as session:
        await session.wait_connected()

        def end(number: int, error: Exception | None) -> None:
            ended.append((number, error))

        for number in range(1, 9):
            session.post(MKDIR, partial(end, number))
        await wait_for(lambda: len(peer.received) == 8)
        await peer.tell_made((1, 1), (3, 5))
        await peer.answer(peer.connections[-1], 7, errno.ENOSPC)
        await peer.tell_made((5, 6), (8, 100))
        await wait_for(lambda: len(ended) == 7)
    assert [number for number, _ in ended] == [1, 3, 4, 5, 7, 6, 8, 2]
    errors = dict(ended)
    assert isinstance(errors[7], StatusError)
    assert errors[7].errno == errno.ENOSPC
    assert isinstance(errors[2], UsageError), "closed before it was told"
    assert all(errors[number] is None for number in (1, 3, 4, 5, 6, 8))


@pytest.mark.parametrize(
    "body", [names.ID_RANGE.pack(1, 1), bytes(24)], ids=["no answer", "length"]
)
async def test_telling_what_makes_no_sense_costs_the_connection(body: bytes) -> None:
    peer = NamesPeer()

    def respond(received: Received) -> Any:
        return answer_to(received.request) if len(peer.connections) > 1 else None

    peer.respond = respond
    async with session_with(peer) as session:

        async def tell() -> None:
            await wait_for(lambda: len(peer.received) == 1)
            await peer.connections[-1].send(pack_header(len(body), names.MADE) + body)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(tell)
            assert await session.call(LOOKUP) == ATTR
    assert len(peer.connections) == 2


async def test_large_frames_both_ways() -> None:
    peer = NamesPeer()
    async with session_with(peer) as session:
        data = bytes(names.SMALL_CONTENT_MAX)
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(session.call, names.StoreContent(number, data, 1))
        stored = [r for r in peer.requests if isinstance(r, names.StoreContent)]
        assert sorted(r.ino for r in stored) == list(range(8))
        assert all(r.data == data for r in stored)
        opened = await session.call(names.Open(5, names.SMALL_CONTENT_MAX))
        assert opened.data == b"x" * names.SMALL_CONTENT_MAX


async def test_a_broken_connection_is_taken_up_and_asked_again() -> None:
    peer = NamesPeer()
    async with session_with(peer) as session:
        await session.call(LOOKUP)
        peer.break_on = [names.Create]
        assert await session.call(MKDIR) == ATTR
        assert len(peer.opened) == 2
        first, second = peer.opened
        assert (first.session, second.session) == (0, 1)
        assert first.token == second.token
        assert len(first.token) == 16
        creates = [r for r in peer.received if r.request == MKDIR]
        assert [r.number for r in creates] == [2, 2]


async def test_unanswered_calls_are_sent_again_in_order() -> None:
    peer = NamesPeer()
    peer.respond = lambda r: None
    requests = [
        names.Lookup(1, bytes((n,))) if n % 2 else names.Remove(1, bytes((n,)), False, n)
        for n in range(20)
    ]
    async with session_with(peer) as session, trio.open_nursery() as nursery:
        for request in requests:
            nursery.start_soon(session.call, request)
        await wait_for(lambda: len(peer.received) == 20)
        sent = [(r.number, r.request) for r in peer.received]
        peer.received.clear()
        peer.respond = lambda r: answer_to(r.request)
        await peer.disconnect()
        await wait_for(lambda: len(peer.received) == 20)
        assert [(r.number, r.request) for r in peer.received] == sent


async def test_calls_wait_for_a_connection_until_their_deadline() -> None:
    async def find() -> Sequence[Candidate]:
        raise ConnectFailed("cannot connect to the trackers")

    async with open_session(find, client="test") as session:
        started = trio.current_time()
        with pytest.raises(DeadlineExceeded, match="cannot connect to the trackers"):
            await session.call(LOOKUP, started + 0.1)
        assert 0.1 <= trio.current_time() - started < 30
        assert not session.connected


async def test_deadlines_in_any_order(mock_clock: trio.testing.MockClock) -> None:
    peer = NamesPeer()
    peer.respond = lambda r: None if r.request == LOOKUP else answer_to(r.request)
    late: list[float] = []
    async with session_with(peer) as session, trio.open_nursery() as nursery:
        await session.wait_connected()
        now = trio.current_time()

        async def look(seconds: float) -> None:
            with pytest.raises(DeadlineExceeded):
                await session.call(LOOKUP, now + seconds)
            late.append(seconds)

        for seconds in (3.0, 1.0, 2.0):
            nursery.start_soon(look, seconds)
        await trio.testing.wait_all_tasks_blocked()
        mock_clock.jump(0.5)
        for passed in (1.0, 2.0, 3.0):
            assert passed not in late
            mock_clock.jump(1)
            await trio.testing.wait_all_tasks_blocked()
            assert late[-1] == passed
        assert await session.call(GETATTR, now + 10) == ATTR
        assert peer.received[-1].done_below == 4
    assert len(peer.opened) == 1


async def test_a_call_cancelled_in_the_moment_of_its_answer() -> None:
    peer = NamesPeer()
    async with session_with(peer) as session:
        await session.wait_connected()
        peer.respond = lambda r: None
        scopes = [trio.CancelScope(), trio.CancelScope()]

        async def call(scope: trio.CancelScope) -> None:
            with scope:
                await session.call(LOOKUP)

        async with trio.open_nursery() as nursery:
            for sent, scope in enumerate(scopes):
                await wait_for(lambda sent=sent: len(peer.received) == sent)  # type: ignore[misc]
                nursery.start_soon(call, scope)
            await wait_for(lambda: len(peer.received) == 2)
            await trio.testing.wait_all_tasks_blocked()
            for number, scope in enumerate(scopes, 1):
                scope.cancel()
                # What arrives before the cancelled task has run.
                frame = names.ANSWER_ID.pack(number) + names.encode(ATTR)
                session._arriving.take(names.ANSWER, 0, frame)
        assert all(scope.cancelled_caught for scope in scopes)
        peer.respond = lambda r: answer_to(r.request)
        assert await session.call(LOOKUP) == ATTR
        assert len(peer.connections) == 1


async def test_a_mistake_of_the_listener_does_not_end_the_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    peer = NamesPeer()
    mistakes = [ZeroDivisionError()]

    def lease_lost() -> None:
        if mistakes:
            raise mistakes.pop()

    async with session_with(peer, on_lease_lost=lease_lost) as session:
        await session.call(LOOKUP)
        peer.ended.add(1)
        assert await session.call(MKDIR) == ATTR
        assert not mistakes
        assert "ZeroDivisionError" in caplog.text
    caplog.clear()


async def test_a_cancelled_call_leaves_the_session_usable() -> None:
    peer = NamesPeer()
    peer.respond = lambda r: None if r.request == MKDIR else answer_to(r.request)
    async with session_with(peer) as session:
        await session.wait_connected()
        with trio.move_on_after(0.05) as scope:
            await session.call(MKDIR)
        assert scope.cancelled_caught
        assert await session.call(LOOKUP) == ATTR
        await peer.answer(peer.connections[0], 1, ATTR)
        assert await session.call(LOOKUP) == ATTR
        await peer.disconnect()
        assert await session.call(GETATTR) == ATTR
        assert peer.requests.count(MKDIR) == 1


@pytest.mark.parametrize(
    ("found", "result", "made_again"),
    [
        (names.Outcome(names.encode(ATTR)), ATTR, False),
        (names.Outcome(None), ATTR, True),
        (errno.ENOENT, errno.EIO, False),
        (errno.EPERM, errno.EIO, False),
    ],
)
async def test_what_became_of_a_change_is_asked_in_a_new_session(
    found: Any, result: Any, made_again: bool
) -> None:
    peer = NamesPeer()
    peer.respond = lambda r: None

    def respond(received: Received) -> Any:
        request = received.request
        return found if isinstance(request, names.FormerOutcome) else answer_to(request)

    async with (
        session_with(peer) as session,
        trio.open_nursery() as nursery,
    ):
        results: dict[str, Any] = {}

        async def call(name: str, request: names.Request) -> None:
            try:
                results[name] = await session.call(request)
            except StatusError as exc:
                results[name] = exc.errno

        nursery.start_soon(call, "change", MKDIR)
        await wait_for(lambda: len(peer.received) == 1)
        nursery.start_soon(call, "read", LOOKUP)
        await wait_for(lambda: len(peer.received) == 2)
        peer.respond = respond
        peer.ended.add(1)
        await peer.disconnect()
        await wait_for(lambda: len(results) == 2)
        assert results == {"change": result, "read": ATTR}
        assert [o.session for o in peer.opened] == [0, 1, 0]
        assert peer.opened[2].token != peer.opened[0].token
        asked = names.FormerOutcome(1, peer.opened[0].token, 1)
        again = [(2, 3, MKDIR)] if made_again else []
        assert [(r.session, r.number, r.request) for r in peer.received[2:]] == [
            (2, 1, asked),
            (2, 2, LOOKUP),
            *again,
        ]


async def test_a_change_is_asked_for_over_several_sessions() -> None:
    peer = NamesPeer()
    peer.respond = lambda r: None
    async with session_with(peer) as session, trio.open_nursery() as nursery:
        results: list[Any] = []

        async def call() -> None:
            results.append(await session.call(MKDIR))

        nursery.start_soon(call)
        await wait_for(lambda: len(peer.received) == 1)
        for ended in (1, 2):
            peer.ended.add(ended)
            await peer.disconnect()
            count = ended + 1
            await wait_for(lambda count=count: len(peer.received) == count)  # type: ignore[misc]
        # Not done in the first session; the third one ends while it is done there.
        peer.respond = lambda r: (
            names.Outcome(None) if isinstance(r.request, names.FormerOutcome) else None
        )
        await peer.disconnect()
        await wait_for(lambda: len(peer.received) == 5)
        peer.respond = lambda r: names.Outcome(names.encode(ATTR))
        peer.ended.add(3)
        await peer.disconnect()
        await wait_for(lambda: bool(results))
        assert results == [ATTR]
        first, third = (
            names.FormerOutcome(s, peer.opened[o].token, i) for s, o, i in ((1, 0, 1), (3, 4, 2))
        )
        assert [(r.session, r.request) for r in peer.received] == [
            (1, MKDIR),
            (2, first),
            (3, first),
            (3, first),
            (3, MKDIR),
            (4, third),
        ]


async def test_a_change_refused_by_an_ended_session_is_made_in_a_new_one() -> None:
    peer = NamesPeer()
    async with session_with(peer) as session:
        await session.call(LOOKUP)
        peer.ended.add(1)
        assert await session.call(MKDIR) == ATTR
        assert [(r.session, r.request) for r in peer.received] == [
            (1, LOOKUP),
            (1, MKDIR),
            (2, names.FormerOutcome(1, peer.opened[0].token, 2)),
            (2, MKDIR),
        ]


async def test_the_primary_moves() -> None:
    old, new = NamesPeer("s1"), NamesPeer("s2")
    async with AsyncExitStack() as stack:
        running_old = await stack.enter_async_context(running_peer(old.handle))
        running_new = await stack.enter_async_context(running_peer(new.handle))
        find = finder(("s1", running_old), ("s2", running_new))
        new.primary = "s1"
        session = await stack.enter_async_context(open_session(find, client="test"))
        assert await session.call(LOOKUP) == ATTR
        assert session.address == running_old.address
        for peer in (old, new):
            peer.primary, peer.view_number = "s2", 2
        await old.push(names.NotPrimaryAnyMore())
        assert await session.call(GETATTR) == ATTR
        assert new.requests == [GETATTR]
        assert new.opened[0].session == 1
        assert session.address == running_new.address
        for peer in (old, new):
            peer.primary, peer.view_number = "s1", 3
        new.respond = lambda r: names.NOT_PRIMARY
        assert await session.call(MKDIR) == ATTR
        assert old.requests[-1] == MKDIR


async def test_the_primary_moves_while_it_is_written_to(caplog: pytest.LogCaptureFixture) -> None:
    peer = NamesPeer()
    store = names.StoreContent(5, bytes(names.SMALL_CONTENT_MAX), 1)

    def moved(_: Received) -> int:
        peer.respond = lambda received: answer_to(received.request)
        peer.connections[0].receive = trio.sleep_forever  # type: ignore[method-assign]
        return names.NOT_PRIMARY

    async with session_with(peer) as session:
        await session.wait_connected()
        peer.respond = moved
        async with trio.open_nursery() as nursery:
            nursery.start_soon(session.call, LOOKUP)
            for _ in range(16):
                nursery.start_soon(session.call, store)
        assert len(peer.connections) == 2
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def test_holds_are_repeated_first() -> None:
    peer = NamesPeer()
    held: list[int] = []
    async with session_with(peer, holds=lambda: held) as session:
        await session.call(LOOKUP)
        held += [7, 9]
        peer.break_on = [names.Create]
        await session.call(MKDIR)
        assert peer.requests == [LOOKUP, MKDIR, names.Holds([7, 9], []), MKDIR]


async def test_stock_servers_are_noticed() -> None:
    peer = NamesPeer()
    peer.stock = True
    async with session_with(peer) as session:
        with pytest.raises(NoNamesError):
            await session.call(LOOKUP)
        with pytest.raises(NoNamesError):
            await session.call(LOOKUP)
        with pytest.raises(NoNamesError):
            await session.wait_connected()


async def test_a_storage_that_has_no_tree_yet_is_asked_again() -> None:
    peer = NamesPeer()
    peer.treeless = True
    async with session_with(peer) as session:
        while "directory tree" not in session.problem:
            await session.wait_change()
        with pytest.raises(DeadlineExceeded, match="directory tree"):
            await session.call(LOOKUP, trio.current_time() + 0.2)
        peer.treeless = False
        assert await session.call(LOOKUP, trio.current_time() + 5) == ATTR


async def test_no_tree_is_what_all_storages_have_to_say() -> None:
    treeless, stock = NamesPeer(), NamesPeer()
    treeless.treeless, stock.stock = True, True
    async with running_peer(treeless.handle) as first, running_peer(stock.handle) as second:
        with pytest.raises(NoTreeError):
            await find_primary(finder(("1", first), ("2", first)))
        with pytest.raises(NoNamesError):
            await find_primary(finder(("1", first), ("2", second)))
        down = Peer(treeless.handle)
        down.address = await unused_address()
        with pytest.raises(ConnectionProblem) as caught:
            await find_primary(finder(("1", first), ("2", down)))
        assert type(caught.value) is ConnectionProblem


async def test_trackers_are_not_needed_to_take_a_session_up() -> None:
    peer = NamesPeer()
    async with running_peer(peer.handle) as running:
        answers = finder(("s1", running))
        down = False

        async def find() -> Sequence[Candidate]:
            if down:
                raise ConnectFailed("no tracker")
            return await answers()  # type: ignore[no-any-return]

        async with open_session(find, client="test") as session:
            await session.call(LOOKUP)
            down = True
            await peer.disconnect()
            assert await session.call(GETATTR) == ATTR


async def test_an_idle_session_is_kept_alive() -> None:
    peer = NamesPeer(lease_s=0.3)
    async with session_with(peer) as session:
        await session.call(LOOKUP)
        until = session.lease.until
        await wait_for(lambda: peer.requests.count(names.KeepAlive()) >= 3)
        await wait_for(lambda: session.lease.until > until + 0.2)
        assert session.lease.until > boottime()
        assert len(peer.opened) == 1


async def test_a_silent_primary_is_left() -> None:
    peer = NamesPeer(lease_s=0.3)
    async with session_with(peer) as session:
        await session.call(LOOKUP)
        peer.respond = lambda r: None
        await wait_for(lambda: len(peer.opened) == 2)
        peer.respond = lambda r: answer_to(r.request)
        assert await session.call(GETATTR) == ATTR


Script = Callable[[PeerConnection], Awaitable[None]]


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 64,
        b"\0" * 8 + bytes((names.ANSWER, 0)),
        b"\0" * 7 + bytes((8, 77, 0)) + b"\0" * 8,
        b"\0" * 7 + bytes((9, names.PUSH, 0)) + b"\0" * 9,
    ],
    ids=["length", "no id", "command", "push"],
)
async def test_garbage_costs_the_connection_only(garbage: bytes) -> None:
    peer = NamesPeer()
    async with session_with(peer) as session:
        await session.call(LOOKUP)
        await peer.connections[-1].send(garbage)
        await wait_for(lambda: len(peer.opened) == 2)
        assert await session.call(LOOKUP) == ATTR


async def test_an_answer_of_another_type_is_an_error_of_its_call() -> None:
    peer = NamesPeer()
    peer.respond = lambda r: names.Done() if r.request == LOOKUP else answer_to(r.request)
    async with session_with(peer) as session:
        with pytest.raises(ProtocolError):
            await session.call(LOOKUP)
        assert await session.call(GETATTR) == ATTR


async def test_leaving_fails_what_is_open() -> None:
    peer = NamesPeer()
    peer.respond = lambda r: None if r.request == LOOKUP else answer_to(r.request)
    async with running_peer(peer.handle) as running, trio.open_nursery() as nursery:
        async with open_session(finder(("s1", running)), client="test") as session:

            async def look() -> None:
                with pytest.raises(UsageError):
                    await session.call(LOOKUP)

            nursery.start_soon(look)
            await wait_for(lambda: len(peer.received) == 1)
        with pytest.raises(UsageError):
            await session.call(LOOKUP)


async def test_the_blocks_own_error_comes_through_bare() -> None:
    async with running_peer(NamesPeer().handle) as running:
        with pytest.raises(KeyError, match="mine"):
            await _raise_inside(finder(("s1", running)))


async def _raise_inside(find: Callable[[], Any]) -> None:
    async with open_session(find, client="test"):
        raise KeyError("mine")


@pytest.mark.parametrize("seed", range(4))
async def test_every_call_gets_its_own_answer_whatever_breaks(seed: int) -> None:
    """Lone and concurrent calls, cancelled ones, and connections that break at any moment."""
    chance = random.Random(seed)
    peer = NamesPeer()
    peer.respond = lambda r: replace(ATTR, ino=getattr(r.request, "parent", 0))
    answered = 0

    async def caller(session: NamesSession, number: int) -> None:
        nonlocal answered
        for step in range(40):
            parent = number * 1000 + step + 2
            with trio.move_on_after(chance.choice([0.0005, 60, 60, 60])) as scope:
                attr = await session.call(names.Lookup(parent, b"x"))
                assert attr.ino == parent
                answered += 1
            assert scope.cancelled_caught or attr.ino == parent
            if chance.random() < 0.3:
                await trio.sleep(chance.uniform(0, 0.01))

    async def breaker() -> None:
        while True:
            await trio.sleep(chance.uniform(0.005, 0.03))
            if peer.connections:
                await peer.disconnect()

    async with session_with(peer) as session:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(breaker)
                for callers in (1, 5):
                    async with trio.open_nursery() as calling:
                        for number in range(callers):
                            calling.start_soon(caller, session, number)
                nursery.cancel_scope.cancel()
            assert answered > 100
            assert await session.call(names.Lookup(7, b"x")) == replace(ATTR, ino=7)


async def test_a_push_between_lone_calls_is_read() -> None:
    peer = NamesPeer()
    pushed: list[names.Push] = []
    async with session_with(peer, on_push=pushed.append) as session:
        await session.call(LOOKUP)
        await session.call(LOOKUP)
        await peer.push(names.NotPrimaryAnyMore())
        await wait_for(lambda: len(peer.opened) == 2)
        assert pushed == [names.NotPrimaryAnyMore()]
        assert await session.call(GETATTR) == ATTR

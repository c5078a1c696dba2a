"""Waiting inside a task: it ends whenever anybody else has something to do."""

from __future__ import annotations

import os
import queue
import signal
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from typing import Any

import pytest
import trio
import trio.lowlevel
import trio.testing
from outcome import Outcome

from fdfsfuse.client import connection as connection_module
from fdfsfuse.client import directwait
from fdfsfuse.client.connection import connect
from fdfsfuse.client.directwait import DirectWait
from fdfsfuse.client.names import NamesSession, open_session, reading
from fdfsfuse.errors import DeadlineExceeded
from fdfsfuse.proto import names
from tests.client.names_peer import ATTR, NamesPeer, answer_to, finder
from tests.client.peers import Peer, running_peer
from tests.common.waiting import wait_for

LONG_S = 3600.0
LOOKUP = names.Lookup(1, b"a")


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ends = socket.socketpair()
    for end in ends:
        end.setblocking(False)
    yield ends
    for end in ends:
        end.close()


Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def long_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits are not ended by time, so that tests show what does end them."""
    monkeypatch.setattr(directwait, "_LONGEST_S", LONG_S)
    monkeypatch.setattr(directwait, "_OVERTIME_S", 0.0)
    monkeypatch.setattr(directwait, "_IN_VAIN_MAX", 1)


def direct_wait() -> DirectWait:
    directwait.install()
    direct = directwait.installed()
    assert direct is not None
    return direct


async def alone() -> None:
    """Begin a pass of the loop in which only this task can run."""
    await trio.testing.wait_all_tasks_blocked()
    await trio.lowlevel.checkpoint()


async def send_later(sock: socket.socket) -> None:
    """From a thread, that is, while the task waits."""
    threading.Timer(0.05, sock.send, (b"x",)).start()
    await alone()


@pytest.mark.usefixtures("long_waits")
async def test_the_descriptor_becomes_readable(pair: Pair) -> None:
    watch = direct_wait().watch(pair[0].fileno())
    await send_later(pair[1])
    with trio.testing.assert_no_checkpoints():
        assert watch.wait(LONG_S)
    assert pair[0].recv(10) == b"x"
    assert not watch.wait(0.001)


@pytest.mark.usefixtures("long_waits")
async def test_nobody_waits_while_others_can_run(pair: Pair) -> None:
    watch = direct_wait().watch(pair[0].fileno())
    pair[1].send(b"x")
    await alone()
    assert watch.wait(LONG_S)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
        assert not watch.wait(LONG_S)
    # Two tasks that run in the same pass of the loop: the first must not hold up the second.
    waited = []

    async def one_of_two() -> None:
        await trio.lowlevel.checkpoint()
        waited.append(watch.wait(LONG_S))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(one_of_two)
        nursery.start_soon(one_of_two)
    assert waited == [False, False]


@contextmanager
def again_and_again(function: Callable[[], object]) -> Iterator[None]:
    """Call *function* in a thread, so that it is called during whatever wait there is."""
    stop = threading.Event()

    def work() -> None:
        while not stop.wait(0.02):
            function()

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@pytest.mark.usefixtures("long_waits")
async def test_what_others_wait_for_ends_a_wait(pair: Pair) -> None:
    """A descriptor, a thread, a signal, a deadline."""
    watch = direct_wait().watch(pair[0].fileno())
    token = trio.lowlevel.current_trio_token()
    ours, theirs = socket.socketpair()

    async def receive() -> None:
        while True:
            await trio.lowlevel.wait_readable(ours)
            ours.recv(1)

    async def tick() -> None:
        while True:  # noqa: ASYNC110 (that time passes is the point)
            await trio.sleep(0.02)

    with ours, theirs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(receive)
            with again_and_again(lambda: theirs.send(b"x")):
                await alone()
                assert not watch.wait(LONG_S)
            nursery.cancel_scope.cancel()
    with again_and_again(lambda: token.run_sync_soon(lambda: None)):
        await alone()
        assert not watch.wait(LONG_S)
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        with again_and_again(lambda: os.kill(os.getpid(), signal.SIGUSR1)):
            await alone()
            assert not watch.wait(LONG_S)
        await trio.testing.wait_all_tasks_blocked()  # what is left of them is counted as one
        async for number in signals:
            assert number == signal.SIGUSR1
            break
    async with trio.open_nursery() as nursery:
        nursery.start_soon(tick)
        await alone()
        assert not watch.wait(LONG_S)
        nursery.cancel_scope.cancel()


@pytest.mark.usefixtures("long_waits")
async def test_a_request_ends_other_waits(pair: Pair) -> None:
    direct = direct_wait()
    requests = socket.socketpair()
    try:
        before = direct.watch(pair[0].fileno())
        served = direct.watch_requests(requests[0].fileno())
        after = direct.watch(pair[0].fileno())
        for watch in (before, after):
            await send_later(requests[1])
            assert not watch.wait(LONG_S)
            assert served.wait(LONG_S)
            requests[0].recv(1)
        before.close()
        after.close()
    finally:
        for sock in requests:
            sock.close()


@pytest.mark.usefixtures("long_waits")
async def test_requests_are_not_served_while_others_have_something_to_do(pair: Pair) -> None:
    requests = socket.socketpair()
    try:
        served = direct_wait().watch_requests(requests[0].fileno())
        requests[1].send(b"x")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, pair[0])
            await alone()
            assert served.wait(LONG_S)
            pair[1].send(b"x")
            assert not served.wait(LONG_S)
    finally:
        for sock in requests:
            sock.close()


@contextmanager
def shared_with(answers: socket.socket) -> Iterator[socket.socket]:
    """Something shared: what is sent to the socket is received, and answered by *answers*."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with ours, theirs:
        watch = direct_wait().watch(ours.fileno())
        watch.share(lambda: answers.send(ours.recv(10)))
        try:
            yield theirs
        finally:
            watch.close()


@pytest.mark.usefixtures("long_waits")
@pytest.mark.parametrize("shared_first", [True, False])
@pytest.mark.parametrize("requests", [False, True])
async def test_what_is_shared_is_received_in_other_waits(
    pair: Pair, shared_first: bool, requests: bool
) -> None:
    direct = direct_wait()
    with ExitStack() as stack:
        if shared_first:
            theirs = stack.enter_context(shared_with(pair[1]))
        fd = pair[0].fileno()
        watch = direct.watch_requests(fd) if requests else direct.watch(fd)
        if not shared_first:
            theirs = stack.enter_context(shared_with(pair[1]))
        for _ in range(2):
            await send_later(theirs)
            with trio.testing.assert_no_checkpoints():
                assert watch.wait(LONG_S)
            assert pair[0].recv(10) == b"x"
    # What was closed is not looked at any more: the numbers are used again for something else.
    await send_later(pair[1])
    assert watch.wait(LONG_S)


@pytest.mark.usefixtures("long_waits")
async def test_what_is_shared_may_give_others_something_to_do(pair: Pair) -> None:
    direct = direct_wait()
    ours, theirs = socket.socketpair()
    lot = trio.lowlevel.ParkingLot()
    with ours, theirs:
        shared = direct.watch(ours.fileno())
        shared.share(lambda: lot.unpark_all() if ours.recv(10) else None)
        served = direct.watch_requests(pair[0].fileno())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(lot.park)
            await send_later(theirs)
            assert not served.wait(LONG_S)
        shared.close()


async def test_the_loop_runs_now_and_then(pair: Pair) -> None:
    """Although there is always something to read."""
    watch = direct_wait().watch(pair[0].fileno())
    pair[1].send(b"x")
    served = 0
    while not served:
        await alone()
        while watch.wait(LONG_S):
            served += 1


async def test_another_trio_waits_in_its_own_way(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> Any:
        raise AttributeError("no such thing")

    monkeypatch.setattr(directwait, "_inside_trio", missing)
    directwait.install()
    assert directwait.installed() is None


async def test_once_is_enough() -> None:
    direct = direct_wait()
    assert direct_wait() is direct


def test_a_guest_waits_in_its_own_way() -> None:
    """The loop around it may have something to do of which trio does not know."""
    loop: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    ended: list[Outcome[bool]] = []

    async def main() -> bool:
        directwait.install()
        await trio.sleep(0.01)
        return directwait.installed() is None

    trio.lowlevel.start_guest_run(
        main, run_sync_soon_threadsafe=loop.put, done_callback=ended.append
    )
    while not ended:
        loop.get()()
    assert ended[0].unwrap()


async def test_waits_in_vain_are_given_up_for_a_while(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(directwait, "_LONGEST_S", LONG_S)
    watch = direct_wait().watch(pair[0].fileno())
    pair[1].send(b"x")
    await alone()
    assert watch.wait(LONG_S)
    pair[0].recv(1)
    for _ in range(5):
        await alone()
        assert not watch.wait(0.0001)
    pair[1].send(b"x")
    tried = 0
    while not watch.wait(LONG_S):
        tried += 1
        await alone()
    assert tried > 0
    await alone()
    assert watch.wait(LONG_S)


# --- sessions and connections that wait so --------------------------------------------------------


@asynccontextmanager
async def peer_in_a_thread(handler: Callable[..., Awaitable[None]]) -> AsyncIterator[Peer]:
    """A peer that works while this thread's loop stands still."""
    running: list[tuple[Peer, trio.CancelScope, trio.lowlevel.TrioToken]] = []
    ready = threading.Event()

    async def main() -> None:
        with trio.CancelScope() as scope:
            async with running_peer(handler) as peer:
                running.append((peer, scope, trio.lowlevel.current_trio_token()))
                ready.set()
                await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    await trio.to_thread.run_sync(ready.wait)
    peer, scope, token = running[0]
    try:
        yield peer
    finally:
        token.run_sync_soon(scope.cancel)
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(thread.join)


def lasting_peer() -> NamesPeer:
    """The session's timer has nothing to do as long as a test takes."""
    return NamesPeer(lease_s=10 * LONG_S)


@asynccontextmanager
async def direct_session(peer: NamesPeer, **options: Any) -> AsyncIterator[NamesSession]:
    direct_wait()
    async with peer_in_a_thread(peer.handle) as running:
        find = finder((peer.storage_id, running))
        async with open_session(find, client="test", **options) as session:
            await session.wait_connected()
            yield session


@pytest.fixture
def patient_calls(monkeypatch: pytest.MonkeyPatch, long_waits: None) -> None:
    monkeypatch.setattr(reading, "DIRECT_S", LONG_S)
    monkeypatch.setattr(connection_module, "DIRECT_S", LONG_S)


async def call_directly(session: NamesSession, request: names.Request) -> Any:
    """A call whose answer comes without a turn of the loop."""
    await alone()
    with trio.testing.assert_no_checkpoints():
        return await session.call(request)


@pytest.mark.usefixtures("patient_calls")
async def test_a_lone_call_needs_no_turn_of_the_loop() -> None:
    async with direct_session(lasting_peer()) as session:
        for _ in range(3):
            assert await call_directly(session, LOOKUP) == ATTR


@pytest.mark.usefixtures("patient_calls")
async def test_answers_are_read_by_who_waits_for_requests(pair: Pair) -> None:
    """So that nobody is woken for those that nobody waits for."""
    async with direct_session(lasting_peer()) as session:
        served = direct_wait().watch_requests(pair[0].fileno())

        def ended(error: Exception | None) -> None:
            pair[1].send(repr(error).encode())

        for _ in range(3):
            await alone()
            with trio.testing.assert_no_checkpoints():
                session.post(LOOKUP, ended)
                assert served.wait(LONG_S)
            assert pair[0].recv(10) == b"None"


@pytest.mark.usefixtures("patient_calls")
async def test_a_recall_before_the_answer_is_heard_before_it() -> None:
    peer = lasting_peer()
    recall = names.Recall(1, [5], [], [], [], False)
    heard: list[names.Push] = []

    plain_answer = peer.answer

    async def answer(connection: Any, number: int, answer: Any) -> None:
        if not heard:
            await peer.push(recall)
        await plain_answer(connection, number, answer)

    peer.answer = answer  # type: ignore[method-assign]
    async with direct_session(peer, on_push=heard.append) as session:
        assert await call_directly(session, LOOKUP) == ATTR
        assert heard == [recall]
        assert await call_directly(session, LOOKUP) == ATTR


@pytest.mark.usefixtures("patient_calls")
async def test_a_connection_that_breaks_in_a_direct_wait_is_made_again() -> None:
    peer = lasting_peer()
    peer.break_on = [names.Lookup]
    async with direct_session(peer) as session:
        await alone()
        assert await session.call(LOOKUP) == ATTR
        assert len(peer.opened) == 2
        assert await call_directly(session, LOOKUP) == ATTR


@pytest.mark.usefixtures("patient_calls")
async def test_the_answer_to_a_request_needs_no_turn_of_the_loop() -> None:
    async def answer(connection: Any) -> None:
        while True:
            request = await connection.receive()
            await connection.answer(request.body * 100_000)

    direct_wait()
    async with peer_in_a_thread(answer) as peer:
        connection = await connect(peer.address)
        for body in (b"", b"a"):
            await alone()
            with trio.testing.assert_no_checkpoints():
                assert await connection.request(11, body) == body * 100_000
        connection.close()


async def test_a_silent_server_holds_nobody_up() -> None:
    peer = lasting_peer()
    peer.respond = lambda r: None if r.request == LOOKUP else answer_to(r.request)
    turns = 0

    async def work() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    async with direct_session(peer) as session, trio.open_nursery() as nursery:
        nursery.start_soon(work)
        with pytest.raises(DeadlineExceeded):
            await session.call(LOOKUP, trio.current_time() + 0.1)
        nursery.cancel_scope.cancel()
    assert turns > 1


async def test_calls_side_by_side_and_alone() -> None:
    """Whoever reads: each gets its answer."""
    peer = lasting_peer()
    got: list[Any] = []

    async def caller(session: NamesSession) -> None:
        for _ in range(20):
            got.append(await session.call(LOOKUP))
            await trio.lowlevel.checkpoint()

    async with direct_session(peer) as session:
        for count in (1, 2, 5):
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(caller, session)
    assert got == [ATTR] * 160


async def test_a_push_between_direct_calls_is_read() -> None:
    peer = lasting_peer()
    pushed: list[names.Push] = []
    pushing = names.NotPrimaryAnyMore()
    plain_answer = peer.answer

    async def answer(connection: Any, number: int, answer: Any) -> None:
        await plain_answer(connection, number, answer)
        if len(peer.opened) == 1:
            await peer.push(pushing)

    peer.answer = answer  # type: ignore[method-assign]
    async with direct_session(peer, on_push=pushed.append) as session:
        await alone()
        assert await session.call(LOOKUP) == ATTR
        await wait_for(lambda: len(peer.opened) == 2)
        assert pushed == [pushing]

"""The hub: small requests answered without a task, the others handed over with what has arrived."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace

import pytest
import trio

from fdfsfuse.proto.header import HEADER_SIZE
from fdfsfuse.server import hub, tcp
from fdfsfuse.server.connection import FramedConnection
from fdfsfuse.server.hub import EndConnection
from fdfsfuse.server.tcp import TcpServer, open_listeners
from tests.common.streams import receive
from tests.common.waiting import wait_for

ECHO, REFUSE, FAIL, SLOW, WAKE, LARGE, WATCH = range(1, 8)
ENOUGH = 8
LARGE_SIZE = 8 << 20


def packet(body: bytes, command: int = ECHO) -> bytes:
    return len(body).to_bytes(8, "big") + bytes([command, 0]) + body


class Service:
    """ECHO is answered at once or, when it is not there as a whole, with an ``s`` in front."""

    def __init__(self) -> None:
        self.slow = 0
        self.pause_s = 0.0
        self.kept: FramedConnection | None = None
        self.pieces: list[bytes] = []
        self.met = threading.Barrier(2)
        self.take: socket.socket
        self.taken: list[bytes] = []
        self.woken = trio.Event()

    def answer(
        self, connection: FramedConnection, command: int, flags: int, body: bytes
    ) -> bytes | None:
        if command == REFUSE:
            raise EndConnection(b"refused")
        if command == FAIL:
            raise RuntimeError("a mistake of ours")
        if command in (SLOW, WATCH):
            return None
        if command == WAKE:
            self.woken.set()
        if command == LARGE:
            return bytes(LARGE_SIZE)
        return b"+" + body

    async def serve(self, connection: FramedConnection) -> None:
        while (header := await connection.recv_header(wait=False)) is not None:
            self.slow += 1
            if header.command == WATCH:
                await self.keep(connection)
                return
            await connection.send(b"-" + await connection.recv_exactly(header.length))

    async def keep(self, connection: FramedConnection) -> None:
        """Send back what comes, from the hub, until it ends with a dot; pause after a comma.

        After an exclamation mark meet somebody twice, after a question mark take from a socket.
        """
        ended = trio.Event()
        self.kept = connection

        def readable() -> None:
            data = connection.sock.recv(100)
            if not data or data.endswith(b"."):
                connection.hub.unwatch(connection)
                ended.set()
            elif data.endswith(b"!"):
                self.met.wait(30)
                self.met.wait(30)
            elif data.endswith(b"?"):
                self.taken.append(self.take.recv(100))
            elif data.endswith(b","):
                connection.hub.pause(connection, self.pause_s, ENOUGH)
            self.pieces.append(data)
            connection.sock.send(data)

        connection.hub.watch(connection, readable)
        await connection.send(connection.take_buffered())
        try:
            await ended.wait()
        finally:
            connection.hub.unwatch(connection)


class Running:
    """A server and its clients."""

    def __init__(self, service: Service, server: TcpServer, port: int) -> None:
        self.service = service
        self.server = server
        self.port = port

        self.clients: list[Client] = []

    async def connect(self) -> Client:
        client = Client(await trio.open_tcp_stream("127.0.0.1", self.port))
        self.clients.append(client)
        return client


class Client:
    """A connection."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive(self, count: int) -> bytes:
        return await receive(self.stream, count)

    async def ask(self, body: bytes, command: int = ECHO) -> bytes:
        await self.send(packet(body, command))
        return await self.receive(1 + len(body))


@pytest.fixture(params=["inside trio", "beside trio"], autouse=True)
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything holds as well with a trio whose inside is not known."""
    if request.param == "beside trio":
        monkeypatch.setattr(hub, "_inside_trio", lambda: None)


@asynccontextmanager
async def running(
    *, stopping: trio.Event | None = None, network_timeout_s: float = 30.0
) -> AsyncIterator[Running]:
    service = Service()
    server = TcpServer(
        service.serve, service.answer, network_timeout_s=network_timeout_s, max_connections=300
    )
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:

            async def serve(task_status: trio.TaskStatus[int]) -> None:
                listeners = open_listeners(["127.0.0.1"])
                await server.serve(listeners, stopping=stopping, task_status=task_status)

            made = Running(service, server, await nursery.start(serve))
            try:
                yield made
            finally:
                for client in made.clients:
                    client.stream.socket.close()
                if stopping is None:
                    nursery.cancel_scope.cancel()


async def closed(client: Client) -> bool:
    """True when the server has ended the connection."""
    try:
        return await client.stream.receive_some(1) == b""
    except trio.BrokenResourceError:
        return True


def test_the_inside_of_this_trio_is_known() -> None:
    async def main() -> bool:
        return hub._inside_trio() is not None

    if hub._inside_trio.__name__ == "_inside_trio":  # not the replacement of `both_ways`
        assert trio.run(main)


async def test_whole_requests_need_no_task() -> None:
    async with running() as it:
        clients = [await it.connect() for _ in range(20)]
        for number in range(10):
            for client in clients:
                assert await client.ask(b"%d" % number) == b"+%d" % number
        assert it.service.slow == 0


async def test_what_the_hub_cannot_answer_is_handed_over_and_comes_back() -> None:
    async with running() as it:
        client = await it.connect()
        assert await client.ask(b"a", SLOW) == b"-a"
        assert await client.ask(b"b") == b"+b"
        large = b"x" * (hub.BUFFER_SIZE + 1)
        assert await client.ask(large) == b"-" + large
        assert await client.ask(b"c") == b"+c"
        assert it.service.slow == 2


@pytest.mark.parametrize("cut", [1, HEADER_SIZE - 1, HEADER_SIZE, HEADER_SIZE + 1])
async def test_a_request_in_two_pieces(cut: int) -> None:
    async with running() as it:
        client = await it.connect()
        data = packet(b"one") + packet(b"two")
        first = len(packet(b"one")) + cut
        await client.send(data[:first])
        assert await client.receive(4) == b"+one"
        await client.send(data[first:])
        assert (await client.receive(4))[1:] == b"two"
        assert await client.ask(b"three") == b"+three"


async def test_many_requests_at_once_are_answered_in_order() -> None:
    async with running() as it:
        client = await it.connect()
        bodies = [b"%05d" % number for number in range(2000)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, b"".join(map(packet, bodies)))
            answers = await client.receive(len(bodies) * 6)
        assert [answers[at + 1 : at + 6] for at in range(0, len(answers), 6)] == bodies


async def test_a_client_that_is_slow_to_take_its_answer_gets_it_whole() -> None:
    async with running() as it:
        slow, other = await it.connect(), await it.connect()
        await slow.send(packet(b"", LARGE) + packet(b"next"))
        for _ in range(5):
            assert await other.ask(b"quick") == b"+quick"
        answer = await slow.receive(LARGE_SIZE + 5)
        assert answer[:LARGE_SIZE] == bytes(LARGE_SIZE)
        assert answer[LARGE_SIZE + 1 :] == b"next"


async def test_a_refusal_arrives_before_the_connection_ends() -> None:
    async with running() as it:
        client = await it.connect()
        await client.send(packet(b"", REFUSE) + b"more that nobody reads")
        assert await client.receive(7) == b"refused"
        assert await closed(client)
        other = await it.connect()
        assert await other.ask(b"x") == b"+x"


async def test_a_mistake_of_ours_costs_one_connection(caplog: pytest.LogCaptureFixture) -> None:
    async with running() as it:
        client, other = await it.connect(), await it.connect()
        assert await other.ask(b"x") == b"+x"
        await client.send(packet(b"", FAIL))
        assert await closed(client)
        assert await other.ask(b"y") == b"+y"
    assert [r.message for r in caplog.records if r.levelno >= logging.ERROR] == [
        "error while serving 127.0.0.1; its connection is closed"
    ]


async def test_clients_that_go_away_are_forgotten() -> None:
    async with running() as it:
        clients = [await it.connect() for _ in range(5)]
        for client in clients:
            assert await client.ask(b"x") == b"+x"
            await client.stream.aclose()
        reset = await it.connect()
        assert await reset.ask(b"x") == b"+x"
        linger = b"\1\0\0\0\0\0\0\0"
        reset.stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        reset.stream.socket.close()
        await wait_for(lambda: not it.server.connections)


async def test_silence_ends_a_connection_before_its_first_request_only() -> None:
    async with running(network_timeout_s=1.0) as it:
        used = await it.connect()
        assert await used.ask(b"x") == b"+x"
        silent = await it.connect()
        assert await closed(silent)
        await trio.sleep(0.6)  # so that it is longer for the used one, too
        assert await used.ask(b"y") == b"+y"
        begun = await it.connect()
        await begun.send(packet(b"whole")[:5])
        assert await closed(begun)


async def test_the_loop_goes_on_under_a_flood() -> None:
    """Timers, threads and tasks woken by an answer come to their turn while requests arrive."""
    async with running() as it:
        client = await it.connect()
        asked = 0
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                # In a thread, so that our own loop has nothing to do but to serve.
                nonlocal asked
                address = ("127.0.0.1", it.port)
                with socket.create_connection(address, timeout=120) as sock:

                    def ask() -> None:
                        sock.sendall(packet(b"ping"))
                        assert sock.recv(100) == b"+ping"

                    def several() -> None:
                        for _ in range(500):
                            ask()

                    while True:
                        await trio.to_thread.run_sync(several)
                        asked += 500

            nursery.start_soon(flood)
            await wait_for(lambda: asked >= 500)
            for _ in range(5):
                assert await trio.to_thread.run_sync(lambda: 1) == 1
            await client.send(packet(b"", WAKE))
            await it.service.woken.wait()
            nursery.cancel_scope.cancel()


async def test_a_connection_that_a_task_keeps_is_watched() -> None:
    async with running() as it:
        other, kept = await it.connect(), await it.connect()
        await kept.send(packet(b"", WATCH))
        for number in range(20):
            await kept.send(b"%02d" % number)
            assert await kept.receive(2) == b"%02d" % number
            assert await other.ask(b"x") == b"+x"
        await kept.send(b"end.")
        assert await kept.receive(4) == b"end."
        assert await closed(kept)
        assert it.service.slow == 1


async def test_who_takes_what_a_task_waits_for_does_not_let_the_hub_sleep(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tcp, "_SWEEP_S", 3600.0)  # no timer is to wake trio
    async with running(network_timeout_s=7200.0) as it:
        it.service.take, others = socket.socketpair()
        kept, other = await it.connect(), await it.connect()
        await kept.send(packet(b"", WATCH) + b"begin")
        assert await kept.receive(5) == b"begin"

        def ask() -> bytes:
            # In a thread, so that trio has nothing to do when the answers arrive.
            to_kept = socket.socket(fileno=os.dup(kept.stream.socket.fileno()))
            to_other = socket.socket(fileno=os.dup(other.stream.socket.fileno()))
            with others, to_kept, to_other:
                for sock in (to_kept, to_other):
                    sock.settimeout(20)
                to_kept.send(b"!")
                it.service.met.wait(30)
                others.send(b"for the task")
                to_kept.send(b"?")
                it.service.met.wait(30)
                assert to_kept.recv(1) + to_kept.recv(1) == b"!?"
                to_other.send(packet(b"x"))
                return to_other.recv(2)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.lowlevel.wait_readable, it.service.take)
            assert await trio.to_thread.run_sync(ask) == b"+x"
            nursery.cancel_scope.cancel()
        it.service.take.close()
        assert it.service.taken == [b"for the task"]


@pytest.mark.parametrize("end", ["enough", "time", "end of the connection"])
async def test_what_arrives_in_a_pause_gathers(end: str, monkeypatch: pytest.MonkeyPatch) -> None:
    passed = 0.0
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed)
    monkeypatch.setattr(hub, "time", clock)
    async with running() as it:
        kept = await it.connect()
        it.service.pause_s = 3600.0
        await kept.send(packet(b"", WATCH))
        await wait_for(lambda: it.service.slow == 1)  # what comes with it is not for the hub
        await kept.send(b"1,")
        assert await kept.receive(2) == b"1,"
        for letter in (b"a", b"b", b"c"):
            await kept.send(letter)
            await trio.sleep(0.01)  # what would be received at once is
        if end == "enough":
            await kept.send(b"defgh")
            assert await kept.receive(8) == b"abcdefgh"
        elif end == "time":
            passed = 3600.0
            assert await kept.receive(3) == b"abc"
        else:
            await kept.stream.send_eof()
            await wait_for(lambda: b"" in it.service.pieces)
        if hub._inside_trio.__name__ == "_inside_trio":  # else nothing is left to gather
            assert it.service.pieces[1].startswith(b"abc")
        if end != "end of the connection":
            # The pause is over: one byte is seen at once.
            it.service.pieces.clear()
            await kept.send(b"x")
            assert await kept.receive(1) == b"x"


async def test_an_idle_hub_leaves_nothing_to_gather() -> None:
    """A task may have looked at what had been received, while no request came for a while."""
    async with running() as it:
        kept = await it.connect()
        await kept.send(packet(b"", WATCH))
        await wait_for(lambda: it.service.slow == 1)
        await kept.send(b"1")
        assert await kept.receive(1) == b"1"
        connection = it.service.kept
        assert connection is not None
        await wait_for(lambda: not connection.hub._busy)
        connection.hub.pause(connection, 3600.0, ENOUGH)
        await kept.send(b"x")
        with trio.fail_after(10):
            assert await kept.receive(1) == b"x"


async def test_stopping_ends_parked_connections() -> None:
    stopping = trio.Event()
    async with running(stopping=stopping) as it:
        used, silent = await it.connect(), await it.connect()
        assert await used.ask(b"x") == b"+x"
        stopping.set()
        assert await closed(used)
        assert await closed(silent)


async def test_a_mistake_in_the_hub_itself_does_not_stop_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: hub.Hub, timeout: float) -> None:
        monkeypatch.undo()
        raise RuntimeError("a mistake of ours")

    async with running() as it:
        client = await it.connect()
        inside_trio = hub._inside_trio() is not None
        monkeypatch.setattr(hub.Hub, "_serve_while_trio_waits", fail)
        for number in range(5):
            assert await client.ask(b"%d" % number) == b"+%d" % number
    errors = [record.message for record in caplog.records if record.levelno >= logging.ERROR]
    assert errors == ["error in the hub; it goes on as when it is idle"] * inside_trio

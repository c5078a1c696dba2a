"""The shell of the daemons: accepting, limits, stopping, signals, readiness, exit codes."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import IO

import pytest
import trio
import trio.testing

from fdfsfuse.core.allow_hosts import AllowHosts
from fdfsfuse.server.connection import FramedConnection
from fdfsfuse.server.tcp import TcpServer, open_listeners, plain_ip


async def echo(connection: FramedConnection) -> None:
    """Answers each packet with its body; command 9 fails with an unforeseen error."""
    while (header := await connection.recv_header()) is not None:
        body = await connection.recv_exactly(header.length)
        if header.command == 9:
            raise RuntimeError("a mistake of ours")
        await connection.send(body)


def packet(body: bytes, command: int = 1) -> bytes:
    return len(body).to_bytes(8, "big") + bytes([command, 0]) + body


class Clients:
    """Makes connections to a port, and closes them all."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._streams: list[trio.SocketStream] = []

    async def connect(self) -> trio.SocketStream:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        self._streams.append(stream)
        return stream

    async def close(self) -> None:
        for stream in self._streams:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def serving(server: TcpServer, stopping: trio.Event | None = None) -> AsyncIterator[Clients]:
    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[int]) -> None:
            listeners = open_listeners(["127.0.0.1"])
            await server.serve(listeners, stopping=stopping, task_status=task_status)

        clients = Clients(await nursery.start(serve))
        try:
            yield clients
        finally:
            if stopping is None:
                nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await clients.close()


async def ask(stream: trio.SocketStream, body: bytes = b"ping") -> bytes:
    await stream.send_all(packet(body))
    return bytes(await stream.receive_some(100))


async def test_the_port_is_free_again_after_the_server_ended() -> None:
    async with serving(TcpServer(echo)) as clients:
        stream = await clients.connect()
        assert await ask(stream) == b"ping"
    with pytest.raises(OSError, match="all attempts to connect"):
        await clients.connect()
    for sock in open_listeners(["127.0.0.1"], clients.port):
        sock.close()


async def test_a_port_in_use_is_named() -> None:
    (first,) = open_listeners(["127.0.0.1"])
    port = first.getsockname()[1]
    with pytest.raises(OSError, match=f"cannot listen on 127.0.0.1:{port}"):
        open_listeners(["127.0.0.1"], port)
    first.close()


def test_families() -> None:
    for family, expected in (("IPv4", {socket.AF_INET}), ("auto", {socket.AF_INET})):
        sockets = open_listeners(family=family)
        ports = {sock.getsockname()[1] for sock in sockets}
        families = {sock.family for sock in sockets}
        for sock in sockets:
            sock.close()
        assert len(ports) == 1
        assert expected <= families <= {socket.AF_INET, socket.AF_INET6}
    assert plain_ip("::ffff:10.0.0.1") == "10.0.0.1"
    assert plain_ip("fe80::1%eth0") == "fe80::1"


async def test_hosts_outside_allow_hosts_are_closed_at_once() -> None:
    allow = AllowHosts.parse(["10.0.0.0/8"])
    async with serving(TcpServer(echo, allows=allow.allows)) as clients:
        stream = await clients.connect()
        assert await stream.receive_some(1) == b""


async def test_silent_connections_make_room_for_new_ones() -> None:
    server = TcpServer(echo, max_connections=3)
    async with serving(server) as clients:
        silent = [await clients.connect() for _ in range(10)]
        busy = await clients.connect()
        assert await ask(busy) == b"ping"
        assert len(server.connections) <= 3
        ended = 0
        for stream in silent[:7]:
            with trio.fail_after(60):
                ended += await stream.receive_some(1) == b""
        assert ended == 7


async def test_connections_in_use_are_not_pushed_out() -> None:
    async with serving(TcpServer(echo, max_connections=2)) as clients:
        used = [await clients.connect() for _ in range(2)]
        for stream in used:
            assert await ask(stream) == b"ping"
        late = await clients.connect()
        with trio.fail_after(60):
            try:
                assert await late.receive_some(1) == b""
            except trio.BrokenResourceError:
                pass
        for stream in used:
            assert await ask(stream) == b"ping"


async def test_an_unforeseen_error_costs_one_connection(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(TcpServer(echo)) as clients:
        good = await clients.connect()
        assert await ask(good) == b"ping"
        bad = await clients.connect()
        await bad.send_all(packet(b"", 9))
        assert await bad.receive_some(1) == b""
        assert await ask(good) == b"ping"
    assert "a mistake of ours" in caplog.text


async def test_a_busy_connection_does_not_starve_others() -> None:
    async with serving(TcpServer(echo)) as clients:
        busy = await clients.connect()
        other = await clients.connect()
        async with trio.open_nursery() as nursery:

            async def flood() -> None:
                while True:
                    await busy.send_all(packet(b"x" * 100) * 100)

            async def drain() -> None:
                while True:
                    await busy.receive_some(1 << 20)

            nursery.start_soon(flood)
            nursery.start_soon(drain)
            with trio.fail_after(60):
                for _ in range(20):
                    assert await ask(other) == b"ping"
            nursery.cancel_scope.cancel()


async def test_stopping_lets_requests_finish_and_ends_idle_connections() -> None:
    release = trio.Event()

    async def slow(connection: FramedConnection) -> None:
        while (header := await connection.recv_header()) is not None:
            body = await connection.recv_exactly(header.length)
            await release.wait()
            await connection.send(body)

    stopping = trio.Event()
    with trio.fail_after(60):
        async with serving(TcpServer(slow), stopping) as clients:
            idle = await clients.connect()
            busy = await clients.connect()
            await busy.send_all(packet(b"work"))
            await trio.testing.wait_all_tasks_blocked(0.05)
            stopping.set()
            assert await idle.receive_some(1) == b""
            release.set()
            assert await busy.receive_some(100) == b"work"
            assert await busy.receive_some(100) == b""


async def test_stopping_does_not_wait_for_ever() -> None:
    async def stuck(connection: FramedConnection) -> None:
        await connection.recv_header()
        await trio.sleep_forever()

    stopping = trio.Event()
    with trio.fail_after(60):
        async with serving(TcpServer(stuck, stop_timeout_s=0.1), stopping) as clients:
            stream = await clients.connect()
            await stream.send_all(packet(b""))
            await trio.testing.wait_all_tasks_blocked(0.05)
            stopping.set()


DAEMON = """
import sys, trio
from fdfsfuse.errors import ConfigError
from fdfsfuse.server.daemon import run_daemon

async def main(daemon):
    what = sys.argv[1]
    if what == "config":
        raise ConfigError("x.conf:3: port = a: must be a number")
    if what == "disk":
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            raise PermissionError(13, "Permission denied", "/data")
    if what == "mistake":
        raise RuntimeError("unforeseen")
    daemon.ready("serving")
    print("ready", flush=True)
    if what == "stuck":
        await trio.sleep_forever()
    await daemon.stopping.wait()
    print("stopped", flush=True)

sys.exit(run_daemon("testd", main, stop_timeout_s=0.2 if sys.argv[1] == "stuck" else 60.0))
"""


def start(
    what: str,
    stderr: int | IO[str] = subprocess.PIPE,
    *,
    before: Sequence[str] = (),
    **environment: str,
) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*before, sys.executable, "-c", DAEMON, what],
        stdout=subprocess.PIPE,
        stderr=stderr,
        text=True,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(
    ("what", "code", "text"),
    [
        ("config", 2, "testd: x.conf:3: port = a: must be a number\n"),
        ("disk", 1, "testd: /data: Permission denied\n"),
    ],
)
def test_operator_mistakes_are_one_line(what: str, code: int, text: str) -> None:
    process = start(what)
    _, errors = process.communicate(timeout=120)
    assert (process.returncode, errors) == (code, text)


def test_our_mistakes_show_a_traceback() -> None:
    process = start("mistake")
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "Traceback" in errors
    assert "unforeseen" in errors


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_stop_cleanly_and_systemd_is_told(tmp_path: Path, number: signal.Signals) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        path = str(tmp_path / "notify")
        systemd.bind(path)
        systemd.settimeout(20)
        process = start("serve", NOTIFY_SOCKET=path)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert systemd.recv(100) == b"READY=1\nSTATUS=serving"
        process.send_signal(signal.SIGHUP)
        process.send_signal(number)
        output, _ = process.communicate(timeout=120)
        assert (process.returncode, output) == (0, "stopped\n")
        assert systemd.recv(100) == b"STOPPING=1"


def test_the_end_of_the_terminal_stops_cleanly_too() -> None:
    process = start("serve")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "stopped\n")
    assert "stopping (SIGTERM)" in errors


def test_nohup_outlives_its_terminal() -> None:
    process = start("serve", before=["nohup"])
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)
    process.send_signal(signal.SIGINT)
    output, errors = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "stopped\n")
    assert "stopping (SIGINT)" in errors


def test_the_journal_gets_priorities_and_nothing_that_it_adds_itself(tmp_path: Path) -> None:
    with open(tmp_path / "log", "w+") as log:
        info = os.fstat(log.fileno())
        process = start("mistake", stderr=log, JOURNAL_STREAM=f"{info.st_dev}:{info.st_ino}")
        process.communicate(timeout=120)
        lines = (tmp_path / "log").read_text().splitlines()
    assert lines[0] == "<2>CRITICAL fdfsfuse.server.daemon: failed"
    assert lines[1].startswith("<2>Traceback")
    assert all(line.startswith("<2>") for line in lines)


def test_what_does_not_go_to_the_journal_has_the_time() -> None:
    process = start("mistake", JOURNAL_STREAM="1:2")
    _, errors = process.communicate(timeout=120)
    assert re.match(r"20\d\d-\d\d-\d\d .* testd\[\d+\] CRITICAL fdfsfuse", errors)


def test_a_daemon_without_stderr_runs() -> None:
    command = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", DAEMON, "serve"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.terminate()
    output, _ = process.communicate(timeout=120)
    assert (process.returncode, output) == (0, "stopped\n")


def test_a_daemon_that_does_not_stop_is_cancelled() -> None:
    process = start("stuck")
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=120)
    assert process.returncode == 0

"""The network that tests put between servers (tests/common/network.py) does what it says."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.common.addresses import free_port, loopback_network
from tests.common.network import Network


@dataclass
class Host:
    address: str
    private: str
    port: int

    def call(self, other: Host) -> socket.socket:
        """Connect to another host as a server does: from the own private address."""
        return socket.create_connection((other.address, other.port), 10, (self.private, 0))


@pytest.fixture
def hosts() -> list[Host]:
    public, private = loopback_network(), loopback_network()
    names = [(f"{public}.{n}", f"{private}.{n}") for n in (2, 3, 4)]
    port = free_port([address for pair in names for address in pair])
    return [Host(*pair, port) for pair in names]


@pytest.fixture
def network(hosts: list[Host]) -> Iterator[Network]:
    network = Network()
    try:
        for host in hosts:
            network.add(host.address, host.private, host.port)
        yield network
    finally:
        network.stop()


@pytest.fixture
def echo(hosts: list[Host]) -> Iterator[Host]:
    """The first host: says who calls, then sends back what it gets."""
    host = hosts[0]
    with socket.create_server((host.private, host.port)) as server:

        def serve(sock: socket.socket, address: tuple[str, int]) -> None:
            with sock:
                try:
                    sock.sendall(address[0].encode() + b"\n")
                    while data := sock.recv(4096):
                        sock.sendall(data)
                except OSError:
                    pass

        def accept() -> None:
            while True:
                try:
                    sock, address = server.accept()
                except OSError:
                    return
                threading.Thread(target=serve, args=(sock, address), daemon=True).start()

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        yield host
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_servers_are_seen_by_their_public_addresses(
    network: Network, hosts: list[Host], echo: Host
) -> None:
    with hosts[1].call(echo) as sock, sock.makefile("rb") as lines:
        assert lines.readline().decode().strip() == hosts[1].address
        sock.sendall(b"hello\n")
        assert lines.readline() == b"hello\n"
        sock.shutdown(socket.SHUT_WR)
        assert lines.read() == b""
    with socket.create_connection((echo.address, echo.port), 10) as sock:
        assert sock.makefile("rb").readline().startswith(b"127.0.0.1")


def test_cut_resets_one_pair_only(network: Network, hosts: list[Host], echo: Host) -> None:
    with hosts[1].call(echo) as cut, hosts[2].call(echo) as other:
        for sock in (cut, other):
            sock.sendall(b"a")
            while not sock.recv(100).endswith(b"a"):
                pass
        network.cut(hosts[1], echo)
        with pytest.raises(ConnectionResetError):
            cut.recv(1)
        other.sendall(b"b")
        assert other.recv(1) == b"b"
    with pytest.raises(ConnectionResetError), hosts[1].call(echo) as sock:
        sock.recv(1)
    network.heal()
    with hosts[1].call(echo) as sock:
        assert sock.recv(1)


def test_stalled_lets_nothing_through_until_healed(
    network: Network, hosts: list[Host], echo: Host
) -> None:
    network.stall(echo, hosts[1])
    with hosts[1].call(echo) as sock:
        sock.settimeout(0.2)
        with pytest.raises(TimeoutError):
            sock.recv(1)
        network.heal()
        sock.settimeout(10)
        assert sock.recv(100)


def test_slow_takes_time(network: Network, hosts: list[Host], echo: Host) -> None:
    network.slow(echo, hosts[1], bytes_per_s=100_000)
    with hosts[1].call(echo) as sock:
        sock.recv(100)
        start = time.monotonic()
        sock.sendall(bytes(20_000))
        count = 0
        while count < 20_000:
            count += len(sock.recv(4096))
        assert time.monotonic() - start > 0.19


def test_nobody_behind_it_is_a_reset(network: Network, hosts: list[Host]) -> None:
    # At connect() already, or at the first use of the connection.
    with pytest.raises(ConnectionResetError), hosts[1].call(hosts[2]) as sock:
        sock.recv(1)

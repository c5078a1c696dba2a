"""The accept loop that both daemons share.

What it takes care of, so that bad input costs its own connection at most:

- hosts outside allow_hosts are closed right after accept;
- at max_connections, the connection that has kept us waiting longest for its first request makes
  room for the new one; if all of them are in use, the new one is closed;
- a watchdog ends connections that keep us waiting (protocol/wire.md section 1): before their
  first complete request, in the middle of a header or body, or by not taking an answer;
- whatever a handler raises ends its connection only. Unforeseen errors are logged with traceback.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence

import trio

from fdfsfuse.core.allow_hosts import AllowHosts
from fdfsfuse.errors import ConnectionProblem, ProtocolError
from fdfsfuse.server.connection import FramedConnection
from fdfsfuse.server.hub import Answer, Hub

logger = logging.getLogger(__name__)

Handler = Callable[[FramedConnection], Awaitable[None]]
BACKLOG = 1024
_SWEEP_S = 1.0
_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_LISTEN_ADVICE = {
    errno.EADDRINUSE: "; another process listens there",
    errno.EADDRNOTAVAIL: "; bind_addr must be an address of this machine",
    errno.EACCES: "; only root may use ports below 1024",
}


def open_listeners(
    bind: Sequence[str] = (), port: int = 0, family: str = "auto"
) -> list[socket.socket]:
    """Bind and listen.

    Args:
        bind: addresses; empty means all.
        port: 0 lets the kernel choose (one port for all addresses).
        family: ``IPv4``, ``IPv6``, ``both`` or ``auto`` (any case; protocol/config.md,
            address_family). Without *bind*, auto is IPv4 plus IPv6 where the machine has it.

    Raises:
        OSError: an address or port cannot be used; the text names it.
    """
    wanted = family.lower()
    hosts = list(bind)
    if not hosts:
        hosts = {"ipv4": ["0.0.0.0"], "ipv6": ["::"]}.get(wanted, ["0.0.0.0", "::"])
    sockets: list[socket.socket] = []
    try:
        for host in hosts:
            optional = not bind and wanted == "auto" and host == "::"
            sock = _listen(host, port, optional=optional)
            if sock is not None:
                sockets.append(sock)
                port = port or sock.getsockname()[1]
    except BaseException:
        for sock in sockets:
            sock.close()
        raise
    return sockets


def _listen(host: str, port: int, *, optional: bool) -> socket.socket | None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        sock = socket.socket(family, socket.SOCK_STREAM)
    except OSError:
        if optional:
            return None
        raise
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((host, port))
        sock.listen(BACKLOG)
        sock.setblocking(False)
    except OSError as exc:
        sock.close()
        if optional and exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return None
        shown = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        advice = _LISTEN_ADVICE.get(exc.errno or 0, "")
        raise OSError(exc.errno, f"cannot listen on {shown}: {exc.strerror}{advice}") from exc
    return sock


class TcpServer:
    """Serves connections: small requests with *answer*, the others with *handler*.

    Args:
        handler: serves one connection, in a task of its own, from its next request on. It need not
            close anything: returning ends the connection, or, after `FramedConnection.recv_header`
            with ``wait=False`` found no request, parks it.
        answer: answers what needs no waiting; see `fdfsfuse.server.hub`.
        max_connections: more are refused.
        allows: tells whether a client's ip may connect.
        network_timeout_s: see the module's text.
        stop_timeout_s: how long requests under way may go on once the server stops.
    """

    def __init__(
        self,
        handler: Handler,
        answer: Answer | None = None,
        *,
        max_connections: int = 1024,
        allows: Callable[[str], bool] | None = None,
        network_timeout_s: float = 30.0,
        stop_timeout_s: float = 5.0,
    ) -> None:
        self.connections: set[FramedConnection] = set()
        self.most_connections = 0
        """Highest number of connections at one time, for statistics."""
        self.max_connections = max_connections
        self._handler = handler
        self._answer = answer
        self._allows = allows
        self._network_timeout_s = network_timeout_s
        self._stop_timeout_s = stop_timeout_s
        self._refused = 0

    async def serve(
        self,
        listeners: Sequence[socket.socket],
        *,
        stopping: trio.Event | None = None,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until *stopping* is set (or cancelled); reports the port once it accepts.

        When stopping, it accepts no more, ends idle connections at once and the others when their
        request is answered or the stop timeout has passed. The listeners are closed in any case.
        """
        try:
            async with trio.open_nursery() as workers:
                hub = self._start_hub(workers)
                async with trio.open_nursery() as acceptors:
                    acceptors.start_soon(self._watch)
                    for listener in listeners:
                        acceptors.start_soon(self._accept, listener, hub)
                    task_status.started(listeners[0].getsockname()[1] if listeners else 0)
                    await (trio.Event() if stopping is None else stopping).wait()
                    acceptors.cancel_scope.cancel()
                for listener in listeners:
                    listener.close()
                await self._finish()
                workers.cancel_scope.cancel()
        finally:
            for listener in listeners:
                listener.close()

    def _start_hub(self, workers: trio.Nursery) -> Hub:
        def hand_over(connection: FramedConnection, unsent: bytes, last: bool) -> None:
            workers.start_soon(self._run, connection, hub, unsent, last)

        hub = Hub(self._answer, hand_over, self._close)
        workers.start_soon(hub.run)
        return hub

    def _close(self, connection: FramedConnection) -> None:
        self.connections.discard(connection)
        connection.close()

    async def _finish(self) -> None:
        with trio.move_on_after(self._stop_timeout_s):
            while self.connections:
                for connection in self.connections:
                    if connection.idle:
                        connection.shutdown()
                await trio.sleep(0.02)
        if self.connections:
            logger.warning("%d connections were cut off when stopping", len(self.connections))

    async def _accept(self, listener: socket.socket, hub: Hub) -> None:
        while True:
            try:
                sock, address = listener.accept()
            except BlockingIOError:
                await trio.lowlevel.wait_readable(listener)
                continue
            except OSError as exc:
                if exc.errno in _NO_ROOM:
                    logger.error("cannot accept connections: %s", exc.strerror)
                    await trio.sleep(0.1)
                continue  # the client has gone already
            connection = self._admit(sock, address[0])
            if connection is not None:
                connection.hub = hub
                hub.park(connection)
            await trio.lowlevel.checkpoint()

    def _admit(self, sock: socket.socket, ip: str) -> FramedConnection | None:
        ip = plain_ip(ip)
        if self._allows is not None and not self._allows(ip):
            logger.info("%s is not in allow_hosts, closed", ip)
            sock.close()
            return None
        if len(self.connections) >= self.max_connections and not self._evict():
            self._refused += 1
            sock.close()
            return None
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection = FramedConnection(sock, ip)
        self.connections.add(connection)
        self.most_connections = max(self.most_connections, len(self.connections))
        return connection

    def _evict(self) -> bool:
        """End the connection that is overdue for longest with its first request, if any."""
        overdue = [c for c in self.connections if c.requests <= 1 and c.reading_since]
        if not overdue:
            return False
        oldest = min(overdue, key=lambda connection: connection.reading_since)
        oldest.shutdown()
        self.connections.discard(oldest)
        return True

    async def _run(self, connection: FramedConnection, hub: Hub, unsent: bytes, last: bool) -> None:
        """Send *unsent*, then serve the connection, or end it if that was the *last* answer."""
        keep = False
        try:
            if unsent:
                await connection.send(unsent)
            if last:
                await connection.linger()
            else:
                await self._handler(connection)
                keep = connection.parked
        except (ConnectionProblem, ProtocolError) as exc:
            logger.debug("connection from %s ended: %s", connection.peer_ip, exc)
        except Exception:
            logger.exception("error while serving %s; its connection is closed", connection.peer_ip)
        finally:
            if keep:
                hub.park(connection)
            else:
                self._close(connection)

    async def _watch(self) -> None:
        """End the connections that keep us waiting. Once a second is enough: nothing is exact."""
        while True:
            await trio.sleep(min(_SWEEP_S, self._network_timeout_s / 2))
            now = trio.current_time()
            for connection in self.connections:
                self._check(connection, now)
            if self._refused:
                logger.warning(
                    "refused %d connections: max_connections = %d",
                    self._refused,
                    self.max_connections,
                )
                self._refused = 0

    def _check(self, connection: FramedConnection, now: float) -> None:
        """End *connection* if it keeps us waiting too long."""
        limit = now - self._network_timeout_s
        if connection.reading_since:
            # Bytes may arrive without waking the reader, who asked for many at once.
            pending = connection.pending()
            if pending != connection.last_pending:
                connection.last_pending = pending
                connection.reading_since = now
            elif connection.reading_since < limit:
                connection.shutdown()
        elif connection.sending_since and connection.sending_since < limit:
            connection.shutdown()


async def resolve_allow_hosts(allow: AllowHosts) -> AllowHosts:
    """*allow* with the addresses that its host names have now; unknown ones are logged."""
    addresses: list[str] = []
    for name in allow.host_names:
        try:
            found = await trio.socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except OSError as exc:
            logger.warning("allow_hosts = %s: %s", name, exc.strerror or exc)
        else:
            addresses += [plain_ip(str(entry[4][0])) for entry in found]
    return allow.resolved(addresses)


def plain_ip(ip: str) -> str:
    """*ip* without a zone, and as IPv4 when it is IPv4-mapped."""
    if ":" not in ip:
        return ip
    address = ipaddress.IPv6Address(ip.partition("%")[0])
    return str(address.ipv4_mapped or address)

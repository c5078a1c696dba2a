"""The tracker as a trio service: connections, saving, and the clock.

One connection is one loop of: receive a request, answer it (`fdfs_tracker.handlers`, which never
waits), save if the answer acknowledges a change of structure, send. Connection manners:
protocol/wire.md section 1, for trackers: an error keeps the connection open; a request larger than
buff_size, or with a negative length, ends it without an answer.
"""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable, Sequence

import trio

from fdfs_tracker.handlers import Handlers
from fdfs_tracker.node import Node, Session
from fdfs_tracker.peers import Peers, RealNetwork, Timing
from fdfs_tracker.state_files import StateFiles
from fdfs_tracker.trunk import TrunkServers
from fdfsfuse.core.cluster import Cluster
from fdfsfuse.core.config import TrackerConfig
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.address import encode_address
from fdfsfuse.proto.cluster import ClusterCommand
from fdfsfuse.proto.header import HEADER_SIZE, pack_response
from fdfsfuse.proto.tracker import TrackerCommand
from fdfsfuse.server.connection import FramedConnection
from fdfsfuse.server.tcp import TcpServer, open_listeners, resolve_allow_hosts

logger = logging.getLogger(__name__)

_STATISTICS_SAVE_S = 60.0
"""How old the saved statistics and disk space may be; structural changes are saved at once."""
_QUERIES = frozenset(
    {
        TrackerCommand.ACTIVE_TEST,
        TrackerCommand.QUERY_STORE_ONE,
        TrackerCommand.QUERY_STORE_ONE_IN_GROUP,
        TrackerCommand.QUERY_STORE_ALL,
        TrackerCommand.QUERY_STORE_ALL_IN_GROUP,
        TrackerCommand.QUERY_FETCH_ONE,
        TrackerCommand.QUERY_FETCH_ALL,
        TrackerCommand.QUERY_UPDATE,
    }
)
_ALIVE_SAVE_S = 300.0
"""How often the tracker notes that it is alive (disk.md section 10)."""
_EINVAL = pack_response(status=22)
_RESPONSES = [pack_response(status=status) for status in range(256)]


class Tracker:
    """One tracker. Use: make, `run` in a nursery, which reports the port.

    Raises:
        ConfigError, FdfsError, OSError: when made; the files under base_path cannot be used.
    """

    def __init__(
        self,
        config: TrackerConfig,
        *,
        now_s: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
        timing: Timing | None = None,
    ) -> None:
        self.config = config
        self.cluster = Cluster(config)
        self.files = StateFiles(config.base_path)
        try:
            self.files.load(self.cluster)
        except BaseException:
            self.files.close()
            raise
        self._now_s = now_s
        self._monotonic = monotonic
        self._saved_structure = 0
        self._reports = 0
        self._save_lock = trio.Lock()
        self._timing = timing or Timing()
        self._node: Node | None = None
        """Set by `run`, which knows the port."""
        self._handlers: Handlers
        self._peers: Peers
        self._trunk_servers: TrunkServers

    @property
    def node(self) -> Node:
        """The state and clocks of a tracker that runs."""
        assert self._node is not None
        return self._node

    def listen(self) -> Sequence[socket.socket]:
        """Bind the listening sockets. Raises OSError saying which address is taken."""
        config = self.config
        return open_listeners(config.bind_addr, config.port, config.address_family)

    async def run(
        self,
        *,
        stopping: trio.Event | None = None,
        task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Serve until *stopping* is set or it is cancelled; everything is saved then."""
        try:
            listeners = self.listen()
            port = listeners[0].getsockname()[1]
            node = self._node = Node(
                self.config,
                self.cluster,
                port,
                last_check_time=self.files.last_check_time(),
                now_s=self._now_s,
                monotonic=self._monotonic,
            )
            self._handlers = Handlers(node)
            network = RealNetwork(self.config, self._timing)
            self._peers = Peers(node, network, self._save, timing=self._timing)
            self._trunk_servers = TrunkServers(node, network, self._save)
            allow_hosts = await resolve_allow_hosts(self.config.allow_hosts)
            server = TcpServer(
                self._serve,
                self._answer,
                max_connections=self.config.max_connections,
                allows=None if allow_hosts.everyone else allow_hosts.allows,
                network_timeout_s=self.config.network_timeout_s,
            )
            node.connections = lambda: (
                server.max_connections,
                len(server.connections),
                server.most_connections,
            )
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch_storages)
                nursery.start_soon(self._save_statistics)
                nursery.start_soon(self._note_alive)
                nursery.start_soon(self._peers.run)
                nursery.start_soon(self._trunk_servers.run)
                await server.serve(listeners, stopping=stopping, task_status=task_status)
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(5) as cleanup:
                cleanup.shield = True
                await self._save()
                await self._write_status()
            self.files.close()

    # --- one connection -----------------------------------------------------------------------

    def _answer(
        self, connection: FramedConnection, command: int, _flags: int, body: bytes
    ) -> bytes | None:
        """Answer a client's query at once: it changes nothing and needs no session."""
        if command not in _QUERIES or len(body) > self.config.buff_size - HEADER_SIZE:
            return None
        session = Session(connection.peer_ip)
        try:
            return pack_response(self._handlers.answer(session, command, body))
        except (StatusError, ProtocolError) as exc:
            return _refusal(session, command, exc)

    async def _respond(self, session: Session, command: int, body: bytes) -> bytes:
        """Answer anything, after the other trackers were asked where that is needed."""
        peers = self._peers
        try:
            if command == TrackerCommand.SET_TRUNK_SERVER:
                return pack_response(await self._trunk_servers.appoint(body))
            if command in peers.answers:
                return pack_response(await peers.answers[command](session, body))
            if command in peers.prepares:
                await peers.prepares[command](session, body)
            return pack_response(self._handlers.answer(session, command, body))
        except (StatusError, ProtocolError) as exc:
            return _refusal(session, command, exc)

    async def _serve(self, connection: FramedConnection) -> None:
        handlers, session = self._handlers, Session(connection.peer_ip)
        cluster = self.cluster
        largest = self.config.buff_size - HEADER_SIZE
        try:
            while True:
                # Only servers have a session, as long as their connection lasts.
                header = await connection.recv_header(wait=session.lasts)
                if header is None or header.length > largest:
                    return
                body = await connection.recv_exactly(header.length) if header.length else b""
                if header.command == ClusterCommand.QUIT:
                    return
                response = await self._respond(session, header.command, body)
                if session.joined is not None:
                    self._reports += 1
                    self._log_notes()
                if cluster.structure != self._saved_structure:
                    # Nothing is acknowledged that a crash right after the answer would undo.
                    try:
                        await self._save_structure()
                    except OSError as exc:
                        logger.error("cannot save the state, a connection is closed: %s", exc)
                        return
                    self._log_notes()
                await connection.send(response)
        finally:
            handlers.ended(session)
            self._log_notes()

    def _log_notes(self) -> None:
        for note in self.cluster.take_notes():
            logger.info("%s", note)

    # --- saving and the clock -----------------------------------------------------------------

    async def _save_structure(self) -> None:
        """Return when the structure of now, or a later one, is on the disk. Raises OSError."""
        wanted = self.cluster.structure
        async with self._save_lock:
            if self._saved_structure < wanted:
                await self._write()

    async def _save(self) -> None:
        """Put everything on the disk as it is now. Raises OSError."""
        async with self._save_lock:
            await self._write()

    async def _write(self) -> None:
        structure, self._reports = self.cluster.structure, 0
        files = self.files.format(self.cluster)
        await trio.to_thread.run_sync(self.files.write, files)
        self._saved_structure = structure

    async def _save_statistics(self) -> None:
        while True:
            await trio.sleep(_STATISTICS_SAVE_S)
            if self._reports:
                try:
                    await self._save()
                except OSError as exc:
                    logger.error("cannot save the state: %s", exc)

    async def _note_alive(self) -> None:
        while True:
            try:
                await self._write_status()
            except OSError as exc:
                logger.error("cannot save the state: %s", exc)
            await trio.sleep(_ALIVE_SAVE_S)

    async def _write_status(self) -> None:
        """Raises OSError."""
        if self._node is None:
            return  # it never served
        started_s, now_s = self._node.started_s, int(self._now_s())
        async with self._save_lock:
            await trio.to_thread.run_sync(self.files.write_status, started_s, now_s)

    async def _watch_storages(self) -> None:
        """Mark silent storages OFFLINE; looked at more often than the reference does."""
        pause_s = min(1.0, self.config.check_active_interval_s / 4)
        while True:
            due = trio.current_time() + pause_s
            await trio.sleep_until(due)
            late_s = trio.current_time() - due
            if late_s > pause_s:
                # It was us who did not listen: what was sent meanwhile is still to be read.
                self.cluster.excuse(late_s)
            self.cluster.tick(self._now_s())
            self.cluster.expire(self._monotonic())
            self._log_notes()


def _refusal(session: Session, command: int, exc: StatusError | ProtocolError) -> bytes:
    if isinstance(exc, StatusError):
        return _RESPONSES[exc.errno or 22]
    logger.debug("%s: command %d: %s", session.peer_ip, command, exc)
    return _EINVAL


def describe(config: TrackerConfig, port: int) -> str:
    """``127.0.0.2:22122``: where it can be reached, for the log."""
    hosts = config.bind_addr or ("*",)
    return ", ".join(encode_address(host, port) for host in hosts)

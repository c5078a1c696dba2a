"""The storage's side of the cluster: learn from trackers, join them, report to them.

Source: protocol/cluster.md sections 2 and 3. How the app uses it::

    listeners = open_listeners(...)                   # the port is known from here on
    place = await learn(config, port)                 # own ip, parameters; retries for ever
    identity.check_marks(...)                         # and open store and names with place
    membership = Membership(config, identity, place, statistics=..., space=..., found=...)
    nursery.start_soon(server.serve, listeners)       # serve first: joining brings clients
    await nursery.start(membership.run)

One task per tracker keeps one connection: JOIN, then 87 (once in this storage's life) and 88, then
heartbeats (83), changelog (77) and disk reports (84). Whatever goes wrong, it reconnects and joins
again, for ever; it notices at once when a tracker closes the connection.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
import random
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import trio

from fdfs_storage.identity import Identity
from fdfsfuse.client.address import Address
from fdfsfuse.client.connection import Connection
from fdfsfuse.core.config import ServerAddress, StorageConfig, StorageIds
from fdfsfuse.errors import (
    ConfigError,
    ConnectFailed,
    ConnectionBroken,
    ConnectionProblem,
    DeadlineExceeded,
    FdfsError,
    ProtocolError,
    StatusError,
)
from fdfsfuse.proto.cluster import (
    IP_SIZE,
    VERSION,
    Brief,
    Changes,
    ClusterCommand,
    DiskReport,
    Join,
    Joined,
    MyIpRequest,
    ServerQuery,
    StorageIdsPart,
    StorageIdsRequest,
    decode_optional_source,
)
from fdfsfuse.proto.parameters import Parameters
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.tracker import ServerStatus

logger = logging.getLogger(__name__)

_FIRST_RETRY_S = 0.1
_MAX_RETRY_S = 2.0
"""A tracker that comes back is joined within about this time (a C server: heart_beat_interval)."""
_MAX_REFUSED_RETRY_S = 10.0
_CHANGELOG_PARTS_MAX = 1000

_Problems = (ConnectionProblem, StatusError, ProtocolError)


@dataclass(frozen=True, slots=True)
class Place:
    """What trackers told about this storage's place in the cluster.

    ``my_ip`` is the address by which the first tracker sees us. ``storage_id`` is how trackers
    call us: an id of their table, or the ip.
    """

    parameters: Parameters
    my_ip: str
    storage_id: str
    storage_ids: StorageIds | None = None

    @property
    def source_in_names(self) -> str:
        """What new file names carry as their source: the storage id or the ip (file-id.md 2)."""
        by_id = self.parameters.use_storage_id and self.parameters.id_type_in_filename == "id"
        return self.storage_id if by_id else self.my_ip


async def learn(config: StorageConfig, port: int) -> Place:
    """Ask the trackers in turn until one has told everything; waits for ever.

    Args:
        port: the port that this storage listens on (config.port may be 0).
    """
    retry = _Retry(_MAX_RETRY_S)
    complained = False
    while True:
        for server in config.tracker_servers:
            try:
                place = await _learn_from(server, config, port)
            except _Problems as exc:
                if not complained:
                    logger.warning("waiting for a tracker: %s: %s", server, exc)
            else:
                logger.info("tracker %s knows this storage as %s", server, place.storage_id)
                return place
        complained = True
        await trio.sleep(retry.next_delay())


async def _learn_from(server: ServerAddress, config: StorageConfig, port: int) -> Place:
    link = await _connect(server, config)
    try:
        body = MyIpRequest(config.group_name, port).encode()
        text = await link.request(ClusterCommand.GET_MY_IP, body)
        my_ips = _decode_ips(text)
        parameters = Parameters.decode(await link.request(ClusterCommand.GET_PARAMETERS))
        if not parameters.use_storage_id:
            return Place(parameters, my_ips[0], my_ips[0])
        table = await _fetch_storage_ids(link, server)
        own_id = await _own_id(link, config, port, my_ips, parameters, table)
        return Place(parameters, my_ips[0], own_id, table)
    finally:
        link.close()


def _decode_ips(body: bytes) -> list[str]:
    """``ip`` or ``ip1,ip2`` of an answer to 60."""
    try:
        if len(body) > 2 * IP_SIZE:
            raise ValueError("too long")
        return [str(ipaddress.ip_address(part)) for part in body.decode("ascii").split(",")]
    except ValueError as exc:
        raise ProtocolError(f"{body[:100]!r} is not an ip address") from exc


async def _fetch_storage_ids(link: _Link, server: ServerAddress) -> StorageIds:
    lines: list[str] = []
    while True:
        body = StorageIdsRequest(len(lines), allow_empty=True).encode()
        part = StorageIdsPart.decode(await link.request(ClusterCommand.FETCH_STORAGE_IDS, body))
        lines += part.lines
        if len(lines) >= part.total:
            break
    try:
        return StorageIds.parse("\n".join(lines), f"storage ids of tracker {server}")
    except ConfigError as exc:
        raise ProtocolError(str(exc)) from exc


async def _own_id(
    link: _Link,
    config: StorageConfig,
    port: int,
    my_ips: list[str],
    parameters: Parameters,
    table: StorageIds,
) -> str:
    if parameters.trust_storage_server_id:
        if config.server_id:
            return config.server_id
        for ip in my_ips:
            entry = table.find(config.group_name, ip, port)
            if entry is not None:
                return entry.storage_id
    query = ServerQuery(config.group_name, my_ips[0], port)
    answer = await link.request(ClusterCommand.GET_STORAGE_ID, query.encode())
    storage_id = answer.decode("ascii", "replace")
    if table.by_id(storage_id) is None:
        raise ProtocolError(f"the tracker gave the id {storage_id!r}, which is not in its table")
    return storage_id


class _Retry:
    """Growing delays with some chance in them, so that many storages do not come at once."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._delay_s = _FIRST_RETRY_S

    def next_delay(self, limit_s: float | None = None) -> float:
        delay_s = self._delay_s
        self._delay_s = min(delay_s * 2, limit_s or self._limit_s)
        return delay_s * random.uniform(0.8, 1.2)

    def reset(self) -> None:
        self._delay_s = _FIRST_RETRY_S


class _Link:
    """A connection to a tracker whose every exchange has the network timeout as its deadline."""

    def __init__(
        self, sock: socket.socket, server: ServerAddress, host: str, timeout_s: float
    ) -> None:
        peer = sock.getpeername()
        self.host = host
        self.peer_ip = str(peer[0])
        self.sock = sock
        self._connection = Connection(sock, Address(self.peer_ip, peer[1]))
        self.server = server
        self._timeout_s = timeout_s

    async def request(self, command: ClusterCommand, body: bytes = b"") -> bytes:
        with trio.move_on_after(self._timeout_s):
            return await self._connection.request(command, body)
        raise DeadlineExceeded(f"no answer within {self._timeout_s:g} s")

    async def watch_until(self, deadline: float) -> None:
        """Wait until the trio time *deadline*.

        Raises:
            ConnectionBroken: the tracker closed the connection, or sent something unasked.
        """
        with trio.move_on_at(deadline):
            await trio.lowlevel.wait_readable(self.sock)
            raise ConnectionBroken("the tracker closed the connection")

    def close(self) -> None:
        self._connection.close()


async def _resolve(host: str, port: int) -> tuple[int, str]:
    """Family and ip of *host*. Raises ConnectFailed."""
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise ConnectFailed(f"cannot find the host {host}: {exc.strerror or exc}") from exc
    family, _, _, _, address = found[0]
    return int(family), str(address[0])


async def _connect(server: ServerAddress, config: StorageConfig) -> _Link:
    """Connect to a tracker, from our own bind_addr: it knows us by the address we come from.

    Raises:
        ConnectFailed: none of its addresses answered within connect_timeout.
    """
    problem = f"no answer within {config.connect_timeout_s:g} s"
    with trio.move_on_after(config.connect_timeout_s):
        for host in server.hosts:
            try:
                family, ip = await _resolve(host, server.port)
                sock = await _connect_socket(family, ip, server.port, config)
            except ConnectFailed as exc:
                problem = str(exc)
            except OSError as exc:
                problem = exc.strerror or str(exc)
            else:
                return _Link(sock, server, host, config.network_timeout_s)
    raise ConnectFailed(f"cannot connect: {problem}")


async def _connect_socket(family: int, ip: str, port: int, config: StorageConfig) -> socket.socket:
    with trio.socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for address in config.bind_addr if config.client_bind else ():
            if (":" in address) == (family == socket.AF_INET6):
                await sock.bind((address, 0))
        await sock.connect((ip, port))
        if sock.getsockname() == sock.getpeername():
            # A connection to a free local port can meet itself.
            raise ConnectFailed("nobody listens there")
        raw = socket.socket(fileno=sock.detach())
    raw.setblocking(False)
    return raw


class Membership:
    """Keeps this storage joined to all trackers.

    Args:
        port: where this storage listens.
        statistics: the counters as they are now; cheap, called at each heartbeat.
        space: (total_mb, free_mb) of each store path; called in a thread.
        found: called when the tracker says that this storage is the first of its group, before
            that is written down (so again after a crash in between). It founds the names of the
            volume if there is no names directory yet.

    Attributes:
        parameters: the last answer of command 75.
        status: this storage's status at the tracker that told it last, None before.
        members: the group as the trackers list it, itself included.
    """

    def __init__(
        self,
        config: StorageConfig,
        identity: Identity,
        place: Place,
        *,
        port: int,
        statistics: Callable[[], Statistics],
        space: Callable[[], Sequence[tuple[int, int]]],
        found: Callable[[], Awaitable[None]],
    ) -> None:
        self.place = place
        self.parameters = place.parameters
        self.status: ServerStatus | None = None
        self.members: tuple[Brief, ...] = ()
        self._config = config
        self._identity = identity
        self._port = port
        self._statistics = statistics
        self._space = space
        self._found = found
        self._up_time = int(time.time())
        self._decision = trio.Lock()
        self._joined = trio.Event()
        self._unheard = set(config.tracker_servers)
        self._resolved: dict[str, str] = {}
        """Addresses of trackers that are configured by name."""

    @property
    def my_ip(self) -> str:
        """The address by which trackers know this storage."""
        return self.place.my_ip

    async def wait_joined(self) -> None:
        """Wait until one tracker has counted this storage as a member and heard it once."""
        await self._joined.wait()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stay joined to every tracker until cancelled. Reports started at once."""
        await self._note_address()
        async with trio.open_nursery() as nursery:
            for server in self._config.tracker_servers:
                nursery.start_soon(self._serve_tracker, server)
            task_status.started()

    async def _note_address(self) -> None:
        identity, ip = self._identity, self.place.my_ip
        if (identity.last_ip_addr, identity.last_server_port) == (ip, self._port):
            return
        if identity.last_ip_addr and identity.last_ip_addr != ip:
            logger.warning("the ip of this storage was %s and is now %s", identity.last_ip_addr, ip)
        identity.last_ip_addr, identity.last_server_port = ip, self._port
        await trio.to_thread.run_sync(identity.save)

    async def _serve_tracker(self, server: ServerAddress) -> None:
        """Join one tracker and report to it, over and over. Logs changes, not each retry."""
        retry = _Retry(_MAX_RETRY_S)
        lost_at: float | None = None
        last_text = ""
        while True:
            limit_s = _MAX_RETRY_S
            try:
                link = await _connect(server, self._config)
                self._resolved[link.host] = link.peer_ip
                try:
                    await self._join(link)
                    if lost_at is None:
                        logger.info("joined tracker %s", server)
                    else:
                        after_s = trio.current_time() - lost_at
                        logger.info("joined tracker %s again after %.1f s", server, after_s)
                    lost_at, last_text = None, ""
                    retry.reset()
                    await self._report(link)
                finally:
                    link.close()
            except StatusError as exc:
                limit_s = min(self._config.heart_beat_interval_s, _MAX_REFUSED_RETRY_S)
                problem: FdfsError = exc
            except (ConnectionProblem, ProtocolError) as exc:
                problem = exc
            if lost_at is None:
                lost_at = trio.current_time()
            if str(problem) != last_text:
                last_text = str(problem)
                logger.warning("tracker %s: %s; trying again until it works", server, last_text)
            await trio.sleep(retry.next_delay(limit_s))

    async def _join(self, link: _Link) -> None:
        """JOIN, the decision about the initial copy, and 88."""
        answer = await link.request(ClusterCommand.JOIN, self._join_request(link).encode())
        joined = Joined.decode(answer)
        self._unheard.discard(link.server)
        self.status = joined.status
        async with self._decision:
            if not self._identity.sync_old_done:
                await self._decide(link)
        await link.request(ClusterCommand.SYNC_NOTIFY, self._identity.source.encode())

    def _join_request(self, link: _Link) -> Join:
        config = self._config
        status = -1 if len(config.tracker_servers) > 1 and self._unheard else 0
        return Join(
            group=config.group_name,
            port=self._port,
            store_path_count=len(config.store_paths),
            subdir_count_per_path=config.subdir_count_per_path,
            upload_priority=config.upload_priority,
            join_time=self._identity.join_time,
            up_time=self._up_time,
            version=VERSION,
            init_flag=not self._identity.sync_old_done,
            status=status if self.status is None else self.status,
            storage_id=self.place.storage_id if self.parameters.use_storage_id else "",
            tracker_ip=link.peer_ip,
            trackers=tuple(self._tracker_text(server) for server in config.tracker_servers),
        )

    def _tracker_text(self, server: ServerAddress) -> str:
        """A tracker as JOIN lists it: by address, as far as its names have been looked up."""
        hosts = tuple(self._resolved.get(host, host) for host in server.hosts)
        return str(ServerAddress(hosts, server.port))

    async def _decide(self, link: _Link) -> None:
        """87: who sends us the data that the group has already (cluster.md section 2.7)."""
        try:
            answer = await link.request(ClusterCommand.SYNC_DEST_REQUEST)
        except StatusError as exc:
            if exc.errno == errno.ENOENT:
                logger.warning("no storage of the group can send the initial copy yet")
            raise
        source = decode_optional_source(answer)
        if source is None:
            await self._found()
        else:
            logger.info("the initial copy comes from storage %s", source.source_id)
        await trio.to_thread.run_sync(self._identity.decide_source, source)

    async def _report(self, link: _Link) -> None:
        """The reports of one connection (cluster.md section 3); ends with an exception only.

        The disk report goes first, unlike the C server's: either report makes us ACTIVE, and with
        our free space unknown the tracker would answer "no space" to clients for a moment.
        """
        config = self._config
        sent: Statistics | None = None
        next_beat = next_disk = trio.current_time()
        while True:
            if trio.current_time() >= next_disk:
                space = tuple(await trio.to_thread.run_sync(self._space))
                self._take(
                    await link.request(ClusterCommand.DISK_REPORT, DiskReport(space).encode())
                )
                next_disk = trio.current_time() + config.stat_report_interval_s
            if trio.current_time() >= next_beat:
                statistics = self._statistics()
                body = b"" if statistics == sent else statistics.encode()
                self._take(await link.request(ClusterCommand.HEARTBEAT, body))
                sent = statistics
                self._joined.set()
                if self.parameters.storage_ip_changed_auto_adjust:
                    await self._read_changelog(link)
                next_beat = trio.current_time() + config.heart_beat_interval_s
            await link.watch_until(min(next_beat, next_disk))

    async def _read_changelog(self, link: _Link) -> None:
        """77: which members were deleted or changed their ip (section 3.7); only logged so far."""
        for _ in range(_CHANGELOG_PARTS_MAX):
            part = await link.request(ClusterCommand.CHANGELOG)
            if not part:
                return
            for line in part.decode("ascii", "replace").splitlines():
                if f" {self._config.group_name} " in line:
                    logger.info("changelog of the group: %s", line.strip())

    def _take(self, answer: bytes) -> None:
        """Use what a heartbeat's answer tells."""
        changes = Changes.decode(answer)
        if changes.group is None:
            return
        self.members = changes.group
        for brief in changes.group:
            if brief.storage_id == self.place.storage_id and brief.status != self.status:
                self.status = brief.status
                logger.info("this storage is %s now", brief.status.name)

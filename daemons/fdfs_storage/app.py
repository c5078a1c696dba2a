"""The storage daemon, put together: store, names, connections, membership of the cluster.

Order at start, and why: the port is bound and ``base_path`` locked first, so that a mistake there
shows at once and trackers can be told the port; then the trackers are asked for what the whole
cluster agrees on;
what a new disk lacks is fetched; store and names are opened; connections are accepted; the cluster
is joined last, because joining brings clients. Stopping goes the other way round.
"""

from __future__ import annotations

import dataclasses
import errno
import logging
import socket
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

import trio

from fdfs_storage.cluster.identity import Identity
from fdfs_storage.cluster.membership import Membership
from fdfs_storage.cluster.place import Place, learn
from fdfs_storage.cluster.recovery import DiskRecovery
from fdfs_storage.files import locked_directory
from fdfs_storage.names import Names
from fdfs_storage.replication.answers import Answers
from fdfs_storage.replication.service import Replication
from fdfs_storage.serving.service import StorageService
from fdfs_storage.store import Store
from fdfsfuse.core.conf_file import ReservedSpace
from fdfsfuse.core.config import StorageConfig
from fdfsfuse.errors import ConfigError, ConnectionProblem, FdfsError, ProtocolError, StatusError
from fdfsfuse.proto import structs
from fdfsfuse.proto.address import is_ip
from fdfsfuse.proto.cluster_status import FOUND_TREE, FOUND_TREE_MAX, FoundTree
from fdfsfuse.proto.header import Header, pack_response
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.server.connection import FramedConnection
from fdfsfuse.server.daemon import Daemon
from fdfsfuse.server.tcp import TcpServer, open_listeners, resolve_allow_hosts

logger = logging.getLogger(__name__)

_STOP_REQUESTS_S = 5.0
_T = TypeVar("_T")


class StorageApp:
    """One storage.

    Args:
        config: its storage.conf.
        place: what trackers would tell about it; None asks them and joins them. With a place
            the storage stands alone, as benchmarks and tests want it.
    """

    def __init__(self, config: StorageConfig, place: Place | None = None) -> None:
        self.config = config
        self.port = 0
        self._place = place
        self._store: Store
        self._names: Names
        self._replication: Replication
        self._server: TcpServer
        self._membership: Membership | None = None

    async def run(self, daemon: Daemon) -> None:
        """Run until ``daemon.stopping`` is set.

        Raises:
            ConfigError: the data do not belong to this configuration.
            FdfsError: another storage runs on the same base_path.
            OSError: a port or path cannot be used.
        """
        config = self.config
        listeners = open_listeners(config.bind_addr, config.port, config.address_family)
        self.port = listeners[0].getsockname()[1]
        try:
            with _own_base_path(config.base_path):
                await self._run(daemon, listeners)
        finally:
            for listener in listeners:
                listener.close()

    async def _run(self, daemon: Daemon, listeners: list[socket.socket]) -> None:
        daemon.status(f"waiting for a tracker, port {self.port}")
        place = self._place or await _unless(daemon.stopping, self._learn)
        if place is None:
            return
        if self._place is None:
            self.config = dataclasses.replace(self.config, group_name=place.group_name)
        identity = Identity.load(self.config.base_path, int(time.time()))
        if self._place is None:
            recovery = DiskRecovery(self.config, identity, place, self.port, daemon.status)
            if not await _unless(daemon.stopping, recovery.run):
                return  # told to stop before the files were back
        await self._open(place, identity)
        try:
            await self._serve(daemon, place, listeners)
        finally:
            await self._close()

    async def _learn(self) -> Place:
        return await learn(self.config, self.port)

    async def _open(self, place: Place, identity: Identity) -> None:
        """Open what is on disk."""
        config = self.config
        paths = [path.path for path in config.store_paths]
        if config.check_store_path_mark:
            identity.check_marks(paths, place.my_ip, self.port, int(time.time()))
        store = self._store = await Store.open(config)
        identity.note_disks(paths)
        store.configure(
            place.source_in_names,
            ReservedSpace.parse(place.parameters.reserved_storage_space),
            prefer_most_free=place.parameters.store_path == 2,
            trunk_file_size=place.parameters.trunk_file_size,
        )
        self._replication = Replication(
            store,
            config,
            port=self.port,
            old_port=identity.last_server_port,
            by_id=place.parameters.use_storage_id,
            names_directory=lambda: self._names.directory,
        )
        copies = self._replication.in_sync
        self._names = await Names.open(config, store, place.storage_id, copies)
        copies.load()
        if self._place is None:
            self._membership = Membership(
                config,
                identity,
                place,
                port=self.port,
                statistics=self._statistics,
                space=lambda: [(space.total_mb, space.free_mb) for space in store.space()],
                found=self._names.found,
            )
            self._replication.join(self._membership)
        else:
            await self._names.found()

    async def _serve(self, daemon: Daemon, place: Place, listeners: list[socket.socket]) -> None:
        config = self.config
        answers = Answers(
            self._replication,
            self._store,
            config.group_name,
            place.storage_id,
            place.source_in_names,
        )
        service = StorageService(
            self._store,
            config.group_name,
            ip_size=place.parameters.response_ip_addr_size,
            source_ip=_source_ips(place),
            buff_size=config.buff_size,
            names=self._names,
            sync={
                **self._replication.receiver.handlers,
                **answers.handlers,
                FOUND_TREE: self._found_tree,
            },
            sync_at_once=self._replication.receiver.at_once,
        )
        allow = await resolve_allow_hosts(config.allow_hosts)
        self._server = TcpServer(
            service.serve,
            service.answer,
            max_connections=config.max_connections,
            allows=None if allow.everyone else allow.allows,
            network_timeout_s=config.network_timeout_s,
            stop_timeout_s=_STOP_REQUESTS_S,
        )
        async with trio.open_nursery() as services:
            await services.start(self._store.run)
            await services.start(self._replication.run)
            await services.start(self._names.run)
            async with trio.open_nursery() as front:

                async def serve(
                    task_status: trio.TaskStatus[int] = trio.TASK_STATUS_IGNORED,
                ) -> None:
                    await self._server.serve(
                        listeners, stopping=daemon.stopping, task_status=task_status
                    )
                    front.cancel_scope.cancel()

                await front.start(serve)
                if self._membership is not None:
                    await front.start(self._membership.run)
                daemon.ready(f"storage of {config.group_name} serves on port {self.port}")
            services.cancel_scope.cancel()

    async def _found_tree(self, connection: FramedConnection, header: Header) -> bytes:
        """145."""
        if header.length > FOUND_TREE_MAX:
            raise ProtocolError(f"a request of {header.length} bytes")
        request = structs.decode(FoundTree, await connection.recv_exactly(header.length))
        if request.group != self.config.group_name:
            raise ProtocolError(f"group {request.group!r} is not ours")
        if self._names.tree is not None:
            raise StatusError(errno.EEXIST, "there is a tree")
        if self._membership is None:
            raise StatusError(errno.EOPNOTSUPP, "a storage that stands alone has its tree")
        try:
            membership = self._membership
            await membership.founder.found_tree(membership.members, request.stock)
        except (ConnectionProblem, ProtocolError) as exc:
            raise StatusError(errno.EAGAIN, f"no tracker agrees: {exc}") from exc
        return pack_response()

    async def _close(self) -> None:
        self._names.close()
        self._store.close()

    def _statistics(self) -> Statistics:
        counters = self._store.counters
        counters.connections_allocated = counters.connections_max = self._server.most_connections
        counters.connections_current = len(self._server.connections)
        return counters.statistics()


@contextmanager
def _own_base_path(base_path: str) -> Iterator[None]:
    """Two storages that write one binlog and one log of names would destroy both."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked_directory(Path(base_path, "data")))
        except BlockingIOError:
            raise FdfsError(f"another storage runs on base_path {base_path}") from None
        except OSError as exc:
            raise ConfigError(f"base_path = {base_path}: {exc.strerror}") from exc
        yield


async def _unless(stop: trio.Event, ask: Callable[[], Awaitable[_T]]) -> _T | None:
    """The result of *ask*, or None when *stop* is set before."""
    result: _T | None = None
    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            await stop.wait()
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        result = await ask()
        nursery.cancel_scope.cancel()
    return result


def _source_ips(place: Place) -> Callable[[str], str]:
    """Maps the source in a file name to an ip for command 22; '' when it is not known."""
    table: dict[str, str] = {}
    for entry in place.storage_ids.entries if place.storage_ids is not None else ():
        host = entry.hosts[0]  # may be a host name, which the field has no room for
        if is_ip(host) and len(host) < place.parameters.response_ip_addr_size:
            table[entry.storage_id] = host

    def source_ip(source: str) -> str:
        return table.get(source, "") if source.isdigit() else source

    return source_ip

"""Storages that push to each other in the test's process; what trackers tell is told by a fake."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import trio

from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.names import Names
from fdfs_storage.replication.answers import Answers
from fdfs_storage.replication.receiver import Receiver
from fdfs_storage.replication.service import Replication
from fdfs_storage.serving.service import StorageService
from fdfs_storage.store import Store
from fdfsfuse.client.address import Address
from fdfsfuse.client.names import NamesSession, open_session
from fdfsfuse.client.views import Candidate
from fdfsfuse.core.config import StorageConfig
from fdfsfuse.errors import StatusError
from fdfsfuse.proto.changelog import ChangelogLine
from fdfsfuse.proto.cluster import Brief, SyncSource
from fdfsfuse.proto.header import Header, pack_response
from fdfsfuse.proto.tracker import ServerStatus
from fdfsfuse.server.connection import FramedConnection
from fdfsfuse.server.tcp import TcpServer, open_listeners
from tests.common.waiting import wait_for
from tests.daemons.storage_server import GROUP, Client, make_config, open_store


class FakeMembers:
    """One storage's view of the group, set by the test."""

    def __init__(self, own_id: str) -> None:
        self.own_id = own_id
        self.members: tuple[Brief, ...] = ()
        self.sync_timestamps: Callable[[], Mapping[str, int]] = dict
        self.copied_until: Callable[[str], int | None] = lambda peer_id: None
        self.on_changelog: Callable[[ChangelogLine], None] = lambda line: None
        self.sources: dict[str, SyncSource | None] = {}
        self.reports: list[Brief] = []
        self._observers: list[Callable[[], None]] = []

    def add_observer(self, changed: Callable[[], None]) -> None:
        self._observers.append(changed)

    async def sync_source(self, peer_id: str) -> SyncSource | None:
        await trio.lowlevel.checkpoint()
        if peer_id not in self.sources:
            raise StatusError(2)
        return self.sources[peer_id]

    async def report_status(self, brief: Brief) -> None:
        await trio.lowlevel.checkpoint()
        self.reports.append(brief)
        self.set(brief)

    def set(self, brief: Brief) -> None:
        """List *brief* in place of what was listed of that storage."""
        others = [old for old in self.members if old.storage_id != brief.storage_id]
        self.members = (*others, brief)
        for changed in self._observers:
            changed()


class Node:
    """A running storage."""

    def __init__(
        self, store: Store, replication: Replication, members: FakeMembers, port: int
    ) -> None:
        self.store = store
        self.replication = replication
        self.members = members
        self.port = port
        self.names: Names | None = None
        self.stop = trio.Event()

    @property
    def id(self) -> str:
        return self.members.own_id

    def brief(self, status: ServerStatus = ServerStatus.ACTIVE) -> Brief:
        return Brief(status, self.port, self.id, "127.0.0.1")

    def meet(
        self,
        peer: Node,
        status: ServerStatus = ServerStatus.ACTIVE,
        source: SyncSource | None = None,
    ) -> None:
        """Learn of a peer."""
        self.members.sources[peer.id] = source
        self.members.set(peer.brief(status))

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        stream = await trio.open_tcp_stream("127.0.0.1", self.port)
        async with stream:
            yield Client(stream)

    @asynccontextmanager
    async def session(self, **options: Any) -> AsyncIterator[NamesSession]:
        """A mount's session with this storage."""

        async def find() -> list[Candidate]:
            return [Candidate(self.id, Address("127.0.0.1", self.port))]

        async with open_session(find, client="test:/mnt:1", **options) as session:
            await session.wait_connected()
            yield session

    async def wait_until_has_all(self, peer: Node) -> None:
        """Wait until *peer* has all changes of this storage."""

        def has_all() -> bool:
            pusher = self.replication.pushers.get(peer.id)
            return pusher is not None and pusher.acked == self.store.binlog.position

        await wait_for(has_all)

    def server_stops(self) -> None:
        """Accept no connections any more."""
        self.stop.set()

    def cut(self, peer: Node | str) -> None:
        """Break the connection on which changes go to *peer*, a storage or its id."""
        peer_id = peer if isinstance(peer, str) else peer.id
        link = self.replication.pushers[peer_id].link
        assert link is not None
        link._sock.shutdown(socket.SHUT_RDWR)

    def path(self, name: str) -> Path:
        return Path(self.store.path(self.store.locate(name)))

    def content(self, name: str) -> bytes | None:
        try:
            return self.path(name).read_bytes()
        except FileNotFoundError:
            return None

    def files(self) -> dict[str, bytes]:
        """All files with their contents."""
        data = Path(self.store.data_directory(0))
        return {
            str(path.relative_to(data)): path.read_bytes()
            for path in data.rglob("*")
            if path.is_file()
        }

    def lines(self) -> list[str]:
        """The binlog without timestamps."""
        records = self.store.binlog.read(BinlogPosition(0, 0))
        return [record.encode().decode().partition(" ")[2].strip() for record, _ in records]


def sync_config(directory: Path) -> StorageConfig:
    return make_config(directory, paths=1)


async def _rename_as_stock(
    receiver: Receiver, connection: FramedConnection, header: Header
) -> bytes:
    """The reference answers a rename that it has carried out with the request's body."""
    await receiver.rename(connection, header)
    return pack_response(bytes(header.length))


@asynccontextmanager
async def run_node(
    directory: Path,
    own_id: str,
    *,
    config: StorageConfig | None = None,
    boot_id: str = "boot",
    port: int = 0,
    names: bool = False,
    stock: bool = False,
) -> AsyncIterator[Node]:
    """Run a storage until the block is left. *stock*: it refuses what C storages refuse."""
    config = config or sync_config(directory)
    store = await open_store(config, f"127.0.0.{own_id}")
    members = FakeMembers(own_id)
    replication = Replication(
        store,
        config,
        port=23000,
        by_id=True,
        names_directory=lambda: tree.directory if tree is not None else None,
        boot_id=boot_id,
    )
    tree: Names | None = None
    if names:
        tree = await Names.open(config, store, own_id, replication.in_sync)
        replication.in_sync.load()
        await tree.found()
    handlers = dict(replication.receiver.handlers)
    if stock:
        del handlers[150]
        handlers[40] = partial(_rename_as_stock, replication.receiver)
    else:
        source = f"127.0.0.{own_id}"
        handlers |= Answers(replication, store, GROUP, own_id, source).handlers
    at_once = replication.receiver.at_once
    service = StorageService(store, GROUP, names=tree, sync=handlers, sync_at_once=at_once)
    server = TcpServer(service.serve, service.answer, max_connections=64)
    replication.join(members)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            stop = trio.Event()
            serve = partial(server.serve, stopping=stop)
            bound = await nursery.start(serve, open_listeners(["127.0.0.1"], port))
            node = Node(store, replication, members, bound)
            node.stop = stop
            node.names = tree
            members.set(node.brief())
            await nursery.start(replication.run)
            if tree is not None:
                await nursery.start(tree.run)
            yield node
            nursery.cancel_scope.cancel()
    finally:
        if tree is not None:
            tree.close()
        store.close()

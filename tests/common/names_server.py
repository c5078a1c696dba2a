"""A storage with a names tree, in this process: real files, real sockets, no tracker."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from fdfs_storage.names import Names
from fdfs_storage.names.tree import Tree
from fdfs_storage.serving.service import StorageService
from fdfs_storage.store import Store
from fdfsfuse.client.address import Address
from fdfsfuse.client.names import NamesSession, open_session
from fdfsfuse.client.views import Candidate
from fdfsfuse.core.conf_file import ReservedSpace
from fdfsfuse.core.config import StorageConfig, StorePath
from fdfsfuse.server.tcp import TcpServer, open_listeners

HOST = "127.0.0.1"
OWN_ID = "127.0.0.1"


def storage_config(base: Path, **changes: Any) -> StorageConfig:
    """A configuration of one store path in *base*."""
    values: dict[str, Any] = {
        "group_name": "group1",
        "base_path": str(base),
        "store_paths": (StorePath(str(base), False),),
        "tracker_servers": (),
        "subdir_count_per_path": 4,
    }
    return StorageConfig(**{**values, **changes})


async def open_store(config: StorageConfig) -> Store:
    """The store of *config*, ready to make names."""
    store = await Store.open(config)
    store.configure(OWN_ID, ReservedSpace(0))
    return store


class NamesServer:
    """A running storage. Made by `names_server`."""

    def __init__(self, config: StorageConfig, store: Store, names: Names, port: int) -> None:
        self.config = config
        self.store = store
        self.names = names
        self.port = port

    @property
    def tree(self) -> Tree:
        """The tree inside."""
        assert self.names.tree is not None
        return self.names.tree

    async def find(self) -> list[Candidate]:
        """As `fdfsfuse.client.names.open_session` wants it."""
        return [Candidate(OWN_ID, Address(HOST, self.port))]

    @asynccontextmanager
    async def session(self, **options: Any) -> AsyncIterator[NamesSession]:
        """A mount's session with this storage."""
        async with open_session(self.find, client="test:/mnt:1", **options) as session:
            await session.wait_connected()
            yield session


@asynccontextmanager
async def names_server(base: Path, *, port: int = 0, **changes: Any) -> AsyncIterator[NamesServer]:
    """Run a storage on *base* until the block is left."""
    config = storage_config(base, **changes)
    store = await open_store(config)
    names = await Names.open(config, store, OWN_ID)
    try:
        await names.found()
        service = StorageService(store, config.group_name, names=names)
        server = TcpServer(service.serve, service.answer)
        listeners = open_listeners([HOST], port)
        async with trio.open_nursery() as nursery:
            await nursery.start(store.run)
            await nursery.start(names.run)
            port = await nursery.start(server.serve, listeners)
            yield NamesServer(config, store, names, listeners[0].getsockname()[1])
            nursery.cancel_scope.cancel()
    finally:
        names.close()
        store.close()


@asynccontextmanager
async def open_tree(base: Path, *, run: bool = True, **changes: Any) -> AsyncIterator[Tree]:
    """The tree below *base*, founded if need be, without connections; with *run*, its tasks."""
    store = await open_store(storage_config(base, **changes))
    try:
        names = await Names.open(storage_config(base, **changes), store, OWN_ID)
        try:
            await names.found()
            assert names.tree is not None
            async with trio.open_nursery() as nursery:
                if run:
                    await nursery.start(names.run)
                yield names.tree
                nursery.cancel_scope.cancel()
        finally:
            names.close()
    finally:
        store.close()

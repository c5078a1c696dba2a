"""The names service of a storage: what the storage daemon sees of `fdfs_storage.names`."""

from __future__ import annotations

import errno
import logging
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

import trio

from fdfs_storage.names import founding
from fdfs_storage.names.connection import SessionConnection
from fdfs_storage.names.copies import Alone, Copies
from fdfs_storage.names.engine import EngineBroken
from fdfs_storage.names.tree import Limits, Tree
from fdfsfuse.errors import ConnectionBroken, ProtocolError, StatusError
from fdfsfuse.proto import names, structs
from fdfsfuse.proto.header import Header, pack_response

if TYPE_CHECKING:
    from fdfs_storage.store import Store
    from fdfsfuse.core.config import StorageConfig
    from fdfsfuse.server.connection import FramedConnection

logger = logging.getLogger(__name__)

COMMANDS: Final = frozenset(
    (names.QUERY_VIEW, names.OPEN_SESSION, names.WRITE_OBJECT, names.TRUNCATE_OBJECT)
)
_OPEN_SESSION_MAX: Final = 4096


@dataclass(frozen=True, slots=True)
class Status:
    """What ``fdfs status`` can say about the tree."""

    view: names.View
    applied: int
    inodes: int
    sessions: int
    failed: bool


class Names:
    """The names service: made by `open`, with a tree or (yet) without one.

    Attributes:
        tree: the tree, None until it is founded.
    """

    def __init__(
        self, base_path: str, store: Store, own_id: str, limits: Limits, copies: Copies
    ) -> None:
        self._copies = copies
        self.tree: Tree | None = None
        self._directory = founding.names_directory(base_path)
        self._store = store
        self._own_id = own_id
        self._limits = limits
        self._founded = trio.Event()
        self._founding = trio.Lock()

    @classmethod
    async def open(
        cls, config: StorageConfig, store: Store, own_id: str, copies: Copies | None = None
    ) -> Names:
        """Open the tree of a storage, if it has one. *copies*: whom content waits for.

        Raises:
            FdfsError: the files do not fit together; the text says how.
            OSError: a file cannot be used.
        """
        limits = Limits(config.names_session_lease_s, config.names_garbage_grace_s)
        opened = cls(str(config.base_path), store, own_id, limits, copies or Alone())
        await opened._open()
        return opened

    async def _open(self) -> None:
        if self._directory.exists():
            # On this thread: replaying uses the store.
            self.tree = Tree(self._directory, self._store, self._own_id, self._limits, self._copies)
            self._founded.set()
            await trio.lowlevel.checkpoint()

    async def found(self) -> None:
        """Make an empty tree if there is none."""
        async with self._founding:
            if self.tree is None:
                volume_id = uuid.uuid4().hex
                logger.info("founding the tree of volume %s", volume_id)
                founding.found(self._directory, self._own_id, volume_id, time.time_ns())
                await self._open()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """The background service. When the tree cannot be changed any more, plain clients are
        served on."""
        task_status.started()
        await self._founded.wait()
        tree = self.tree
        assert tree is not None
        try:
            await tree.run()
        except EngineBroken as exc:
            logger.critical("the tree is closed until a restart: %s", exc)
            tree.give_up()
            await trio.sleep_forever()

    def close(self) -> None:
        """Close the files; `run` has ended."""
        if self.tree is not None:
            self.tree.close()
            self.tree = None

    @property
    def directory(self) -> Path | None:
        """Where the tree is on the disk, None without one."""
        return self._directory if self.tree is not None else None

    @property
    def status(self) -> Status | None:
        """How the tree is, None without one."""
        tree = self.tree
        if tree is None:
            return None
        return Status(
            tree.stored_view.to_wire(),
            tree.engine.committed,
            tree.state.inodes,
            len(tree.sessions),
            tree.engine.broken,
        )

    # --- requests ---------------------------------------------------------------------------

    def handles(self, command: int) -> bool:
        """True for the commands that `serve` answers."""
        return command in COMMANDS

    async def serve(self, connection: FramedConnection, header: Header) -> None:
        """Serve one request, or a whole session; what is behind the header is still unread.

        Raises:
            ProtocolError: the bytes are none of the protocol; to be answered with 22 and closed.
            StatusError: to be answered; the body has been read.
            ConnectionBroken: there is nobody to answer.
        """
        tree = self.tree
        command, length = header.command, header.length
        if command == names.WRITE_OBJECT and tree is not None:
            await tree.writer.write(connection, length)
        elif command == names.TRUNCATE_OBJECT and tree is not None:
            await tree.writer.truncate(connection, length)
        elif command == names.QUERY_VIEW:
            if length:
                raise ProtocolError("QUERY_VIEW has no body")
            if tree is None:
                raise StatusError(errno.ENOENT, "no tree")
            if tree.engine.broken:
                raise StatusError(names.NOT_PRIMARY)
            await connection.send(pack_response(names.encode(tree.stored_view.to_wire())))
        elif command == names.OPEN_SESSION and length <= _OPEN_SESSION_MAX:
            body = await connection.recv_exactly(length)
            if tree is None:
                raise StatusError(errno.ENOENT, "no tree")
            await self._serve_session(tree, connection, body)
        else:
            raise ProtocolError(f"command {command} with {length} bytes cannot be served")

    async def _serve_session(self, tree: Tree, connection: FramedConnection, body: bytes) -> None:
        request = structs.decode(names.OpenSession, body)
        session = await tree.open_session(request)
        served = SessionConnection(connection, session, tree)
        session.connection = served
        opened = names.SessionOpened(
            names.VERSION,
            session.number,
            session.lease_s,
            tree.stored_view.to_wire(),
        )
        try:
            await served.run(opened)
        finally:
            if session.connection is served:
                session.connection = None
        raise ConnectionBroken("the session's connection ended")

"""The network behind a mount: trackers, names sessions and data connections.

Data goes to the storage that the names session is with. Exchanges that break are repeated until the
mount's timeout has passed: reading, and writing bytes at an offset, may be done twice.
"""

from __future__ import annotations

import errno
import functools
import math
import struct
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

import trio

from fdfsfuse.client.address import Address
from fdfsfuse.client.connection import Connection
from fdfsfuse.client.names import NamesSession, open_session
from fdfsfuse.client.names.lease import Lease, boottime
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.tracker import TrackerClient
from fdfsfuse.client.views import Candidate
from fdfsfuse.errors import (
    ConnectFailed,
    ConnectionProblem,
    DeadlineExceeded,
    NoNamesError,
    ProtocolError,
    StatusError,
)
from fdfsfuse.proto import fileid, names
from fdfsfuse.proto.storage import Download, FileInfo, FileRequest, StorageCommand
from fdfsfuse.vfs.backend import Listener, ObjectInfo
from fdfsfuse.vfs.stock import StockVolume

_T = TypeVar("_T")

_RETRY_S = 0.2
_SILENT_S = 5.0
"""How long to wait for a storage if another one can be asked."""
_HEAD_LENGTH = struct.Struct(">I")
_INFO_MAX = 128
_JOIN_BELOW = 256 << 10
"""Pieces of a write that are smaller than this on average are joined by copying."""


async def _pieces(data: Sequence[bytes]) -> AsyncIterator[bytes]:
    for piece in data:
        yield piece


class RemoteBackend:
    """A `Backend` over the network."""

    def __init__(
        self,
        group: str,
        trackers: TrackerClient,
        pool: Pool,
        client: str,
        timeout_s: float,
        lease_s: float,
    ) -> None:
        self.group = group
        self.store_path_count = 256
        self._trackers = trackers
        self._pool = pool
        self._client = client
        self._timeout_s = timeout_s
        self._lease_s = lease_s
        self.lease = Lease()
        self._session: NamesSession | None = None
        self._opened = trio.Event()
        self._closing = trio.Event()
        self._storages: list[Candidate] = []
        self._in_sync: frozenset[str] = frozenset()
        self._traffic: dict[str, list[int]] = {}
        self._stock = StockVolume(group, trackers, pool)
        """Answers instead of a session where all storages are stock servers."""

    @property
    def view(self) -> int:
        session = self._session
        return session.view.number if session is not None and session.view is not None else 0

    @property
    def connected(self) -> bool:
        return self._session is not None and self._session.connected

    @property
    def unreachable(self) -> bool:
        return self._session is not None and self._session.unreachable

    @property
    def is_prompt(self) -> bool:
        session = self._session
        return session is not None and session.is_prompt

    @property
    def answers(self) -> bool:
        return self._session is not None and self._session.answers

    def replicas(self) -> list[str]:
        return [str(storage.address) for storage in self._storages]

    def state(self) -> dict[str, Any]:
        session = self._session
        view = session.view if session is not None else None
        return {
            "connected": self.connected,
            "problem": session.problem if session is not None else "not opened yet",
            "storage": str(session.address) if session is not None and session.address else "",
            "view": view.number if view is not None else 0,
            "members": list(view.members) if view is not None else [],
            "lease_seconds": session.lease_s if session is not None else 0.0,
            "lease_left_seconds": max(0.0, self.lease.until - boottime()),
            "storages": self.replicas(),
            "calls": {
                name: {"count": count, "seconds": total_ns / 1e9}
                for name, (count, total_ns) in list(self._traffic.items())
            },
        }

    def _count(self, name: str, start: int) -> None:
        count_and_ns = self._traffic.get(name)
        if count_and_ns is None:
            count_and_ns = self._traffic[name] = [0, 0]
        count_and_ns[0] += 1
        count_and_ns[1] += time.perf_counter_ns() - start

    async def run(self, listener: Listener) -> None:
        def pushed(push: names.Push) -> None:
            if isinstance(push, names.Recall):
                listener.recalled(push)
            elif isinstance(push, names.InSync):
                self._in_sync = frozenset(push.storages)

        manager = open_session(
            self._find,
            client=self._client,
            holds=listener.held,
            on_push=pushed,
            on_lease_lost=listener.lease_lost,
            lease_s=self._lease_s,
            lease=self.lease,
        )
        async with manager as session:
            self._session = session
            self._opened.set()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, session, listener)
                await self._closing.wait()
                nursery.cancel_scope.cancel()

    async def _watch(self, session: NamesSession, listener: Listener) -> None:
        while True:
            # Not wait_connected(): that a group has no names now is nothing to end for.
            while not session.connected:
                await session.wait_change()
            await listener.resumed()
            while session.connected:
                await session.wait_change()

    def recalled(self, number: int, kept: Sequence[int]) -> None:
        if self._session is not None:
            self._session.recalled(number, kept)

    def close(self) -> None:
        self._closing.set()

    async def call(self, request: names.Request, *, timeout_s: float | None = None) -> Any:
        if self._session is None:
            await self._opened.wait()
        assert self._session is not None
        deadline = trio.current_time() + (self._timeout_s if timeout_s is None else timeout_s)
        start = time.perf_counter_ns()
        try:
            return await self._session.call(request, deadline)
        except NoNamesError:
            with trio.move_on_at(deadline):
                return await self._stock.call(request)
            raise DeadlineExceeded(f"the storages of {self.group} did not answer in time") from None
        finally:
            self._count(type(request).__name__, start)

    def post(self, request: names.Request, done: Callable[[Exception | None], None]) -> bool:
        assert self._session is not None
        name, start = type(request).__name__, time.perf_counter_ns()

        def ended(error: Exception | None) -> None:
            self._count(name, start)
            done(error)

        return self._session.post(request, ended)

    def hurry(self) -> None:
        assert self._session is not None
        self._session.hurry()

    def has_copies(self, file_id: str) -> bool:
        return any(address != self._at for address in self._sources(file_id, published=True))

    async def read_into(
        self, file_id: str, offset: int, buffer: memoryview, *, published: bool = False
    ) -> int:
        body = Download(self.group, file_id, offset, len(buffer)).encode()

        async def exchange(connection: Connection) -> int:
            return await connection.request_into(StorageCommand.DOWNLOAD, body, buffer)

        start = time.perf_counter_ns()
        try:
            return await self._read(file_id, exchange, published=published)
        finally:
            self._count("read", start)

    async def _read(
        self,
        file_id: str,
        exchange: Callable[[Connection], Awaitable[_T]],
        *,
        published: bool = False,
    ) -> _T:
        """Do *exchange* with the names primary or, if it does not answer, with another storage."""
        if self._is_stock:
            with self._deadline():
                return await self._stock.read(file_id, exchange)
            raise DeadlineExceeded(f"no storage of {self.group} answered in time")
        problem = ""
        now = trio.current_time()
        deadline = now + self._timeout_s
        while now < deadline:
            sources = self._sources(file_id, published=published)
            limit_s = _SILENT_S if len(sources) > 1 else math.inf
            for address in sources:
                try:
                    until = min(deadline, now + limit_s)
                    return await self._pool.call(address, exchange, repeatable=True, deadline=until)
                except ConnectionProblem as exc:
                    problem = str(exc)
                except StatusError as exc:
                    # A storage that is being filled need not have it yet.
                    if len(sources) == 1 or exc.errno != errno.ENOENT or address == self._at:
                        raise
                    problem = f"{address} does not have {file_id}"
                now = trio.current_time()
            await trio.sleep(min(_RETRY_S, max(0.0, deadline - now)))
            now = trio.current_time()
        raise DeadlineExceeded(f"no storage of {self.group} answered in time: {problem}")

    @property
    def _is_stock(self) -> bool:
        return self._session is not None and self._session.no_names

    @property
    def _at(self) -> Address | None:
        """Where the names primary is, or was last."""
        return self._session.address if self._session is not None else None

    def _sources(self, file_id: str, *, published: bool) -> list[Address]:
        """Storages to read an object from, in the order in which to ask them.

        An object that may be changed in place is read from others than the primary only if its
        *published* content will do, and only from storages that were in sync when the primary last
        told us anything: it would have told us of any change since.
        """
        primary, immutable = self._at, _is_immutable(file_id)
        others = [
            storage.address
            for storage in self._storages
            if storage.address != primary
            and (immutable or (published and storage.storage_id in self._in_sync))
        ]
        if primary is None:
            return others
        return [primary, *others] if self.connected else [*others, primary]

    async def write_object(self, head: names.WriteObject, data: Sequence[bytes]) -> None:
        encoded = names.encode(head)
        front = _HEAD_LENGTH.pack(len(encoded)) + encoded
        length = sum(length for _, length in head.pieces())
        joined = length < _JOIN_BELOW * len(data) or len(data) == 1
        body = b"".join(data) if joined else b""

        async def exchange(connection: Connection) -> None:
            source = body if joined else _pieces(data)
            await connection.command_stream(names.WRITE_OBJECT, front, source, length)

        start = time.perf_counter_ns()
        try:
            await self._exchange(exchange)
        finally:
            self._count("write", start)

    async def delete_object(self, file_id: str) -> None:
        body = FileRequest(self.group, file_id).encode()
        # Not repeated: the second try would find nothing.
        with self._deadline():
            address = await self._stock.changer(file_id) if self._is_stock else self._address()
            async with self._pool.connection(address) as connection:
                await connection.command(StorageCommand.DELETE, body)
            return
        raise DeadlineExceeded(f"the storage of {self.group} did not answer in time")

    async def info(self, file_id: str) -> ObjectInfo:
        body = FileRequest(self.group, file_id).encode()

        async def exchange(connection: Connection) -> bytes:
            return await connection.request(StorageCommand.FILE_INFO, body, max_answer=_INFO_MAX)

        answer = await (
            self._read(file_id, exchange) if self._is_stock else self._exchange(exchange)
        )
        info = FileInfo.decode(answer)
        return ObjectInfo(info.size, info.mtime, info.crc32, info.source_ip)

    async def _find(self) -> list[Candidate]:
        self._storages = await self._trackers.find_candidates(self.group)
        return self._storages

    def _address(self) -> Address:
        address = self._at
        if address is None:
            raise ConnectFailed(f"the volume {self.group} is not connected")
        return address

    def _deadline(self) -> trio.CancelScope:
        return trio.move_on_after(self._timeout_s)

    async def _exchange(self, exchange: Callable[[Connection], Awaitable[_T]]) -> _T:
        problem: ConnectionProblem | None = None
        with self._deadline():
            while True:
                try:
                    return await self._pool.call(self._address(), exchange, repeatable=True)
                except ConnectionProblem as exc:
                    problem = exc
                await trio.sleep(_RETRY_S)
        raise DeadlineExceeded(f"the storage of {self.group} did not answer in time: {problem}")


@functools.lru_cache(maxsize=1024)
def _is_immutable(file_id: str) -> bool:
    try:
        return fileid.decode_name(file_id).kind is fileid.FileKind.NORMAL
    except ProtocolError:
        return False


class RemoteCluster:
    """A `Cluster` over the network; `close` it in the end."""

    def __init__(
        self, trackers: Sequence[Address], client: str, timeout_s: float, lease_s: float
    ) -> None:
        self._pool = Pool()
        self._trackers = TrackerClient(trackers, self._pool)
        self._client = client
        self._timeout_s = timeout_s
        self._lease_s = lease_s
        self._backends: dict[str, RemoteBackend] = {}

    def close(self) -> None:
        """Close the idle connections."""
        self._pool.close()

    async def volumes(self) -> list[str]:
        groups = await self._trackers.list_groups()
        for group in groups:
            if group.store_path_count > 0:
                self.backend(group.group).store_path_count = group.store_path_count
        return [group.group for group in groups]

    def backend(self, group: str) -> RemoteBackend:
        backend = self._backends.get(group)
        if backend is None:
            backend = RemoteBackend(
                group, self._trackers, self._pool, self._client, self._timeout_s, self._lease_s
            )
            self._backends[group] = backend
        return backend

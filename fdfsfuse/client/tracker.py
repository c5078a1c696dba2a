"""Questions to the trackers: where to upload, who has a file, what the cluster looks like.

Source: protocol/wire.md section 3. Trackers are peers: any of them can answer, and the one that
answered last is asked first.
"""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, TypeVar

import trio

from fdfsfuse.client.address import Address
from fdfsfuse.client.connection import Connection
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.views import Candidate
from fdfsfuse.errors import ConnectionProblem, FdfsError, ProtocolError, StatusError, UsageError
from fdfsfuse.proto.tracker import (
    GROUP_STAT_SIZE,
    IPV6_SIZE,
    MAX_GROUPS,
    MAX_SERVERS_PER_GROUP,
    STORAGE_STAT_REST,
    Endpoint,
    FileRequest,
    FileTargets,
    GroupRequest,
    GroupStat,
    ServerRequest,
    ServerStatus,
    StorageStat,
    StoreTarget,
    TrackerCommand,
    decode_group_stats,
    decode_storage_stats,
)

TRY_TIMEOUT_S = 5.0
"""How long one tracker may take before the next one is asked."""

_TARGET_MAX = 16 + 53
_T = TypeVar("_T")

GONE = frozenset({ServerStatus.DELETED, ServerStatus.IP_CHANGED, ServerStatus.NONE})
"""States of storages that will not come back."""


class UploadTarget(NamedTuple):
    """Where to upload: the group, a storage of it and the store path index to name there."""

    group: str
    address: Address
    path_index: int


def storage_address(endpoint: Endpoint) -> Address:
    """Where a storage listens."""
    return Address(endpoint.ip, endpoint.port)


class TrackerClient:
    """Asks *trackers* in turn until one answers; connections are kept in *pool*.

    All methods raise StatusError (2: there is no such group, or no server can be handed out; 28:
    no space) or ConnectionProblem when no tracker answered, each within ``try_timeout_s``.
    """

    def __init__(
        self, trackers: Sequence[Address], pool: Pool, *, try_timeout_s: float = TRY_TIMEOUT_S
    ) -> None:
        if not trackers:
            raise UsageError("no tracker address was given")
        self._trackers = list(dict.fromkeys(trackers))
        self._pool = pool
        self._try_timeout_s = try_timeout_s
        self._current = 0

    @property
    def trackers(self) -> tuple[Address, ...]:
        """The addresses, without duplicates."""
        return tuple(self._trackers)

    async def query_store(self, group: str | None = None) -> UploadTarget:
        """Where to upload, in *group* or anywhere (101, 104)."""
        if group is None:
            command, body = TrackerCommand.QUERY_STORE_ONE, b""
        else:
            command = TrackerCommand.QUERY_STORE_ONE_IN_GROUP
            body = GroupRequest(group).encode()
        target = await self._ask(command, body, 70, StoreTarget.decode)
        return UploadTarget(target.group, storage_address(target.endpoint), target.path_index)

    async def query_fetch(self, group: str, name: str) -> Address:
        """A storage that has the file (102)."""
        return await self._query_file(TrackerCommand.QUERY_FETCH_ONE, group, name)

    async def query_update(self, group: str, name: str) -> Address:
        """The storage for changes of the file, and for its metadata (103)."""
        return await self._query_file(TrackerCommand.QUERY_UPDATE, group, name)

    async def query_fetch_all(self, group: str, name: str) -> list[Address]:
        """All storages that are believed to have the file (105)."""
        body = FileRequest(group, name).encode()
        limit = 16 + 53 * MAX_SERVERS_PER_GROUP
        found = await self._ask(TrackerCommand.QUERY_FETCH_ALL, body, limit, FileTargets.decode)
        return [storage_address(endpoint) for endpoint in found.endpoints]

    async def list_groups(self) -> list[GroupStat]:
        """All groups, sorted by name (91)."""
        limit = MAX_GROUPS * GROUP_STAT_SIZE
        return await self._ask(TrackerCommand.LIST_ALL_GROUPS, b"", limit, decode_group_stats)

    async def list_storages(self, group: str) -> list[StorageStat]:
        """All storages of *group*, sorted by id, deleted ones included (92)."""
        body = ServerRequest(group).encode()
        limit = 2 * MAX_SERVERS_PER_GROUP * (STORAGE_STAT_REST + IPV6_SIZE)
        return await self._ask(TrackerCommand.LIST_STORAGES, body, limit, decode_storage_stats)

    async def find_candidates(self, group: str) -> list[Candidate]:
        """The storages of *group* that may keep its tree, for `open_session`."""
        return [
            Candidate(stat.storage_id, Address(stat.ip, stat.storage_port))
            for stat in await self.list_storages(group)
            if stat.status not in GONE and stat.ip and 0 < stat.storage_port < 65536
        ]

    async def _query_file(self, command: TrackerCommand, group: str, name: str) -> Address:
        body = FileRequest(group, name).encode()
        found = await self._ask(command, body, _TARGET_MAX, FileTargets.decode)
        return storage_address(found.endpoints[0])

    async def _ask(
        self, command: TrackerCommand, body: bytes, max_answer: int, decode: Callable[[bytes], _T]
    ) -> _T:
        """The first answer of any tracker.

        "No such thing" counts only when no other tracker knows better: one that has just been
        started knows nothing until the storages have joined it.
        """

        async def exchange(connection: Connection) -> bytes:
            return await connection.request(command, body, max_answer=max_answer)

        unknown: StatusError | None = None
        problems: list[FdfsError] = []
        first = self._current
        for step in range(len(self._trackers)):
            index = (first + step) % len(self._trackers)
            address = self._trackers[index]
            try:
                answer = decode(await self._try(address, exchange))
            except StatusError as exc:
                if exc.errno != errno.ENOENT:
                    raise
                unknown = unknown or exc
            except (ConnectionProblem, ProtocolError) as exc:
                problems.append(exc)
            else:
                self._current = index
                return answer
        if unknown is not None:
            raise unknown
        if len(problems) == 1:
            raise problems[0]
        raise ConnectionProblem("no tracker answers: " + "; ".join(str(p) for p in problems))

    async def _try(
        self, address: Address, exchange: Callable[[Connection], Awaitable[bytes]]
    ) -> bytes:
        with trio.move_on_after(self._try_timeout_s):
            return await self._pool.call(address, exchange, repeatable=True)
        raise ConnectionProblem(f"{address} did not answer within {self._try_timeout_s:g} s")

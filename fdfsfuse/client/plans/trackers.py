"""Asking trackers: where to upload, who has a file, what the cluster looks like.

Source: protocol/wire.md section 3. Trackers are peers: any of them can answer, and the one that
answered last is asked first.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from fdfsfuse.client.address import Address, AddressMap, address_mapper
from fdfsfuse.client.plans.steps import Ask, Plan, T
from fdfsfuse.errors import (
    ConnectionProblem,
    FdfsError,
    NotFoundError,
    NoVolumeError,
    ProtocolError,
    StatusError,
    UsageError,
)
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
    StorageStat,
    StoreTarget,
    StoreTargets,
    TrackerCommand,
    decode_group_stats,
    decode_storage_stats,
)

TRY_TIMEOUT_S = 5.0
"""How long one tracker may take, at most, before the next one is asked."""

_TARGET_MAX = 16 + 53
_TARGETS_MAX = 17 + 53 * MAX_SERVERS_PER_GROUP


class UploadTarget(NamedTuple):
    """Where to upload: the group, a storage of it and the store path index to name there."""

    group: str
    address: Address
    path_index: int


class TrackerPlans:
    """Plans that ask *trackers* in turn until one answers.

    All of them end with StatusError (2: there is no such group, or no server can be handed out;
    28: no space) or ConnectionProblem when no tracker answered, each within `TRY_TIMEOUT_S`. May
    be used by several threads.
    """

    def __init__(
        self,
        trackers: Sequence[Address],
        *,
        address_map: AddressMap | None = None,
    ) -> None:
        if not trackers:
            raise UsageError("no tracker address was given")
        self.trackers = tuple(dict.fromkeys(trackers))
        self._mapped = address_mapper(address_map)
        self._current = 0
        # A tracker gives the same few answers again and again.
        self._decode_upload_target = functools.lru_cache(256)(self._upload_target)
        self._decode_first = functools.lru_cache(256)(self._first)

    def query_store(self, group: str | None = None) -> Plan[UploadTarget]:
        """Where to upload, in *group* or anywhere (101, 104)."""
        if group is None:
            command, body = TrackerCommand.QUERY_STORE_ONE, b""
        else:
            command = TrackerCommand.QUERY_STORE_ONE_IN_GROUP
            body = GroupRequest(group).encode()
        return self.ask(command, body, 70, self._decode_upload_target)

    def query_store_all(self, group: str) -> Plan[list[UploadTarget]]:
        """Every storage of *group* that takes uploads (107)."""
        found = yield from self.ask(
            TrackerCommand.QUERY_STORE_ALL_IN_GROUP,
            GroupRequest(group).encode(),
            _TARGETS_MAX,
            StoreTargets.decode,
        )
        return [
            UploadTarget(found.group, self.reachable(endpoint), found.path_index)
            for endpoint in found.endpoints
        ]

    def query_fetch(self, group: str, name: str) -> Plan[Address]:
        """A storage that has the file (102)."""
        return self._query_file(TrackerCommand.QUERY_FETCH_ONE, group, name)

    def query_update(self, group: str, name: str) -> Plan[Address]:
        """The storage for changes of the file, and for its metadata (103)."""
        return self._query_file(TrackerCommand.QUERY_UPDATE, group, name)

    def query_fetch_all(self, group: str, name: str) -> Plan[list[Address]]:
        """All storages that are believed to have the file (105)."""
        body = FileRequest(group, name).encode()
        found = yield from self.ask(
            TrackerCommand.QUERY_FETCH_ALL, body, _TARGETS_MAX, FileTargets.decode
        )
        return [self.reachable(endpoint) for endpoint in found.endpoints]

    def list_groups(self) -> Plan[list[GroupStat]]:
        """All groups, sorted by name (91)."""
        limit = MAX_GROUPS * GROUP_STAT_SIZE
        return self.ask(TrackerCommand.LIST_ALL_GROUPS, b"", limit, decode_group_stats)

    def list_storages(self, group: str) -> Plan[list[StorageStat]]:
        """All storages of *group*, sorted by id, deleted ones included (92).

        Raises:
            NoVolumeError: there is no such group. ConnectionProblem: it has no storages.
        """
        body = ServerRequest(group).encode()
        limit = 2 * MAX_SERVERS_PER_GROUP * (STORAGE_STAT_REST + IPV6_SIZE)
        command, decode = TrackerCommand.LIST_STORAGES, decode_storage_stats
        try:
            return (yield from self.ask(command, body, limit, decode))
        except NotFoundError as exc:
            raise (yield from self.no_server(group, "is known")) from exc

    def reachable(self, endpoint: Endpoint) -> Address:
        """How to reach a storage that a tracker names."""
        return self._mapped(Address(endpoint.ip, endpoint.port))

    def no_server(self, group: str | None, what: str) -> Plan[FdfsError]:
        """What a tracker's status 2 means: an unknown group, or no server that *what*."""
        groups = [stat.group for stat in (yield from self.list_groups())]
        if group is not None and group not in groups:
            return NoVolumeError(group, groups)
        volume = f"of volume {group} " if group else ""
        return ConnectionProblem(f"no storage {volume}{what} now")

    def _query_file(self, command: TrackerCommand, group: str, name: str) -> Plan[Address]:
        body = FileRequest(group, name).encode()
        return self.ask(command, body, _TARGET_MAX, self._decode_first)

    def _upload_target(self, body: bytes) -> UploadTarget:
        target = StoreTarget.decode(body)
        return UploadTarget(target.group, self.reachable(target.endpoint), target.path_index)

    def _first(self, body: bytes) -> Address:
        return self.reachable(FileTargets.decode(body).endpoints[0])

    def ask(
        self, command: int, body: bytes, max_answer: int, decode: Callable[[bytes], T]
    ) -> Plan[T]:
        """The first answer of any tracker.

        "No such thing" counts only when no other tracker knows better: one that has just been
        started knows nothing until the storages have joined it.
        """
        unknown: StatusError | None = None
        problems: list[FdfsError] = []
        first = self._current
        for step in range(len(self.trackers)):
            index = (first + step) % len(self.trackers)
            request = Ask(
                self.trackers[index],
                command,
                body,
                max_answer,
                repeatable=True,
                limit_s=TRY_TIMEOUT_S,
                others=len(self.trackers) - step - 1,
            )
            try:
                answer = decode((yield request))
            except NotFoundError as exc:
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

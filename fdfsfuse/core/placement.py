"""Which storage a client is given: the rules of protocol/load-balancing.md sections 2 to 7.

The rules are functions of state, settings and time; `Placement` applies them and advances the
round-robin counters of groups and servers. Errors are StatusError: 2 when nothing can be handed
out, 28 when all that could be is full.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from fdfsfuse.core.config import StoreLookup, StorePathMode, StoreServer, TrackerConfig
from fdfsfuse.core.groups import Group, Server
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.fileid import FileKind, NameInfo, decode_name


class Store(NamedTuple):
    """Where an upload goes; for commands 106 and 107 ``servers`` are all candidates."""

    group: Group
    servers: Sequence[Server]
    path_index: int


class WantedFile(NamedTuple):
    """What a file name tells about where its file is.

    ``normal`` is False for appenders and slaves. ``source`` is None when nobody of the group made
    it. ``timestamp`` is in Unix seconds. ``received`` tells by storage id until when the others
    have the changes of the source; None when nothing is known about that.
    """

    normal: bool
    source: Server | None
    timestamp: int
    received: Mapping[str, int] | None = None


def default_server(group: Group, store_server: StoreServer) -> Server | None:
    """The group's default server (section 1), None when nothing is writable."""
    if not group.writable:
        return None
    if store_server is StoreServer.LOWEST_PRIORITY:
        return min(group.writable, key=lambda server: server.upload_priority)
    return group.writable[0]


def wanted_file(group: Group, name: str) -> WantedFile:
    """Decode a name as far as it goes; what cannot be decoded counts as an old normal file."""
    try:
        info: NameInfo = decode_name(name)
    except ProtocolError:
        return WantedFile(True, None, 0)
    source = group.servers.get(info.source)
    if source is None and not info.source_is_id:
        source = group.find_ip(info.source)
    received = None
    if source is not None and group.sync_times:
        received = group.sync_times.get(source.storage_id, {})
    return WantedFile(info.kind is FileKind.NORMAL, source, info.timestamp, received)


def is_source(server: Server, file: WantedFile) -> bool:
    """Rule a: the storage took the upload itself."""
    return server is file.source


def is_old(file: WantedFile, now_s: float, max_delay_s: float) -> bool:
    """Rule b: the file is so old that every storage must have it."""
    return file.timestamp < now_s - max_delay_s


def received_until(server: Server, file: WantedFile) -> int:
    """Until when (Unix seconds) the storage has the changes of the file's source.

    The reference takes the smallest (or largest) timestamp over all sources, and leaves out those
    that the storage has not heard of: so it hands out storages that have nothing of this source.
    What was before the storage's initial copy it has from there.
    """
    if file.received is None:
        return server.last_synced_timestamp
    return max(file.received.get(server.storage_id, 0), server.source.until)


def is_synced(server: Server, file: WantedFile) -> bool:
    """Rule c: the storage has received later changes than this file."""
    return received_until(server, file) > file.timestamp


def is_probably_synced(server: Server, file: WantedFile, now_s: float, max_time_s: float) -> bool:
    """Rule d: it has received changes up to this file, and syncing one file cannot take longer."""
    return (
        received_until(server, file) + 1 >= file.timestamp and now_s - file.timestamp > max_time_s
    )


def has_file(server: Server, file: WantedFile, now_s: float, config: TrackerConfig) -> bool:
    """Rules a to d for a normal file (section 4)."""
    return (
        is_source(server, file)
        or is_old(file, now_s, config.storage_sync_file_max_delay_s)
        or is_synced(server, file)
        or is_probably_synced(server, file, now_s, config.storage_sync_file_max_time_s)
    )


def group_has_space(group: Group, config: TrackerConfig) -> bool:
    """The group check of section 2; in trunk mode room inside trunk files counts as well."""
    free_mb, total_mb = group.least_space()
    has_space = config.reserved_storage_space.group_has_space
    return has_space(free_mb, total_mb) or (
        config.trunk.use_trunk_file and has_space(free_mb + group.trunk_free_mb, total_mb)
    )


def path_has_space(group: Group, server: Server, index: int, config: TrackerConfig) -> bool:
    """The store path check of section 2; in trunk mode the group's trunk files count as well."""
    total_mb, free_mb = server.space[index]
    has_space, count = config.reserved_storage_space.path_has_space, len(server.space)
    return has_space(free_mb, total_mb, count) or (
        config.trunk.use_trunk_file and has_space(free_mb + group.trunk_free_mb, total_mb, count)
    )


class Placement:
    """Answers queries from *groups* (by name), with the settings of *config*."""

    def __init__(self, groups: Mapping[str, Group], config: TrackerConfig) -> None:
        self._groups = groups
        self._config = config
        self.next_group = 0
        """Round-robin counter over the groups, sorted by name."""

    # --- uploads ------------------------------------------------------------------------------

    def store(self, group_name: str | None) -> Store:
        """Where to upload (101; 104 with a group)."""
        group = self._store_group(group_name)
        server = self._next_writable(group)
        return Store(group, [server], self._path_index(group, server))

    def store_all(self, group_name: str | None) -> Store:
        """Every writable storage of the group, and the path index of the first (106, 107)."""
        group = self._store_group(group_name)
        return Store(group, list(group.writable), self._path_index(group, group.writable[0]))

    def _store_group(self, group_name: str | None) -> Group:
        if group_name is not None:
            return self._given_group(group_name)
        if self._config.store_lookup is StoreLookup.SPECIFIED:
            return self._given_group(self._config.store_group)
        names = sorted(self._groups)
        if self._config.store_lookup is StoreLookup.LOAD_BALANCE:
            return self._load_balanced(names)
        group = self._first_usable(names, self.next_group)
        self.next_group = names.index(group.name) + 1
        return group

    def _given_group(self, name: str) -> Group:
        group = self._groups.get(name)
        if group is None or not group.writable:
            raise StatusError(errno.ENOENT, f"nothing is writable in group {name}")
        if not group_has_space(group, self._config):
            raise StatusError(errno.ENOSPC, f"group {name}")
        return group

    def _load_balanced(self, names: Sequence[str]) -> Group:
        """The group with the most free space among those with a writable storage.

        When it is full: in trunk mode the one with most room inside trunk files, else the next.
        """
        writable = [i for i, name in enumerate(names) if self._groups[name].writable]
        best = max(writable, key=lambda i: self._groups[names[i]].least_space()[0], default=0)
        if self._config.trunk.use_trunk_file and writable:
            space = self._groups[names[best]].least_space()
            if not self._config.reserved_storage_space.group_has_space(*space):
                best = max(writable, key=lambda i: self._groups[names[i]].trunk_free_mb)
        return self._first_usable(names, best)

    def _first_usable(self, names: Sequence[str], start: int) -> Group:
        status = errno.ENOENT
        for offset in range(len(names)):
            group = self._groups[names[(start + offset) % len(names)]]
            if group.writable:
                if group_has_space(group, self._config):
                    return group
                status = errno.ENOSPC
        raise StatusError(status, "no group takes uploads")

    def _next_writable(self, group: Group) -> Server:
        """The store_server rule (section 3); *group* has a writable storage."""
        if self._config.store_server is not StoreServer.ROUND_ROBIN:
            server = default_server(group, self._config.store_server)
            assert server is not None
            return server
        index = group.next_write_server % len(group.writable)
        group.next_write_server = (index + 1) % len(group.writable)
        return group.writable[index]

    def _path_index(self, group: Group, server: Server) -> int:
        """The store_path rule (section 3)."""
        count = len(server.space)
        if not count:
            raise StatusError(errno.ENOSPC, f"{server.storage_id} has not reported its space")
        if self._config.store_path is StorePathMode.LOAD_BALANCE:
            start = max(range(count), key=lambda index: server.space[index][1])
        else:
            start = server.next_write_path % count
        for offset in range(count):
            index = (start + offset) % count
            if path_has_space(group, server, index, self._config):
                server.next_write_path = (index + 1) % count
                return index
        raise StatusError(errno.ENOSPC, f"the store paths of {server.storage_id}")

    # --- files that exist ---------------------------------------------------------------------

    def _group(self, name: str) -> Group:
        group = self._groups.get(name)
        if group is None:
            raise StatusError(errno.ENOENT, f"no group {name}")
        return group

    def _default_readable(self, group: Group) -> Server:
        server = default_server(group, self._config.store_server)
        if server is None or server not in group.readable:
            raise StatusError(errno.ENOENT, f"nothing is readable in group {group.name}")
        return server

    def fetch(self, group_name: str, name: str, now_s: float) -> Server:
        """One storage to download from (102; section 4)."""
        group = self._group(group_name)
        file = wanted_file(group, name)
        if not file.normal or self._config.download_source_first:
            for server in group.readable:
                if server is file.source:
                    return server
        if file.normal:
            count = len(group.readable)
            for offset in range(count):
                index = (group.next_read_server + offset) % count
                if has_file(group.readable[index], file, now_s, self._config):
                    group.next_read_server = (index + 1) % count
                    return group.readable[index]
        return self._default_readable(group)

    def fetch_all(self, group_name: str, name: str, now_s: float) -> list[Server]:
        """Every storage believed to have the file (105; section 5)."""
        group = self._group(group_name)
        file = wanted_file(group, name)
        found = [
            server
            for server in group.readable
            if server is file.source
            or (file.normal and has_file(server, file, now_s, self._config))
        ]
        return found or [self._default_readable(group)]

    def update(self, group_name: str, name: str) -> Server:
        """The storage that changes a file (103; section 6)."""
        group = self._group(group_name)
        source = wanted_file(group, name).source
        if not group.writable:
            raise StatusError(errno.ENOENT, f"nothing is writable in group {group_name}")
        for server in group.writable:
            if server is source:
                return server
        return self._next_writable(group)

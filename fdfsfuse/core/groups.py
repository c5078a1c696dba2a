"""Groups and their storages, as a tracker knows them: the data that decisions are made from.

`fdfsfuse.core.cluster.Cluster` decides about changes; `fdfsfuse.core.placement` reads these and
advances the round-robin counters. Nothing here awaits, so every command sees one state.
"""

from __future__ import annotations

import base64
import ipaddress
import zlib
from dataclasses import dataclass, field, replace

from fdfsfuse.core import states
from fdfsfuse.core.conf_file import ReservedSpace
from fdfsfuse.core.storage_ids import RW_BOTH, RW_READ, RW_WRITE
from fdfsfuse.proto.cluster import Brief, SyncSource
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.tracker import Endpoint, GroupStat, ServerStatus, StorageStat

_INNER_NETWORKS = tuple(
    ipaddress.ip_network(text) for text in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16")
)


def storage_id_of_ip(ip: str) -> str:
    """The id of a storage where no storage ids are used (cluster.md section 1)."""
    if ":" not in ip:
        return ip
    checksum = ~zlib.crc32(ip.encode("ascii")) & 0xFFFFFFFF
    encoded = base64.urlsafe_b64encode(checksum.to_bytes(8, "little"))
    return encoded.decode("ascii").replace("=", ".")


def network_type(ip: str) -> int:
    """Index of the inner network that *ip* is in, or -1 for an outer address."""
    address = ipaddress.ip_address(ip)
    for index, network in enumerate(_INNER_NETWORKS):
        if address in network:
            return index
    return -1


@dataclass(slots=True, eq=False)
class Server:
    """One storage of a group.

    ``ips`` are the addresses of its line in the storage id table (1 or 2), or the one it came
    from. ``space`` is (total_mb, free_mb) per store path as last reported, empty before.
    ``connection`` stands for the connection that joined last, None while there is none.
    ``heard_at`` is monotonic time, the other times are Unix seconds.
    """

    storage_id: str
    ips: tuple[str, ...]
    port: int
    status: ServerStatus = ServerStatus.INIT
    rw_mode: int = RW_BOTH
    version: str = ""
    join_time: int = 0
    up_time: int = 0
    upload_priority: int = 10
    store_path_count: int = 1
    subdir_count_per_path: int = 256
    source: SyncSource = field(default_factory=SyncSource)
    space: tuple[tuple[int, int], ...] = ()
    total_mb: int = 0
    free_mb: int = 0
    statistics: Statistics = field(default_factory=Statistics)
    last_heart_beat_time: int = 0
    last_synced_timestamp: int = 0
    changelog_offset: int = 0
    next_write_path: int = 0
    """Round-robin counter over the store paths."""
    heard_at: float = 0.0
    connection: object | None = field(default=None, repr=False)
    started_s: int = 0
    """``up_time``, also while it is not connected."""
    since: int = 0
    """When the status changed last, Unix seconds; 0 for what was loaded."""
    event: str = ""
    """What changed the status last, in words."""
    waits_for: str = ""
    """Why its question for a source of its data was refused, in words."""
    replaced_data: bool = False
    """It was a full member and came back as a new server: it lost what it had."""
    seen_group_change: int = -1
    """Value of the group's change counter when the server was last told the members."""
    told: dict[str, ServerStatus] = field(default_factory=dict)
    """By member: the status that the server was told last."""
    seen_trunk_change: int = 0
    """The same for the group's trunk server."""

    @property
    def ip(self) -> str:
        """The first address."""
        return self.ips[0]

    def ip_for(self, client_ip: str) -> str:
        """The address that suits a client (load-balancing.md section 8)."""
        if len(self.ips) < 2:
            return self.ips[0]
        wanted = network_type(client_ip)
        by_type = {network_type(ip): ip for ip in self.ips}
        inner = next((ip for ip in self.ips if network_type(ip) >= 0), self.ips[0])
        return by_type.get(wanted, inner)

    def endpoint(self, client_ip: str) -> Endpoint:
        """Where *client_ip* reaches this storage."""
        return Endpoint(self.ip_for(client_ip), self.port)

    def brief(self) -> Brief:
        """The record for other storages."""
        return Brief(self.status, self.port, self.storage_id, self.ip)

    def settings(self) -> tuple[object, ...]:
        """What its joins say of it that is kept on the disk."""
        return (
            self.port,
            self.store_path_count,
            self.subdir_count_per_path,
            self.upload_priority,
            self.join_time,
            self.version,
        )

    def report_space(self, space: tuple[tuple[int, int], ...]) -> None:
        """Take over a disk report."""
        self.space = space
        self.total_mb = sum(total_mb for total_mb, _ in space)
        self.free_mb = sum(free_mb for _, free_mb in space)


@dataclass(slots=True, eq=False)
class Group:
    """A group. ``port`` -1: its storages use several. The lists are sorted by storage id as text.

    ``store_path_count`` and ``subdir_count_per_path`` are what its members agree on.
    """

    name: str
    port: int = 0
    store_path_count: int = 1
    subdir_count_per_path: int = 256
    servers: dict[str, Server] = field(default_factory=dict)
    readable: list[Server] = field(default_factory=list)
    writable: list[Server] = field(default_factory=list)
    next_write_server: int = 0
    next_read_server: int = 0
    changes: int = 0
    """Counts up when a member is added or changes its status."""
    trunk_server: str = ""
    """Storage id of the one that gives out room in trunk files, '' when there is none."""
    last_trunk_server: str = ""
    """The same, kept when there is none any more."""
    trunk_free_mb: int = 0
    """Room inside trunk files, as the trunk server reported it."""
    trunk_changes: int = 0
    """Counts up when the trunk server changes."""
    current_trunk_file_id: int = 0
    sync_times: dict[str, dict[str, int]] = field(default_factory=dict)
    """sync_times[source id][destination id]: until when the destination has its changes."""

    def sorted_servers(self) -> list[Server]:
        """All servers, deleted ones included, sorted by id as text."""
        return [self.servers[storage_id] for storage_id in sorted(self.servers)]

    def members(self) -> list[Server]:
        """The servers that are neither deleted nor replaced, in order of joining."""
        return [s for s in self.servers.values() if s.status not in states.GONE]

    def find_ip(self, ip: str, port: int | None = None) -> Server | None:
        """The server at *ip*; with *port*, among several on one machine."""
        found = [server for server in self.servers.values() if ip in server.ips]
        if port is not None:
            found = [server for server in found if server.port == port]
        return found[0] if found else None

    def refresh(self) -> None:
        """Count a change and rebuild the lists; to be called when a status changed."""
        self.changes += 1
        active = [s for s in self.sorted_servers() if s.status is ServerStatus.ACTIVE]
        self.readable = [server for server in active if server.rw_mode & RW_READ]
        self.writable = [server for server in active if server.rw_mode & RW_WRITE]

    def agree(self, joined: Server) -> None:
        """Take over what the members have in common; *joined* is one that has joined just now."""
        members = self.members() or [joined]
        ports = {member.port for member in members}
        self.port = ports.pop() if len(ports) == 1 else -1
        counts = {member.store_path_count for member in members}
        if len(counts) == 1:
            self.store_path_count = counts.pop()
        self.subdir_count_per_path = joined.subdir_count_per_path

    def list_for(self, server: Server) -> tuple[Brief, ...]:
        """The members as *server* is told of them.

        Storages do not believe that one is to be filled which was further when they heard of it
        last (cluster.md section 3.3): it may have come back without its data between two
        heartbeats. They are told that it is new first, and the rest with the next answer.
        """
        briefs = []
        for member in self.sorted_servers():
            brief = member.brief()
            known = server.told.get(member.storage_id)
            if member is not server and states.begins_anew(known, brief.status):
                brief = replace(brief, status=ServerStatus.INIT)
                server.seen_group_change = -1
            server.told[member.storage_id] = brief.status
            briefs.append(brief)
        return tuple(briefs)

    def change_id(self, server: Server, new_id: str) -> None:
        """*server* has another id from now on; one that had it before is forgotten."""
        old_id, server.storage_id = server.storage_id, new_id
        self.servers = {
            (new_id if storage_id == old_id else storage_id): known
            for storage_id, known in self.servers.items()
            if storage_id != new_id
        }
        for other in self.servers.values():
            if other.source.source_id == old_id:
                other.source = replace(other.source, source_id=new_id)
        if old_id in self.sync_times:
            self.sync_times[new_id] = self.sync_times.pop(old_id)
        for times in self.sync_times.values():
            if old_id in times:
                times[new_id] = times.pop(old_id)
        if self.trunk_server == old_id:
            self.trunk_server = new_id
        if self.last_trunk_server == old_id:
            self.last_trunk_server = new_id

    def forget(self, storage_id: str) -> None:
        """Drop a server, and what is known of it."""
        del self.servers[storage_id]
        self.sync_times.pop(storage_id, None)
        for times in self.sync_times.values():
            times.pop(storage_id, None)
        self.refresh()

    def least_space(self) -> tuple[int, int]:
        """(free_mb, total_mb) of the storage with the least free space (load-balancing.md 2).

        ACTIVE storages count; without any, all that have reported.
        """
        servers = [s for s in self.servers.values() if s.total_mb]
        active = [s for s in servers if s.status is ServerStatus.ACTIVE]
        least = min(active or servers, key=lambda server: server.free_mb, default=None)
        return (0, 0) if least is None else (least.free_mb, least.total_mb)

    def stat(self, reserved: ReservedSpace, use_trunk_file: bool) -> GroupStat:
        """The record of commands 90 and 91."""
        free_mb, total_mb = self.least_space()
        return GroupStat(
            group=self.name,
            total_mb=total_mb,
            free_mb=free_mb,
            reserved_mb=reserved.reserved_mb(total_mb),
            trunk_free_mb=self.trunk_free_mb if use_trunk_file else 0,
            storage_count=len(self.servers),
            storage_port=self.port,
            readable_count=len(self.readable),
            writable_count=len(self.writable),
            current_write_server=self.next_write_server,
            store_path_count=self.store_path_count,
            subdir_count_per_path=self.subdir_count_per_path,
            trunk_file_id=self.current_trunk_file_id if use_trunk_file else -1,
        )


def is_trunk_server(group: Group, server: Server) -> bool:
    """True for the group's trunk server."""
    return bool(group.trunk_server) and group.trunk_server == server.storage_id


def storage_stat(group: Group, server: Server, reserved: ReservedSpace) -> StorageStat:
    """The record of command 92."""
    return StorageStat(
        status=server.status,
        rw_mode=server.rw_mode,
        storage_id=server.storage_id,
        ip=server.ip,
        source_id=server.source.source_id,
        version=server.version,
        join_time=server.join_time,
        up_time=server.up_time,
        total_mb=server.total_mb,
        free_mb=server.free_mb,
        reserved_mb=reserved.reserved_mb(server.total_mb),
        upload_priority=server.upload_priority,
        store_path_count=server.store_path_count,
        subdir_count_per_path=server.subdir_count_per_path,
        current_write_path=server.next_write_path,
        storage_port=server.port,
        statistics=server.statistics,
        is_trunk_server=is_trunk_server(group, server),
    )

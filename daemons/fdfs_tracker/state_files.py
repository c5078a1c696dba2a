"""The files in which a tracker keeps what it knows: ``base_path/data``.

Source: protocol/disk.md section 10; a C tracker can read them and we read its. Each file is
replaced as a whole (written to a temporary name, flushed, renamed), so a crash leaves the old or
the new one. The changelog goes first: a deletion whose line is on disk but which is not in the
list of servers yet is repeated by the administrator, the other way round its peers would never
hear of it.
"""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from fdfsfuse.core import states
from fdfsfuse.core.cluster import Cluster
from fdfsfuse.core.founding import Acceptor
from fdfsfuse.core.groups import Group, Server, storage_id_of_ip
from fdfsfuse.core.states import Event
from fdfsfuse.core.storage_ids import RW_BOTH
from fdfsfuse.errors import ConfigError, FdfsError, ProtocolError
from fdfsfuse.proto.address import encode_address
from fdfsfuse.proto.cluster import SyncSource
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.tracker import ServerStatus

logger = logging.getLogger(__name__)

GROUPS_NAME = "storage_groups_new.dat"
SERVERS_NAME = "storage_servers_new.dat"
SYNC_NAME = "storage_sync_timestamp.dat"
CHANGELOG_NAME = "storage_changelog.dat"
STATUS_NAME = ".tracker_status"
FOUNDERS_NAME = "founders.json"
"""Ours; core/founding.py."""
PID_NAME = "fdfs_trackerd.pid"
_MAX_FILE_BYTES = 64 << 20

_OUTCOMES = ("total", "success")
_COUNTS = (
    *("upload", "append", "set_meta", "delete", "download", "get_meta"),
    *("create_link", "delete_link"),
)
_BYTES = ("upload", "append", "download", "sync_in", "sync_out")
_FILES = ("open", "read", "write")
_COUNTERS = (
    *(f"{outcome}_{name}_count" for name in _COUNTS for outcome in _OUTCOMES),
    *(f"{outcome}_{name}_bytes" for name in _BYTES for outcome in _OUTCOMES),
    *(f"{outcome}_file_{name}_count" for name in _FILES for outcome in _OUTCOMES),
    "last_source_update",
    "last_sync_update",
)
"""Statistics that are kept, in the order of a C tracker, which leaves the others out."""

_Section = dict[str, str]


def _sections(text: str) -> Iterator[tuple[str, _Section]]:
    """The sections of an ini text in order; keys before the first section are skipped."""
    current: _Section | None = None
    name = ""
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("[") and line.endswith("]"):
            if current is not None:
                yield name, current
            name, current = line[1:-1], {}
        elif current is not None and line and not line.startswith("#"):
            key, _, value = line.partition("=")
            current[key.strip()] = value.strip()
    if current is not None:
        yield name, current


def _section_text(name: str, values: dict[str, object]) -> str:
    return f"[{name}]\n" + "".join(f"\t{key}={value}\n" for key, value in values.items())


def format_groups(cluster: Cluster) -> str:
    """The text of storage_groups_new.dat."""
    parts = [_section_text("Global", {"group_count": len(cluster.groups)}) + "\n"]
    for number, group in enumerate(cluster.groups.values(), 1):
        values: dict[str, object] = {
            "group_name": group.name,
            "storage_port": group.port,
            "store_path_count": group.store_path_count,
            "subdir_count_per_path": group.subdir_count_per_path,
            "current_trunk_file_id": group.current_trunk_file_id,
            "trunk_server": group.trunk_server,
            "last_trunk_server": group.last_trunk_server,
        }
        section = _section_text(f"Group{number:03d}", values)
        parts.append(f"# group: {group.name}\n{section}\n")
    return "".join(parts)


def _kept(cluster: Cluster) -> Iterator[tuple[Group, Server]]:
    for group in cluster.groups.values():
        for server in group.members():
            yield group, server


def format_servers(cluster: Cluster) -> str:
    """The text of storage_servers_new.dat; deleted and replaced servers are left out."""
    parts = []
    number = 0
    for number, (group, server) in enumerate(_kept(cluster), 1):
        values: dict[str, object] = {}
        if cluster.config.use_storage_id:
            values["id"] = server.storage_id
        values |= {
            "group_name": group.name,
            "ip_addr": ",".join(server.ips),
            "status": int(server.status),
            "version": server.version,
            "join_time": server.join_time,
            "storage_port": server.port,
            "sync_src_server": server.source.source_id,
            "sync_until_timestamp": server.source.until,
            "total_mb": server.total_mb,
            "free_mb": server.free_mb,
            "changelog_offset": server.changelog_offset,
            "store_path_count": server.store_path_count,
            "subdir_count_per_path": server.subdir_count_per_path,
            "upload_priority": server.upload_priority,
            **{name: getattr(server.statistics, name) for name in _COUNTERS},
            "last_synced_timestamp": server.last_synced_timestamp,
            "last_heart_beat_time": server.last_heart_beat_time,
        }
        address = encode_address(",".join(server.ips), server.port)
        section = _section_text(f"Storage{number:03d}", values)
        parts.append(f"# storage: {address}\n{section}\n")
    return "".join(parts) + "\n" + _section_text("Global", {"storage_count": number})


def format_sync_times(cluster: Cluster) -> str:
    """The text of storage_sync_timestamp.dat: per source, how far each member has its changes."""
    lines = []
    for group in cluster.groups.values():
        members = group.members()
        for source in members:
            times = group.sync_times.get(source.storage_id, {})
            row = [str(times.get(member.storage_id, 0)) for member in members]
            lines.append(",".join([group.name, source.storage_id, *row]) + "\n")
    return "".join(lines)


def system_files(cluster: Cluster) -> tuple[bytes, ...]:
    """What 63 hands out: groups, servers, sync timestamps, changelog."""
    return (
        format_groups(cluster).encode("ascii"),
        format_servers(cluster).encode("ascii"),
        format_sync_times(cluster).encode("ascii"),
        cluster.changelog,
    )


def take_system_files(files: Sequence[bytes], cluster: Cluster) -> None:
    """Replace what *cluster* knows by the files of another tracker.

    Raises:
        ProtocolError: they are malformed; *cluster* is as before.
    """
    new = Cluster(cluster.config)
    try:
        parse_groups(files[0].decode("ascii"), new)
        parse_servers(files[1].decode("ascii"), new)
        parse_sync_times(files[2].decode("ascii"), new)
    except (KeyError, ValueError, ArithmeticError, FdfsError) as exc:
        raise ProtocolError(f"malformed files of another tracker: {exc}") from exc
    new.changelog = _whole_lines(files[3])
    cluster.take_over(new)


def _whole_lines(changelog: bytes) -> bytes:
    """Without the torn last line that a C tracker may have left: nobody has been given it."""
    return changelog[: changelog.rfind(b"\n") + 1]


def format_founders(cluster: Cluster) -> bytes:
    """The text of founders.json: this tracker's votes about the founders of groups."""
    return msgspec.json.encode({name: asdict(a) for name, a in cluster.founders.items()}) + b"\n"


def parse_founders(data: bytes, cluster: Cluster) -> None:
    """Add a founders.json. Raises ValueError."""
    if data:
        cluster.founders = msgspec.json.decode(data, type=dict[str, Acceptor])


def parse_groups(text: str, cluster: Cluster) -> None:
    """Add the groups of a storage_groups_new.dat. Raises KeyError or ValueError."""
    for name, values in _sections(text):
        if not name.startswith("Group"):
            continue
        group = Group(values["group_name"])
        group.port = int(values.get("storage_port", "0"))
        group.store_path_count = int(values.get("store_path_count", "1"))
        group.subdir_count_per_path = int(values.get("subdir_count_per_path", "256"))
        group.current_trunk_file_id = int(values.get("current_trunk_file_id", "0"))
        group.last_trunk_server = values.get("last_trunk_server", "")
        if cluster.config.trunk.use_trunk_file:
            # It stays, if it is heard of soon: another one may know less of what is free.
            group.trunk_server = values.get("trunk_server", "")
        cluster.groups[group.name] = group


def parse_servers(text: str, cluster: Cluster) -> None:
    """Add the servers of a storage_servers_new.dat. Raises KeyError or ValueError.

    Nobody is connected to a tracker that starts: see `states.Event.LOADED`.
    """
    for name, values in _sections(text):
        if not name.startswith("Storage"):
            continue
        group = cluster.groups.setdefault(values["group_name"], Group(values["group_name"]))
        ips = tuple(values["ip_addr"].split(","))
        storage_id = values.get("id", "") or storage_id_of_ip(ips[0])
        status = ServerStatus(int(values["status"]))
        server = Server(storage_id, ips, int(values["storage_port"]))
        server.status = states.after(status, Event.LOADED)
        server.rw_mode = _rw_mode(cluster, storage_id)
        server.version = values.get("version", "")
        server.join_time = int(values.get("join_time", "0"))
        server.source = SyncSource(
            values.get("sync_src_server", ""), int(values.get("sync_until_timestamp", "0"))
        )
        server.store_path_count = int(values["store_path_count"])
        server.subdir_count_per_path = int(values["subdir_count_per_path"])
        server.upload_priority = int(values["upload_priority"])
        server.total_mb = int(values.get("total_mb", "0"))
        server.free_mb = int(values.get("free_mb", "0"))
        server.changelog_offset = int(values.get("changelog_offset", "0"))
        server.last_synced_timestamp = int(values.get("last_synced_timestamp", "0"))
        server.last_heart_beat_time = int(values.get("last_heart_beat_time", "0"))
        server.statistics = Statistics(
            last_synced_timestamp=server.last_synced_timestamp,
            last_heart_beat_time=server.last_heart_beat_time,
            **{key: int(values.get(key, "0")) for key in _COUNTERS},
        )
        server.statistics.encode()  # refuses numbers that no answer could carry
        group.servers[storage_id] = server
        group.refresh()


def _rw_mode(cluster: Cluster, storage_id: str) -> int:
    table = cluster.config.storage_ids
    entry = None if table is None else table.by_id(storage_id)
    return RW_BOTH if entry is None else entry.rw_mode


def parse_sync_times(text: str, cluster: Cluster) -> None:
    """Add a storage_sync_timestamp.dat. Raises ValueError when it is malformed.

    Rows of a group that are not those of its servers count for nothing: a C tracker saves this file
    later than the servers, so its machine may have lost that. Storages report the times again.
    """
    rows = [line.split(",") for line in text.splitlines() if line.strip()]
    if any(len(row) < 2 for row in rows):
        raise ValueError("a row without a source")
    for group in cluster.groups.values():
        members = [server.storage_id for server in group.members()]
        own = [row for row in rows if row[0] == group.name]
        sources = [row[1] for row in own]
        if sources != members[: len(own)] or any(len(row) - 2 > len(members) for row in own):
            logger.warning("%s has other servers of %s: it is not used", SYNC_NAME, group.name)
            continue
        for _, source_id, *times in own:
            known = {m: int(t) for m, t in zip(members, times, strict=False) if int(t) > 0}
            group.sync_times[source_id] = known


class StateFiles:
    """Reads and writes the files of one tracker. One task at a time saves."""

    def __init__(self, base_path: str) -> None:
        """Make the directory, and keep other trackers out of it.

        Raises:
            FdfsError: another tracker runs on the same base_path.
            OSError: the directory cannot be made or written.
        """
        self.directory = Path(base_path) / "data"
        self.directory.mkdir(parents=True, exist_ok=True)
        self._lock_fd = os.open(
            self.directory / PID_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock_fd)
            raise FdfsError(f"another tracker runs on base_path {base_path}") from None
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, str(os.getpid()).encode(), 0)
        self._changelog_saved: bytes | None = None
        self._founders_saved: bytes = b"{}\n"

    def close(self) -> None:
        """Let others use the directory."""
        os.close(self._lock_fd)

    def load(self, cluster: Cluster) -> None:
        """Fill an empty *cluster*. Absent files mean an empty cluster.

        Raises:
            ConfigError: a file is malformed; the text says what to do.
        """
        self._parse(GROUPS_NAME, parse_groups, cluster)
        self._parse(SERVERS_NAME, parse_servers, cluster)
        self._parse(SYNC_NAME, parse_sync_times, cluster)
        changelog = self._read(CHANGELOG_NAME)
        cluster.changelog = _whole_lines(changelog)
        self._changelog_saved = changelog
        try:
            parse_founders(self._read(FOUNDERS_NAME), cluster)
        except ValueError as exc:
            raise ConfigError(f"{self.directory / FOUNDERS_NAME}: malformed ({exc})") from exc

    def last_check_time(self) -> int:
        """When the tracker that used these files was last alive, Unix seconds; 0 if never."""
        for line in self._read(STATUS_NAME).decode("ascii", "replace").splitlines():
            key, _, value = line.partition("=")
            if key.strip() == "last_check_time" and value.strip().isdigit():
                return int(value)
        return 0

    def write_status(self, started_s: int, now_s: int) -> None:
        """Note that the tracker is alive. Raises OSError. May run in a thread."""
        text = f"up_time={started_s}\nlast_check_time={now_s}\n"
        self.write([(STATUS_NAME, text.encode("ascii"))])

    def _read(self, name: str) -> bytes:
        try:
            with open(self.directory / name, "rb") as file:
                return file.read(_MAX_FILE_BYTES)
        except FileNotFoundError:
            return b""

    def _parse(self, name: str, parse: Callable[[str, Cluster], None], cluster: Cluster) -> None:
        try:
            parse(self._read(name).decode("ascii"), cluster)
        except (KeyError, ValueError, ArithmeticError) as exc:
            raise ConfigError(
                f"{self.directory / name}: malformed ({exc}). Restore it, or move it away: a "
                "tracker that starts empty learns its groups from the storages that join"
            ) from exc

    def format(self, cluster: Cluster) -> list[tuple[str, bytes]]:
        """What `write` is to write: a snapshot that later changes of *cluster* do not touch."""
        groups, servers, sync_times, _ = system_files(cluster)
        files = [(GROUPS_NAME, groups), (SERVERS_NAME, servers), (SYNC_NAME, sync_times)]
        founders = format_founders(cluster)
        if founders != self._founders_saved:
            files.append((FOUNDERS_NAME, founders))
        if cluster.changelog != self._changelog_saved:
            files.insert(0, (CHANGELOG_NAME, cluster.changelog))
        return files

    def write(self, files: list[tuple[str, bytes]]) -> None:
        """Write a snapshot; it is on the disk when this returns. May run in a thread.

        Raises:
            OSError: a file could not be written; the old ones are still whole.
        """
        for name, data in files:
            temporary = self.directory / (name + ".tmp")
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())  # else the rename could outlive the data in a power loss
            os.replace(temporary, self.directory / name)
            if name == CHANGELOG_NAME:
                self._changelog_saved = data
            elif name == FOUNDERS_NAME:
                self._founders_saved = data
        directory = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

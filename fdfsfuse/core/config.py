"""Typed configurations: tracker.conf, storage.conf, client.conf (protocol/config.md).

`fdfsfuse.core.load_config` reads them from files. Users' documentation: docs/configuration.rst.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, IntEnum

from fdfsfuse.core.allow_hosts import AllowHosts
from fdfsfuse.core.conf_file import DEFAULT_TRACKER_PORT, ReservedSpace, ServerAddress
from fdfsfuse.core.storage_ids import DEFAULT_STORAGE_PORT, StorageIds

_MIB = 1 << 20


class StoreLookup(IntEnum):
    """How a group is chosen for an upload."""

    ROUND_ROBIN = 0
    SPECIFIED = 1
    LOAD_BALANCE = 2


class StoreServer(IntEnum):
    """How a storage of the group is chosen for an upload."""

    ROUND_ROBIN = 0
    FIRST_BY_IP = 1
    LOWEST_PRIORITY = 2


class StorePathMode(IntEnum):
    """How a store path of the storage is chosen for an upload."""

    ROUND_ROBIN = 0
    LOAD_BALANCE = 2


class IdType(Enum):
    """What file names carry as their source."""

    IP = "ip"
    ID = "id"


@dataclass(frozen=True, slots=True)
class TrunkConfig:
    """Values about trunk files, only handed out by command 75; sizes in bytes, periods in s."""

    use_trunk_file: bool = False
    slot_min_size: int = 256
    slot_max_size: int = 8 * _MIB
    alloc_alignment_size: int = 0
    free_space_merge: bool = False
    delete_unused_files: bool = False
    file_size: int = 64 * _MIB
    create_file_advance: bool = False
    create_file_time_base: tuple[int, int] = (2, 0)
    create_file_interval_s: int = 86400
    create_file_space_threshold: int = 0
    init_check_occupying: bool = False
    init_reload_from_binlog: bool = False
    compress_binlog_min_interval_s: int = 0
    compress_binlog_interval_s: int = 0
    compress_binlog_time_base: tuple[int, int] = (3, 0)
    binlog_max_backups: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrackerConfig:
    """tracker.conf. ``response_ip_addr_size`` is resolved to 16 or 46; port 0: any free one."""

    base_path: str
    bind_addr: tuple[str, ...] = ()
    port: int = DEFAULT_TRACKER_PORT
    address_family: str = "auto"
    response_ip_addr_size: int = 16
    connect_timeout_s: float = 10.0
    network_timeout_s: float = 60.0
    max_connections: int = 256
    buff_size: int = 256 << 10
    store_lookup: StoreLookup = StoreLookup.ROUND_ROBIN
    store_group: str = ""
    store_server: StoreServer = StoreServer.ROUND_ROBIN
    store_path: StorePathMode = StorePathMode.ROUND_ROBIN
    download_source_first: bool = False
    reserved_storage_space: ReservedSpace = field(default_factory=ReservedSpace)
    allow_hosts: AllowHosts = field(default_factory=AllowHosts)
    check_active_interval_s: float = 100.0
    storage_ip_changed_auto_adjust: bool = True
    storage_sync_file_max_delay_s: int = 86400
    storage_sync_file_max_time_s: int = 300
    trunk: TrunkConfig = field(default_factory=TrunkConfig)
    storage_ids: StorageIds | None = None
    """The table when use_storage_id is on, else None."""
    id_type_in_filename: IdType = IdType.IP
    trust_storage_server_id: bool = True
    store_slave_file_use_link: bool = False
    log_level: str = "info"

    @property
    def use_storage_id(self) -> bool:
        """True when storages are known by ids from a table instead of by their ip."""
        return self.storage_ids is not None


@dataclass(frozen=True, slots=True)
class StorePath:
    """One disk or directory. A read-only one takes no new files."""

    path: str
    readonly: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """storage.conf. The index into ``store_paths`` is the ``Mxx`` of file names.

    ``group_name`` is '' when trackers are to be asked for it.
    """

    group_name: str
    base_path: str
    store_paths: tuple[StorePath, ...]
    tracker_servers: tuple[ServerAddress, ...]
    bind_addr: tuple[str, ...] = ()
    client_bind: bool = True
    port: int = DEFAULT_STORAGE_PORT
    address_family: str = "auto"
    server_id: str = ""
    connect_timeout_s: float = 10.0
    network_timeout_s: float = 30.0
    heart_beat_interval_s: float = 30.0
    stat_report_interval_s: float = 300.0
    max_connections: int = 256
    buff_size: int = 256 << 10
    subdir_count_per_path: int = 256
    allow_hosts: AllowHosts = field(default_factory=AllowHosts)
    file_distribute_path_mode: int = 0
    """0 rotates through the sub directories, 1 picks them by a hash (file-id.md section 6)."""
    file_distribute_rotate_count: int = 100
    upload_priority: int = 10
    check_store_path_mark: bool = True
    names_session_lease_s: float = 10.0
    """Ours: how long a mount's session outlives its last sign of life."""
    names_garbage_grace_s: float = 30.0
    """Ours: how long an unlinked object is kept; never shorter than the session lease."""
    names_replica_timeout_s: float = 3.0
    """Ours: how long close() and fsync() of mounts wait for a peer that does not get on."""
    log_level: str = "info"


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """client.conf."""

    tracker_servers: tuple[ServerAddress, ...]
    connect_timeout_s: float = 10.0
    network_timeout_s: float = 30.0
    storage_ids: StorageIds | None = None
    log_level: str = "info"
    check_token: bool = False
    """http.anti_steal.check_token: the web servers in front of the storages want a token."""
    secret_key: str = field(default="", repr=False)
    """http.anti_steal.secret_key, which the tokens are made with."""
    web_port: int = 80
    """http.tracker_server_port: where the web server listens."""

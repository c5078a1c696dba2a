"""Reading tracker.conf, storage.conf and client.conf (protocol/config.md).

``load_*_config(path, read)`` returns ``(config, warnings)``. ``read`` returns the bytes of a path
or raises OSError, so that this module opens nothing itself; daemons pass
``lambda path: Path(path).read_bytes()``.
"""

from __future__ import annotations

import posixpath

from fdfsfuse.core.allow_hosts import AllowHosts
from fdfsfuse.core.conf_file import DEFAULT_TRACKER_PORT, ReadFile, ReservedSpace, ServerAddress
from fdfsfuse.core.conf_reader import LOG_KEYS, LOG_LEVELS, ConfReader
from fdfsfuse.core.config import (
    ClientConfig,
    IdType,
    StorageConfig,
    StoreLookup,
    StorePath,
    StorePathMode,
    StoreServer,
    TrackerConfig,
    TrunkConfig,
)
from fdfsfuse.core.storage_ids import DEFAULT_STORAGE_PORT, StorageIds
from fdfsfuse.errors import ConfigError, UsageError
from fdfsfuse.proto.fileid import check_group_name

_MIB = 1 << 20
_MIN_BUFF_SIZE = (64 << 10) + 10
_FAMILIES = ("auto", "IPv4", "IPv6", "both")
_LOG_SECTION = frozenset({"enabled", "time_precision", *LOG_KEYS})
_SECTIONS = {"error-log": _LOG_SECTION, "access-log": _LOG_SECTION}
_IGNORED = (
    "inner_bind_addr",
    "outer_bind_addr",
    "inner_port",
    "outer_port",
    "use_io_uring",
    "use_send_zc",
    "accept_threads",
    "work_threads",
    "run_by_group",
    "run_by_user",
    "thread_stack_size",
    "use_connection_pool",
    "connection_pool_max_idle_time",
    "tcp_quick_ack",
)


def _base_path(reader: ConfReader) -> str:
    path = reader.required("base_path", "the directory for data/ and logs/ is needed")
    if not posixpath.isabs(path):
        entry = reader.entry("base_path")
        assert entry is not None
        raise entry.error("must be an absolute path")
    return path


def _group_name(text: str) -> str:
    try:
        return check_group_name(text)
    except UsageError as exc:
        raise ValueError("must be 1 to 16 letters and digits") from exc


def _allow_hosts(reader: ConfReader) -> AllowHosts:
    entries = reader.values("allow_hosts")
    for entry in entries:
        try:
            AllowHosts.parse([entry.value])
        except ValueError as exc:
            raise entry.error(str(exc)) from exc
    return AllowHosts.parse(entry.value for entry in entries)


def _storage_ids(reader: ConfReader) -> StorageIds | None:
    enabled = reader.boolean("use_storage_id")
    name = reader.text("storage_ids_filename")
    if not enabled:
        return None
    if not name:
        raise reader.missing("storage_ids_filename", "use_storage_id = true needs it")
    path = posixpath.join(posixpath.dirname(reader.path), name)
    try:
        text = reader.read(path).decode("utf-8", "surrogateescape")
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror or exc}") from exc
    return StorageIds.parse(text, path)


def _tracker_servers(reader: ConfReader) -> tuple[ServerAddress, ...]:
    servers: list[ServerAddress] = []
    for entry in reader.values("tracker_server"):
        try:
            servers.append(ServerAddress.parse(entry.value))
        except ValueError as exc:
            raise entry.error(str(exc)) from exc
    if not servers:
        raise reader.missing("tracker_server", "at least one tracker host:port is needed")
    if len(servers) > 16:
        raise ConfigError(f"{reader.path}: {len(servers)} tracker_server lines: at most 16")
    return tuple(servers)


def _trunk(reader: ConfReader) -> TrunkConfig:
    file_size = reader.size("trunk_file_size", 64 * _MIB, low=4 * _MIB)
    alignment = reader.size("trunk_alloc_alignment_size", 0)
    # Brought into these limits without a word, as C trackers do: all hand out the same values.
    slot_min_size = max(min(reader.size("slot_min_size", 256), 64 << 10), alignment)
    slot_max_size = min(reader.size("slot_max_size", file_size // 8), file_size // 2)
    return TrunkConfig(
        use_trunk_file=reader.boolean("use_trunk_file"),
        slot_min_size=slot_min_size,
        slot_max_size=slot_max_size,
        alloc_alignment_size=alignment,
        free_space_merge=reader.boolean("trunk_free_space_merge"),
        delete_unused_files=reader.boolean("delete_unused_trunk_files"),
        file_size=file_size,
        create_file_advance=reader.boolean("trunk_create_file_advance"),
        create_file_time_base=reader.time_of_day("trunk_create_file_time_base", (2, 0)),
        create_file_interval_s=int(reader.seconds("trunk_create_file_interval", 86400)),
        create_file_space_threshold=reader.size("trunk_create_file_space_threshold", 0),
        init_check_occupying=reader.boolean("trunk_init_check_occupying"),
        init_reload_from_binlog=reader.boolean("trunk_init_reload_from_binlog"),
        compress_binlog_min_interval_s=int(reader.seconds("trunk_compress_binlog_min_interval", 0)),
        compress_binlog_interval_s=int(reader.seconds("trunk_compress_binlog_interval", 0)),
        compress_binlog_time_base=reader.time_of_day("trunk_compress_binlog_time_base", (3, 0)),
        binlog_max_backups=reader.integer("trunk_binlog_max_backups", 0, 0, 1 << 31),
    )


def _log_level(reader: ConfReader) -> str:
    return reader.choice("log_level", "info", LOG_LEVELS)


def load_tracker_config(path: str, read: ReadFile) -> tuple[TrackerConfig, tuple[str, ...]]:
    """Read a tracker.conf.

    Raises:
        ConfigError: a file cannot be read, or a value is missing or wrong.
    """
    reader = ConfReader(path, read)
    reader.refuse_if_disabled()
    reader.ignore(*_IGNORED, "min_buff_size", "max_buff_size")
    storage_ids = _storage_ids(reader)
    id_type = IdType(reader.choice("id_type_in_filename", "ip", ("ip", "id")))
    if storage_ids is None:
        id_type = IdType.IP  # FastDFS's sample has id without storage ids
    elif id_type is IdType.ID and not storage_ids.fit_file_names:
        entry = reader.entry("id_type_in_filename")
        assert entry is not None
        raise entry.error("id needs storage ids up to 16777215")
    ip_size = reader.text("response_ip_addr_size", "auto").lower()
    auto_size = 46 if storage_ids is not None and storage_ids.has_ipv6 else 16
    lookup = StoreLookup(reader.integer("store_lookup", 0, 0, 2))
    store_group = reader.parsed("store_group", "", _group_name)
    if lookup is StoreLookup.SPECIFIED and not store_group:
        raise reader.missing("store_group", "store_lookup = 1 needs it")
    trunk = _trunk(reader)
    store_server = StoreServer(reader.integer("store_server", 0, 0, 2))
    if trunk.use_trunk_file and store_server is StoreServer.ROUND_ROBIN:
        store_server = StoreServer.FIRST_BY_IP  # load-balancing.md section 3
    config = TrackerConfig(
        base_path=_base_path(reader),
        bind_addr=reader.addresses("bind_addr"),
        port=reader.integer("port", DEFAULT_TRACKER_PORT, 0, 65535),
        address_family=reader.choice("address_family", "auto", _FAMILIES),
        response_ip_addr_size=auto_size if ip_size == "auto" else 46,
        connect_timeout_s=reader.seconds("connect_timeout", 10, 0.001),
        network_timeout_s=reader.seconds("network_timeout", 60, 0.001),
        max_connections=reader.integer("max_connections", 256, 1, 1 << 20),
        buff_size=reader.size("buff_size", 256 << 10, low=1024),
        store_lookup=lookup,
        store_group=store_group,
        store_server=store_server,
        # Other values than 2, among them 1, act as 0 (load-balancing.md section 3).
        store_path=StorePathMode.LOAD_BALANCE
        if reader.integer("store_path", 0, 0, 255) == 2
        else StorePathMode.ROUND_ROBIN,
        download_source_first=reader.integer("download_server", 0, 0, 1) == 1,
        reserved_storage_space=reader.parsed(
            "reserved_storage_space", ReservedSpace(), ReservedSpace.parse
        ),
        allow_hosts=_allow_hosts(reader),
        check_active_interval_s=reader.seconds("check_active_interval", 100, 0.001),
        storage_ip_changed_auto_adjust=reader.boolean("storage_ip_changed_auto_adjust", True),
        storage_sync_file_max_delay_s=int(reader.seconds("storage_sync_file_max_delay", 86400)),
        storage_sync_file_max_time_s=int(reader.seconds("storage_sync_file_max_time", 300)),
        trunk=trunk,
        storage_ids=storage_ids,
        id_type_in_filename=id_type,
        trust_storage_server_id=reader.boolean("trust_storage_server_id", True),
        store_slave_file_use_link=reader.boolean("store_slave_file_use_link"),
        log_level=_log_level(reader),
    )
    return config, reader.finish(_SECTIONS)


def _store_paths(reader: ConfReader, base_path: str) -> tuple[StorePath, ...]:
    count = reader.integer("store_path_count", 1, 1, 256)
    reader.ignore(patterns=(r"store_path\d+(_readonly)?",))
    paths: list[StorePath] = []
    for index in range(count):
        path = reader.text(f"store_path{index}", base_path if index == 0 else "")
        if not path:
            raise reader.missing(f"store_path{index}", f"store_path_count = {count} needs it")
        if not posixpath.isabs(path):
            raise ConfigError(
                f"{reader.path}: store_path{index} = {path}: must be an absolute path"
            )
        if any(posixpath.normpath(path) == posixpath.normpath(p.path) for p in paths):
            raise ConfigError(
                f"{reader.path}: store_path{index} = {path}: this path is given twice"
            )
        paths.append(StorePath(path, reader.boolean(f"store_path{index}_readonly")))
    return tuple(paths)


def _sync_max_threads(text: str) -> int:
    if text.lower() == "auto":
        return 0
    if not text.isdigit() or not 1 <= int(text) <= 256:
        raise ValueError("must be auto or a number from 1 to 256")
    return int(text)


def _check_unused(reader: ConfReader) -> None:
    """Check the keys about replication and the binlog that have no effect here.

    An operator's mistake in them is told all the same. docs/configuration.rst says why each is not
    needed.
    """
    reader.parsed("sync_max_threads", 0, _sync_max_threads)
    reader.integer("sync_wait_msec", 100, 1, 3_600_000)
    reader.integer("sync_interval", 0, 0, 3_600_000)
    reader.time_of_day("sync_start_time", (0, 0))
    reader.time_of_day("sync_end_time", (23, 59))
    reader.integer("write_mark_file_freq", 500, 1, 1 << 31)
    reader.seconds("sync_binlog_buff_interval", 60)
    reader.boolean("file_sync_skip_invalid_record")
    reader.boolean("compress_binlog")
    reader.time_of_day("compress_binlog_time", (1, 30))


def load_storage_config(path: str, read: ReadFile) -> tuple[StorageConfig, tuple[str, ...]]:
    """Read a storage.conf.

    Raises:
        ConfigError: a file cannot be read, or a value is missing or wrong.
    """
    reader = ConfReader(path, read)
    reader.refuse_if_disabled()
    reader.ignore(
        *_IGNORED,
        "disk_rw_separated",
        "disk_reader_threads",
        "disk_writer_threads",
        "sync_min_threads",
        "disk_recovery_threads",
        "fsync_after_written_bytes",
        "sync_stat_file_interval",
        "if_alias_prefix",
        "check_file_duplicate",
        "file_signature_method",
        "key_namespace",
        "keep_alive",
    )
    _check_unused(reader)
    base_path = _base_path(reader)
    group_name = reader.parsed("group_name", "", _group_name)
    trackers = _tracker_servers(reader)
    for server in trackers:
        if any(host in ("127.0.0.1", "localhost", "::1") for host in server.hosts):
            reader.warnings.append(
                f"{path}: tracker_server = {server}: a loopback address; storages on other "
                "machines, and clients, cannot reach what is known by it"
            )
            break
    buff_size = reader.size("buff_size", 256 << 10)
    if buff_size < _MIN_BUFF_SIZE:
        reader.warnings.append(f"{path}: buff_size = {buff_size}: raised to {_MIN_BUFF_SIZE}")
        buff_size = _MIN_BUFF_SIZE
    lease_s = reader.seconds("names_session_lease", 10, 0.1)
    grace_s = reader.seconds("names_garbage_grace", max(30.0, lease_s))
    if grace_s < lease_s:
        reader.warnings.append(
            f"{path}: names_garbage_grace = {grace_s:g}: raised to the session lease {lease_s:g}"
        )
        grace_s = lease_s
    config = StorageConfig(
        group_name=group_name,
        base_path=base_path,
        store_paths=_store_paths(reader, base_path),
        tracker_servers=trackers,
        bind_addr=reader.addresses("bind_addr"),
        client_bind=reader.boolean("client_bind", True),
        port=reader.integer("port", DEFAULT_STORAGE_PORT, 0, 65535),
        address_family=reader.choice("address_family", "auto", _FAMILIES),
        server_id=reader.text("server_id"),
        connect_timeout_s=reader.seconds("connect_timeout", 10, 0.001),
        network_timeout_s=reader.seconds("network_timeout", 30, 0.001),
        heart_beat_interval_s=reader.seconds("heart_beat_interval", 30, 0.001),
        stat_report_interval_s=reader.seconds("stat_report_interval", 300, 0.001),
        max_connections=reader.integer("max_connections", 256, 1, 1 << 20),
        buff_size=buff_size,
        subdir_count_per_path=reader.integer("subdir_count_per_path", 256, 1, 256),
        allow_hosts=_allow_hosts(reader),
        file_distribute_path_mode=reader.integer("file_distribute_path_mode", 0, 0, 1),
        file_distribute_rotate_count=reader.integer(
            "file_distribute_rotate_count", 100, 1, 1 << 31
        ),
        upload_priority=reader.integer("upload_priority", 10, -(1 << 31), (1 << 31) - 1),
        check_store_path_mark=reader.boolean("check_store_path_mark", True),
        names_session_lease_s=lease_s,
        names_garbage_grace_s=grace_s,
        names_replica_timeout_s=reader.seconds("names_replica_timeout", 3, 0.1),
        log_level=_log_level(reader),
    )
    return config, reader.finish(_SECTIONS)


def load_client_config(path: str, read: ReadFile) -> tuple[ClientConfig, tuple[str, ...]]:
    """Read a client.conf.

    Raises:
        ConfigError: a file cannot be read, or a value is missing or wrong.
    """
    reader = ConfReader(path, read)
    reader.ignore(*_IGNORED, "base_path", "connect_first_by", patterns=(r"http\..*",))
    reader.boolean("load_fdfs_parameters_from_tracker")  # checked, without effect
    config = ClientConfig(
        tracker_servers=_tracker_servers(reader),
        connect_timeout_s=reader.seconds("connect_timeout", 10, 0.001),
        network_timeout_s=reader.seconds("network_timeout", 30, 0.001),
        storage_ids=_storage_ids(reader),
        log_level=_log_level(reader),
        check_token=reader.boolean("http.anti_steal.check_token"),
        secret_key=reader.text("http.anti_steal.secret_key", ""),
        web_port=reader.integer("http.tracker_server_port", 80, 1, 65535),
    )
    return config, reader.finish(_SECTIONS)

"""Configuration files: protocol/config.md."""

from __future__ import annotations

import contextlib
import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.config import (
    IdType,
    StorageConfig,
    StoreLookup,
    StorePath,
    StorePathMode,
    StoreServer,
    TrackerConfig,
)
from fdfsfuse.core.load_config import load_client_config, load_storage_config, load_tracker_config
from fdfsfuse.errors import ConfigError

TRACKER = "base_path = /var/fdfs\n"
STORAGE = "group_name = group1\nbase_path = /s\ntracker_server = 10.0.0.1:22122\n"


class Files(dict[str, str]):
    """Files in memory; calling it reads one."""

    def __call__(self, path: str) -> bytes:
        path = os.path.normpath(path)
        if path not in self:
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), path)
        return self[path].encode("utf-8", "surrogateescape")


def tracker(text: str, **files: str) -> tuple[TrackerConfig, tuple[str, ...]]:
    more = {f"/etc/{name}.conf": content for name, content in files.items()}
    return load_tracker_config("/etc/tracker.conf", Files({"/etc/tracker.conf": text} | more))


def storage(text: str) -> tuple[StorageConfig, tuple[str, ...]]:
    return load_storage_config("/etc/storage.conf", Files({"/etc/storage.conf": text}))


def test_tracker_defaults_are_those_of_the_document() -> None:
    config, warnings = tracker(TRACKER)
    assert config == TrackerConfig(base_path="/var/fdfs")
    assert not warnings
    assert (config.port, config.connect_timeout_s, config.network_timeout_s) == (22122, 10, 60)
    assert (config.max_connections, config.buff_size) == (256, 256 << 10)
    assert (config.store_lookup, config.store_server, config.store_path) == (0, 0, 0)
    assert str(config.reserved_storage_space) == "1024MB"
    assert (config.check_active_interval_s, config.response_ip_addr_size) == (100, 16)
    assert config.trunk.slot_max_size == config.trunk.file_size // 8
    assert config.allow_hosts.allows("198.51.100.7")
    assert config.storage_ip_changed_auto_adjust
    assert config.trust_storage_server_id


def test_storage_defaults_are_those_of_the_document() -> None:
    config, warnings = storage(STORAGE)
    assert config == StorageConfig(
        group_name="group1",
        base_path="/s",
        store_paths=(StorePath("/s"),),
        tracker_servers=(ServerAddress(("10.0.0.1",), 22122),),
    )
    assert not warnings
    assert (config.port, config.heart_beat_interval_s, config.stat_report_interval_s) == (
        23000,
        30,
        300,
    )
    assert (config.subdir_count_per_path, config.upload_priority) == (256, 10)
    assert config.client_bind
    assert config.check_store_path_mark


def test_all_tracker_keys() -> None:
    config, warnings = tracker(
        """
        # a comment
        base_path=/data
        port = 0
        bind_addr = 10.0.0.1,2001:db8::1
        address_family = ipv4
        response_ip_addr_size = IPv6
        connect_timeout = 5
        network_timeout = 7
        max_connections = 1000
        buff_size = 512KB
        store_lookup = 1
        store_group = group2
        store_server = 2
        store_path = 2
        download_server = 1
        reserved_storage_space = 12.5%
        allow_hosts = 10.0.0.0/8
        allow_hosts = 127.0.0.1
        check_active_interval = 2.5
        storage_ip_changed_auto_adjust = no
        storage_sync_file_max_delay = 3600
        storage_sync_file_max_time = 60
        use_trunk_file = true
        trunk_file_size = 128M
        trunk_create_file_time_base = 04:30
        log_level = debug
        """
    )
    assert not warnings
    assert config.port == 0
    assert config.bind_addr == ("10.0.0.1", "2001:db8::1")
    assert config.address_family == "IPv4"
    assert config.response_ip_addr_size == 46
    assert (config.connect_timeout_s, config.network_timeout_s) == (5, 7)
    assert (config.max_connections, config.buff_size) == (1000, 512 << 10)
    assert config.store_lookup is StoreLookup.SPECIFIED
    assert config.store_group == "group2"
    assert config.store_server is StoreServer.LOWEST_PRIORITY
    assert config.store_path is StorePathMode.LOAD_BALANCE
    assert config.download_source_first
    assert str(config.reserved_storage_space) == "12.50%"
    assert config.allow_hosts.allows("10.255.0.1")
    assert config.allow_hosts.allows("127.0.0.1")
    assert not config.allow_hosts.allows("192.168.0.1")
    assert config.check_active_interval_s == 2.5
    assert not config.storage_ip_changed_auto_adjust
    assert config.trunk.use_trunk_file
    assert config.trunk.file_size == 128 << 20
    assert config.trunk.create_file_time_base == (4, 30)
    assert config.log_level == "debug"


def test_sizes_of_slots_have_limits() -> None:
    config, _ = tracker(TRACKER + "slot_min_size = 1M\nslot_max_size = 1G\n")
    assert (config.trunk.slot_min_size, config.trunk.slot_max_size) == (64 << 10, 32 << 20)
    config, _ = tracker(TRACKER + "slot_min_size = 256\ntrunk_alloc_alignment_size = 512\n")
    assert config.trunk.slot_min_size == 512


def test_round_robin_becomes_first_by_ip_with_trunk_files() -> None:
    config, _ = tracker(TRACKER + "use_trunk_file = 1\n")
    assert config.store_server is StoreServer.FIRST_BY_IP


@pytest.mark.parametrize("value", ["1", "7"])
def test_other_store_paths_act_as_round_robin(value: str) -> None:
    config, _ = tracker(TRACKER + f"store_path = {value}\n")
    assert config.store_path is StorePathMode.ROUND_ROBIN


def test_all_storage_keys() -> None:
    config, warnings = storage(
        """
        group_name = group7
        base_path = /base
        store_path_count = 2
        store_path0 = /d0
        store_path1 = /d1
        store_path1_readonly = on
        subdir_count_per_path = 4
        bind_addr = 10.0.0.5
        client_bind = false
        port = 23001
        server_id = 100001
        heart_beat_interval = 3
        stat_report_interval = 9
        tracker_server = t1.example
        tracker_server = 10.0.0.1,192.168.0.1:22000
        tracker_server = [2001:db8::1]:22001
        file_distribute_path_mode = 1
        file_distribute_rotate_count = 7
        upload_priority = -5
        sync_max_threads = auto
        sync_wait_msec = 20
        sync_start_time = 01:00
        compress_binlog_time = 23:59
        check_store_path_mark = false
        names_session_lease = 2.5
        names_garbage_grace = 4
        """
    )
    assert not warnings
    assert config.store_paths == (StorePath("/d0"), StorePath("/d1", readonly=True))
    assert [str(server) for server in config.tracker_servers] == [
        "t1.example:22122",
        "10.0.0.1,192.168.0.1:22000",
        "[2001:db8::1]:22001",
    ]
    assert (config.port, config.server_id, config.upload_priority) == (23001, "100001", -5)
    assert not config.client_bind
    assert (config.file_distribute_path_mode, config.file_distribute_rotate_count) == (1, 7)
    assert not config.check_store_path_mark
    assert (config.names_session_lease_s, config.names_garbage_grace_s) == (2.5, 4)


def test_client_config() -> None:
    text = "tracker_server = 127.0.0.1:1\nbase_path = /tmp\nhttp.anti_steal.check_token = false\n"
    config, warnings = load_client_config("c", Files({"c": text}))
    assert not warnings
    assert config.tracker_servers == (ServerAddress(("127.0.0.1",), 1),)
    assert config.connect_timeout_s == 10


def test_keys_without_meaning_for_us_are_silent() -> None:
    _, warnings = tracker(
        TRACKER
        + "accept_threads = 1\nwork_threads = 4\nmin_buff_size = 8KB\nrun_by_user =\n"
        + "log_file_keep_days = 0\nuse_connection_pool = 1\n[error-log]\nlog_file_keep_days = 1\n"
    )
    assert warnings == ()
    _, warnings = storage(
        STORAGE
        + "disk_rw_separated = true\ncheck_file_duplicate = 0\n[access-log]\nenabled = false\n"
    )
    assert warnings == ()


def test_an_unknown_key_is_named_with_file_line_and_the_nearest_known_one() -> None:
    _, warnings = tracker(TRACKER + "\nresreved_storage_space = 1G\nzzz = 1\n[ui]\ncolour = red\n")
    assert warnings == (
        "/etc/tracker.conf:3: resreved_storage_space: unknown key, ignored; "
        "did you mean reserved_storage_space?",
        "/etc/tracker.conf:4: zzz: unknown key, ignored",
        "/etc/tracker.conf:6: [ui] colour: unknown key, ignored",
    )


def test_odd_lines_warn() -> None:
    _, warnings = tracker(TRACKER + "port 22122\nuse_storage_id = maybe\nport = 1\nport = 2\n")
    assert any(warning.startswith("/etc/tracker.conf:2: ignored") for warning in warnings)
    assert any("use_storage_id = maybe: counts as false" in warning for warning in warnings)
    assert any("port is given 2 times" in warning for warning in warnings)


@pytest.mark.parametrize("word", ["true", "YES", "On", "1"])
def test_true_words(word: str) -> None:
    config, warnings = tracker(TRACKER + f"use_trunk_file = {word}\n")
    assert config.trunk.use_trunk_file
    assert not warnings


@pytest.mark.parametrize("word", ["false", "No", "off", "0", "maybe"])
def test_false_words(word: str) -> None:
    config, _ = tracker(TRACKER + f"use_trunk_file = {word}\n")
    assert not config.trunk.use_trunk_file


@pytest.mark.parametrize(
    ("line", "allowed"),
    [
        ("port = 65536", "from 0 to 65535"),
        ("port = http", "from 0 to 65535"),
        ("port = 22122 # default", "from 0 to 65535"),
        ("store_lookup = 3", "from 0 to 2"),
        ("network_timeout = 1m", "seconds"),
        ("network_timeout = 0", "seconds"),
        ("check_active_interval = -1", "seconds"),
        ("reserved_storage_space = 100%", "percentage"),
        ("reserved_storage_space = 0%", "percentage"),
        ("reserved_storage_space = much", "percentage"),
        ("buff_size = 1 PB", "bytes"),
        ("buff_size = 100", "at least 1024"),
        ("allow_hosts = 10.0.0.0/33", "CIDR"),
        ("allow_hosts = 10.0.1.[20-10]", "range"),
        ("trunk_create_file_time_base = 24:00", "HH:MM"),
        ("log_level = loud", "emerg"),
        ("bind_addr = 1.1.1.1,2.2.2.2,3.3.3.3", "one address"),
        ("address_family = IPv5", "IPv4"),
        ("disabled = true", "disabled"),
        ("store_group = a b", "letters and digits"),
    ],
)
def test_a_wrong_value_names_file_line_and_what_is_allowed(line: str, allowed: str) -> None:
    with pytest.raises(ConfigError) as caught:
        tracker(TRACKER + line + "\n")
    text = str(caught.value)
    assert text.startswith("/etc/tracker.conf:2: " + line)
    assert allowed in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("", "base_path"),
        ("base_path =\n", "base_path"),
        (TRACKER + "store_lookup = 1\n", "store_group"),
        (TRACKER + "use_storage_id = true\n", "storage_ids_filename"),
    ],
)
def test_a_missing_key_is_named(text: str, key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^/etc/tracker.conf: {key} is missing"):
        tracker(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (STORAGE.replace("tracker_server", "#"), "tracker_server is missing"),
        (STORAGE + "store_path_count = 2\n", "store_path1 is missing"),
        (STORAGE + "store_path0 = relative\n", "an absolute path"),
        (STORAGE + "store_path_count = 2\nstore_path1 = /s/\n", "this path is given twice"),
        (STORAGE + "subdir_count_per_path = 257\n", "from 1 to 256"),
        (STORAGE + "tracker_server = host:0\n", "port from 1 to 65535"),
        (STORAGE + "tracker_server = a,b,c:1\n", "ip1,ip2:port"),
        (STORAGE.replace("group1", "group-1"), "letters and digits"),
        (STORAGE.replace("/s\n", "s\n"), "absolute path"),
        (STORAGE + "sync_max_threads = 0\n", "auto or a number"),
        (STORAGE + "tracker_server = t:1\n" * 16, "at most 16"),
    ],
)
def test_wrong_storage_values(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        storage(text)


def test_storage_warnings() -> None:
    _, warnings = storage(STORAGE + "tracker_server = 127.0.0.1:22122\n")
    assert any("loopback" in warning for warning in warnings)
    config, warnings = storage(STORAGE + "buff_size = 1KB\n")
    assert config.buff_size == 65546
    assert any("raised" in warning for warning in warnings)
    config, warnings = storage(STORAGE + "names_session_lease = 60\nnames_garbage_grace = 5\n")
    assert config.names_garbage_grace_s == 60
    assert any("names_garbage_grace" in warning for warning in warnings)
    assert storage(STORAGE + "names_session_lease = 60\n")[0].names_garbage_grace_s == 60


def test_include_is_relative_to_the_including_file() -> None:
    files = Files(
        {
            "/etc/a/main.conf": "#include ../b/more.conf\nport = 5\n",
            "/etc/b/more.conf": 'base_path = /x\n#include "deep.conf"\n',
            "/etc/b/deep.conf": "store_lookup = 9\n",
        }
    )
    with pytest.raises(ConfigError, match=r"^/etc/a/\.\./b/deep\.conf:1: store_lookup = 9"):
        load_tracker_config("/etc/a/main.conf", files)
    files["/etc/b/deep.conf"] = "store_lookup = 2\n"
    config, _ = load_tracker_config("/etc/a/main.conf", files)
    assert (config.base_path, config.port, config.store_lookup) == ("/x", 5, 2)


def test_include_in_a_circle() -> None:
    files = Files({"/a": "#include b\n", "/b": "#include ./a\n"})
    with pytest.raises(ConfigError, match="circle"):
        load_tracker_config("/a", files)


def test_include_too_deep() -> None:
    files = Files({f"/{n}": f"#include {n + 1}\n" for n in range(40)})
    with pytest.raises(ConfigError, match="nested"):
        load_tracker_config("/0", files)


def test_unreadable_files() -> None:
    with pytest.raises(ConfigError, match=r"^/none: No such file or directory$"):
        load_tracker_config("/none", Files())
    with pytest.raises(ConfigError, match=r"#include /etc/gone\.conf: No such file"):
        tracker("#include gone.conf\n")


def test_storage_ids() -> None:
    table = "# id group address\n100001 group1 192.168.0.196\n100002 group1 [::1]:23001 rw=read\n"
    config, _ = tracker(
        TRACKER + "use_storage_id = 1\nstorage_ids_filename = ids.conf\nid_type_in_filename = id\n",
        ids=table,
    )
    assert config.id_type_in_filename is IdType.ID
    assert config.use_storage_id
    assert config.response_ip_addr_size == 46, "auto, and one address is IPv6"
    assert config.storage_ids is not None
    assert len(config.storage_ids) == 2


def test_storage_ids_too_large_for_file_names() -> None:
    with pytest.raises(ConfigError, match="16777215"):
        tracker(
            TRACKER
            + "use_storage_id = 1\nstorage_ids_filename = i.conf\nid_type_in_filename = id\n",
            i="16777216 group1 10.0.0.1\n",
        )


def test_storage_ids_file_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"^/etc/ids\.conf: No such file"):
        tracker(TRACKER + "use_storage_id = 1\nstorage_ids_filename = ids.conf\n")


@given(st.text(max_size=300))
def test_any_text_is_a_configuration_or_a_config_error(text: str) -> None:
    with contextlib.suppress(ConfigError):
        tracker(TRACKER + text)


@given(
    st.sampled_from(["port", "reserved_storage_space", "allow_hosts", "bind_addr", "buff_size"]),
    st.text(max_size=40),
)
def test_any_value_is_taken_or_a_config_error(key: str, value: str) -> None:
    with contextlib.suppress(ConfigError):
        tracker(TRACKER + f"{key} = {value}\n")

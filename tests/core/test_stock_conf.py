"""The configuration files of a stock V6 installation, with all keys, as FastDFS's samples set them.

Source: protocol/config.md.
"""

from __future__ import annotations

from fdfsfuse.core.config import IdType, StoreLookup
from fdfsfuse.core.load_config import load_client_config, load_storage_config, load_tracker_config

ERROR_LOG = """
[error-log]
log_file_rotate_everyday = true
log_file_rotate_time = 00:00
log_file_compress_old = false
log_file_compress_days_before = 7
log_file_rotate_on_size = 0
log_file_keep_days = 15
log_file_delete_old_time = 01:30
"""

TRACKER = """
disabled = false
bind_addr =
port = 22122
address_family = auto
response_ip_addr_size = auto
connect_timeout = 5
network_timeout = 60
use_io_uring = true
use_send_zc = true
base_path = /opt/fastdfs/tracker
max_connections = 1024
accept_threads = 1
work_threads = 4
min_buff_size = 8KB
max_buff_size = 128KB
store_lookup = 2
store_group = group2
store_server = 0
store_path = 0
download_server = 0
reserved_storage_space = 20%
log_level = info
run_by_group =
run_by_user =
allow_hosts = *
sync_log_buff_interval = 1
check_active_interval = 120
thread_stack_size = 256KB
storage_ip_changed_auto_adjust = true
storage_sync_file_max_delay = 86400
storage_sync_file_max_time = 300
use_trunk_file = false
slot_min_size = 256
slot_max_size = 1MB
trunk_alloc_alignment_size = 256
trunk_free_space_merge = true
delete_unused_trunk_files = false
trunk_file_size = 64MB
trunk_create_file_advance = false
trunk_create_file_time_base = 02:00
trunk_create_file_interval = 86400
trunk_create_file_space_threshold = 20G
trunk_init_check_occupying = false
trunk_init_reload_from_binlog = false
trunk_compress_binlog_min_interval = 86400
trunk_compress_binlog_interval = 86400
trunk_compress_binlog_time_base = 03:00
trunk_binlog_max_backups = 7
use_storage_id = false
storage_ids_filename = storage_ids.conf
id_type_in_filename = id
trust_storage_server_id = true
store_slave_file_use_link = false
use_connection_pool = true
connection_pool_max_idle_time = 3600
tcp_quick_ack = true
"""

STORAGE = """
disabled = false
group_name = group1
bind_addr =
client_bind = true
port = 23000
address_family = auto
server_id =
connect_timeout = 5
network_timeout = 60
use_io_uring = true
use_send_zc = true
heart_beat_interval = 30
stat_report_interval = 60
base_path = /opt/fastdfs/storage
max_connections = 1024
buff_size = 256KB
accept_threads = 1
work_threads = 4
disk_rw_separated = true
disk_reader_threads = 2
disk_writer_threads = 1
sync_min_threads = 1
sync_max_threads = auto
sync_wait_msec = 10
sync_interval = 0
sync_start_time = 00:00
sync_end_time = 23:59
write_mark_file_freq = 500
disk_recovery_threads = 4
store_path_count = 1
store_path0 = /opt/fastdfs/p0
store_path0_readonly = false
subdir_count_per_path = 256
tracker_server = 192.168.0.196:22122
log_level = info
run_by_group =
run_by_user =
allow_hosts = *
file_distribute_path_mode = 0
file_distribute_rotate_count = 100
fsync_after_written_bytes = 0
sync_log_buff_interval = 1
sync_binlog_buff_interval = 1
sync_stat_file_interval = 300
thread_stack_size = 512KB
upload_priority = 10
if_alias_prefix =
check_file_duplicate = 0
file_signature_method = hash
key_namespace = FastDFS
keep_alive = 0
file_sync_skip_invalid_record = false
use_connection_pool = true
connection_pool_max_idle_time = 3600
compress_binlog = true
compress_binlog_time = 01:30
check_store_path_mark = true
tcp_quick_ack = true
[access-log]
enabled = false
time_precision = us
log_file_rotate_everyday = true
log_file_rotate_time = 00:00
log_file_compress_old = false
log_file_compress_days_before = 7
log_file_rotate_on_size = 0
log_file_keep_days = 0
log_file_delete_old_time = 01:30
"""

CLIENT = """
connect_timeout = 5
network_timeout = 60
base_path = /opt/fastdfs
tracker_server = 192.168.0.196:22122
log_level = info
connect_first_by = tracker
use_connection_pool = false
connection_pool_max_idle_time = 3600
load_fdfs_parameters_from_tracker = false
use_storage_id = false
storage_ids_filename = storage_ids.conf
"""


def test_tracker() -> None:
    config, warnings = load_tracker_config("tracker.conf", lambda _: (TRACKER + ERROR_LOG).encode())
    assert warnings == ()
    assert config.id_type_in_filename is IdType.IP, "id counts with use_storage_id only"
    assert config.storage_ids is None
    assert config.store_lookup is StoreLookup.LOAD_BALANCE
    assert config.allow_hosts.everyone
    assert config.bind_addr == ()
    assert str(config.reserved_storage_space) == "20.00%"


def test_storage() -> None:
    config, warnings = load_storage_config("storage.conf", lambda _: (STORAGE + ERROR_LOG).encode())
    assert warnings == ()
    assert [path.path for path in config.store_paths] == ["/opt/fastdfs/p0"]
    assert [str(server) for server in config.tracker_servers] == ["192.168.0.196:22122"]
    assert config.server_id == ""
    assert config.check_store_path_mark


def test_client() -> None:
    config, warnings = load_client_config("client.conf", lambda _: CLIENT.encode())
    assert warnings == ()
    assert config.storage_ids is None

"""The statistics of a storage, 348 bytes: in heartbeats (83) and storage lists (92).

Source: protocol/cluster.md section 3.1, protocol/wire.md section 3.3. All big-endian.

=== ====== ==========================================================================
off size   fields, in order
=== ====== ==========================================================================
0   4 x 3  connections allocated, current, max
12  8 x 20 (total, success) counts of requests
172 8 x 12 (total, success) bytes
268 8 x 6  (total, success) counts of file operations
316 8 x 4  last_source_update, last_sync_update, last_synced_timestamp, last_heart_beat_time
=== ====== ==========================================================================
"""

from __future__ import annotations

import struct
from dataclasses import astuple, dataclass

from fdfsfuse.proto.header import expect_size

STATISTICS_SIZE = 348
STATISTICS = struct.Struct(">3i42q")


@dataclass(frozen=True, slots=True)
class Statistics:
    """Counters since the storage was first started; times in Unix seconds, 0 = never.

    Requests that validation refused are not counted. ``last_source_update`` is the time of the
    last change by a client, ``last_sync_update`` that of the last change received from a peer.
    ``last_synced_timestamp`` and ``last_heart_beat_time`` are filled in by the tracker.
    """

    connections_allocated: int = 0
    connections_current: int = 0
    connections_max: int = 0
    total_upload_count: int = 0
    success_upload_count: int = 0
    total_append_count: int = 0
    success_append_count: int = 0
    total_modify_count: int = 0
    success_modify_count: int = 0
    total_truncate_count: int = 0
    success_truncate_count: int = 0
    total_set_meta_count: int = 0
    success_set_meta_count: int = 0
    total_delete_count: int = 0
    success_delete_count: int = 0
    total_download_count: int = 0
    success_download_count: int = 0
    total_get_meta_count: int = 0
    success_get_meta_count: int = 0
    total_create_link_count: int = 0
    success_create_link_count: int = 0
    total_delete_link_count: int = 0
    success_delete_link_count: int = 0
    total_upload_bytes: int = 0
    success_upload_bytes: int = 0
    total_append_bytes: int = 0
    success_append_bytes: int = 0
    total_modify_bytes: int = 0
    success_modify_bytes: int = 0
    total_download_bytes: int = 0
    success_download_bytes: int = 0
    total_sync_in_bytes: int = 0
    success_sync_in_bytes: int = 0
    total_sync_out_bytes: int = 0
    success_sync_out_bytes: int = 0
    total_file_open_count: int = 0
    success_file_open_count: int = 0
    total_file_read_count: int = 0
    success_file_read_count: int = 0
    total_file_write_count: int = 0
    success_file_write_count: int = 0
    last_source_update: int = 0
    last_sync_update: int = 0
    last_synced_timestamp: int = 0
    last_heart_beat_time: int = 0

    def encode(self) -> bytes:
        """The 348 bytes."""
        return STATISTICS.pack(*astuple(self))

    @classmethod
    def decode(cls, data: bytes) -> Statistics:
        """Raises ProtocolError unless *data* has 348 bytes."""
        expect_size("storage statistics", data, STATISTICS_SIZE)
        return cls(*STATISTICS.unpack(data))

"""The storage's counters, and the file that keeps them: ``data/storage_stat.dat``.

Source: protocol/disk.md section 4; the same counters go to trackers (`Statistics`).
"""

from __future__ import annotations

import logging
from dataclasses import fields
from pathlib import Path
from typing import Final

from fdfs_storage.files import replace_file
from fdfsfuse.proto.statistics import Statistics

logger = logging.getLogger(__name__)


def _pairs(*names: str) -> list[str]:
    return [f"{prefix}_{name}" for name in names for prefix in ("total", "success")]


_KEYS = [
    *_pairs("upload_count", "append_count", "modify_count", "truncate_count", "download_count"),
    "last_source_update",
    "last_sync_update",
    *_pairs("set_meta_count", "delete_count", "get_meta_count"),
    *_pairs("create_link_count", "delete_link_count"),
    *_pairs("upload_bytes", "append_bytes", "modify_bytes", "download_bytes"),
    *_pairs("sync_in_bytes", "sync_out_bytes"),
    *_pairs("file_open_count", "file_read_count", "file_write_count"),
    "dist_path_index_high",
    "dist_path_index_low",
    "dist_write_file_count",
]
_STATISTICS = [field.name for field in fields(Statistics)]
_MAX: Final = (1 << 63) - 1
"""The largest number that a tracker can be told. What requests announce may be as much each."""


class Counters:
    """Plain numbers, counted up by whoever does the work; all zero for a new storage.

    ``dist_*`` are the sub directory counters (protocol/file-id.md section 6): the directory that
    takes new files, and how many it took.
    """

    # One attribute per key: they are counted in hot paths, where a dict would cost more.
    __slots__ = (
        "connections_allocated",
        "connections_current",
        "connections_max",
        "dist_path_index_high",
        "dist_path_index_low",
        "dist_write_file_count",
        "last_heart_beat_time",
        "last_source_update",
        "last_sync_update",
        "last_synced_timestamp",
        "success_append_bytes",
        "success_append_count",
        "success_create_link_count",
        "success_delete_count",
        "success_delete_link_count",
        "success_download_bytes",
        "success_download_count",
        "success_file_open_count",
        "success_file_read_count",
        "success_file_write_count",
        "success_get_meta_count",
        "success_modify_bytes",
        "success_modify_count",
        "success_set_meta_count",
        "success_sync_in_bytes",
        "success_sync_out_bytes",
        "success_truncate_count",
        "success_upload_bytes",
        "success_upload_count",
        "total_append_bytes",
        "total_append_count",
        "total_create_link_count",
        "total_delete_count",
        "total_delete_link_count",
        "total_download_bytes",
        "total_download_count",
        "total_file_open_count",
        "total_file_read_count",
        "total_file_write_count",
        "total_get_meta_count",
        "total_modify_bytes",
        "total_modify_count",
        "total_set_meta_count",
        "total_sync_in_bytes",
        "total_sync_out_bytes",
        "total_truncate_count",
        "total_upload_bytes",
        "total_upload_count",
    )

    connections_allocated: int
    connections_current: int
    connections_max: int
    total_upload_count: int
    success_upload_count: int
    total_upload_bytes: int
    success_upload_bytes: int
    total_append_count: int
    success_append_count: int
    total_append_bytes: int
    success_append_bytes: int
    total_modify_count: int
    success_modify_count: int
    total_modify_bytes: int
    success_modify_bytes: int
    total_truncate_count: int
    success_truncate_count: int
    total_download_count: int
    success_download_count: int
    total_download_bytes: int
    success_download_bytes: int
    total_set_meta_count: int
    success_set_meta_count: int
    total_get_meta_count: int
    success_get_meta_count: int
    total_delete_count: int
    success_delete_count: int
    total_create_link_count: int
    success_create_link_count: int
    last_source_update: int
    last_sync_update: int
    total_sync_in_bytes: int
    success_sync_in_bytes: int
    total_sync_out_bytes: int
    success_sync_out_bytes: int
    dist_path_index_high: int
    dist_path_index_low: int
    dist_write_file_count: int

    def __init__(self) -> None:
        for name in self.__slots__:
            setattr(self, name, 0)

    @classmethod
    def load(cls, path: Path) -> Counters:
        """Read a storage_stat.dat; what is missing or no number counts as 0."""
        counters = cls()
        try:
            text = path.read_text("ascii", "replace")
        except FileNotFoundError:
            return counters
        for line in text.splitlines():
            key, _, value = (part.strip() for part in line.partition("="))
            if key in _KEYS and value.isdigit():
                setattr(counters, key, int(value))
        return counters

    def save(self, path: Path) -> None:
        """Write the storage_stat.dat."""
        text = "".join(f"{key}={getattr(self, key)}\n" for key in _KEYS)
        replace_file(path, text.encode("ascii"))

    def statistics(self) -> Statistics:
        """The form that trackers get. Connection numbers are filled in by the caller."""
        return Statistics(*(min(getattr(self, name), _MAX) for name in _STATISTICS))

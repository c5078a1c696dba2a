"""The JOIN (81) of a storage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fdfsfuse.proto.cluster import VERSION, Join


def new_storage(tracker_ip: str, tracker: str, **changes: Any) -> Join:
    """The JOIN of a new storage of group1 to its only tracker, *tracker* (``ip:port``)."""
    request = Join(
        group="group1",
        port=23000,
        store_path_count=1,
        subdir_count_per_path=256,
        upload_priority=10,
        join_time=1,
        up_time=2,
        version=VERSION,
        init_flag=True,
        status=0,
        storage_id="",
        tracker_ip=tracker_ip,
        trackers=(tracker,),
    )
    return replace(request, **changes)

"""What ``fdfs status`` finds out."""

from __future__ import annotations

from dataclasses import dataclass, field

import trio

from fdfsfuse.client.client import Client
from fdfsfuse.client.tracker import GONE
from fdfsfuse.client.views import find_primary
from fdfsfuse.errors import FdfsError, NoNamesError
from fdfsfuse.proto.names import View
from fdfsfuse.proto.tracker import GroupStat, ServerStatus, StorageStat

ACTIVE = ServerStatus.ACTIVE

WHY = {
    ServerStatus.INIT: "known, but no storage of the volume can fill it yet",
    ServerStatus.WAIT_SYNC: "waits for another storage to start filling it",
    ServerStatus.SYNCING: "is being filled by {source}",
    ServerStatus.IP_CHANGED: "has another address now",
    ServerStatus.DELETED: "was removed by an administrator",
    ServerStatus.OFFLINE: "not connected to the tracker: stopped, crashed, or cut off",
    ServerStatus.ONLINE: "connected, its first heartbeat has not come yet",
    ServerStatus.ACTIVE: "works",
    ServerStatus.RECOVERY: "fetches the files of a replaced disk from {source}",
    ServerStatus.NONE: "not a server",
}
"""Each state in words; protocol/load-balancing.md section 1."""

_RW_MODES = {0: "neither reads nor writes", 2: "writes only", 4: "reads only"}


@dataclass
class Volume:
    """A group, its storages, and who keeps its tree (``view``) or why that is not known."""

    stat: GroupStat
    storages: list[StorageStat] = field(default_factory=list)
    view: View | None = None
    view_problem: str = ""
    stock: bool = False


async def look(client: Client, timeout_s: float) -> list[Volume]:
    """Ask the trackers for all groups, and the storages for the views.

    Raises:
        ConnectionProblem: no tracker answers.
    """
    volumes = [Volume(stat) for stat in await client.tracker.list_groups()]
    async with trio.open_nursery() as nursery:
        for volume in volumes:
            nursery.start_soon(_look_at, client, volume, timeout_s)
    return volumes


async def _look_at(client: Client, volume: Volume, timeout_s: float) -> None:
    group = volume.stat.group
    try:
        volume.storages = await client.tracker.list_storages(group)
        volume.view_problem = "no answer in time"
        with trio.move_on_after(timeout_s):
            found = await find_primary(lambda: client.tracker.find_candidates(group))
            volume.view, volume.view_problem = found.view, ""
    except NoNamesError:
        volume.stock = True
        volume.view_problem = "stock FastDFS servers: files have ids, no names"
    except FdfsError as exc:
        volume.view_problem = str(exc)


def why(storage: StorageStat) -> str:
    """One storage's state in words."""
    text = WHY[storage.status].format(source=storage.source_id or "another storage")
    limits = _RW_MODES.get(storage.rw_mode)
    if storage.status is ACTIVE and limits:
        text += f", but by storage_ids.conf it {limits}"
    if storage.status is ACTIVE and storage.free_mb <= storage.reserved_mb:
        text += ", but it is full: free space is not above the reserved space"
    return text


def state_of(volume: Volume) -> tuple[str, str]:
    """``(state, why)`` of a volume; state is ok, degraded or down."""
    expected = [s for s in volume.storages if s.status not in GONE]
    active = [s for s in expected if s.status is ACTIVE]
    if not active:
        return "down", "no storage of it is active: its files cannot be reached"
    if not volume.stat.writable_count:
        return "degraded", "no storage takes uploads"
    if all(s.free_mb <= s.reserved_mb for s in active):
        return "degraded", "full: uploads are refused"
    if len(active) < len(expected):
        missing = ", ".join(s.storage_id for s in expected if s.status is not ACTIVE)
        return "degraded", f"not active: {missing}"
    if volume.view is None and not volume.stock:
        return "degraded", f"names: {volume.view_problem}"
    return "ok", "all storages are active"

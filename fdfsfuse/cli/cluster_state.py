"""What ``fdfs status`` finds out."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from fdfsfuse.client.address import Address
from fdfsfuse.client.client import Client
from fdfsfuse.client.cluster_view import (
    ReplicationView,
    TrackerView,
    look_at_replication,
    look_at_trackers,
)
from fdfsfuse.client.tracker import GONE
from fdfsfuse.client.views import find_primary
from fdfsfuse.core.reasons import reason
from fdfsfuse.errors import FdfsError, NoNamesError, NoTreeError
from fdfsfuse.proto.cluster_status import PeerReplication, ServerState
from fdfsfuse.proto.names import View
from fdfsfuse.proto.tracker import GroupStat, ServerStatus, StorageStat

ACTIVE = ServerStatus.ACTIVE

_RW_MODES = {0: "neither reads nor writes", 2: "writes only", 4: "reads only"}
_FILLING = (ServerStatus.WAIT_SYNC, ServerStatus.SYNCING)


@dataclass
class Volume:
    """A group, its storages, and who keeps its tree (``view``) or why that is not known.

    ``stock``: C servers answered, and nobody has a tree; ``treeless``: only ours did.
    ``replication`` is by storage id; storages that are not ACTIVE are not asked.
    """

    stat: GroupStat
    storages: list[StorageStat] = field(default_factory=list)
    view: View | None = None
    view_problem: str = ""
    stock: bool = False
    treeless: bool = False
    replication: dict[str, ReplicationView] = field(default_factory=dict)

    def to_peer(self, source_id: str, peer_id: str) -> PeerReplication | None:
        """How far a storage has brought its changes to another, if it said so."""
        told = self.replication.get(source_id)
        if told is None or told.status is None:
            return None
        return next((peer for peer in told.status.peers if peer.peer_id == peer_id), None)


@dataclass
class ClusterState:
    """Trackers and volumes."""

    trackers: list[TrackerView]
    volumes: list[Volume]

    @property
    def leader(self) -> str:
        """``ip:port`` of the leader of the trackers, '' when there is none or they differ."""
        leaders = {view.leader for view in self.trackers if not view.problem}
        return leaders.pop() if len(leaders) == 1 else ""

    def founder(self, group: str) -> str:
        """Id of the storage that founded the tree of a group, '' when no tracker knows."""
        for view in self.trackers:
            for state in view.status.groups if view.status is not None else ():
                if state.name == group and state.founder:
                    return state.founder
        return ""

    def told(self, group: str, storage_id: str) -> ServerState | None:
        """A storage as the leader knows it, or else any tracker that tells."""
        leading = [
            view
            for view in self.trackers
            if view.status is not None and view.status.address == view.leader
        ]
        for view in (*leading, *self.trackers):
            state = view.server(group, storage_id)
            if state is not None:
                return state
        return None


async def look(client: Client, timeout_s: float) -> ClusterState:
    """Ask all trackers and storages.

    Raises:
        ConnectionProblem: no tracker answers.
    """
    volumes = [Volume(stat) for stat in await client.tracker.list_groups()]
    trackers: list[TrackerView] = []

    async def ask_trackers() -> None:
        trackers.extend(await look_at_trackers(client.tracker.trackers))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask_trackers)
        for volume in volumes:
            nursery.start_soon(_look_at, client, volume, timeout_s)
    return ClusterState(trackers, volumes)


async def _look_at(client: Client, volume: Volume, timeout_s: float) -> None:
    group = volume.stat.group
    try:
        volume.storages = await client.tracker.list_storages(group)
    except FdfsError as exc:
        volume.view_problem = str(exc)
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_look_at_view, client, volume, timeout_s)
        for storage in volume.storages:
            if storage.status is ACTIVE and len(volume.storages) > 1:
                nursery.start_soon(_look_at_storage, volume, storage)


async def _look_at_view(client: Client, volume: Volume, timeout_s: float) -> None:
    group = volume.stat.group
    volume.view_problem = "no answer in time"
    try:
        with trio.move_on_after(timeout_s):
            found = await find_primary(lambda: client.tracker.find_candidates(group))
            volume.view, volume.view_problem = found.view, ""
    except NoTreeError as exc:
        volume.treeless, volume.view_problem = True, str(exc)
    except NoNamesError:
        volume.stock = True
        volume.view_problem = "stock FastDFS servers: files have ids, no names"
    except FdfsError as exc:
        volume.view_problem = str(exc)


async def _look_at_storage(volume: Volume, storage: StorageStat) -> None:
    address = Address(storage.ip, storage.storage_port)
    volume.replication[storage.storage_id] = await look_at_replication(address)


def why(cluster: ClusterState, volume: Volume, storage: StorageStat) -> str:
    """One storage's state in words."""
    told = cluster.told(volume.stat.group, storage.storage_id)
    if told is not None and told.status == storage.status:
        text = told.reason
    else:
        by_id = {other.storage_id: other.status for other in volume.storages}
        text = reason(
            storage.status,
            source_id=storage.source_id,
            source_status=by_id.get(storage.source_id),
        )
    limits = _RW_MODES.get(storage.rw_mode)
    if storage.status is ACTIVE and limits:
        text += f", but by storage_ids.conf it {limits}"
    if storage.status is ACTIVE and storage.free_mb <= storage.reserved_mb:
        text += ", but it is full: free space is not above the reserved space"
    differs = [
        f"{view.address} knows it as {ServerStatus(state.status).name}"
        for view in cluster.trackers
        for state in (view.server(volume.stat.group, storage.storage_id),)
        if state is not None and state.status != storage.status
    ]
    return "; ".join([text, *differs])


def behind_s(volume: Volume, storage: StorageStat) -> float | None:
    """How many seconds of its peers' changes a storage lacks at most; None when nobody tells.

    Of our storages the senders know it; for others it follows from the timestamps that the
    tracker has, which are only as fresh as the last heartbeats.
    """
    others = [s for s in volume.storages if s is not storage and s.status is ACTIVE]
    told = [volume.to_peer(other.storage_id, storage.storage_id) for other in others]
    known = [peer.delay_s for peer in told if peer is not None]
    if known or not others:
        return max(known, default=None)
    newest = max(other.statistics.last_source_update for other in others)
    synced = storage.statistics.last_synced_timestamp
    return float(max(0, newest - synced)) if newest and synced else None


def filling(volume: Volume, storage: StorageStat) -> PeerReplication | None:
    """How much a storage that is being filled still lacks, if its source says so."""
    if storage.status not in _FILLING:
        return None
    return volume.to_peer(storage.source_id, storage.storage_id)


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
    late = _out_of_sync(volume, active)
    if late:
        return "degraded", f"not in sync: {', '.join(late)}"
    bad = _leaving_out(volume)
    if bad:
        return "degraded", f"some files are not copied to others: {', '.join(bad)}"
    return "ok", "all storages are active"


def in_sync(volume: Volume, source_id: str, peer: PeerReplication) -> bool:
    """Whether a peer has, or counts as having, what *source_id* sends it.

    Who keeps the names has a set of peers that it waits for; stock storages are never in it.
    """
    told = volume.replication.get(peer.peer_id)
    keeps_names = volume.view is not None and volume.view.primary == source_id
    if keeps_names and not (told is not None and told.stock):
        return peer.in_sync
    return not peer.records_left


def _out_of_sync(volume: Volume, active: Sequence[StorageStat]) -> list[str]:
    """Ids of the active storages that the one which keeps the names does not count any more."""
    if volume.view is None:
        return []
    primary = volume.view.primary
    return [
        storage.storage_id
        for storage in active
        for peer in (volume.to_peer(primary, storage.storage_id),)
        if peer is not None and not in_sync(volume, primary, peer)
    ]


def _leaving_out(volume: Volume) -> list[str]:
    """Ids of the storages that leave out files which they cannot bring to others."""
    return [
        storage_id
        for storage_id, told in volume.replication.items()
        if told.status is not None and any(peer.unreadable for peer in told.status.peers)
    ]


def trackers_state(cluster: ClusterState) -> tuple[str, str]:
    """``(state, why)`` of the trackers together."""
    lost = [view for view in cluster.trackers if view.problem]
    count = len(cluster.trackers)
    if lost:
        names = ", ".join(str(view.address) for view in lost)
        return "degraded", f"{len(lost)} of {count} cannot be reached: {names}"
    if cluster.volumes and not cluster.leader:
        return "degraded", "they have no common leader (it takes some seconds to elect one)"
    if count == 2:
        return "ok", "2 trackers are no safer than 1; use 3"
    return "ok", "all trackers answer"


def heartbeat_age_s(storage: StorageStat) -> int | None:
    """Seconds since its last heartbeat, by this machine's clock; None when there was none."""
    beat = storage.statistics.last_heart_beat_time
    return max(0, int(time.time()) - beat) if beat else None

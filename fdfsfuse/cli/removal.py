"""What the commands of ``fdfs admin`` would do and lose; it shows that, and does it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from fdfsfuse.cli.cluster_state import ClusterState, Volume
from fdfsfuse.cli.failure import NotFound
from fdfsfuse.cli.output import when
from fdfsfuse.client.tracker import GONE
from fdfsfuse.proto.tracker import ServerStatus, StorageStat

_CONNECTED = frozenset({ServerStatus.ACTIVE, ServerStatus.ONLINE})
_CLOCK_SLACK_S = 1
"""A change is noted within this time after the timestamp of its record."""


@dataclass
class Plan:
    """What stands in the way, what would be lost for good, and what else will happen."""

    obstacles: list[str] = field(default_factory=list)
    losses: list[str] = field(default_factory=list)
    effects: list[str] = field(default_factory=list)


def find_volume(cluster: ClusterState, group: str) -> Volume:
    """Raises NotFound."""
    for volume in cluster.volumes:
        if volume.stat.group == group:
            return volume
    known = ", ".join(volume.stat.group for volume in cluster.volumes) or "none"
    raise NotFound(f"there is no group {group} (there are: {known})")


def find_storage(volume: Volume, storage_id: str) -> StorageStat:
    """Raises NotFound."""
    for storage in volume.storages:
        if storage.storage_id == storage_id:
            return storage
    known = ", ".join(storage.storage_id for storage in volume.storages)
    raise NotFound(f"there is no server {storage_id} in {volume.stat.group} (there are: {known})")


def plan_server(cluster: ClusterState, volume: Volume, storage: StorageStat) -> Plan:
    """What removing *storage* means."""
    plan = Plan()
    name, group = storage.storage_id, volume.stat.group
    if storage.status in _CONNECTED:
        plan.obstacles.append(f"{name} is {storage.status.name}: stop it first")
    elif storage.status is ServerStatus.RECOVERY:
        plan.obstacles.append(f"{name} rebuilds a disk: let it finish, or stop it")
    elif storage.status in GONE:
        plan.effects.append(f"{name} is {storage.status.name} already")
        return plan
    others = [s for s in volume.storages if s is not storage and s.status not in GONE]
    if not others:
        plan.losses.append(f"{name} is the only server of {group}: all of its files")
    elif not any(s.status in (*_CONNECTED, ServerStatus.OFFLINE) for s in others):
        plan.losses.append(f"no other server of {group} has all files yet")
    else:
        plan.losses += _changes_without_copy(cluster, volume, storage, others)
    keeper = volume.view.primary if volume.view is not None else cluster.founder(group)
    if keeper == name:
        plan.losses.append(f"{name} keeps the names of {group}: its directory tree")
    elif not keeper and not volume.stock and others:
        plan.losses.append(
            f"the names of {group}, if {name} keeps them: its directory tree cannot be reached now"
        )
    for other in others:
        if other.source_id == name and other.status in (
            ServerStatus.WAIT_SYNC,
            ServerStatus.SYNCING,
        ):
            plan.effects.append(f"{other.storage_id} is being filled by it and starts anew")
    if others:
        plan.effects.append("the others do not wait for it any more")
    plan.effects.append("it can come back as a new server, with empty disks and base_path")
    return plan


def _changes_without_copy(
    cluster: ClusterState, volume: Volume, storage: StorageStat, others: Sequence[StorageStat]
) -> list[str]:
    """Its clients' last changes, unless another server is known to have all of them."""
    newest = storage.statistics.last_source_update
    if not newest:
        return []
    known = []
    for other in others:
        told = cluster.told(volume.stat.group, other.storage_id)
        if told is None:
            continue
        known.append(told.synced_from.get(storage.storage_id, 0))
    if any(until + _CLOCK_SLACK_S >= newest for until in known):
        return []
    if not known:
        known = [other.statistics.last_synced_timestamp for other in others]
    reached = max(known)
    since = f"after {when(reached)}" if reached else f"until {when(newest)}"
    return [
        f"changes that clients made on {storage.storage_id} {since}, as far as they have not "
        "reached another server"
    ]


def plan_tree(cluster: ClusterState, volume: Volume, storage: StorageStat) -> Plan:
    """What founding the tree of a group on *storage* means."""
    plan = Plan()
    name, group = storage.storage_id, volume.stat.group
    founder = cluster.founder(group)
    if volume.view is not None:
        plan.obstacles.append(f"{group} has a tree, which {volume.view.primary} keeps")
    elif founder not in ("", name, *stock_storages(volume)):
        plan.obstacles.append(f"{founder} founded the tree of {group} and cannot be asked now")
    for other in volume.storages:
        if other.status is not ServerStatus.ACTIVE and other.status not in GONE:
            # C trackers do not know who founded a tree: it may be one that cannot be asked now.
            what = f"{other.storage_id} is {other.status.name}"
            plan.obstacles.append(f"{what}: all servers of {group} have to be ACTIVE")
    if storage.status in GONE:
        plan.obstacles.append(f"{name} is {storage.status.name}")
    plan.effects.append(f"{group} has an empty tree, which {name} keeps; files keep their ids")
    return plan


def stock_storages(volume: Volume) -> list[str]:
    """Ids of the C storages, as far as they answer."""
    return [storage_id for storage_id, view in volume.replication.items() if view.stock]


def plan_group(volume: Volume) -> Plan:
    """What removing a group with all its servers means."""
    plan = Plan()
    for storage in volume.storages:
        if storage.status in _CONNECTED or storage.status is ServerStatus.RECOVERY:
            plan.obstacles.append(
                f"{storage.storage_id} is {storage.status.name}: stop all servers of "
                f"{volume.stat.group} first"
            )
    members = [s for s in volume.storages if s.status not in GONE]
    if members:
        names = ", ".join(s.storage_id for s in members)
        plan.losses.append(
            f"all files and names of {volume.stat.group} (on {names}); their disks are left alone"
        )
    plan.effects.append("mounts do not show the volume any more")
    return plan

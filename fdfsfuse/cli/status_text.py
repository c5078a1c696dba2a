"""How ``fdfs status`` shows a cluster: as text with rich, and as JSON."""

from __future__ import annotations

from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from fdfsfuse.cli.cluster_state import (
    ClusterState,
    Volume,
    behind_s,
    filling,
    heartbeat_age_s,
    in_sync,
    state_of,
    trackers_state,
    why,
)
from fdfsfuse.cli.output import size_text
from fdfsfuse.client.cluster_view import TrackerView
from fdfsfuse.proto.cluster_status import PeerReplication
from fdfsfuse.proto.tracker import StorageStat

_COLOURS = {"ok": "green", "degraded": "yellow", "down": "red"}
_STATE_COLOURS = {"ACTIVE": "green", "WAIT_SYNC": "yellow", "SYNCING": "yellow"}


# --- JSON -----------------------------------------------------------------------------------------


def cluster_data(cluster: ClusterState) -> dict[str, Any]:
    """What --json shows."""
    state, text = trackers_state(cluster)
    return {
        "trackers_state": state,
        "trackers_why": text,
        "trackers": [_tracker_data(view) for view in cluster.trackers],
        "volumes": [volume_data(cluster, volume) for volume in cluster.volumes],
    }


def _tracker_data(view: TrackerView) -> dict[str, Any]:
    return {
        "address": str(view.address),
        "reachable": not view.problem,
        "problem": view.problem or None,
        "leader": bool(view.leader) and view.leader == _own_address(view),
        "follows": view.leader or None,
        "stock": view.stock,
        "started": view.status.started if view.status is not None else None,
    }


def _own_address(view: TrackerView) -> str:
    return view.status.address if view.status is not None else str(view.address)


def volume_data(cluster: ClusterState, volume: Volume) -> dict[str, Any]:
    """What --json shows of a volume."""
    state, text = state_of(volume)
    view = volume.view
    return {
        "name": volume.stat.group,
        "state": state,
        "why": text,
        "total_mb": volume.stat.total_mb,
        "free_mb": volume.stat.free_mb,
        "reserved_mb": volume.stat.reserved_mb,
        "names": {
            "view": view.number if view else None,
            "primary": view.primary if view else None,
            "members": view.members if view else [],
            "volume_id": view.volume_id if view else None,
            "problem": _names_problem(cluster, volume) or None,
        },
        "storages": [_storage_data(cluster, volume, storage) for storage in volume.storages],
    }


def _names_problem(cluster: ClusterState, volume: Volume) -> str:
    founder = cluster.founder(volume.stat.group)
    ours = volume.stock and any(view.status for view in volume.replication.values())
    if ours or volume.treeless:
        return f'none; "fdfs admin names init {volume.stat.group} SERVER" gives it a directory tree'
    if volume.view is not None or volume.stock or not founder:
        return volume.view_problem
    known = [s.status.name for s in volume.storages if s.storage_id == founder]
    if not known:
        return f"kept by {founder}, which is not a server of this volume any more"
    return f"kept by {founder}, which is {known[0]}: {volume.view_problem}"


def _storage_data(cluster: ClusterState, volume: Volume, storage: StorageStat) -> dict[str, Any]:
    told = cluster.told(volume.stat.group, storage.storage_id)
    left = filling(volume, storage)
    sent = volume.replication.get(storage.storage_id)
    return {
        "id": storage.storage_id,
        "address": f"{storage.ip}:{storage.storage_port}",
        "state": storage.status.name,
        "why": why(cluster, volume, storage),
        "since": told.since or None if told is not None else None,
        "version": storage.version,
        "total_mb": storage.total_mb,
        "free_mb": storage.free_mb,
        "heartbeat_age_s": heartbeat_age_s(storage),
        "joined": storage.join_time,
        "started": storage.up_time or None,
        "names_role": _role(volume, storage) or None,
        "source": storage.source_id or None,
        "behind_s": behind_s(volume, storage),
        "filling": _left_data(left) if left is not None else None,
        "peers": [
            {
                "id": peer.peer_id,
                "state": peer.state,
                "in_sync": in_sync(volume, storage.storage_id, peer),
                **_left_data(peer),
            }
            for peer in (sent.status.peers if sent is not None and sent.status is not None else ())
        ],
        "replication_problem": sent.problem or None if sent is not None else None,
    }


def _left_data(peer: PeerReplication) -> dict[str, Any]:
    return {
        "why": peer.reason,
        "records_left": peer.records_left,
        "bytes_left": peer.bytes_left,
        "delay_s": peer.delay_s,
        "estimate_s": peer.estimate_s,
        "unreadable": peer.unreadable,
    }


def _role(volume: Volume, storage: StorageStat) -> str:
    if volume.view is None or storage.storage_id not in volume.view.members:
        return ""
    return "primary" if storage.storage_id == volume.view.primary else "member"


# --- text -----------------------------------------------------------------------------------------


def render(cluster: ClusterState) -> RenderableType:
    """The cluster for a terminal."""
    parts: list[RenderableType] = [_trackers(cluster)]
    if not cluster.volumes:
        parts.append(Text("The trackers know no volume yet: no storage has joined them."))
    for volume in cluster.volumes:
        parts += [Text(), *_volume(cluster, volume)]
    return Group(*parts)


def _headline(name: str, state: str, text: str) -> Text:
    return Text.assemble((name, "bold"), "  ", (state, _COLOURS[state]), f": {text}")


def _trackers(cluster: ClusterState) -> RenderableType:
    table = Table.grid(padding=(0, 2))
    for view in cluster.trackers:
        if view.problem:
            word = Text(f"cannot be reached: {view.problem}", "red")
        elif view.leader == _own_address(view):
            word = Text("leads", "green")
        elif view.leader:
            word = Text(f"follows {view.leader}", "green")
        else:
            word = Text("knows no leader", "yellow")
        kind = "FastDFS" if view.stock else ""
        table.add_row("", Text(str(view.address)), word, kind)
    return Group(_headline("trackers", *trackers_state(cluster)), table)


def _volume(cluster: ClusterState, volume: Volume) -> list[RenderableType]:
    data = volume_data(cluster, volume)
    names = data["names"]
    kept = names["problem"] or (
        f"kept by {names['primary']} (view {names['view']}, members: {', '.join(names['members'])})"
    )
    facts = Table.grid(padding=(0, 2))
    facts.add_row(
        "",
        "space",
        f"{_mb(data['free_mb'])} free of {_mb(data['total_mb'])}, "
        f"{_mb(data['reserved_mb'])} of it reserved",
    )
    facts.add_row("", "names", Text(kept))
    table = Table.grid(padding=(0, 2))
    for storage in data["storages"]:
        _storage(table, storage)
    return [_headline(data["name"], data["state"], data["why"]), facts, table]


def _storage(table: Table, data: dict[str, Any]) -> None:
    role = f", names {data['names_role']}" if data["names_role"] else ""
    age = data["heartbeat_age_s"]
    beat = "no heartbeat yet" if age is None else f"last heartbeat {age} s ago"
    state = Text(data["state"], _STATE_COLOURS.get(data["state"], "red"))
    details = f"{_mb(data['free_mb'])} free, {beat}, version {data['version'] or 'unknown'}"
    text = f"{data['why']}{role}; {details}"
    table.add_row("", Text(data["address"]), state, Text(text))
    if data["filling"] is not None:
        table.add_row("", "", "", Text(f"still to come: {_left(data['filling'])}", "yellow"))
    if data["replication_problem"]:
        table.add_row("", "", "", Text(data["replication_problem"], "yellow"))
    for peer in data["peers"]:
        if not peer["in_sync"] or peer["records_left"]:
            word = "in sync with" if peer["in_sync"] else "not in sync with"
            why_not = f" ({peer['why']})" if peer["why"] else ""
            line = f"{word} {peer['id']}: {peer['state']}{why_not}, {_left(peer)}"
            table.add_row("", "", "", Text(line, "" if peer["in_sync"] else "yellow"))
        if peer["unreadable"]:
            count = peer["unreadable"]
            files = "1 file" if count == 1 else f"{count} files"
            line = f"{files} cannot be brought to {peer['id']}, which has no copy: see the log"
            table.add_row("", "", "", Text(line, "red"))
    if not data["peers"] and data["behind_s"]:
        table.add_row("", "", "", Text(f"about {_duration(data['behind_s'])} behind the others"))


def _left(data: dict[str, Any]) -> str:
    """``12 changes (3.0 MiB) left, oldest 2 s old, done in about 4 s``."""
    if not data["records_left"]:
        return "nothing left to copy"
    count = data["records_left"]
    text = f"{count:,} change{'' if count == 1 else 's'} ({size_text(data['bytes_left'])}) left"
    if data["delay_s"]:
        text += f", oldest {_duration(data['delay_s'])} old"
    if data["estimate_s"] is not None:
        text += f", done in about {_duration(data['estimate_s'])}"
    return text


def _duration(seconds: float) -> str:
    """``4 s``, ``12 min``, ``3.5 h``, ``2.1 days``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 90 * 60:
        return f"{seconds / 60:.0f} min"
    if seconds < 36 * 3600:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86400:.1f} days"


def _mb(count: int) -> str:
    return size_text(count << 20)

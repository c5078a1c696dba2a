"""What a storage knows of its group: the lists of trackers, merged.

Source: protocol/cluster.md section 3.3. Pure: `merge` takes what is known and what a tracker
listed, and says what is known now and what has to be done about it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from fdfsfuse.core import states
from fdfsfuse.proto.cluster import Brief
from fdfsfuse.proto.tracker import ServerStatus

NONE = ServerStatus.NONE
MAY_BE_REMOVED = frozenset({states.OFFLINE, states.RECOVERY, *states.GONE, NONE})
"""What a member can be that an administrator removed; another one has joined again since."""
_FILLED = frozenset({states.OFFLINE, states.ONLINE, states.ACTIVE, states.RECOVERY})


@dataclass(frozen=True, slots=True)
class Merged:
    """``members`` by storage id, gone ones included; ``differences`` are sent by 85.

    ``gone`` are the members that this list removed: their changelog (77) is to be read, then
    `forget` drops them. ``rejoin``: this storage itself is to join that tracker again.
    """

    members: Mapping[str, Brief]
    differences: tuple[Brief, ...] = ()
    gone: tuple[str, ...] = ()
    rejoin: bool = False


def merge(known: Mapping[str, Brief], listed: Iterable[Brief], own_id: str) -> Merged:
    """Merge the group list of a tracker's answer into what is *known*."""
    members = dict(known)
    differences: list[Brief] = []
    gone: list[str] = []
    rejoin = False
    seen = set()
    for brief in listed:
        seen.add(brief.storage_id)
        entry = members.get(brief.storage_id)
        if entry is None:
            if brief.status not in states.GONE:
                members[brief.storage_id] = brief
            continue
        status, told = entry.status, brief.status
        if entry == brief:
            continue
        if told is states.OFFLINE and status in (states.ACTIVE, states.ONLINE):
            members[brief.storage_id] = replace(entry, status=told)
        elif told is states.OFFLINE and status not in (NONE, states.INIT, states.OFFLINE):
            differences.append(entry)
        elif told in (states.WAIT_SYNC, states.SYNCING) and _is_ahead(status, told):
            differences.append(entry)
            rejoin = rejoin or brief.storage_id == own_id
        elif told in states.GONE and status is NONE:
            continue
        else:
            members[brief.storage_id] = brief
            if told in states.GONE:
                gone.append(brief.storage_id)
    differences += [
        entry for name, entry in members.items() if name not in seen and entry.status is not NONE
    ]
    return Merged(members, tuple(differences), tuple(gone), rejoin)


def _is_ahead(status: ServerStatus, told: ServerStatus) -> bool:
    """Whether *status* is nearer to the end of an initial copy than *told*.

    Removed servers (4) are not: one that is listed again has joined again from the beginning.
    """
    return status in _FILLED or (status is states.SYNCING and told is states.WAIT_SYNC)


def forget(known: Mapping[str, Brief], storage_id: str) -> Mapping[str, Brief]:
    """Drop a member that was removed; a later list that shows it brings it back."""
    entry = known.get(storage_id)
    if entry is None or entry.status not in MAY_BE_REMOVED:
        return known
    return {**known, storage_id: replace(entry, status=NONE)}


def contradicts(told: ServerStatus, at_leader: ServerStatus) -> bool:
    """Whether a tracker has to be told (59) the status that its leader knows (section 3.6)."""
    both_available = told in states.AVAILABLE and at_leader in states.AVAILABLE
    return told is not at_leader and not both_available

"""The status of a storage as a tracker sees it, and everything that changes it.

Source: protocol/cluster.md section 4.1, protocol/load-balancing.md section 1. Theory of operation:
a storage that joins a group for the first time goes INIT -> ONLINE (first of its group) or INIT ->
WAIT_SYNC -> SYNCING -> OFFLINE (a member copies its data to it); from then on it moves between
OFFLINE, ONLINE and ACTIVE as its connection comes and goes. Only ACTIVE storages are given to
clients.

=========== ================================== ============================================
status      why it is in it                    how it leaves
=========== ================================== ============================================
INIT        joined, nothing decided            87 or 88 decides about an initial copy
WAIT_SYNC   waits for its source               the source reports SYNCING
SYNCING     its source copies old data to it   the source reports OFFLINE: the copy is complete
ONLINE      connected, no report yet           its first report makes it ACTIVE
ACTIVE      connected and reporting            its connection ends, or it is silent too long
OFFLINE     known, not connected               it joins, or reports on an open connection
RECOVERY    it rebuilds a lost disk            it joins
DELETED     an administrator removed it        it joins as if it were new
IP_CHANGED  another ip took its place          it joins as if it were new
=========== ================================== ============================================
"""

from __future__ import annotations

from enum import Enum, auto

from fdfsfuse.proto.tracker import ServerStatus

INIT = ServerStatus.INIT
WAIT_SYNC = ServerStatus.WAIT_SYNC
SYNCING = ServerStatus.SYNCING
IP_CHANGED = ServerStatus.IP_CHANGED
DELETED = ServerStatus.DELETED
OFFLINE = ServerStatus.OFFLINE
ONLINE = ServerStatus.ONLINE
ACTIVE = ServerStatus.ACTIVE
RECOVERY = ServerStatus.RECOVERY

AVAILABLE = frozenset({OFFLINE, ONLINE, ACTIVE})
"""A member in one of these has, or can soon have, the group's data."""
GONE = frozenset({DELETED, IP_CHANGED})
"""Not a member any more; kept in lists so that peers notice."""


class Event(Enum):
    """What happens to a storage. Events that carry a status are `merge_report` and `override`."""

    JOINED = auto()
    """It sent JOIN (81) on a new connection."""
    JOINED_WITHOUT_DATA = auto()
    """It sent JOIN with the init flag: it is new, or has lost what it had. The reference tells
    this only from 87, which one tracker hears."""
    NOTHING_TO_COPY = auto()
    """87 was answered empty: it is the first of its group."""
    SOURCE_CHOSEN = auto()
    """87 was answered with a source for its initial copy."""
    NOTIFIED_NO_SOURCE = auto()
    """88 without a source."""
    NOTIFIED_SOURCE = auto()
    """88 with a source."""
    REPORTED = auto()
    """A heartbeat (83) or disk report (84) arrived."""
    DISCONNECTED = auto()
    """Its connection ended."""
    SILENT = auto()
    """No heartbeat for check_active_interval."""
    REMOVED = auto()
    """An administrator deleted it (93)."""
    REPLACED = auto()
    """Its entry took another ip (78)."""
    LOADED = auto()
    """The tracker started and read its files."""


TRANSITIONS: dict[Event, dict[ServerStatus, ServerStatus]] = {
    Event.JOINED: {OFFLINE: ONLINE, RECOVERY: ONLINE, DELETED: INIT, IP_CHANGED: INIT},
    Event.JOINED_WITHOUT_DATA: dict.fromkeys(
        (OFFLINE, ONLINE, ACTIVE, RECOVERY, DELETED, IP_CHANGED), INIT
    ),
    Event.NOTHING_TO_COPY: {
        INIT: ONLINE,
        WAIT_SYNC: ONLINE,
        SYNCING: ONLINE,
        OFFLINE: ONLINE,
    },
    Event.SOURCE_CHOSEN: {
        INIT: WAIT_SYNC,
        SYNCING: WAIT_SYNC,
        OFFLINE: WAIT_SYNC,
        ONLINE: WAIT_SYNC,
        ACTIVE: WAIT_SYNC,
    },
    Event.NOTIFIED_NO_SOURCE: {INIT: ONLINE, WAIT_SYNC: ONLINE, SYNCING: ONLINE},
    Event.NOTIFIED_SOURCE: {INIT: WAIT_SYNC},
    Event.REPORTED: {OFFLINE: ACTIVE, ONLINE: ACTIVE},
    Event.DISCONNECTED: {ONLINE: OFFLINE, ACTIVE: OFFLINE},
    Event.SILENT: {ACTIVE: OFFLINE},
    Event.REMOVED: {INIT: DELETED, WAIT_SYNC: DELETED, SYNCING: DELETED, OFFLINE: DELETED},
    Event.REPLACED: dict.fromkeys(ServerStatus, IP_CHANGED),
    Event.LOADED: {
        IP_CHANGED: OFFLINE,
        DELETED: OFFLINE,
        ONLINE: OFFLINE,
        ACTIVE: OFFLINE,
        RECOVERY: OFFLINE,
        ServerStatus.NONE: OFFLINE,
    },
}
"""A status that an event does not list stays as it is."""


def after(status: ServerStatus, event: Event) -> ServerStatus:
    """The status of a storage in *status* after *event*."""
    return TRANSITIONS[event].get(status, status)


def begins_anew(known: ServerStatus | None, status: ServerStatus) -> bool:
    """Whether a storage that was *known* to be further is (again) to be filled."""
    if status is SYNCING:
        return known in (ONLINE, ACTIVE, RECOVERY)
    return status is WAIT_SYNC and known in (SYNCING, ONLINE, ACTIVE, RECOVERY)


def merge_report(status: ServerStatus, reported: ServerStatus) -> ServerStatus:
    """The status after somebody reported *reported* about the storage (76; section 3.5)."""
    if status == reported or status in (INIT, ONLINE, ACTIVE, RECOVERY):
        return status
    if reported in GONE or reported > status:
        return reported
    return status


def override(status: ServerStatus, told: ServerStatus) -> ServerStatus:
    """The status after the storage brought its status at the leader (59; section 3.6)."""
    if status == told or (status in AVAILABLE and told in AVAILABLE):
        return status
    return OFFLINE if told in (ONLINE, ACTIVE) else told

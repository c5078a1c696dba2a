"""The states of storages in words: why one is in it, and what it waits for."""

from __future__ import annotations

from fdfsfuse.core import states
from fdfsfuse.proto.tracker import ServerStatus

WHY = {
    states.INIT: "known, but no storage of the volume can fill it yet",
    states.WAIT_SYNC: "waits for {source} to start filling it",
    states.SYNCING: "is being filled by {source}",
    states.IP_CHANGED: "has another address now",
    states.DELETED: "was removed by an administrator",
    states.OFFLINE: "not connected to the tracker: stopped, crashed, or cut off",
    states.ONLINE: "connected, its first heartbeat has not come yet",
    states.ACTIVE: "works",
    states.RECOVERY: "fetches the files of a replaced disk from another storage",
    ServerStatus.NONE: "not a server",
}
"""Each state; protocol/load-balancing.md section 1."""


FILLED = "has been filled; its next heartbeat makes it ACTIVE"
"""What made a storage OFFLINE at the end of its initial copy."""


def reason(
    status: ServerStatus,
    *,
    source_id: str = "",
    source_status: ServerStatus | None = None,
    event: str = "",
) -> str:
    """Why a storage is in *status*.

    Args:
        source_id, source_status: whom it gets its data from, and that one's state if known.
        event: what made it OFFLINE, if known.
    """
    text = WHY[status].format(source=source_id or "another storage")
    if status is states.OFFLINE and event:
        return event if event == FILLED else f"not connected: {event}"
    filled = status in (states.WAIT_SYNC, states.SYNCING)
    if filled and source_status not in (None, states.ACTIVE):
        assert source_status is not None
        text += f", which is {source_status.name}"
    return text

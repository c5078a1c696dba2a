"""What the parts of one tracker share: its state, its clocks, and its sessions."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fdfsfuse.core.cluster import Cluster
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.config import TrackerConfig
from fdfsfuse.core.groups import Group, Server
from fdfsfuse.core.trackers import Leadership, TrackerList
from fdfsfuse.proto.cluster_status import TrackerPeer
from fdfsfuse.proto.tracker_peers import TrackerStatus

_STATUS_STEP_S = 300
"""Times in a tracker's status are rounded down to this (cluster.md section 6.1)."""


@dataclass(slots=True, eq=False)
class Session:
    """One connection.

    ``joined`` is set by JOIN (81), ``follower`` by 58. ``seen_leader`` is the value of the leader's
    change counter when this storage was last told the leader, ``seen_trunk`` the same of trunk
    servers for a follower. ``files`` is what 61 put aside for
    63 to hand out.
    """

    peer_ip: str
    joined: tuple[Group, Server] | None = None
    follower: ServerAddress | None = None
    seen_leader: int = -1
    seen_trunk: int = -1
    files: tuple[bytes, ...] | None = field(default=None, repr=False)

    @property
    def lasts(self) -> bool:
        """True when the next request on this connection depends on an earlier one."""
        return not (self.joined is None and self.follower is None and self.files is None)


@dataclass(slots=True)
class Follower:
    """A tracker that follows this one. Times are Unix seconds; ``connections`` are how many are
    allocated, in use, and were at most.
    """

    up_time: int
    version: str
    connections: tuple[int, int, int] = (0, 0, 0)
    heard_at: int = 0


Handler = Callable[[Session, bytes], bytes]


class Node:
    """One tracker.

    Args:
        port: where it listens.
        last_check_time: when its previous run was last seen alive, Unix seconds; 0 if never.
        now_s: Unix time. monotonic: a clock that never jumps; both in seconds.

    Attributes:
        contacts: the other trackers as they were found last.
        followers: the trackers that follow this one, as they told by 58 and 65.
        connections: those of this tracker, set by the shell.
        started: when it started, on its monotonic clock; ``started_s``: in Unix seconds.
    """

    def __init__(
        self,
        config: TrackerConfig,
        cluster: Cluster,
        port: int,
        *,
        last_check_time: int = 0,
        now_s: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.config = config
        self.cluster = cluster
        self.trackers = TrackerList(port, config.bind_addr)
        self.leadership = Leadership(self.trackers)
        self.last_check_time = last_check_time
        self.contacts: dict[ServerAddress, TrackerPeer] = {}
        self.followers: dict[ServerAddress, Follower] = {}
        self.connections: Callable[[], tuple[int, int, int]] = lambda: (0, 0, 0)
        self.now_s = now_s
        self.monotonic = monotonic
        self.started_s = int(now_s())
        self.started = monotonic()

    def status(self) -> TrackerStatus:
        """What this tracker answers to 64."""
        running_s = int(self.monotonic() - self.started)
        down_s = self.started_s - self.last_check_time if self.last_check_time else 0
        return TrackerStatus(
            self.leadership.leads,
            running_s // _STATUS_STEP_S * _STATUS_STEP_S,
            max(0, down_s) // _STATUS_STEP_S * _STATUS_STEP_S,
        )

    @property
    def down_s(self) -> int:
        """How long this tracker had been down before it started, 0 if it never ran."""
        return max(0, self.started_s - self.last_check_time) if self.last_check_time else 0

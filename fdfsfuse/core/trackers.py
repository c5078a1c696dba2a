"""The trackers of a cluster as one of them knows them, and who leads.

Source: protocol/cluster.md section 6. Trackers are peers: each learns everything from storages, and
the list of trackers from their JOINs. The leader is only the authority for lists of groups. It is
elected without a quorum, so there may be two for a while; a storage that sees both asks them to
elect again (68).

Pure: `fdfs_tracker.peers` asks the others and applies what is decided here.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Mapping
from enum import Enum, auto

from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto.cluster import MAX_TRACKERS
from fdfsfuse.proto.tracker_peers import TrackerStatus


class TrackerList:
    """All trackers that JOINs have named; grows only.

    Args:
        port: where this tracker listens.
        own_ips: addresses that are known to be its own; JOINs tell further ones.
    """

    def __init__(self, port: int, own_ips: Iterable[str] = ()) -> None:
        self.port = port
        self.own_ips = set(own_ips)
        self.servers: tuple[ServerAddress, ...] = ()

    def learn(self, lines: Iterable[str], tracker_ip: str) -> None:
        """Add the list of a JOIN that reached this tracker as *tracker_ip*.

        Raises:
            ProtocolError: a line is malformed.
            StatusError: 2 when the list does not name this tracker, 28 when there are too many.
        """
        lines = list(lines)
        try:
            named = [ServerAddress.parse(line) for line in lines]
        except ValueError as exc:
            raise ProtocolError(f"a list of trackers: {exc}") from exc
        own_ips = self.own_ips | {tracker_ip}
        if not any(self._is_own(server, own_ips) for server in named):
            raise StatusError(
                errno.ENOENT,
                f"its list of trackers {', '.join(lines)} does not name this one "
                f"({tracker_ip}, port {self.port})",
            )
        servers = tuple(dict.fromkeys((*self.servers, *named)))
        if len(servers) > MAX_TRACKERS:
            raise StatusError(errno.ENOSPC, f"more than {MAX_TRACKERS} trackers")
        self.own_ips, self.servers = own_ips, servers

    def _is_own(self, server: ServerAddress, own_ips: set[str]) -> bool:
        return server.port == self.port and not own_ips.isdisjoint(server.hosts)

    @property
    def own(self) -> ServerAddress | None:
        """This tracker as the list names it, None before the first JOIN."""
        return next((s for s in self.servers if self._is_own(s, self.own_ips)), None)

    @property
    def others(self) -> tuple[ServerAddress, ...]:
        """The other trackers."""
        return tuple(s for s in self.servers if not self._is_own(s, self.own_ips))

    def find(self, ip: str, port: int) -> ServerAddress | None:
        """The tracker at *ip* and *port*."""
        return next((s for s in self.servers if s.port == port and ip in s.hosts), None)


class Decision(Enum):
    """What a tracker without a leader does once it has asked all trackers (section 6.3)."""

    ADOPT = auto()
    """Another tracker leads already: follow it."""
    WAIT = auto()
    """Another one is to lead: it will announce itself."""
    ANNOUNCE = auto()
    """This tracker is to lead: tell the others (66, then 67)."""


def rank(server: ServerAddress, status: TrackerStatus) -> tuple[bool, int, int, str, int]:
    """The greatest of all trackers leads; also the order in which system files are fetched."""
    return (
        status.is_leader,
        status.running_s,
        -status.restart_interval_s,
        server.hosts[0],
        server.port,
    )


def best(found: Mapping[ServerAddress, TrackerStatus]) -> ServerAddress | None:
    """The highest in rank of those that answered."""
    return max(found, key=lambda server: rank(server, found[server]), default=None)


def decide(
    own: ServerAddress, found: Mapping[ServerAddress, TrackerStatus]
) -> tuple[Decision, ServerAddress]:
    """What to do, and about which tracker. *found* are the answers to 64, its own included."""
    winner = best(found) or own
    if winner == own:
        return Decision.ANNOUNCE, own
    return (Decision.ADOPT if found[winner].is_leader else Decision.WAIT), winner


class Leadership:
    """Who leads, as this tracker knows it.

    ``changes`` counts up with each change of it; ``on_change`` is called then.
    """

    def __init__(self, trackers: TrackerList) -> None:
        self._trackers = trackers
        self.leader: ServerAddress | None = None
        self.changes = 0
        self.on_change: Callable[[], None] = lambda: None
        self._candidate: ServerAddress | None = None

    @property
    def leads(self) -> bool:
        """True when this tracker is the leader."""
        return self.leader is not None and self.leader == self._trackers.own

    def adopt(self, leader: ServerAddress | None) -> None:
        """Take *leader* for the leader; None: there is none any more."""
        if leader != self.leader:
            self.leader = leader
            self.changes += 1
            self.on_change()

    def notify(self, ip: str, port: int) -> None:
        """66: a tracker announces that it will lead. Status 22 from a leader, 2 if unknown."""
        server = self._named(ip, port)
        if self.leads and server != self._trackers.own:
            self.adopt(None)
            raise ProtocolError("a leader steps down, because another one is to be elected")
        self._candidate = server

    def commit(self, ip: str, port: int) -> None:
        """67: from now on it leads. Status 22 unless it was announced before."""
        server = self._named(ip, port)
        if server != self._candidate:
            raise ProtocolError(f"{server} was not announced as the next leader")
        self._candidate = None
        self.adopt(server)

    def reselect(self) -> None:
        """68: a storage has seen two leaders. Status 95 unless this is one."""
        self.require()
        self.adopt(None)

    def require(self) -> None:
        """Status 95 unless this tracker leads."""
        if not self.leads:
            raise StatusError(errno.EOPNOTSUPP, "this tracker is not the leader")

    def _named(self, ip: str, port: int) -> ServerAddress:
        server = self._trackers.find(ip, port)
        if server is None:
            raise StatusError(errno.ENOENT, f"no tracker {ip}:{port}")
        return server

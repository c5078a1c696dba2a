"""What trackers and storages tell about the state of the cluster, beyond what FastDFS tells.

Our addition to FastDFS; stock servers answer these commands with status 22 (a storage then closes
the connection), and who asks does without. Bodies are MessagePack arrays; new fields are appended
with defaults, and a reader skips what it does not know.

=== ================== ============= ============================= ==============================
cmd name               asked of      request                       response
=== ================== ============= ============================= ==============================
140 CLUSTER_STATUS     a tracker     empty                         ClusterStatus
141 AM_I_FOUNDER       a tracker     FounderQuery                  FounderAnswer
142 REPLICATION_STATUS a storage     empty                         ReplicationStatus
143 ACCEPT_FOUNDER     tracker by    FounderBallot                 FounderVote
                       tracker
144 FORGET_SERVER      a tracker     ForgetServer                  empty
145 FOUND_TREE         a storage     FoundTree                     empty
=== ================== ============= ============================= ==============================
"""

from __future__ import annotations

import msgspec

VERSION = 1
CLUSTER_STATUS = 140
AM_I_FOUNDER = 141
REPLICATION_STATUS = 142
ACCEPT_FOUNDER = 143
FORGET_SERVER = 144
FOUND_TREE = 145
FOUND_TREE_MAX = 1024


class _Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all messages."""


class TrackerPeer(_Message, frozen=True):
    """Another tracker as one tracker sees it.

    ``address`` is ``ip:port``. ``reachable`` is None before it was tried. ``problem`` says in
    words why it is not reachable.
    """

    address: str
    reachable: bool | None = None
    problem: str = ""


class ServerState(_Message, frozen=True):
    """A storage as the tracker knows it.

    ``status`` is the number of cluster.md section 1.1, ``since`` the Unix time at which this
    tracker saw it change, 0 when that was before the tracker started. ``reason`` says in words
    why it is in that state and, where something is missing, what. ``synced_from`` tells by id of
    each source until when (Unix seconds) it has that one's changes, as far as it was reported.
    """

    storage_id: str
    ip: str
    port: int
    status: int
    since: int
    reason: str
    source_id: str = ""
    synced_from: dict[str, int] = {}


class GroupState(_Message, frozen=True):
    """A group and its storages, sorted by id. ``founder`` founded its tree, '' when unknown."""

    name: str
    servers: list[ServerState]
    founder: str = ""


class ClusterStatus(_Message, frozen=True):
    """What one tracker knows. ``leader`` is ``ip:port`` or '' when none is elected.

    ``address`` is the tracker itself, '' before a storage has joined it. ``started`` and ``now``
    are Unix seconds by its clock.
    """

    version: int
    address: str
    leader: str
    started: int
    now: int
    trackers: list[TrackerPeer]
    groups: list[GroupState]


class FounderQuery(_Message, frozen=True):
    """A storage whose 87 was answered empty asks whether it is to found the tree of its group.

    ``join_time`` is the one of its JOIN: a storage that lost its disk comes with another one.
    ``stock`` are ids of C storages: they have founded no tree, whatever was agreed.
    """

    group: str
    storage_id: str
    join_time: int
    stock: list[str] = []


class FounderAnswer(_Message, frozen=True):
    """``founder`` tells whether the asking storage is it; ``reason`` in words why not.

    The status is 11 while the trackers cannot agree: ask again.
    """

    founder: bool
    reason: str = ""


class ForgetServer(_Message, frozen=True):
    """Drop a server from the lists that was removed or took another ip; status 16 otherwise.

    FastDFS keeps such servers in the lists until its trackers are restarted.
    """

    group: str
    storage_id: str


class FoundTree(_Message, frozen=True):
    """An administrator has the storage found the tree of its group, which was moved from C servers.

    Status 17: it has a tree; 16: another storage founded the tree, or may have; 11: the trackers
    cannot agree now, or have not told the storage its group yet. ``stock``: as in `FounderQuery`.
    """

    group: str
    stock: list[str] = []


class Ballot(_Message, frozen=True, order=True):
    """Ballots are ordered; ``tracker`` (``ip:port``) makes those of two trackers differ."""

    number: int
    tracker: str


class Founder(_Message, frozen=True):
    """The storage that may found a group's tree: its id and the join time of its data."""

    storage_id: str
    join_time: int


class FounderBallot(_Message, frozen=True):
    """Ask an acceptor to promise ``ballot`` (without ``value``), or to accept ``value``.

    ``removed`` are ids that the asking tracker knows as removed by an administrator: they found
    nothing, whatever was accepted before.
    """

    group: str
    ballot: Ballot
    value: Founder | None = None
    removed: list[str] = []


class FounderVote(_Message, frozen=True):
    """An acceptor's answer: ``granted``, the ballot it has promised, and what it has accepted."""

    granted: bool
    promised: Ballot
    accepted: Ballot | None = None
    value: Founder | None = None


class PeerReplication(_Message, frozen=True):
    """How far a storage has brought its changes to one peer.

    ``in_sync``: the peer counts for what is acknowledged. ``state`` is one word (``idle``,
    ``sending``, ``waiting``, ``failing`` ...), ``reason`` says in words why it is not in sync or
    what it waits for, '' when all is well. ``records_left`` and ``bytes_left`` are what is not
    there yet (bytes: of the binlog records' contents as far as known). ``delay_s`` is the age of
    the oldest change that is not there yet, 0 when there is none. ``estimate_s`` is when the peer
    will have everything at the present rate, None when that cannot be told. ``unreadable`` files
    are left out, because the storage cannot read them, or the peer's file system has none as large.
    """

    peer_id: str
    state: str
    in_sync: bool
    reason: str = ""
    records_left: int = 0
    bytes_left: int = 0
    delay_s: float = 0.0
    estimate_s: float | None = None
    unreadable: int = 0


class ReplicationStatus(_Message, frozen=True):
    """What one storage sends to its peers."""

    version: int
    storage_id: str
    peers: list[PeerReplication]

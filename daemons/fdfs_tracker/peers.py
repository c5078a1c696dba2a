"""What a tracker asks other trackers: their files, who leads, who founds a tree.

Source: protocol/cluster.md section 6. What is decided is in `fdfsfuse.core.trackers` and
`fdfsfuse.core.founding`; here the questions are sent. All of them go through `Network`, so that
tests can put a simulated one in its place.
"""

from __future__ import annotations

import errno
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import trio

from fdfs_tracker.node import Node, Session
from fdfs_tracker.state_files import take_system_files
from fdfsfuse.client.link import PROBLEMS, Link, connect_link
from fdfsfuse.core import founding
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.config import TrackerConfig
from fdfsfuse.core.groups import Server
from fdfsfuse.core.trackers import Decision, best, decide, rank
from fdfsfuse.errors import ConnectFailed, FdfsError, ProtocolError, StatusError
from fdfsfuse.proto import structs
from fdfsfuse.proto.cluster import VERSION, ClusterCommand, Join
from fdfsfuse.proto.cluster_status import (
    ACCEPT_FOUNDER,
    AM_I_FOUNDER,
    Ballot,
    Founder,
    FounderAnswer,
    FounderBallot,
    FounderQuery,
    FounderVote,
    TrackerPeer,
)
from fdfsfuse.proto.tracker_peers import (
    SYSTEM_FILES,
    JoinLeader,
    LeaderPing,
    SystemFilePart,
    SystemFileRequest,
    TrackerStatus,
    TrunkServers,
    encode_leader,
)

logger = logging.getLogger(__name__)

_FILE_MAX = 64 << 20
_LONG_DOWN_S = 600
"""A tracker that was down for longer trusts the files of another one more than its own."""
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Timing:
    """Waits in seconds; the defaults are those of section 6."""

    first_election_s: float = 1.0
    election_wait_s: tuple[float, float] = (1.0, 11.0)
    ping_s: float = 1.0
    ping_retries_s: tuple[float, ...] = (1.0, 2.0)
    watch_s: float = 5.0
    ask_s: float = 5.0
    """How long another tracker may take to connect, and to answer."""


class Connection(Protocol):
    """A connection to another tracker."""

    async def request(self, command: int, body: bytes = b"") -> bytes:
        """One exchange. Raises one of `fdfsfuse.client.link.PROBLEMS`."""

    def close(self) -> None:
        """Close it."""


class Network(Protocol):
    """How other trackers are reached."""

    async def connect(self, server: ServerAddress) -> Connection:
        """Raises ConnectFailed."""


class RealNetwork:
    """Connections from the address by which others know this tracker."""

    def __init__(self, config: TrackerConfig, timing: Timing) -> None:
        self._bind = config.bind_addr
        self._connect_s = min(config.connect_timeout_s, timing.ask_s)
        self._timeout_s = min(config.network_timeout_s, timing.ask_s)

    async def connect(self, server: ServerAddress) -> Link:
        """Raises ConnectFailed."""
        return await connect_link(
            server,
            bind=self._bind,
            connect_timeout_s=self._connect_s,
            timeout_s=self._timeout_s,
        )


class Peers:
    """The other trackers, as one of them uses them.

    Args:
        save: puts the node's state on the disk; raises OSError.
    """

    def __init__(
        self,
        node: Node,
        network: Network,
        save: Callable[[], Awaitable[None]],
        *,
        timing: Timing | None = None,
        chance: random.Random | None = None,
    ) -> None:
        self._node = node
        self._network = network
        self._save = save
        self._timing = timing or Timing()
        self._chance = chance or random.Random()
        self._fetching = trio.Lock()
        self._fetched = False
        self._fetch_problem = ""
        self._listed = trio.Event()
        self._leader_changed = trio.Event()
        node.leadership.on_change = self._note_leader
        self._founding = trio.Lock()
        self.prepares: dict[int, Callable[[Session, bytes], Awaitable[None]]] = {
            ClusterCommand.JOIN: self._before_join,
            ClusterCommand.SYNC_DEST_REQUEST: self._before_sync_dest_request,
        }
        """What is to be awaited before a handler runs; raises StatusError to refuse."""
        self.answers: dict[int, Callable[[Session, bytes], Awaitable[bytes]]] = {
            AM_I_FOUNDER: self._am_i_founder,
        }
        """Commands whose answer needs other trackers."""

    # --- asking -------------------------------------------------------------------------------

    async def _ask(self, server: ServerAddress, command: int, body: bytes = b"") -> bytes:
        """One exchange on a connection of its own. Raises one of `PROBLEMS`."""
        try:
            connection = await self._network.connect(server)
            try:
                answer = await connection.request(command, body)
            finally:
                connection.close()
        except StatusError:
            self._note(server, "")
            raise
        except PROBLEMS as exc:
            self._note(server, str(exc))
            raise
        self._note(server, "")
        return answer

    def _note(self, server: ServerAddress, problem: str) -> None:
        """Note whether *server* can be reached; changes are logged."""
        old = self._node.contacts.get(server)
        self._node.contacts[server] = TrackerPeer(str(server), not problem, problem)
        if problem and (old is None or old.reachable):
            logger.warning("tracker %s cannot be reached: %s", server, problem)
        elif not problem and old is not None and not old.reachable:
            logger.info("tracker %s can be reached again", server)

    async def _ask_all(
        self, command: int, body: bytes, parse: Callable[[bytes], _T]
    ) -> tuple[dict[ServerAddress, _T], dict[ServerAddress, FdfsError]]:
        """Ask all others at the same time: answers, and what went wrong with the rest."""
        answers: dict[ServerAddress, _T] = {}
        problems: dict[ServerAddress, FdfsError] = {}

        async def ask(server: ServerAddress) -> None:
            try:
                answers[server] = parse(await self._ask(server, command, body))
            except PROBLEMS as exc:
                problems[server] = exc

        async with trio.open_nursery() as nursery:
            for server in self._node.trackers.others:
                nursery.start_soon(ask, server)
        return answers, problems

    # --- before the first JOIN: the files of another tracker (section 6.2) ----------------------

    async def _before_join(self, _session: Session, body: bytes) -> None:
        if self._fetched:
            return
        request = Join.decode(body)
        async with self._fetching:
            if self._fetched:
                return
            try:
                self._node.trackers.learn(request.trackers, request.tracker_ip)
            except StatusError:
                return  # the handler says so
            self._listed.set()
            empty = not self._node.cluster.groups
            if empty or self._node.down_s > _LONG_DOWN_S:
                try:
                    await self._fetch(empty)
                except StatusError as exc:
                    if str(exc) != self._fetch_problem:
                        logger.warning("no storage may join yet: %s", exc.what)
                    self._fetch_problem = str(exc)
                    raise
            self._fetched = True

    async def _fetch(self, empty: bool) -> None:
        """Learn from the best other tracker. Status 11 when none can say whether there is one."""
        node = self._node
        found, problems = await self._ask_all(
            ClusterCommand.TRACKER_STATUS, b"", TrackerStatus.decode
        )
        source = best(found)
        if source is None:
            unsure = [
                server
                for server, problem in problems.items()
                if not (isinstance(problem, StatusError) and problem.errno == errno.ENOENT)
            ]
            if unsure and empty:
                names = ", ".join(map(str, unsure))
                raise StatusError(
                    errno.EAGAIN,
                    f"this tracker is empty and cannot reach {names}, which may know the cluster",
                )
            return
        own = node.trackers.own
        if not empty and own is not None and rank(source, found[source]) < rank(own, node.status()):
            return
        try:
            files = await self._read_files(source)
            take_system_files(files, node.cluster)
            await self._save()
        except PROBLEMS as exc:
            logger.warning("cannot learn from tracker %s: %s", source, exc)
            raise StatusError(errno.EAGAIN, f"cannot learn from tracker {source}") from exc
        logger.info("learned %d groups from tracker %s", len(node.cluster.groups), source)

    async def _read_files(self, source: ServerAddress) -> list[bytes]:
        connection = await self._network.connect(source)
        try:
            await connection.request(ClusterCommand.SYSTEM_FILES_START)
            files = [await _read_file(connection, index) for index in range(SYSTEM_FILES)]
            await connection.request(ClusterCommand.SYSTEM_FILES_END)
        finally:
            connection.close()
        return files

    # --- the leader (sections 6.3 and 6.4) ------------------------------------------------------

    async def run(self) -> None:
        """Take part in elections and follow the leader; watch the others. Until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._lead_or_follow)
            nursery.start_soon(self._watch)

    async def _lead_or_follow(self) -> None:
        node = self._node
        await self._listed.wait()
        # The storage that named the trackers here is just naming them to the others.
        await trio.sleep(self._timing.first_election_s)
        while True:
            leader = node.leadership.leader
            if leader is None:
                await self._elect()
            elif node.leadership.leads:
                await trio.sleep(self._timing.ping_s)
            else:
                await self._follow(leader)

    async def _elect(self) -> None:
        """One attempt; returns after a wait when it has to be repeated."""
        node = self._node
        own = node.trackers.own
        assert own is not None
        found, _ = await self._ask_all(ClusterCommand.TRACKER_STATUS, b"", TrackerStatus.decode)
        if node.leadership.leader is not None:
            return
        found[own] = node.status()
        decision, winner = decide(own, found)
        if decision is Decision.ADOPT:
            logger.info("tracker %s leads", winner)
            node.leadership.adopt(winner)
            return
        if decision is Decision.ANNOUNCE and await self._announce(own):
            logger.info("this tracker (%s) leads", own)
            return
        await self._wait_for_leader()

    async def _wait_for_leader(self) -> None:
        with trio.move_on_after(self._chance.uniform(*self._timing.election_wait_s)):
            while self._node.leadership.leader is None:
                await self._leader_changed.wait()

    def _note_leader(self) -> None:
        self._leader_changed.set()
        self._leader_changed = trio.Event()

    async def _announce(self, own: ServerAddress) -> bool:
        """66 to all others, then 67; False when one of them refuses.

        A tracker that no storage has joined yet (2) is left out, as in the vote.
        """
        body = encode_leader(own.hosts[0], own.port)
        for command in (ClusterCommand.NOTIFY_NEXT_LEADER, ClusterCommand.COMMIT_NEXT_LEADER):
            for server in self._node.trackers.others:
                try:
                    await self._ask(server, command, body)
                except ConnectFailed:
                    continue
                except PROBLEMS as exc:
                    if isinstance(exc, StatusError) and exc.errno == errno.ENOENT:
                        continue
                    logger.info("tracker %s does not take this one for the leader: %s", server, exc)
                    return False
        if self._node.leadership.leader is not None:
            return False  # another one was faster
        self._node.leadership.adopt(own)
        return True

    async def _follow(self, leader: ServerAddress) -> None:
        """58, then 65 every second, until it does not answer any more or another one leads."""
        leadership = self._node.leadership
        failures = 0
        while leadership.leader == leader:
            try:
                await self._ping(leader)
                failures = 0
            except PROBLEMS as exc:
                if leadership.leader != leader:
                    return
                not_leader = isinstance(exc, StatusError) and exc.errno == errno.EOPNOTSUPP
                if not_leader or failures == len(self._timing.ping_retries_s):
                    logger.warning("tracker %s does not lead any more: %s", leader, exc)
                    leadership.adopt(None)
                    return
                await trio.sleep(self._timing.ping_retries_s[failures])
                failures += 1

    async def _ping(self, leader: ServerAddress) -> None:
        """Keep in touch on one connection. Raises one of `PROBLEMS` when that ends."""
        node = self._node
        own = node.trackers.own
        assert own is not None
        connection = await self._network.connect(leader)
        try:
            request = JoinLeader(node.started_s, VERSION, own.port)
            await connection.request(ClusterCommand.JOIN_LEADER, request.encode())
            while node.leadership.leader == leader:
                ping = LeaderPing(*node.connections()).encode()
                answer = await connection.request(ClusterCommand.PING_LEADER, ping)
                for name, storage_id in TrunkServers.decode(answer).servers:
                    node.cluster.set_trunk_server(name, storage_id)
                await trio.sleep(self._timing.ping_s)
        finally:
            connection.close()

    async def _watch(self) -> None:
        """Know which of the others can be reached, and end it when two lead.

        The reference leaves the latter to storages (68), which only those notice that reach both.
        """
        node = self._node
        while True:
            await trio.sleep(self._timing.watch_s)
            found, _ = await self._ask_all(ClusterCommand.TRACKER_STATUS, b"", TrackerStatus.decode)
            own = node.trackers.own
            leaders = {server: status for server, status in found.items() if status.is_leader}
            if own is not None and node.leadership.leads and leaders:
                winner = best({**leaders, own: node.status()})
                if winner != own:
                    logger.warning("tracker %s leads as well: this one steps down", winner)
                    node.leadership.adopt(None)

    # --- who founds the tree of a group (core/founding.py) --------------------------------------

    async def _before_sync_dest_request(self, session: Session, body: bytes) -> None:
        """87: before it is answered with "nothing to copy", all trackers have to agree on that."""
        if body or session.joined is None:
            return
        group, server = session.joined
        if self._node.cluster.others_have_data(group, server):
            return
        chosen, problem = await self._choose_founder(group.name, _as_founder(server))
        if chosen is not None and chosen.storage_id == server.storage_id:
            return
        if chosen is not None:
            problem = (
                f"storage {chosen.storage_id} founds the group and is not there; if it is lost "
                f"for good, remove it: fdfs admin remove {group.name} {chosen.storage_id}"
            )
        server.waits_for = problem
        raise StatusError(errno.ENOENT, f"storage {server.storage_id} cannot be first: {problem}")

    async def _am_i_founder(self, session: Session, body: bytes) -> bytes:
        query = structs.decode(FounderQuery, body)
        _, server = self._node.cluster.server(query.group, query.storage_id)
        if session.peer_ip not in server.ips:
            raise ProtocolError(f"{session.peer_ip} is not storage {query.storage_id}")
        if server.replaced_data:
            return structs.encode(FounderAnswer(False, "it had data before, which it has lost"))
        wanted = Founder(query.storage_id, query.join_time)
        chosen, problem = await self._choose_founder(query.group, wanted, query.stock)
        if chosen == wanted:
            return structs.encode(FounderAnswer(True))
        if chosen is None:
            raise StatusError(errno.EAGAIN, problem)
        if chosen.storage_id == query.storage_id:
            return structs.encode(
                FounderAnswer(False, "it founded the tree before and has lost it since")
            )
        return structs.encode(FounderAnswer(False, f"storage {chosen.storage_id} founded the tree"))

    async def _choose_founder(
        self, group: str, wanted: Founder, stock: Sequence[str] = ()
    ) -> tuple[Founder | None, str]:
        """(the founder of *group*, '') or (None, why the trackers cannot agree now).

        Those in *stock* have founded nothing.
        """
        gone = [*self._node.cluster.removed(group), *stock]
        async with self._founding:
            acceptor = self._node.cluster.founders.get(group)
            ballot = founding.next_ballot(
                [acceptor.promised] if acceptor is not None else [], str(self._node.trackers.own)
            )
            promises, problem = await self._collect(group, ballot, None, gone)
            if problem:
                return None, problem
            value = founding.value_to_propose(promises, wanted)
            _, problem = await self._collect(group, ballot, value, gone)
            if problem:
                return None, problem
            return value, ""

    async def _collect(
        self, group: str, ballot: Ballot, value: Founder | None, gone: list[str]
    ) -> tuple[list[FounderVote], str]:
        """Votes that grant *ballot*, this tracker's own included; and why they are too few."""
        cluster = self._node.cluster
        request = FounderBallot(group, ballot, value, gone)
        votes = [cluster.vote(request)]
        await self._save()
        answers, problems = await self._ask_all(
            ACCEPT_FOUNDER, structs.encode(request), lambda data: structs.decode(FounderVote, data)
        )
        votes += answers.values()
        # A stock tracker refuses the command: it has no vote.
        stock = sum(isinstance(problem, StatusError) for problem in problems.values())
        needed = founding.majority(1 + len(answers) + len(problems) - stock)
        granted = [vote for vote in votes if vote.granted]
        if len(granted) >= needed:
            return granted, ""
        if len(votes) < needed:
            return [], f"{len(votes)} trackers answer, {needed} are needed to decide who is first"
        highest = max(vote.promised for vote in votes)
        own = cluster.founders[group]
        own.promised = max(own.promised, Ballot(highest.number, ""))
        return [], "the trackers are just deciding about another storage"


def _as_founder(server: Server) -> Founder:
    return Founder(server.storage_id, server.join_time)


async def _read_file(connection: Connection, index: int) -> bytes:
    """63 until the file is complete. Raises one of `PROBLEMS`."""
    data = b""
    while True:
        request = SystemFileRequest(index, len(data))
        answer = await connection.request(ClusterCommand.GET_SYSTEM_FILE, request.encode())
        part = SystemFilePart.decode(answer)
        if part.size > _FILE_MAX:
            raise ProtocolError(f"a file of {part.size} bytes")
        data += part.data
        if len(data) == part.size:
            return data
        if not part.data or len(data) > part.size:
            raise ProtocolError(f"{len(data)} of {part.size} bytes of a file")

"""What all trackers, and the storages themselves, say about a cluster.

Every server is asked on a connection of its own and at the same time, so one that does not answer
costs a short while once. Stock servers know only FastDFS's commands: what they cannot tell is
missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import trio

from fdfsfuse.client.address import Address, parse_address
from fdfsfuse.client.connection import connect
from fdfsfuse.errors import (
    ConnectionProblem,
    DeadlineExceeded,
    FdfsError,
    ProtocolError,
    StatusError,
    UsageError,
)
from fdfsfuse.proto import structs
from fdfsfuse.proto.cluster_status import (
    CLUSTER_STATUS,
    REPLICATION_STATUS,
    ClusterStatus,
    ReplicationStatus,
    ServerState,
)
from fdfsfuse.proto.tracker import TrackerCommand

ASK_TIMEOUT_S = 3.0
_STATUS_MAX = 16 << 20
_EINVAL = 22


@dataclass
class TrackerView:
    """One tracker: what it told (``status``), or why it told nothing (``problem``).

    ``stock``: it is a FastDFS tracker, which told only ``leader`` (``ip:port``, '' for none).
    """

    address: Address
    status: ClusterStatus | None = None
    leader: str = ""
    stock: bool = False
    problem: str = ""

    def server(self, group: str, storage_id: str) -> ServerState | None:
        """A storage as this tracker knows it."""
        for state in self.status.groups if self.status is not None else ():
            if state.name == group:
                return next((s for s in state.servers if s.storage_id == storage_id), None)
        return None


@dataclass
class ReplicationView:
    """One storage: what it told, or why it told nothing; ``stock`` like that of a tracker."""

    status: ReplicationStatus | None = None
    stock: bool = False
    problem: str = ""


async def ask(
    address: Address, command: int, body: bytes = b"", timeout_s: float = ASK_TIMEOUT_S
) -> bytes:
    """One exchange on a connection of its own.

    Raises:
        StatusError, ConnectionProblem, ProtocolError.
    """
    with trio.move_on_after(timeout_s):
        connection = await connect(address, timeout_s)
        try:
            return await connection.request(command, body, max_answer=_STATUS_MAX)
        finally:
            connection.close()
    raise DeadlineExceeded(f"{address} did not answer within {timeout_s:g} s")


async def look_at_trackers(addresses: Sequence[Address]) -> list[TrackerView]:
    """Ask these trackers, and the further ones that they name; in that order."""
    found: dict[Address, TrackerView] = {}
    names: dict[str, Address] = {}

    async def look(address: Address, nursery: trio.Nursery) -> None:
        view = found[address]
        await _look_at_tracker(view)
        if view.status is None:
            return
        names.setdefault(view.status.address, address)
        for peer in view.status.trackers:
            try:
                named = parse_address(peer.address.split(",")[0])
            except UsageError:
                continue
            if named not in found:
                found[named] = TrackerView(named)
                nursery.start_soon(look, named, nursery)

    async with trio.open_nursery() as nursery:
        for address in dict.fromkeys(addresses):
            found[address] = TrackerView(address)
            nursery.start_soon(look, address, nursery)
    # One that was given by name answers as the address that others call it by, too.
    return [
        view
        for view in found.values()
        if view.status is None
        or not view.status.address
        or names[view.status.address] == view.address
    ]


async def _look_at_tracker(view: TrackerView) -> None:
    try:
        data = await ask(view.address, CLUSTER_STATUS)
        view.status = structs.decode(ClusterStatus, data)
        view.leader = view.status.leader
    except StatusError as exc:
        if exc.errno != _EINVAL:
            view.problem = str(exc)
            return
        view.stock = True
        try:
            answer = await ask(view.address, TrackerCommand.GET_LEADER)
            view.leader = answer.decode("ascii", "replace")
        except StatusError:
            pass  # there is no leader
        except (ConnectionProblem, ProtocolError) as problem:
            view.problem = str(problem)
    except (ConnectionProblem, ProtocolError) as exc:
        view.problem = str(exc)


async def look_at_replication(address: Address) -> ReplicationView:
    """Ask a storage how far it has brought its changes to its peers."""
    try:
        data = await ask(address, REPLICATION_STATUS)
        return ReplicationView(structs.decode(ReplicationStatus, data))
    except StatusError as exc:
        if exc.errno == _EINVAL:
            return ReplicationView(stock=True)
        return ReplicationView(problem=str(exc))
    except FdfsError as exc:
        return ReplicationView(problem=str(exc))


@dataclass
class Outcome:
    """What became of a command that was sent to every tracker; problems by tracker, in words.

    ``refused``: a tracker answered with a status that does not count as done.
    """

    done: list[Address] = field(default_factory=list)
    problems: dict[Address, str] = field(default_factory=dict)
    refused: bool = False


async def tell_trackers(
    addresses: Sequence[Address],
    command: int,
    body: bytes,
    good: frozenset[int] = frozenset(),
    *,
    timeout_s: float,
) -> Outcome:
    """Send one command to every tracker; a status in *good* counts as done.

    Have patience: after *timeout_s* it counts as not done, but it may be done all the same.
    """
    outcome = Outcome()

    async def tell(address: Address) -> None:
        try:
            await ask(address, command, body, timeout_s)
        except FdfsError as exc:
            if not isinstance(exc, StatusError):
                outcome.problems[address] = str(exc)
                return
            if exc.errno not in good:
                outcome.problems[address] = str(exc.strerror)
                outcome.refused = True
                return
        outcome.done.append(address)

    async with trio.open_nursery() as nursery:
        for address in addresses:
            nursery.start_soon(tell, address)
    return outcome

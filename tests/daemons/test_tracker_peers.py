"""Several trackers: they learn from each other, elect a leader and agree on founders."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing

from fdfs_tracker.handlers import Handlers
from fdfs_tracker.node import Node, Session
from fdfs_tracker.peers import Peers, Timing
from fdfsfuse.core.cluster import Cluster
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.config import TrackerConfig
from fdfsfuse.errors import ConnectFailed, ConnectionBroken, ProtocolError, StatusError
from fdfsfuse.proto import structs
from fdfsfuse.proto.cluster import Brief, Changes, Join, Joined, StatusReport, SyncSource
from fdfsfuse.proto.cluster_status import (
    AM_I_FOUNDER,
    CLUSTER_STATUS,
    ClusterStatus,
    FounderAnswer,
    FounderQuery,
)
from fdfsfuse.proto.tracker import ServerRequest, ServerStatus, decode_storage_stats
from tests.common.waiting import wait_for
from tests.daemons.tracker_server import TRACKER_IP, Clock, Peer, TestTracker, running_tracker

FAST = Timing(0.02, (0.05, 0.2), 0.02, (0.02, 0.02), 0.05, 5.0)
A, B = "127.0.0.21", "127.0.0.22"

# A network in memory, whose clock tests move ------------------------------------------------------


class Simulation:
    """Trackers that reach each other unless a test cuts them off or kills them."""

    def __init__(self, count: int) -> None:
        self.addresses = [ServerAddress((f"10.0.0.{n}",), 22122) for n in range(1, count + 1)]
        self.lines = tuple(map(str, self.addresses))
        self.dead: set[ServerAddress] = set()
        self.cut: set[frozenset[ServerAddress]] = set()
        self.nodes: dict[ServerAddress, SimulatedTracker] = {}
        self.chance = random.Random(1)

    def reachable(self, one: ServerAddress, other: ServerAddress) -> bool:
        return not {one, other} & self.dead and frozenset({one, other}) not in self.cut

    def start(self, address: ServerAddress) -> SimulatedTracker:
        self.dead.discard(address)
        self.nodes[address] = SimulatedTracker(self, address)
        return self.nodes[address]

    def leaders(self) -> set[ServerAddress | None]:
        """Whom the living trackers take for the leader."""
        return {
            tracker.node.leadership.leader
            for address, tracker in self.nodes.items()
            if address not in self.dead
        }


class SimulatedTracker:
    def __init__(self, simulation: Simulation, address: ServerAddress) -> None:
        self.simulation = simulation
        self.address = address
        config = TrackerConfig(base_path="/t", bind_addr=address.hosts, port=address.port)
        self.node = Node(
            config,
            Cluster(config),
            address.port,
            now_s=lambda: 1795354600 + trio.current_time(),
            monotonic=trio.current_time,
        )
        self.handlers = Handlers(self.node)
        self.scope = trio.CancelScope()
        self.stock = False
        self.peers = Peers(self.node, self, self._save, chance=simulation.chance)

    async def _save(self) -> None:
        await trio.lowlevel.checkpoint()

    async def run(self) -> None:
        with self.scope:
            await self.peers.run()

    def kill(self) -> None:
        self.simulation.dead.add(self.address)
        self.scope.cancel()

    async def join(self, ip: str) -> Session:
        """A storage joins, as the shell lets it."""
        session = Session(ip)
        body = Join(
            "group1", 23000, 1, 256, 10, 1, 2, "6.16.1", True, -1, "", self.address.hosts[0],
            self.simulation.lines,
        ).encode()  # fmt: skip
        await self.peers.prepares[81](session, body)
        self.handlers.answer(session, 81, body)
        return session

    async def first(self, session: Session) -> bool:
        """87: True when it is answered with "nothing to copy"."""
        await self.peers.prepares[87](session, b"")
        return self.handlers.answer(session, 87, b"") == b""

    async def connect(self, server: ServerAddress) -> SimulatedConnection:
        await trio.sleep(0.001)
        if not self.simulation.reachable(self.address, server):
            raise ConnectFailed("cut off")
        return SimulatedConnection(self, self.simulation.nodes[server])


class SimulatedConnection:
    def __init__(self, client: SimulatedTracker, server: SimulatedTracker) -> None:
        self.client, self.server = client, server
        self.session = Session(client.address.hosts[0])

    async def request(self, command: int, body: bytes = b"") -> bytes:
        await trio.sleep(0.001)
        simulation = self.client.simulation
        alive = simulation.nodes[self.server.address] is self.server
        if not alive or not simulation.reachable(self.client.address, self.server.address):
            raise ConnectionBroken("cut off")
        if self.server.stock and command >= 128:
            raise StatusError(errno.EINVAL, "unknown command")
        try:
            return self.server.handlers.answer(self.session, command, body)
        except ProtocolError as exc:
            raise StatusError(errno.EINVAL, str(exc)) from exc

    def close(self) -> None:
        pass


@asynccontextmanager
async def simulated(count: int) -> AsyncIterator[tuple[Simulation, trio.Nursery]]:
    simulation = Simulation(count)
    async with trio.open_nursery() as nursery:
        for address in simulation.addresses:
            nursery.start_soon(simulation.start(address).run)
        yield simulation, nursery
        nursery.cancel_scope.cancel()


async def until(condition: Callable[[], bool], timeout_s: float = 60) -> None:
    """Wait in simulated time."""
    with trio.fail_after(timeout_s):
        while not condition():  # noqa: ASYNC110 - what it waits for has no event
            await trio.sleep(0.05)


async def test_a_lost_leader_is_replaced_and_comes_back_as_a_follower(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with simulated(3) as (simulation, nursery):
        for tracker in simulation.nodes.values():
            await tracker.join(A)
        last = simulation.addresses[2]
        await until(lambda: simulation.leaders() == {last})
        assert trio.current_time() < 5
        simulation.nodes[last].kill()
        killed_at = trio.current_time()
        await until(lambda: simulation.leaders() == {simulation.addresses[1]})
        assert trio.current_time() - killed_at < 20
        again = simulation.start(last)
        nursery.start_soon(again.run)
        await again.join(A)
        await until(lambda: again.node.leadership.leader == simulation.addresses[1])
        await trio.sleep(60)
        assert simulation.leaders() == {simulation.addresses[1]}


@pytest.mark.parametrize("by_storage", [True, False])
async def test_two_leaders_of_a_split_do_not_last(
    autojump_clock: trio.testing.MockClock, by_storage: bool
) -> None:
    async with simulated(3) as (simulation, _):
        for tracker in simulation.nodes.values():
            await tracker.join(A)
        first, second, third = simulation.addresses
        await until(lambda: simulation.leaders() == {third})
        simulation.cut = {frozenset({first, third}), frozenset({second, third})}
        await until(lambda: simulation.leaders() == {second, third})
        simulation.cut.clear()
        for address in (second, third) if by_storage else ():  # what one does that sees both
            simulation.nodes[address].handlers.answer(Session(A), 68, b"")
        await until(lambda: len(simulation.leaders()) == 1 and None not in simulation.leaders())


@pytest.mark.parametrize("seed", range(8))
async def test_storages_that_start_together_found_once(
    autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    """Each storage asks a tracker of its own, while trackers die and are cut off."""
    async with simulated(3) as (simulation, nursery):
        chance = simulation.chance = random.Random(seed)
        founded: set[str] = set()

        async def start(ip: str, address: ServerAddress) -> None:
            while True:
                await trio.sleep(chance.uniform(0, 2 if founded else 0.01))
                tracker = simulation.nodes[address]
                try:
                    if address not in simulation.dead and await tracker.first(
                        await tracker.join(ip)
                    ):
                        founded.add(ip)
                        return
                except StatusError:
                    pass
                address = chance.choice(simulation.addresses)

        for number, address in enumerate(simulation.addresses):
            nursery.start_soon(start, f"10.0.1.{number}", address)
        for _ in range(6):
            await trio.sleep(chance.uniform(0, 0.02))
            pair = chance.sample(simulation.addresses, 2)
            simulation.cut = {frozenset(pair)} if chance.random() < 0.5 else set()
        simulation.cut.clear()
        await until(lambda: bool(founded))
        await trio.sleep(10)
        assert len(founded) == 1


async def test_stock_trackers_have_no_vote(autojump_clock: trio.testing.MockClock) -> None:
    async with simulated(3) as (simulation, _):
        first, second, third = (simulation.nodes[address] for address in simulation.addresses)
        second.stock = third.stock = True
        assert await first.first(await first.join(A))
        third.stock = False
        third.kill()
        with pytest.raises(StatusError):
            await first.first(await first.join("10.0.1.9"))


# On real sockets and files ------------------------------------------------------------------------


class Trio:
    """Three trackers of a cluster, one directory each."""

    def __init__(self, directory: Path, trackers: list[TestTracker]) -> None:
        self.directory = directory
        self.trackers = trackers
        self.lines = tuple(f"{TRACKER_IP}:{tracker.port}" for tracker in trackers)

    async def active(self, ip: str = A, group: str = "group1") -> list[Peer]:
        """A storage that is ACTIVE at every tracker."""
        return [await t.active(ip, trackers=self.lines, group=group) for t in self.trackers]

    def leaders(self) -> set[str]:
        return {str(t.tracker.node.leadership.leader) for t in self.trackers}

    async def elected(self) -> TestTracker:
        """The leader, once all agree."""
        await wait_for(lambda: len(self.leaders()) == 1 and self.leaders() <= set(self.lines))
        (line,) = self.leaders()
        return self.trackers[self.lines.index(line)]


@asynccontextmanager
async def three(directory: Path) -> AsyncIterator[Trio]:
    async with AsyncExitStack() as stack:
        trackers = [
            await stack.enter_async_context(running_tracker(directory / str(n), timing=FAST))
            for n in range(3)
        ]
        yield Trio(directory, trackers)


async def test_three_trackers_elect_one_and_only_it_tells_the_group(tmp_path: Path) -> None:
    async with three(tmp_path) as cluster:
        await cluster.active()
        leader = await cluster.elected()
        for tracker in cluster.trackers:
            peer, _ = await tracker.join(A, trackers=cluster.lines, init_flag=False)
            answer = await peer.ok(83)
            if tracker is not leader:
                assert answer == b"\0"
                continue
            changes = Changes.decode(answer)
            assert changes.leader == Brief(ServerStatus.INIT, leader.port, TRACKER_IP, TRACKER_IP)
            assert [brief.storage_id for brief in changes.group or ()] == [A]
            assert await peer.ok(83) == b"\0", "told once"
        client = await cluster.trackers[0].connect()
        assert await client.ok(95) == f"{TRACKER_IP}:{leader.port}".encode()


async def test_a_tracker_that_starts_empty_learns_from_the_others(tmp_path: Path) -> None:
    async with three(tmp_path) as cluster:
        await cluster.active()
        line = f"1 group1 {B} 4 \n".encode()
        for tracker in cluster.trackers:
            tracker.cluster.changelog = line * 1000  # takes several parts
        async with running_tracker(tmp_path / "new", timing=FAST) as new:
            lines = (*cluster.lines, f"{TRACKER_IP}:{new.port}")
            # A member that has the others' list only would be refused; one that lists it is not.
            _, joined = await new.join(A, trackers=lines, init_flag=False, status=-1)
            assert joined == Joined(ServerStatus.ONLINE, "")
            assert new.cluster.changelog == line * 1000
            server = new.cluster.groups["group1"].servers[A]
            assert server.space == ()
            assert server.total_mb == 10000
        assert (tmp_path / "new/data/storage_changelog.dat").read_bytes() == line * 1000


async def test_an_empty_tracker_waits_for_one_that_may_know_more(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_tracker(tmp_path, timing=FAST) as tracker:
        lines = (f"{TRACKER_IP}:{tracker.port}", "127.0.0.9:22122")
        peer = await tracker.connect(A)
        request = tracker.join_request(trackers=lines)
        for _ in range(2):
            assert await peer.exchange(81, request.encode()) == (errno.EAGAIN, b"")
        assert caplog.text.count("no storage may join yet") == 1
        assert not tracker.cluster.groups


async def test_a_tracker_that_was_down_long_learns_what_changed(tmp_path: Path) -> None:
    clock = Clock()
    async with running_tracker(tmp_path / "old", clock=clock, timing=FAST) as old:
        await old.active(A)
        old_port = old.port
    late = Clock(clock.now_s + 5000)
    async with running_tracker(tmp_path / "other", clock=late, timing=FAST) as other:
        await other.active(A)
        await other.active("127.0.0.31", group="group2")
        late.monotonic += 4000
        async with running_tracker(tmp_path / "old", clock=late, timing=FAST) as old:
            assert old.port != old_port
            assert list(old.cluster.groups) == ["group1"]
            lines = (f"{TRACKER_IP}:{other.port}", f"{TRACKER_IP}:{old.port}")
            await old.join(A, trackers=lines, init_flag=False)
            assert list(old.cluster.groups) == ["group1", "group2"]


async def test_the_status_of_the_cluster(tmp_path: Path) -> None:
    async with three(tmp_path) as cluster:
        peers = await cluster.active()
        leader = await cluster.elected()
        waiting, _ = await leader.join(B, trackers=cluster.lines)
        await waiting.ok(87)
        await peers[cluster.trackers.index(leader)].stream.aclose()
        group = leader.cluster.groups["group1"]
        await wait_for(lambda: group.servers[A].status is ServerStatus.OFFLINE)
        client = await leader.connect()

        async def status() -> ClusterStatus:
            return structs.decode(ClusterStatus, await client.ok(CLUSTER_STATUS))

        with trio.fail_after(60):
            while any(peer.reachable is None for peer in (await status()).trackers):
                await trio.lowlevel.checkpoint()
        told = await status()
        assert told.address == told.leader == f"{TRACKER_IP}:{leader.port}"
        assert {peer.address for peer in told.trackers} == set(cluster.lines) - {told.address}
        assert all(peer.reachable for peer in told.trackers)
        (state,) = told.groups
        assert [(s.storage_id, s.status) for s in state.servers] == [(A, 5), (B, 1)]
        assert state.servers[0].reason == "not connected: its connection ended"
        assert state.servers[1].reason == f"waits for {A} to start filling it, which is OFFLINE"
        assert state.servers[0].since == int(leader.clock.now_s)


async def test_members_that_a_follower_lacks_are_added_by_85(tmp_path: Path) -> None:
    async with three(tmp_path) as cluster:
        peers = await cluster.active()
        leader = await cluster.elected()
        for peer, tracker in zip(peers, cluster.trackers, strict=True):
            await peer.ok(85, Brief(ServerStatus.WAIT_SYNC, 33000, B, B).encode())
            assert (B in tracker.cluster.groups["group1"].servers) is (tracker is not leader)
            status, _ = await peer.exchange(85, b"x" * 66)
            assert status == errno.EINVAL


async def founder(peer: Peer, storage_id: str, join_time: int) -> FounderAnswer:
    query = structs.encode(FounderQuery("group1", storage_id, join_time))
    return structs.decode(FounderAnswer, await peer.ok(AM_I_FOUNDER, query))


async def test_one_storage_founds_and_keeps_that(tmp_path: Path) -> None:
    async with three(tmp_path) as cluster:
        one, two, _ = cluster.trackers
        first, _ = await one.join(A, trackers=cluster.lines)
        second, _ = await two.join(B, trackers=cluster.lines)
        assert await first.ok(87) == b""
        assert await second.exchange(87) == (errno.ENOENT, b""), "another tracker knows of A"
        assert (await founder(first, A, 1)).founder
        answer = await founder(second, B, 1)
        assert not answer.founder
        assert A in answer.reason
        status, _ = await second.exchange(
            AM_I_FOUNDER, structs.encode(FounderQuery("group1", A, 1))
        )
        assert status in (errno.ENOENT, errno.EINVAL), "it asks about another one"
        # Its tracker says so to people.
        told = structs.decode(ClusterStatus, await second.ok(CLUSTER_STATUS))
        assert f"fdfs admin remove group1 {A}" in told.groups[0].servers[-1].reason
        # A comes back without its data: it does not found again.
        await first.stream.aclose()
        await wait_for(
            lambda: one.cluster.groups["group1"].servers[A].status is ServerStatus.OFFLINE
        )
        reborn, _ = await one.join(A, trackers=cluster.lines, join_time=99)
        assert await reborn.ok(87) == b""
        answer = await founder(reborn, A, 99)
        assert not answer.founder
        assert "lost" in answer.reason


async def test_a_removed_founder_makes_room_for_another(tmp_path: Path) -> None:
    async with three(tmp_path) as cluster:
        one, two, _ = cluster.trackers
        first, _ = await one.join(A, trackers=cluster.lines)
        assert await first.ok(87) == b""
        await first.stream.aclose()
        await wait_for(
            lambda: one.cluster.groups["group1"].servers[A].status is ServerStatus.OFFLINE
        )
        client = await one.connect()
        await client.ok(93, ServerRequest("group1", A).encode())
        # The removal reached one tracker only; the others hear of it from that one.
        second, _ = await one.join(B, trackers=cluster.lines)
        assert await second.ok(87) == b""
        assert (await founder(second, B, 1)).founder
        assert two.cluster.founders["group1"].value is not None
        assert two.cluster.founders["group1"].value.storage_id == B


async def test_votes_survive_a_restart(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        peer, _ = await tracker.join(A)
        assert await peer.ok(87) == b""
        assert await peer.ok(88, SyncSource().encode()) == b""
        votes = tracker.cluster.founders
        assert votes["group1"].value is not None
    async with running_tracker(tmp_path) as tracker:
        assert tracker.cluster.founders == votes


async def test_without_a_majority_nobody_founds(tmp_path: Path) -> None:
    async with running_tracker(tmp_path, timing=FAST) as tracker:
        await tracker.active("127.0.0.31", group="group2")
        lines = (f"{TRACKER_IP}:{tracker.port}", "127.0.0.9:1", "127.0.0.9:2")
        peer, _ = await tracker.join(A, trackers=lines)
        assert await peer.exchange(87) == (errno.ENOENT, b"")
        told = structs.decode(ClusterStatus, await peer.ok(CLUSTER_STATUS))
        assert "1 trackers answer, 2 are needed" in told.groups[0].servers[0].reason


async def test_a_report_adds_a_server_and_78_moves_it(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        peer = await tracker.active(A)
        await peer.ok(76, StatusReport("group1", Brief(ServerStatus.OFFLINE, 0, B, B)).encode())
        moved = await tracker.connect("127.0.0.24")
        change = b"group1".ljust(16, b"\0") + B.encode().ljust(46, b"\0")
        change += b"127.0.0.24".ljust(46, b"\0")
        await moved.ok(78, change)
        listed = decode_storage_stats(await peer.ok(92, ServerRequest("group1").encode()))
        assert [(s.storage_id, int(s.status)) for s in listed] == [
            (A, 7),
            (B, 3),
            ("127.0.0.24", 5),
        ]

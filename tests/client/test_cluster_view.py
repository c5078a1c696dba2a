"""What trackers and storages say about a cluster: ours, stock ones, and such that do not answer."""

from __future__ import annotations

import math
from collections.abc import Callable

import trio

from fdfsfuse.client.cluster_view import (
    look_at_replication,
    look_at_trackers,
    tell_trackers,
)
from fdfsfuse.proto import structs
from fdfsfuse.proto.cluster_status import (
    CLUSTER_STATUS,
    REPLICATION_STATUS,
    VERSION,
    ClusterStatus,
    GroupState,
    PeerReplication,
    ReplicationStatus,
    ServerState,
    TrackerPeer,
)
from tests.client.peers import Handler, PeerConnection, running_peer, unused_address
from tests.common.waiting import wait_for

Answers = Callable[[int], "bytes | int"]


def serving(answers: Answers) -> Handler:
    """A server that answers each command with a body or a status."""

    async def handle(connection: PeerConnection) -> None:
        while True:
            request = await connection.receive()
            answer = answers(request.command)
            if isinstance(answer, int):
                await connection.answer(status=answer)
            else:
                await connection.answer(answer)

    return handle


def stock(command: int) -> bytes | int:
    return b"10.0.0.9:22122" if command == 95 else 22


async def test_further_trackers_are_found_and_stock_ones_tell_their_leader() -> None:
    nobody = await unused_address()
    async with running_peer(serving(stock)) as other:
        state = ServerState("10.0.0.4", "10.0.0.4", 23000, 5, 7, "not connected: silent")
        status = ClusterStatus(
            version=VERSION,
            address="10.0.0.1:22122",
            leader="10.0.0.1:22122",
            started=1,
            now=2,
            trackers=[TrackerPeer(str(other.address)), TrackerPeer(str(nobody), False, "gone")],
            groups=[GroupState("group1", [state])],
        )
        ours = serving(lambda command: structs.encode(status) if command == CLUSTER_STATUS else 22)
        async with running_peer(ours) as peer:
            views = {view.address: view for view in await look_at_trackers([peer.address])}
            assert set(views) == {peer.address, other.address, nobody}
            assert views[peer.address].server("group1", "10.0.0.4") == state
            assert views[peer.address].server("group2", "10.0.0.4") is None
            assert (views[other.address].stock, views[other.address].leader) == (
                True,
                "10.0.0.9:22122",
            )
            assert "cannot connect" in views[nobody].problem


async def test_garbage_from_a_tracker_is_its_problem() -> None:
    async with running_peer(serving(lambda _: b"\xc1")) as peer:
        (view,) = await look_at_trackers([peer.address])
        assert "ClusterStatus" in view.problem


async def test_replication_of_ours_of_stock_and_of_nobody() -> None:
    told = ReplicationStatus(VERSION, "a", [PeerReplication("b", "sending", True, "", 3, 40, 1.5)])
    ours = serving(lambda command: structs.encode(told) if command == REPLICATION_STATUS else 22)
    async with running_peer(ours) as peer, running_peer(serving(stock)) as other:
        assert (await look_at_replication(peer.address)).status == told
        assert (await look_at_replication(other.address)).stock
    with trio.fail_after(60):
        assert "cannot connect" in (await look_at_replication(await unused_address())).problem


async def test_a_command_to_every_tracker() -> None:
    nobody = await unused_address()
    async with (
        running_peer(serving(lambda _: b"")) as good,
        running_peer(serving(lambda _: 114)) as already,
        running_peer(serving(lambda _: 16)) as busy,
    ):
        addresses = [good.address, already.address, nobody]
        outcome = await tell_trackers(addresses, 93, b"", frozenset({114}), timeout_s=60)
        assert set(outcome.done) == {good.address, already.address}
        assert set(outcome.problems) == {nobody}
        assert not outcome.refused
        outcome = await tell_trackers([busy.address], 93, b"", frozenset({114}), timeout_s=60)
        assert outcome.refused


async def test_a_command_is_waited_for_as_long_as_one_likes() -> None:
    """It would be done all the same."""
    done = trio.Event()

    async def slow(connection: PeerConnection) -> None:
        await connection.receive()
        await done.wait()
        await connection.answer(b"")

    async with running_peer(slow) as peer, trio.open_nursery() as nursery:
        outcome = await tell_trackers([peer.address], 93, b"", timeout_s=0.05)
        assert "0.05 s" in outcome.problems[peer.address]
        before = peer.connections

        async def tell() -> None:
            outcome = await tell_trackers([peer.address], 93, b"", timeout_s=math.inf)
            assert outcome.done == [peer.address]

        nursery.start_soon(tell)
        await wait_for(lambda: peer.connections > before)
        done.set()

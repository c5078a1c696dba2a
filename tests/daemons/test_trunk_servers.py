"""Trunk servers of C storages, played by sockets that answer as protocol/cluster.md says."""

from __future__ import annotations

import errno
import struct
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import trio

from fdfs_tracker.trunk import TrunkServers
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.config import TrunkConfig
from fdfsfuse.errors import StatusError
from fdfsfuse.proto.cluster import Changes
from fdfsfuse.proto.header import HEADER_SIZE, pack_response, unpack_header
from fdfsfuse.proto.tracker import ServerRequest, decode_group_stats
from tests.common.addresses import reserved_port
from tests.common.waiting import wait_for
from tests.daemons.tracker_server import Clock, Peer, TestTracker, running_tracker

A, B = "127.0.0.21", "127.0.0.22"
ON = TrunkConfig(use_trunk_file=True)


class Storages:
    """Storages at one port. ``sizes``: of the trunk binlogs of C storages, by ip; others refuse.

    Attributes:
        asked: (ip, command) of all requests.
        answers: not set: what is asked is answered later.
    """

    def __init__(self, port: int, sizes: Mapping[str, int]) -> None:
        self.port = port
        self.sizes = sizes
        self.asked: list[tuple[str, int]] = []
        self.answers = trio.Event()
        self.answers.set()

    async def serve(self, ip: str, stream: trio.SocketStream) -> None:
        # A tracker that stops does not wait for answers.
        with suppress(trio.BrokenResourceError):
            async with stream:
                await self._answer(ip, stream)

    async def _answer(self, ip: str, stream: trio.SocketStream) -> None:
        data = b""
        while chunk := await stream.receive_some():
            data += chunk
            if len(data) < HEADER_SIZE:
                continue
            command = unpack_header(data).command
            data = b""
            self.asked.append((ip, command))
            await self.answers.wait()
            if ip not in self.sizes:
                await stream.send_all(pack_response(status=errno.EINVAL))
                return
            size = struct.pack(">q", self.sizes[ip])
            await stream.send_all(pack_response(size if command == 31 else b""))


@asynccontextmanager
async def storages(sizes: Mapping[str, int]) -> AsyncIterator[Storages]:
    async with trio.open_nursery() as nursery:
        with reserved_port([A, B]) as port:
            made = Storages(port, sizes)
            for ip in (A, B):
                serve = partial(trio.serve_tcp, partial(made.serve, ip), port, host=ip)
                await nursery.start(serve)
        yield made
        nursery.cancel_scope.cancel()


def trunk_server(tracker: TestTracker) -> str:
    return tracker.cluster.groups["group1"].trunk_server


async def test_the_leader_chooses_one(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with storages({A: 0, B: 10}) as made:
            async with running_tracker(tmp_path, trunk=ON) as tracker:
                first = await tracker.active(A, port=made.port)
                await wait_for(lambda: trunk_server(tracker) == A)
                assert made.asked == [(A, 31), (A, 32)]
                second = await tracker.active(B, port=made.port)
                # Every member is told once; one that joins again, once more.
                told = Changes.decode(await first.ok(83)).trunk_server
                assert told is not None
                assert told.storage_id == A
                assert Changes.decode(await first.ok(83)).trunk_server is None
                again, _ = await tracker.join(B, port=made.port)
                assert Changes.decode(await again.ok(83)).trunk_server == told
                assert await first.ok(73, struct.pack(">i", 5)) == b""
                assert await first.ok(72) == struct.pack(">i", 5)
                assert await first.ok(74, struct.pack(">q", 9)) == b""
                assert (await again.exchange(74, struct.pack(">q", 9)))[0] == errno.EINVAL
                assert (await first.exchange(74, b""))[0] == errno.EINVAL
                client = await tracker.connect()
                (stat,) = decode_group_stats(await client.ok(91))
                assert (stat.trunk_free_mb, stat.trunk_file_id) == (9, 5)
                await second.stream.aclose()
            # The next run of the tracker keeps it, and does not have it begin anew.
            async with running_tracker(tmp_path, trunk=ON) as tracker:
                assert trunk_server(tracker) == A
                peer = await tracker.active(A, port=made.port, init_flag=False, status=7)
                await peer.ok(73, struct.pack(">i", 6))
            assert made.asked.count((A, 32)) == 1


@asynccontextmanager
async def first_of_two(
    tmp_path: Path, clock: Clock
) -> AsyncIterator[tuple[Storages, TestTracker, Peer]]:
    """A is the trunk server; the peer stands for B, which could be as well."""
    async with (
        storages({A: 0, B: 10}) as made,
        running_tracker(tmp_path, trunk=ON, clock=clock) as tracker,
    ):
        await tracker.active(A, port=made.port, up_time=int(clock.now_s) - 10_000)
        await wait_for(lambda: trunk_server(tracker) == A)
        yield made, tracker, await tracker.active(B, port=made.port)


async def test_one_that_is_silent_is_replaced(tmp_path: Path) -> None:
    clock = Clock()
    with trio.fail_after(60):
        async with first_of_two(tmp_path, clock) as (made, tracker, peer):
            clock.monotonic += 200
            await peer.ok(83)
            clock.monotonic += 1
            await wait_for(lambda: trunk_server(tracker) == B)
            assert made.asked[-2:] == [(B, 31), (B, 32)]


async def test_one_that_is_heard_of_again_while_another_one_is_looked_for_stays(
    tmp_path: Path,
) -> None:
    clock = Clock()
    with trio.fail_after(60):
        async with first_of_two(tmp_path, clock) as (made, tracker, peer):
            made.answers = trio.Event()
            made.asked.clear()
            clock.monotonic += 201
            await peer.ok(83)
            await wait_for(lambda: (B, 31) in made.asked)
            await tracker.active(A, port=made.port, init_flag=False, status=7)
            made.asked.clear()
            made.answers.set()
            await wait_for(lambda: bool(made.asked))
            assert made.asked == [(A, 31)], "whether it is one still, as it was started anew"
            assert trunk_server(tracker) == A


async def test_who_leads_no_more_appoints_nobody(tmp_path: Path) -> None:
    async with running_tracker(tmp_path) as tracker:
        await tracker.active(A)
        node = tracker.tracker.node
        node.config = replace(node.config, trunk=ON)

        class Connection:
            async def request(self, command: int, body: bytes = b"") -> bytes:
                if command == 32:
                    node.leadership.adopt(None)
                return struct.pack(">q", 0)

            def close(self) -> None:
                """Nothing is open."""

        class Network:
            async def connect(self, server: ServerAddress) -> Connection:
                return Connection()

        node.leadership.adopt(node.trackers.own)
        servers = TrunkServers(node, Network(), trio.lowlevel.checkpoint)
        with pytest.raises(StatusError, match="leads now"):
            await servers.appoint(ServerRequest("group1", A).encode())
        assert trunk_server(tracker) == ""


async def test_one_that_was_replaced_by_a_storage_of_ours(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            storages({A: 10, B: 0}) as made,
            running_tracker(tmp_path, trunk=ON) as tracker,
        ):
            peer = await tracker.active(A, port=made.port)
            await wait_for(lambda: trunk_server(tracker) == A)
            await tracker.active(B, port=made.port)
            await peer.stream.aclose()
            made.sizes = {B: 0}
            await tracker.active(A, port=made.port, up_time=3)
            await wait_for(lambda: trunk_server(tracker) == B)
            assert made.asked[-1] == (B, 32)


async def test_storages_that_make_no_trunk_files_are_not_chosen(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with (
            storages({B: 0}) as made,
            running_tracker(tmp_path, trunk=ON) as tracker,
        ):
            await tracker.active(A, port=made.port)
            await wait_for(lambda: (A, 31) in made.asked)
            client = await tracker.connect()
            key = ServerRequest("group1", A).encode()
            assert await client.exchange(94, key) == (errno.EOPNOTSUPP, b"")
            assert await client.exchange(94, key[:16]) == (errno.ENOENT, b"")
            await tracker.active(B, port=made.port)
            await wait_for(lambda: trunk_server(tracker) == B)
            assert await client.ok(94, key[:16]) == f"{B}\0".encode()
            assert (A, 32) not in made.asked


async def test_an_administrator_appoints_one(tmp_path: Path) -> None:
    clock = Clock()
    with trio.fail_after(60):
        async with (
            storages({A: 0, B: 0}) as made,
            running_tracker(tmp_path, trunk=ON, clock=clock) as tracker,
        ):
            peer = await tracker.active(A, port=made.port)
            await tracker.active(B, port=made.port)
            await wait_for(lambda: trunk_server(tracker) == A)
            await peer.stream.aclose()
            await wait_for(lambda: tracker.status(A) == 5)
            client = await tracker.connect()
            assert await client.ok(94, ServerRequest("group1", B).encode()) == f"{B}\0".encode()
            assert (B, 32) in made.asked


async def test_followers_hear_of_it_also_when_they_come_later(tmp_path: Path) -> None:
    async with running_tracker(tmp_path, trunk=ON) as tracker:
        other = f"127.0.0.4:{tracker.port}"
        lines = (f"127.0.0.2:{tracker.port}", other)
        await tracker.join(A, trackers=(lines[0],))
        tracker.tracker.node.trackers.learn(lines, "127.0.0.2")
        tracker.cluster.set_trunk_server("group1", A)
        follower = await tracker.connect("127.0.0.4")
        await follower.ok(58, struct.pack(">q8sq", 1, b"6.16.1", tracker.port))
        told = await follower.ok(65, bytes(12))
        assert told == b"group1".ljust(16, b"\0") + A.encode().ljust(16, b"\0")
        assert await follower.ok(65, bytes(12)) == b""

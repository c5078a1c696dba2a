"""A tracker in the test's own process, on real sockets and files, and storages made by hand."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from fdfs_tracker.app import Tracker
from fdfsfuse.core.config import TrackerConfig
from fdfsfuse.proto.cluster import Changes, DiskReport, Join, Joined, SyncReport, SyncSource
from fdfsfuse.proto.header import HEADER_SIZE, RESPONSE, pack_header, unpack_header
from fdfsfuse.proto.tracker import ServerStatus, StorageStat
from tests.common.joins import new_storage
from tests.common.streams import receive

TRACKER_IP = "127.0.0.2"
CLIENT_IP = "127.0.0.3"
STORAGE_PORT = 33000


class Clock:
    """Both clocks of a tracker; tests move them."""

    def __init__(self, now_s: float = 1795354600) -> None:
        self.now_s = now_s
        self.monotonic = 1000.0


class Peer:
    """A connection to the tracker."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def receive(self, count: int) -> bytes:
        """*count* bytes, fewer when the tracker closes before."""
        with trio.fail_after(60):
            return await receive(self.stream, count)

    async def receive_packet(self) -> bytes:
        """A whole answer, b'' when the tracker closes instead."""
        head = await self.receive(HEADER_SIZE)
        if not head:
            return b""
        header = unpack_header(head)
        assert header.command == RESPONSE
        return head + await self.receive(header.length)

    async def exchange(self, command: int, body: bytes = b"") -> tuple[int, bytes]:
        """Send a request; the answer's status and body."""
        await self.send(pack_header(len(body), command) + body)
        packet = await self.receive_packet()
        assert packet, "the tracker closed the connection"
        return packet[9], packet[HEADER_SIZE:]

    async def ok(self, command: int, body: bytes = b"") -> bytes:
        """`exchange` that must succeed."""
        status, answer = await self.exchange(command, body)
        assert status == 0, f"command {command} answered {status}"
        return answer

    async def closed(self) -> bool:
        """Whether the tracker ends the connection (True) or still answers on it (False)."""
        try:
            await self.send(pack_header(0, 111))
            return not await self.receive_packet()
        except trio.BrokenResourceError:
            return True


class TestTracker:
    """A running tracker. ``peers`` are all connections made to it; they are closed at the end."""

    __test__ = False

    def __init__(self, tracker: Tracker, port: int, clock: Clock) -> None:
        self.tracker = tracker
        self.ip = tracker.config.bind_addr[0]
        self.cluster = tracker.cluster
        self.port = port
        self.clock = clock
        self.peers: list[Peer] = []

    async def connect(self, source_ip: str = CLIENT_IP) -> Peer:
        sock = trio.socket.socket()
        await sock.bind((source_ip, 0))
        await sock.connect((self.ip, self.port))
        self.peers.append(Peer(trio.SocketStream(sock)))
        return self.peers[-1]

    def join_request(self, **changes: Any) -> Join:
        """A JOIN of a new storage of group1."""
        tracker = f"{self.ip}:{self.port}"
        return new_storage(self.ip, tracker, **{"port": STORAGE_PORT, **changes})

    def status(self, storage_id: str) -> ServerStatus:
        """Status of a storage of group1."""
        return self.cluster.groups["group1"].servers[storage_id].status

    async def join(self, ip: str, **changes: Any) -> tuple[Peer, Joined]:
        """Only JOIN."""
        peer = await self.connect(ip)
        joined = Joined.decode(await peer.ok(81, self.join_request(**changes).encode()))
        return peer, joined

    async def active(
        self, ip: str, *, space: tuple[tuple[int, int], ...] = ((10000, 5000),), **changes: Any
    ) -> Peer:
        """A storage that is ACTIVE and has reported its space."""
        peer, _ = await self.join(ip, store_path_count=len(space), **changes)
        await peer.ok(88, SyncSource().encode())
        Changes.decode(await peer.ok(83))
        Changes.decode(await peer.ok(84, DiskReport(space).encode()))
        return peer

    async def active_like(self, group: str, stat: StorageStat) -> Peer:
        """A storage that joins with what *stat* says about it."""
        count = stat.store_path_count
        half = (stat.total_mb // count, stat.free_mb // count)
        rest = (stat.total_mb - half[0] * (count - 1), stat.free_mb - half[1] * (count - 1))
        return await self.active(
            stat.ip,
            space=(half,) * (count - 1) + (rest,),
            group=group,
            port=stat.storage_port,
            subdir_count_per_path=stat.subdir_count_per_path,
            upload_priority=stat.upload_priority,
            join_time=stat.join_time,
            up_time=stat.up_time,
            storage_id=stat.storage_id if stat.storage_id != stat.ip else "",
        )

    async def report_like(self, peer: Peer, stat: StorageStat, other_id: str) -> None:
        """Report what *stat* says, when the storage *other_id* is ACTIVE as well."""
        if stat.source_id:
            await peer.ok(88, SyncSource(stat.source_id, 1).encode())
        if stat.statistics.last_synced_timestamp:
            times = ((other_id, stat.statistics.last_synced_timestamp),)
            await peer.ok(89, SyncReport(times).encode())
        self.clock.now_s = stat.statistics.last_heart_beat_time
        await peer.ok(83, stat.statistics.encode())


@asynccontextmanager
async def running_tracker(base_path: Path, **settings: Any) -> AsyncIterator[TestTracker]:
    """Run a tracker (on 127.0.0.2) with its state below *base_path*."""
    settings.setdefault("bind_addr", (TRACKER_IP,))
    clock = settings.pop("clock", None) or Clock()
    timing = settings.pop("timing", None)
    settings.setdefault("port", 0)
    config = TrackerConfig(base_path=str(base_path), **settings)
    tracker = Tracker(
        config, now_s=lambda: clock.now_s, monotonic=lambda: clock.monotonic, timing=timing
    )
    async with trio.open_nursery() as nursery:
        port: int = await nursery.start(_run, tracker)
        running = TestTracker(tracker, port, clock)
        try:
            yield running
        finally:
            nursery.cancel_scope.cancel()
            for peer in running.peers:
                peer.stream.socket.close()


async def _run(tracker: Tracker, task_status: trio.TaskStatus[int]) -> None:
    await tracker.run(task_status=task_status)

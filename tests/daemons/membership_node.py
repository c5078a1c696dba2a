"""A storage's membership in the test's own process, and trackers that do what a test says."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import trio

from fdfs_storage.cluster.identity import Identity
from fdfs_storage.cluster.membership import Membership
from fdfs_storage.cluster.place import Place
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.config import StorageConfig, StorePath
from fdfsfuse.proto.cluster import Brief, Changes, Joined
from fdfsfuse.proto.header import HEADER_SIZE, pack_response, unpack_header
from fdfsfuse.proto.parameters import Parameters
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.tracker import ServerStatus
from tests.common.streams import receive
from tests.daemons.tracker_server import TRACKER_IP, TestTracker

STORAGE_IP = "127.0.0.21"
PORT = 33000
PLACE = Place(Parameters(), STORAGE_IP, STORAGE_IP, group_name="group1")


def storage_config(directory: Path, ports: list[int], **changes: Any) -> StorageConfig:
    settings: dict[str, Any] = {
        "group_name": "group1",
        "base_path": str(directory),
        "store_paths": (StorePath(str(directory)),),
        "tracker_servers": tuple(ServerAddress((TRACKER_IP,), port) for port in ports),
        "bind_addr": (STORAGE_IP,),
        "connect_timeout_s": 2.0,
        "network_timeout_s": 2.0,
    }
    return StorageConfig(**(settings | changes))


class Node:
    """A membership with what surrounds it in the daemon."""

    def __init__(self, config: StorageConfig, place: Place) -> None:
        self.identity = Identity.load(config.base_path, 1000)
        self.statistics = Statistics()
        self.space = [(5000, 2000)]
        self.founded = 0
        self.membership = Membership(
            config,
            self.identity,
            place,
            port=PORT,
            statistics=lambda: self.statistics,
            space=lambda: self.space,
            found=self._found,
        )

    async def found_tree(self, *stock: str) -> None:
        """Found the tree because an administrator says so."""
        await self.membership.founder.found_tree(self.membership.members, stock)

    async def _found(self) -> None:
        assert not self.identity.sync_old_done, "only before it is written down"
        self.founded += 1


@asynccontextmanager
async def running(config: StorageConfig, place: Place = PLACE) -> AsyncIterator[Node]:
    node = Node(config, place)
    async with trio.open_nursery() as nursery:
        await nursery.start(node.membership.run)
        yield node
        nursery.cancel_scope.cancel()


async def joined(node: Node) -> None:
    with trio.fail_after(60):
        await node.membership.wait_joined()


def active(tracker: TestTracker, storage_id: str = STORAGE_IP) -> bool:
    group = tracker.cluster.groups.get("group1")
    server = None if group is None else group.servers.get(storage_id)
    return server is not None and server.status is ServerStatus.ACTIVE


Answer = Callable[[int, bytes], "bytes | int | None"]
"""Takes a command and a body; returns a body, a status, or None to close the connection."""


class ScriptedTracker:
    """Answers on one port; can be stopped and started again. Remembers all requests."""

    def __init__(self) -> None:
        self.answer: Answer = self.good
        self.requests: list[tuple[int, bytes]] = []
        self.connections = 0
        self.port = 0
        self._scope: trio.CancelScope | None = None

    def good(self, command: int, body: bytes) -> bytes | int | None:
        """A tracker that knows this storage well."""
        answers: dict[int, bytes | int] = {
            60: STORAGE_IP.encode(),
            75: Parameters().encode(),
            81: Joined(ServerStatus.ONLINE, "").encode(),
            83: Changes().encode(),
            84: b"",
            141: errno.EINVAL,  # a stock tracker
        }
        return answers.get(command, b"")

    def commands(self) -> list[int]:
        return [command for command, _ in self.requests]

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        listeners = await trio.open_tcp_listeners(self.port, host=TRACKER_IP)
        self.port = listeners[0].socket.getsockname()[1]
        with trio.CancelScope() as self._scope:
            await trio.serve_listeners(self._serve, listeners, task_status=_Started(task_status))

    def stop(self) -> None:
        assert self._scope is not None
        self._scope.cancel()

    async def _serve(self, stream: trio.SocketStream) -> None:
        self.connections += 1
        async with stream:
            while len(head := await receive(stream, HEADER_SIZE)) == HEADER_SIZE:
                header = unpack_header(head)
                body = await receive(stream, header.length)
                self.requests.append((header.command, body))
                answer = self.answer(header.command, body)
                if answer is None:
                    return
                if isinstance(answer, int):
                    await stream.send_all(pack_response(status=answer))
                else:
                    await stream.send_all(pack_response(answer))


class _Started(trio.TaskStatus[Any]):
    """Hands on that listening has begun, without the listeners."""

    def __init__(self, status: trio.TaskStatus[None]) -> None:
        self._status = status

    def started(self, value: Any = None) -> None:
        self._status.started()


@asynccontextmanager
async def scripted() -> AsyncIterator[tuple[ScriptedTracker, Callable[[], Awaitable[None]]]]:
    """A scripted tracker and a function that starts it (again)."""
    tracker = ScriptedTracker()
    async with trio.open_nursery() as nursery:

        async def start() -> None:
            await nursery.start(tracker.run)

        await start()
        yield tracker, start
        nursery.cancel_scope.cancel()


def member(host: int, status: ServerStatus = ServerStatus.ACTIVE) -> Brief:
    return Brief(status, PORT, f"127.0.0.{host}", f"127.0.0.{host}")


class Telling:
    """Makes a scripted tracker answer heartbeats with what a test sets."""

    def __init__(self, tracker: ScriptedTracker) -> None:
        self.changes = Changes()
        self.answers: dict[int, bytes | int] = {}
        self._good = tracker.good
        tracker.answer = self._answer

    def _answer(self, command: int, body: bytes) -> bytes | int | None:
        if command in (83, 84, 89):
            changes, self.changes = self.changes, Changes()
            return changes.encode()
        return self.answers.get(command, self._good(command, body))

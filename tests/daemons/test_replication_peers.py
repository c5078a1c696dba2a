"""Peers that stop answering, or whose machines stop."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from fdfs_storage.replication.pusher import Pusher
from fdfsfuse.proto import structs, sync
from fdfsfuse.proto.cluster import Brief
from fdfsfuse.proto.header import HEADER_SIZE, pack_response, unpack_header
from fdfsfuse.proto.sync import HelloAnswer, SyncCommand
from fdfsfuse.proto.tracker import ServerStatus
from tests.common.waiting import wait_for
from tests.daemons.storage_server import Client
from tests.daemons.sync_pair import Node, run_node, sync_config


class ScriptedPeer:
    """A storage of our own kind that answers as many requests of a connection as it is told.

    Attributes:
        requests: commands, a list for each connection.
    """

    def __init__(self) -> None:
        self.boot_id = "first"
        self.answers: int | None = None
        """Requests of a connection that are answered before it is closed; None: all, -1: none,
        and it stays open."""
        self.requests: list[list[int]] = []

    async def serve(self, stream: trio.SocketStream) -> None:
        client, commands = Client(stream), list[int]()
        try:
            while True:
                header = unpack_header(await client.read(HEADER_SIZE))
                await client.read(header.length)
                if header.command == SyncCommand.HELLO:
                    self.requests.append(commands)
                    answer = structs.encode(HelloAnswer(sync.VERSION, self.boot_id))
                    await client.send(pack_response(answer))
                    continue
                if self.answers is not None and 0 <= self.answers <= len(commands):
                    return await stream.aclose()
                commands.append(header.command)
                if self.answers != -1:
                    await client.send(pack_response())
        except (EOFError, trio.BrokenResourceError):
            await stream.aclose()


@asynccontextmanager
async def scripted(node: Node) -> AsyncIterator[ScriptedPeer]:
    """A peer "2" of *node*."""
    peer = ScriptedPeer()
    async with trio.open_nursery() as nursery:
        serve = partial(trio.serve_tcp, peer.serve, 0, host="127.0.0.1")
        (listener,) = await nursery.start(serve)
        port = listener.socket.getsockname()[1]
        node.members.sources["2"] = None
        node.members.set(Brief(ServerStatus.ACTIVE, port, "2", "127.0.0.1"))
        yield peer
        nursery.cancel_scope.cancel()


def has_all(node: Node) -> bool:
    pusher = node.replication.pushers["2"]
    return pusher.link is not None and pusher.acked == node.store.binlog.position


async def test_connection_that_breaks_while_the_last_stretch_is_sent_again(tmp_path: Path) -> None:
    """Also the rest of it may be there in part, so it is written whatever is there."""
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a, scripted(a) as peer, a.connect() as client:
            name = await client.upload(b"0123", appender=True)
            await wait_for(lambda: has_all(a))
            await client.append(name, b"4567")
            await wait_for(lambda: has_all(a))
            peer.boot_id, peer.answers = "second", 1
            a.cut("2")
            await wait_for(lambda: len(peer.requests) >= 3)
            peer.answers = None
            await wait_for(lambda: has_all(a))
            again = [command for commands in peer.requests[1:] for command in commands]
            assert SyncCommand.MODIFY in again
            assert SyncCommand.APPEND not in again


async def test_a_peer_that_was_without_power_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it acknowledged last was not on its disk, and does not get there while it is away."""
    passed = [0.0]
    clock = SimpleNamespace(monotonic=lambda: time.monotonic() + passed[0])
    monkeypatch.setattr("fdfs_storage.replication.pusher.time", clock)
    with trio.fail_after(60):
        async with run_node(tmp_path / "a", "1") as a:
            async with run_node(tmp_path / "b", "2", boot_id="first") as b:
                a.meet(b)
                port = b.port
                await a.wait_until_has_all(b)
                async with a.connect() as client:
                    name = await client.upload(b"content")
                await a.wait_until_has_all(b)
                pusher = a.replication.pushers["2"]
            await wait_for(partial(_has_no_link, pusher))
            for _ in range(3):
                passed[0] += 1000
                await pusher.write_mark()
            (tmp_path / "b/path0/data" / name[4:]).unlink()
            async with run_node(tmp_path / "b", "2", boot_id="second", port=port) as b:
                await wait_for(lambda: b.content(name) == b"content")


def _has_no_link(pusher: Pusher) -> bool:
    return pusher.link is None


async def test_a_peer_that_does_not_answer_while_more_is_sent(tmp_path: Path) -> None:
    """That the kernel takes what is sent is no sign of life."""
    config = dataclasses.replace(sync_config(tmp_path / "a"), network_timeout_s=0.5)
    with trio.fail_after(60):
        async with (
            run_node(tmp_path / "a", "1", config=config) as a,
            scripted(a) as peer,
            a.connect() as client,
        ):
            await wait_for(lambda: has_all(a))
            peer.answers = -1
            for _ in range(200):
                await client.upload(b"content")
                await trio.sleep(0.05)
                if len(peer.requests) > 1:
                    break
            assert len(peer.requests) > 1

"""The network behind a mount, against scripted servers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import pytest
import trio

from fdfsfuse.client.names import session as client_session
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.tracker import TrackerClient
from fdfsfuse.client.views import Candidate
from fdfsfuse.errors import DeadlineExceeded, NoNamesError
from fdfsfuse.proto import names
from fdfsfuse.vfs.context import Context
from fdfsfuse.vfs.options import VfsOptions
from fdfsfuse.vfs.recalls import NoKernel
from fdfsfuse.vfs.remote import RemoteBackend
from fdfsfuse.vfs.volume import Volume
from tests.client.names_peer import ATTR, NamesPeer
from tests.client.peers import Peer, running_peer
from tests.common.waiting import wait_for


class Trackers:
    """Trackers that name one storage."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer

    async def find_candidates(self, group: str) -> Sequence[Candidate]:
        await trio.lowlevel.checkpoint()
        return [Candidate("s1", self._peer.address)]


class Listener:
    """Counts how often the volume came back."""

    def __init__(self) -> None:
        self.resumptions = 0

    def held(self) -> set[int]:
        return set()

    def recalled(self, message: names.Recall) -> None:
        raise AssertionError(message)

    def lease_lost(self) -> None:
        raise AssertionError

    async def resumed(self) -> None:
        await trio.lowlevel.checkpoint()
        self.resumptions += 1


async def test_a_volume_without_names_may_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_session, "STOCK_PROBE_S", 0.01)
    peer = NamesPeer()
    peer.stock = True
    listener = Listener()
    async with running_peer(peer.handle) as running, trio.open_nursery() as nursery:
        trackers = cast(TrackerClient, Trackers(running))
        backend = RemoteBackend("group1", trackers, Pool(), "test", 30.0, 0.0)
        nursery.start_soon(backend.run, listener)
        for _ in range(3):
            with pytest.raises(NoNamesError):
                await backend.call(names.Open(5, 0))
        peer.stock = False
        await wait_for(lambda: listener.resumptions == 1)
        assert await backend.call(names.GetAttr(5)) == ATTR
        await peer.disconnect()
        await wait_for(lambda: listener.resumptions == 2)
        backend.close()


async def test_a_volume_that_was_never_connected_has_nothing_to_store() -> None:
    async with running_peer(NamesPeer().handle) as running:
        trackers = cast(TrackerClient, Trackers(running))
        backend = RemoteBackend("group1", trackers, Pool(), "test", 30.0, 0.0)
        volume = Volume(1, backend, Context(VfsOptions(), NoKernel()))
        await volume.own_changes.wait()


async def test_no_time_is_not_all_the_time() -> None:
    """Who has waited for the most that it may has none left."""
    peer = NamesPeer()
    peer.respond = lambda received: None
    async with running_peer(peer.handle) as running, trio.open_nursery() as nursery:
        trackers = cast(TrackerClient, Trackers(running))
        backend = RemoteBackend("group1", trackers, Pool(), "test", 3600.0, 0.0)
        nursery.start_soon(backend.run, Listener())
        with trio.fail_after(60), pytest.raises(DeadlineExceeded):
            await backend.call(names.GetAttr(5), timeout_s=0.0)
        backend.close()

"""Which peers count for what is acknowledged, and waiting until they have it.

Used by the storage that keeps the names of the group: a mount's close() and fsync() return when
every peer that is *in sync* has the content. Only storages of our own kind are; stock ones are sent
everything as well and are never waited for.

The set is kept in ``in_sync.json`` of the names directory. A peer that does not get on for
``timeout_s`` while somebody waits for it is put out; that is on the disk before anything is
acknowledged without it. It is taken in again when it has everything: first it is waited for, and
when it has what was acknowledged until then, that is written. So the file never lists a peer that
lacks something which was acknowledged.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, Protocol

import trio

from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.files import replace_file
from fdfsfuse.errors import FdfsError

logger = logging.getLogger(__name__)

NAME: Final = "in_sync.json"
_CHECK_S: Final = 0.1
SLOW: Final = 10
"""A peer that gets on, but slowly, is waited for this many times longer."""


class InSyncDamaged(FdfsError):
    """The set cannot be read; the text says what to do."""


class Peer(Protocol):
    """What is asked of a pusher."""

    acked: BinlogPosition
    caught_up: bool

    def push_nowait(self) -> None:
        """Send it what was logged, as far as that needs no waiting."""

    def receive_nowait(self) -> None:
        """Take its answers that have arrived."""

    @property
    def is_own_kind(self) -> bool:
        """Connected to a storage of our own kind."""

    @property
    def progress_at(self) -> float:
        """trio time at which the peer last took or sent bytes, 0.0 if it never did."""


class InSync:
    """The set of a storage, and who waits for it.

    Args:
        directory: of the names; None where no names are kept (yet): then no peer is in the set.
        peers: id -> pusher, as they are now.
        end: where the binlog ends now.

    Attributes:
        members: ids of the peers that count.
        changed: called when ``members`` has changed, before anything is released without a peer.
        gathering: what is logged now is pushed as soon as all of it is.
    """

    def __init__(
        self,
        directory: Callable[[], Path | None],
        peers: Mapping[str, Peer],
        end: Callable[[], BinlogPosition],
        timeout_s: float,
    ) -> None:
        self.members: frozenset[str] = frozenset()
        self.changed: Callable[[], None] = lambda: None
        self.gathering = False
        self.put_out: dict[str, str] = {}
        """Why peers that were in sync are not, in words."""
        self._directory = directory
        self._peers = peers
        self._end = end
        self._timeout_s = timeout_s
        self._waiting: deque[tuple[BinlogPosition, float, Callable[[], None]]] = deque()
        self._joining: dict[str, BinlogPosition] = {}
        """Peers that are waited for already, and what they must have before they are in the set."""
        self._changed = trio.Event()

    def load(self) -> None:
        """Read the set. Blocks. Raises OSError, InSyncDamaged."""
        directory = self._directory()
        if directory is None:
            return
        try:
            data = json.loads((directory / NAME).read_bytes())
        except FileNotFoundError:
            return
        except ValueError:
            data = None
        members = data.get("in_sync") if isinstance(data, dict) else None
        if not isinstance(members, list):
            raise InSyncDamaged(
                f"{directory / NAME} is damaged; without it no other storage counts as in sync"
                " until it has everything, so remove it if that is right"
            )
        self.members = frozenset(str(member) for member in members)

    # --- waiting ------------------------------------------------------------------------------

    @property
    def keeps(self) -> bool:
        """True when this storage keeps names, and so a set."""
        return self._directory() is not None

    @property
    def counts(self) -> bool:
        """False while there is nobody to wait for."""
        return bool(self.members or self._joining)

    def has(self, position: BinlogPosition) -> bool:
        """True when every peer that counts has everything before *position*."""
        peers = self._peers
        for member in (*self.members, *self._joining):
            peer = peers.get(member)
            if peer is None or peer.acked < position:
                return False
        return True

    def hold(self, position: BinlogPosition, release: Callable[[], None]) -> bool:
        """Call *release* when `has` is true of *position*; not at all (False) if it is already.

        *release* must not raise, and must be quick. It is called by the loop, in any task.
        """
        if self.has(position):
            return False
        self._waiting.append((position, trio.current_time(), release))
        self._changed.set()
        return True

    def gathered(self) -> AbstractContextManager[None]:
        """What is logged inside is sent to the peers together, at the end, from here.

        The usual way, through a task per peer, takes a turn of the loop more.
        """
        return _Gathering(self, self._peers, self._end)

    def look(self) -> None:
        """Take what peers have acknowledged by now, which saves a turn of the loop."""
        for peer in self._peers.values():
            peer.receive_nowait()

    async def wait(self, position: BinlogPosition) -> None:
        """Wait until every peer in sync has everything before *position*, or was put out.

        The caller gives the deadline; being cancelled leaves nothing behind.
        """
        done = trio.Event()
        if self.hold(position, done.set):
            await done.wait()

    def progress(self) -> None:
        """A peer has acknowledged something, has lost touch, or was put out."""
        if self._joining:
            self._changed.set()
        if not self._waiting:
            return
        kept: deque[tuple[BinlogPosition, float, Callable[[], None]]] = deque()
        ready: list[Callable[[], None]] = []
        for waiting in self._waiting:
            if self.has(waiting[0]):
                ready.append(waiting[2])
            else:
                kept.append(waiting)
        self._waiting = kept
        for release in ready:
            release()

    # --- the set ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Put peers out and take them in, until cancelled."""
        while True:
            self._changed = trio.Event()
            try:
                await self._take_in()
                await self._put_out()
            except OSError as exc:
                logger.error(
                    "the list of peers in sync cannot be written, so mounts may wait: %s", exc
                )
                await trio.sleep(1.0)
            if self._waiting:
                await trio.sleep(_CHECK_S)
            else:
                await self._changed.wait()

    def at_rest(self, peer_id: str) -> None:
        """A peer has everything: it may be taken in."""
        if peer_id not in self.members and self._is_ready(peer_id) and self.keeps:
            self._changed.set()

    def forget(self, peer_id: str, reason: str) -> None:
        """A peer does not count any more, until it is at rest again."""
        self._joining.pop(peer_id, None)
        if peer_id in self.members:
            self.put_out[peer_id] = reason
            self._changed.set()

    async def _take_in(self) -> None:
        if self._directory() is None:
            return
        for peer_id in [name for name in self._joining if not self._is_ready(name)]:
            del self._joining[peer_id]
            self.progress()
        for peer_id in self._peers:
            if peer_id not in self.members and self._is_ready(peer_id):
                self._joining.setdefault(peer_id, self._end())
        joined = {
            peer_id
            for peer_id, position in self._joining.items()
            if self._peers[peer_id].acked >= position
        }
        if joined:
            await self._save(self.members | joined)
            self.members |= joined
            self.changed()
            for peer_id in joined:
                self._joining.pop(peer_id, None)
                self.put_out.pop(peer_id, None)
                logger.info("%s is in sync", peer_id)

    def _is_ready(self, peer_id: str) -> bool:
        peer = self._peers.get(peer_id)
        return peer is not None and peer.caught_up and peer.is_own_kind

    async def _put_out(self) -> None:
        late = self._late()
        for peer_id in late.keys() & self._joining.keys():
            del self._joining[peer_id]
        gone = {name: why for name, why in late.items() if name in self.members}
        if gone:
            await self._save(self.members - gone.keys())
            self.members -= gone.keys()
            self.changed()
            self.put_out.update(gone)
            for peer_id, reason in gone.items():
                logger.warning("%s is out of sync: %s", peer_id, reason)
        if late:
            self.progress()

    def _late(self) -> dict[str, str]:
        """Peers that are not waited for any longer, each with the reason."""
        late = {name: why for name, why in self.put_out.items() if name in self.members}
        if not self._waiting:
            return late
        position, since, _ = self._waiting[0]
        now = trio.current_time()
        for member in (*self.members, *self._joining):
            peer = self._peers.get(member)
            if peer is not None and peer.acked >= position:
                continue
            heard = since if peer is None else max(since, peer.progress_at)
            if now - heard >= self._timeout_s:
                late[member] = f"it did not get on for {self._timeout_s:g} s"
            elif now - since >= self._timeout_s * SLOW:
                late[member] = f"it is behind by more than {self._timeout_s * SLOW:g} s"
        return late

    async def _save(self, members: frozenset[str]) -> None:
        directory = self._directory()
        assert directory is not None
        data = json.dumps({"in_sync": sorted(members)}).encode() + b"\n"
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(lambda: replace_file(directory / NAME, data, sync=True))


class _Gathering:
    """The block of `InSync.gathered`. A generator would make each small file 2 % dearer."""

    __slots__ = ("_end", "_in_sync", "_peers", "_start")

    def __init__(
        self, in_sync: InSync, peers: Mapping[str, Peer], end: Callable[[], BinlogPosition]
    ) -> None:
        self._in_sync = in_sync
        self._peers = peers
        self._end = end

    def __enter__(self) -> None:
        self._in_sync.gathering = True
        self._start = self._end()

    def __exit__(self, *_: object) -> None:
        self._in_sync.gathering = False
        if self._end() != self._start:
            for peer in self._peers.values():
                peer.push_nowait()

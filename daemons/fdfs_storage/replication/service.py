"""Replication of a storage: one pusher per peer, and what others ask about them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import trio

from fdfs_storage import boot
from fdfs_storage.binlog import BinlogPosition
from fdfs_storage.recent import RecentContents
from fdfs_storage.replication.deleted import Deleted
from fdfs_storage.replication.in_sync import InSync
from fdfs_storage.replication.mark_files import MarkFiles
from fdfs_storage.replication.pusher import Group, Pusher
from fdfs_storage.replication.receiver import Receiver
from fdfs_storage.replication.replicas import Replicas
from fdfsfuse.core.sync_plan import ENDED
from fdfsfuse.proto.changelog import ChangelogLine
from fdfsfuse.proto.cluster import Brief
from fdfsfuse.proto.tracker import ServerStatus

if TYPE_CHECKING:
    from fdfs_storage.store import Store
    from fdfsfuse.core.config import StorageConfig

logger = logging.getLogger(__name__)

SAVE_S: Final = 1.0
"""Marks are written this often while they change: so much is sent again after a crash."""


class Members(Group, Protocol):
    """What replication wants of `fdfs_storage.cluster.membership.Membership`."""

    sync_timestamps: Callable[[], Mapping[str, int]]
    copied_until: Callable[[str], int | None]
    on_changelog: Callable[[ChangelogLine], None]

    @property
    def members(self) -> tuple[Brief, ...]:
        """The whole group, this storage included."""

    def add_observer(self, changed: Callable[[], None]) -> None:
        """Have *changed* called after each change of `members`."""


class Replication:
    """Receives the changes of peers and pushes ours.

    Args:
        port: of this storage; part of the names of mark files. old_port: that of its last run.
        by_id: the cluster uses storage ids.
        names_directory: tells where this storage keeps names, None if it does not (yet).

    Attributes:
        in_sync: the peers that count.
        receiver: handlers for the requests of peers.
        pushers: one per peer, by its id.
    """

    def __init__(
        self,
        store: Store,
        config: StorageConfig,
        *,
        port: int,
        old_port: int = 0,
        by_id: bool,
        names_directory: Callable[[], Path | None],
        boot_id: str | None = None,
    ) -> None:
        self.pushers: dict[str, Pusher] = {}
        self.in_sync = InSync(
            names_directory,
            self.pushers,
            lambda: store.binlog.position,
            config.names_replica_timeout_s,
        )
        self._store = store
        self._config = config
        directory = store.binlog.directory
        self._marks = MarkFiles(directory, port, by_id=by_id)
        self._marks.take_from_port(old_port)
        self._members: Members | None = None
        self._nursery: trio.Nursery | None = None
        self._progress = trio.Event()
        self.receiver = Receiver(
            store,
            Replicas(store, Deleted.load(store.changes)),
            config.group_name,
            boot_id=boot.boot_id() if boot_id is None else boot_id,
            member_at=self._member_at,
        )

    def join(self, members: Members) -> None:
        """Push to the other members of the group, as soon as `run` runs."""
        self._members = members
        members.sync_timestamps = lambda: self.receiver.timestamps
        members.copied_until = self._copied_until
        members.on_changelog = self._took_changelog
        members.add_observer(self._members_changed)

    def _member_at(self, ip: str) -> str:
        """The id of the member at *ip*, '' when there is none, or more than one."""
        members = self._members.members if self._members is not None else ()
        found = [brief.storage_id for brief in members if ip in brief.ip.split(",")]
        return found[0] if len(found) == 1 else ""

    # --- running ------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Push until cancelled; then the marks are written."""
        self._store.binlog.on_append = self._appended
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                nursery.start_soon(self.in_sync.run)
                nursery.start_soon(self._save_marks)
                self._members_changed()
                task_status.started()
                await trio.sleep_forever()
        finally:
            self._nursery = None
            with trio.CancelScope(shield=True):
                await self._write_marks()

    def _appended(self, lines: bytes, start: BinlogPosition) -> None:
        for pusher in self.pushers.values():
            pusher.appended(lines, start, wake=not self.in_sync.gathering)

    def _members_changed(self) -> None:
        """Start pushers for new peers, and tell all of them how their peers are listed."""
        if self._members is None or self._nursery is None:
            return
        for brief in self._members.members:
            if brief.storage_id == self._members.own_id:
                continue
            pusher = self.pushers.get(brief.storage_id)
            if pusher is not None:
                pusher.update(brief)
            elif brief.status not in ENDED and brief.port:
                self._start(brief, self._members)
        listed = {brief.storage_id for brief in self._members.members}
        for peer_id, pusher in self.pushers.items():
            if peer_id not in listed:
                peer = pusher.peer
                pusher.update(Brief(ServerStatus.NONE, peer.port, peer.storage_id, peer.ip))

    def _start(self, brief: Brief, members: Members) -> None:
        pusher = Pusher(
            brief,
            self._store,
            self._config,
            members,
            self._marks,
            source_position=self._position_of,
            progress=self._progressed,
            at_rest=self._at_rest,
            restarted=self._restarted,
        )
        self.pushers[brief.storage_id] = pusher
        if self._store.changes.recent is None:
            self._store.changes.recent = RecentContents()
        assert self._nursery is not None
        self._nursery.start_soon(self._run_pusher, pusher)

    async def _run_pusher(self, pusher: Pusher) -> None:
        peer_id = pusher.peer.storage_id
        while pusher.peer.status not in ENDED:
            try:
                await pusher.run()
            except Exception:
                logger.exception("pushing to %s failed; it starts over", peer_id)
                await trio.sleep(SAVE_S)
        logger.info("%s is no member of the group any more", peer_id)
        del self.pushers[peer_id]
        self.in_sync.forget(peer_id, "it was removed from the group")

    def _position_of(self, peer_id: str) -> BinlogPosition | None:
        pusher = self.pushers.get(peer_id)
        return None if pusher is None or pusher.mark is None else pusher.acked

    def _copied_until(self, peer_id: str) -> int | None:
        pusher = self.pushers.get(peer_id)
        mark = None if pusher is None else pusher.mark
        return mark.until if mark is not None and mark.need_sync_old else None

    def _took_changelog(self, line: ChangelogLine) -> None:
        """A peer was removed, or goes on under another id."""
        if line.status is ServerStatus.DELETED:
            self._marks.retire(line.old_id)
        elif line.new_id:
            self._marks.move(line.old_id, line.new_id)

    async def _save_marks(self) -> None:
        while True:
            await trio.sleep(SAVE_S)
            await self._write_marks()

    async def _write_marks(self) -> None:
        for pusher in list(self.pushers.values()):
            try:
                await pusher.write_mark()
            except OSError as exc:
                logger.error("a mark file cannot be written: %s", exc)

    # --- waiting ------------------------------------------------------------------------------

    def _progressed(self) -> None:
        self.in_sync.progress()
        self._progress.set()

    def _at_rest(self, pusher: Pusher) -> None:
        self.in_sync.at_rest(pusher.peer.storage_id)

    def _restarted(self, pusher: Pusher) -> None:
        reason = "its machine was restarted, and may have lost the last changes"
        self.in_sync.forget(pusher.peer.storage_id, reason)

    def count(self, position: BinlogPosition, name: str) -> int:
        """How many servers have what was logged of *name* before *position*, this one included."""
        return 1 + sum(
            pusher.acked >= position
            and pusher.unreadable is not None
            and name not in pusher.unreadable
            for pusher in self.pushers.values()
        )

    async def wait_for_copies(self, position: BinlogPosition, count: int, name: str) -> None:
        """Wait until `count` is *count*; no deadline of its own."""
        while self.count(position, name) < count:
            if self._progress.is_set():
                self._progress = trio.Event()
            await self._progress.wait()

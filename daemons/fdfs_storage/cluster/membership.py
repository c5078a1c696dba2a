"""The storage's side of the cluster: stay joined to all trackers, know the group, report.

Source: protocol/cluster.md sections 2 to 4. How the app uses it::

    listeners = open_listeners(...)                   # the port is known from here on
    place = await learn(config, port)                 # own ip, parameters; retries for ever
    identity.check_marks(...)                         # and open store and names with place
    membership = Membership(config, identity, place, statistics=..., space=..., found=...)
    nursery.start_soon(server.serve, listeners)       # serve first: joining brings clients
    await nursery.start(membership.run)

`Membership` is what the trackers agree on, and what replication asks and tells them;
`fdfs_storage.cluster.tracker_task` keeps the connection to one tracker.
"""

from __future__ import annotations

import errno
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import replace

import trio

from fdfs_storage.cluster.data_source import DataSource
from fdfs_storage.cluster.founder import Founder
from fdfs_storage.cluster.identity import Identity
from fdfs_storage.cluster.place import Place
from fdfs_storage.cluster.tracker_link import ask_all, ask_once
from fdfs_storage.cluster.tracker_task import TrackerTask
from fdfsfuse.client.link import PROBLEMS
from fdfsfuse.core import members as group_list
from fdfsfuse.core import states
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.config import StorageConfig
from fdfsfuse.errors import ConnectFailed, FdfsError, ProtocolError, StatusError
from fdfsfuse.proto.changelog import ChangelogLine, IpChange
from fdfsfuse.proto.cluster import (
    VERSION,
    Brief,
    ClusterCommand,
    Join,
    ServerKey,
    StatusReport,
    SyncSource,
    decode_optional_source,
)
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.tracker import ServerStatus
from fdfsfuse.proto.tracker_peers import TrackerStatus

logger = logging.getLogger(__name__)

_IP_CHANGE_TOLERATED = frozenset({2, 16, 17, 114})
"""Answers to 78 after which a storage goes on: cluster.md section 2.5."""


class Membership:
    """Keeps this storage joined to all trackers.

    Args:
        port: where this storage listens.
        statistics: the counters as they are now; cheap, called at each heartbeat.
        space: (total_mb, free_mb) of each store path; called in a thread.
        found: see `Founder`.

    Attributes:
        parameters: the last answer of command 75.
        status: this storage's status at the tracker that told it last, None before.
        leader: the tracker that said to lead the others; lists of the group come from it.
        port: where this storage listens.
        founder: founds the tree of the group.
        data_source: where this storage gets its data from.
        sync_timestamps: set by replication: peer id -> timestamp (Unix seconds) of the newest
            record received from it. Called about once a second; reported by 89.
        copied_until: set by replication: peer id -> ``until`` of the initial copy that this storage
            made or makes for it, None if it made none.
        on_changelog: set by replication: a peer was deleted, or goes on with another id. May be
            called again with the same news, of another tracker or after a restart.
    """

    def __init__(
        self,
        config: StorageConfig,
        identity: Identity,
        place: Place,
        *,
        port: int,
        statistics: Callable[[], Statistics],
        space: Callable[[], Sequence[tuple[int, int]]],
        found: Callable[[], Awaitable[None]],
    ) -> None:
        self.place = place
        self.parameters = place.parameters
        self.status: ServerStatus | None = None
        self.leader: ServerAddress | None = None
        self.sync_timestamps: Callable[[], Mapping[str, int]] = dict
        self.copied_until: Callable[[str], int | None] = _none
        self.on_changelog: Callable[[ChangelogLine], None] = _ignore
        self.config = config
        self.identity = identity
        self.statistics = statistics
        self.space = space
        self.port = port
        self._up_time = int(time.time())
        self._known: Mapping[str, Brief] = {}
        self._listed: tuple[Brief, ...] = ()
        """The last list of the group; merged again when a member was forgotten."""
        self._observers: list[Callable[[], None]] = []
        self.founder = Founder(config, place.storage_id, identity.join_time, found)
        self.data_source = DataSource(
            config, identity, place, port, self.founder, self._is_whole_at
        )
        self._joined = trio.Event()
        self._tasks = [TrackerTask(self, server) for server in config.tracker_servers]
        self._nursery: trio.Nursery | None = None

    # --- what others ask ----------------------------------------------------------------------

    @property
    def my_ip(self) -> str:
        """The address by which trackers know this storage."""
        return self.place.my_ip

    @property
    def own_id(self) -> str:
        """The id by which trackers and peers know this storage."""
        return self.place.storage_id

    @property
    def members(self) -> tuple[Brief, ...]:
        """The group, sorted by id, this storage included.

        A removed server is shown as DELETED or IP_CHANGED until its changelog has been read, then
        no more.
        """
        known = self._known
        return tuple(
            known[name] for name in sorted(known) if known[name].status is not ServerStatus.NONE
        )

    def add_observer(self, changed: Callable[[], None]) -> None:
        """Call *changed* after each change of `members`; it must not wait."""
        self._observers.append(changed)

    async def wait_joined(self) -> None:
        """Wait until one tracker has counted this storage as a member and heard it once."""
        await self._joined.wait()

    async def sync_source(self, peer_id: str) -> SyncSource | None:
        """86: who makes the initial copy of *peer_id*, None when it has none.

        Asks the leader; while there is none, or it does not answer, the first tracker that does.
        Waits until it is decided where this storage gets its own data from.

        Raises:
            StatusError: 2 while the tracker cannot tell; try again later.
            ConnectionProblem, ProtocolError: no tracker gave an answer.
        """
        await self.data_source.wait_decided()
        body = ServerKey(self.config.group_name, peer_id).encode()
        problem: FdfsError = ConnectFailed("no tracker is configured")
        others = [s for s in self.config.tracker_servers if s != self.leader]
        for server in (*((self.leader,) if self.leader is not None else ()), *others):
            try:
                answer = await ask_once(
                    server, self.config, ClusterCommand.SYNC_SOURCE_REQUEST, body
                )
                return decode_optional_source(answer)
            except StatusError:
                raise
            except PROBLEMS as exc:
                problem = exc
        raise problem

    async def report_status(self, brief: Brief) -> None:
        """76: tell every tracker the status of a member; done when one of them took it.

        Raises:
            StatusError, ConnectionProblem, ProtocolError: none took it.
        """
        body = StatusReport(self.config.group_name, brief).encode()
        await ask_all(self.config, ClusterCommand.REPORT_STATUS, body)
        entry = self._known.get(brief.storage_id)
        if entry is not None:
            merged = states.merge_report(entry.status, brief.status)
            self._learn(
                {
                    **self._known,
                    brief.storage_id: Brief(merged, entry.port, entry.storage_id, entry.ip),
                }
            )

    # --- running ------------------------------------------------------------------------------

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Stay joined to every tracker until cancelled. Reports started at once."""
        await self._note_address()
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            for task in self._tasks:
                nursery.start_soon(task.run)
            task_status.started()

    async def _note_address(self) -> None:
        """Tell trackers of a changed ip (78, section 2.5), then write the new one down."""
        identity, ip = self.identity, self.place.my_ip
        old_ip = identity.last_ip_addr.split(",")[0]
        moved = bool(old_ip) and old_ip != ip
        if moved:
            logger.warning("the ip of this storage was %s and is now %s", old_ip, ip)
        adjusts = self.parameters.storage_ip_changed_auto_adjust
        if old_ip and adjusts and not self.parameters.use_storage_id:
            if moved:
                change = IpChange(self.config.group_name, old_ip, ip)
                await self._until_told(
                    ClusterCommand.IP_CHANGED, change.encode(), _IP_CHANGE_TOLERATED
                )
            await self.read_changelogs()
        if (identity.last_ip_addr, identity.last_server_port) != (ip, self.port):
            identity.last_ip_addr, identity.last_server_port = ip, self.port
            await trio.to_thread.run_sync(identity.save)

    async def _until_told(
        self, command: ClusterCommand, body: bytes, tolerated: frozenset[int]
    ) -> None:
        """Tell all trackers until one has taken it: else it would know us as two servers."""
        complained = False
        while True:
            try:
                await ask_all(self.config, command, body, tolerated)
                return
            except PROBLEMS as exc:
                if not complained:
                    logger.warning("no tracker takes the changed ip yet: %s", exc)
                complained = True
            await trio.sleep(min(self.config.heart_beat_interval_s, 2.0))

    async def read_changelogs(self) -> None:
        """77 to every tracker: which members were deleted or changed their ip (section 3.7)."""
        body = ServerKey(self.config.group_name, self.own_id).encode()
        try:
            answers = await ask_all(
                self.config, ClusterCommand.CHANGELOG, body, frozenset({errno.ENOENT})
            )
        except PROBLEMS as exc:
            logger.warning("no tracker gave its changelog: %s", exc)
            return
        for part in answers.values():
            await self.take_changelog(part)

    async def take_changelog(self, part: bytes) -> None:
        """Use lines of a tracker's changelog."""
        for text in part.decode("ascii", "replace").splitlines():
            try:
                line = ChangelogLine.decode(text)
            except ProtocolError as exc:
                logger.warning("changelog: %s", exc)
                continue
            if line.group != self.config.group_name:
                continue
            entry = self._known.get(line.old_id)
            listed = any(brief.storage_id == line.old_id for brief in self._listed)
            if entry is not None and listed and entry.status not in group_list.MAY_BE_REMOVED:
                continue  # it has joined again since
            logger.info("changelog of the group: %s", text.strip())
            if line.old_id == self.identity.sync_src_server:
                await trio.to_thread.run_sync(self.identity.replace_source, line.new_id)
            self.on_changelog(line)
            # An administrator may have forgotten it before a list told that it was removed.
            if entry is not None:
                gone = replace(entry, status=ServerStatus.NONE)
                self._learn({**self._known, line.old_id: gone})

    # --- what the tasks of the trackers tell --------------------------------------------------

    def heard(self) -> None:
        """A tracker took a heartbeat of this storage."""
        self._joined.set()

    def took_status(self, status: ServerStatus) -> None:
        """A tracker told this storage its status."""
        if status is not self.status:
            logger.info("this storage is %s", status.name)
        self.status = status

    def take_list(self, listed: tuple[Brief, ...]) -> group_list.Merged:
        """Merge a tracker's list of the group; what it says about us becomes our status."""
        self._listed = listed
        for brief in listed:
            if brief.storage_id == self.own_id:
                self.took_status(brief.status)
        merged = group_list.merge(self._known, listed, self.own_id)
        self._learn(merged.members)
        if self._nursery is not None:
            if merged.gone:
                self._nursery.start_soon(self._forget, merged.gone)
            for brief in listed:
                entry = merged.members.get(brief.storage_id)
                if brief.status is ServerStatus.WAIT_SYNC and entry in merged.differences:
                    self._nursery.start_soon(self._look_whether_new, brief)
        return merged

    async def _look_whether_new(self, listed: Brief) -> None:
        """A member is to be filled that was further when we heard of it last. Either the tracker
        remembers that from long ago, or it has come back without its data: then we are named as its
        source (86) for a copy that we have not made.
        """
        peer_id = listed.storage_id
        while listed in self._listed and peer_id != self.own_id:
            try:
                source = await self.sync_source(peer_id)
            except PROBLEMS as exc:
                logger.debug("%s: %s", peer_id, exc)
                await trio.sleep(self.config.heart_beat_interval_s)
                continue
            new = source is not None and source.source_id == self.own_id
            if source is not None and new and source.until != self.copied_until(peer_id):
                logger.info("storage %s has come back without its data", peer_id)
                self._learn({**self._known, peer_id: listed})
            return

    def _learn(self, known: Mapping[str, Brief]) -> None:
        if known == self._known:
            return
        self._known = known
        for changed in self._observers:
            changed()

    async def _forget(self, gone: tuple[str, ...]) -> None:
        """Members were removed: read why, then drop them (section 3.7)."""
        await self.read_changelogs()
        known = self._known
        for storage_id in gone:
            known = group_list.forget(known, storage_id)
        self._learn(known)
        # It may have joined again meanwhile, and the leader tells each change only once.
        self._learn(group_list.merge(self._known, self._listed, self.own_id).members)

    def took_trunk_server(self, brief: Brief) -> None:
        """A tracker named the trunk server of the group. We cannot be it: say so."""
        if brief.storage_id == self.own_id:
            logger.warning(
                "a tracker has chosen this storage as trunk server, but it makes no trunk files: "
                "let a tracker of ours lead; or stop this storage, appoint a C one (command 94), "
                "and start it again; or set use_trunk_file = false on all trackers"
            )

    def took_leader(self, brief: Brief) -> None:
        """A tracker named the leader; port 0 means that there is none."""
        found = next(
            (task.server for task in self._tasks if task.is_at(brief.ip, brief.port)), None
        )
        if found == self.leader:
            return
        old, self.leader = self.leader, found
        logger.info("the leader of the trackers is %s", found or "not known")
        if old is not None and found is not None and self._nursery is not None:
            self._nursery.start_soon(self._end_two_leaders, old, found)

    async def _end_two_leaders(self, old: ServerAddress, new: ServerAddress) -> None:
        """If the leader before still leads, ask both to elect again (68)."""
        if not await self._leads(old):
            return
        logger.warning("trackers %s and %s both lead: they are asked to elect", old, new)
        self.leader = None
        for server in (old, new):
            try:
                await ask_once(server, self.config, ClusterCommand.RESELECT_LEADER)
            except PROBLEMS as exc:
                logger.warning("tracker %s: %s", server, exc)

    async def _leads(self, server: ServerAddress) -> bool:
        try:
            answer = await ask_once(server, self.config, ClusterCommand.TRACKER_STATUS)
            return TrackerStatus.decode(answer).is_leader
        except PROBLEMS:
            return False

    # --- joining (sections 2.6 to 2.8) --------------------------------------------------------

    def _is_whole_at(self, server: ServerAddress) -> bool:
        return server == self.leader and self.status in states.AVAILABLE

    async def resolve_trackers(self) -> None:
        """Look up the trackers that are configured by name: JOIN lists them by address."""
        for task in self._tasks:
            await task.resolve()

    def join_request(self, tracker_ip: str) -> Join:
        """What the tracker at *tracker_ip* is told."""
        config = self.config
        unheard = len(self._tasks) > 1 and any(task.told is None for task in self._tasks)
        status = -1 if unheard else 0
        return Join(
            group=config.group_name,
            port=self.port,
            store_path_count=len(config.store_paths),
            subdir_count_per_path=config.subdir_count_per_path,
            upload_priority=config.upload_priority,
            join_time=self.identity.join_time,
            up_time=self._up_time,
            version=VERSION,
            init_flag=not self.identity.sync_old_done,
            status=status if self.status is None else self.status,
            storage_id=self.own_id if self.parameters.use_storage_id else "",
            tracker_ip=tracker_ip,
            trackers=tuple(task.text for task in self._tasks if task.text),
        )


def _none(_peer_id: str) -> None:
    """Nobody makes copies yet."""


def _ignore(_line: ChangelogLine) -> None:
    """Nobody listens to the changelog yet."""

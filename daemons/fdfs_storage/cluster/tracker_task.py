"""The connection of a storage to one tracker: join, settle where the data come from, report.

Source: protocol/cluster.md sections 2 and 3. JOIN (81), then 87 once in this storage's life and 88,
then heartbeats (83), changelog (77), disk reports (84) and sync timestamps (89). Whatever goes
wrong, it reconnects and joins again, for ever; it notices at once when the tracker closes.
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

import trio

from fdfs_storage.cluster.tracker_link import Retry, ask_once, connect
from fdfsfuse.client.link import PROBLEMS, Link, resolve
from fdfsfuse.core import members as group_list
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.errors import (
    ConnectFailed,
    ConnectionBroken,
    ConnectionProblem,
    ProtocolError,
    StatusError,
)
from fdfsfuse.proto.cluster import Brief, Changes, ClusterCommand, DiskReport, Joined, SyncReport
from fdfsfuse.proto.statistics import Statistics
from fdfsfuse.proto.storage_identity import ServerQuery
from fdfsfuse.proto.tracker import ServerStatus

if TYPE_CHECKING:
    from fdfs_storage.cluster.membership import Membership

logger = logging.getLogger(__name__)

_MAX_RETRY_S = 2.0
"""A tracker that comes back is joined within about this time (a C server: heart_beat_interval)."""
_MAX_REFUSED_RETRY_S = 10.0
_REJOIN_S = 0.5
"""Between leaving a tracker and joining it again on purpose, so that this can never spin."""
_CHANGELOG_PARTS_MAX = 1000
_SYNC_REPORT_S = 1.0
"""How often changed sync timestamps are reported; C servers wait for heart_beat_interval, in which
replicas of fresh files get no reads."""


class TrackerTask:
    """Stays joined to the tracker at *server*.

    Attributes:
        told: our status as this tracker told it last, None before.
    """

    def __init__(self, membership: Membership, server: ServerAddress) -> None:
        self.server = server
        self.told: ServerStatus | None = None
        self._membership = membership
        self._resolved: dict[str, str] = {}
        """Addresses of its host names."""
        self._link: Link | None = None
        self._sent_statistics: Statistics | None = None
        self._sent_times: dict[str, int] = {}

    @property
    def text(self) -> str:
        """The tracker as JOIN lists it: by address; '' while no address of it is known."""
        hosts = tuple(self._resolved[host] for host in self.server.hosts if host in self._resolved)
        return str(ServerAddress(hosts, self.server.port)) if hosts else ""

    async def resolve(self) -> None:
        """Look up its host names, as far as that has not worked yet."""
        for host in self.server.hosts:
            if host not in self._resolved:
                try:
                    _, self._resolved[host] = await resolve(host, self.server.port)
                except ConnectFailed as exc:
                    logger.debug("tracker %s: %s", self.server, exc)

    def is_at(self, ip: str, port: int) -> bool:
        """Whether this is the tracker at *ip* and *port*."""
        hosts = {self._resolved.get(host, host) for host in self.server.hosts}
        return port == self.server.port and ip in hosts

    async def request(self, command: ClusterCommand, body: bytes = b"") -> bytes:
        """One exchange on the joined connection. Raises one of `link.PROBLEMS`."""
        if self._link is None:
            raise ConnectionBroken("not connected")
        return await self._link.request(command, body)

    async def run(self) -> None:
        """Join and report, over and over. Logs changes, not each retry."""
        config = self._membership.config
        retry = Retry(_MAX_RETRY_S)
        lost_at: float | None = None
        last_text = ""
        while True:
            limit_s = _MAX_RETRY_S
            try:
                link = self._link = await connect(self.server, config)
                self._resolved[link.host] = link.peer_ip
                try:
                    await self._join(link)
                    if lost_at is None:
                        logger.info("joined tracker %s", self.server)
                    else:
                        after_s = trio.current_time() - lost_at
                        logger.info("joined tracker %s again after %.1f s", self.server, after_s)
                    lost_at, last_text = None, ""
                    retry.reset()
                    await self._report(link)
                finally:
                    self._link = None
                    link.close()
                await trio.sleep(_REJOIN_S)
                continue
            except StatusError as exc:
                limit_s = min(config.heart_beat_interval_s, _MAX_REFUSED_RETRY_S)
                text = f"refused (status {exc.errno}, {os.strerror(exc.errno or 0)})"
            except (ConnectionProblem, ProtocolError) as exc:
                text = str(exc)
            if lost_at is None:
                lost_at = trio.current_time()
            if text != last_text:
                last_text = text
                logger.warning("tracker %s: %s; trying again until it works", self.server, text)
            await trio.sleep(retry.next_delay(limit_s))

    async def _join(self, link: Link) -> None:
        """JOIN, and the decision about the initial copy."""
        membership = self._membership
        await membership.resolve_trackers()
        answer = await link.request(
            ClusterCommand.JOIN, membership.join_request(link.peer_ip).encode()
        )
        self.told = Joined.decode(answer).status
        if membership.status is None or membership.leader in (None, self.server):
            membership.took_status(self.told)
        self._sent_statistics = None
        self._sent_times = {}
        await membership.data_source.settle(self)

    async def _report(self, link: Link) -> None:
        """The reports of one connection (section 3). Returns when it has to join again.

        The disk report goes first, unlike the C server's: either report makes us ACTIVE, and with
        our free space unknown the tracker would answer "no space" to clients for a moment.
        """
        membership = self._membership
        config = membership.config
        next_beat = next_disk = next_times = trio.current_time()
        while True:
            rejoin = False
            if trio.current_time() >= next_disk:
                space = tuple(await trio.to_thread.run_sync(membership.space))
                rejoin |= await self._send(ClusterCommand.DISK_REPORT, DiskReport(space).encode())
                next_disk = trio.current_time() + config.stat_report_interval_s
            if trio.current_time() >= next_beat:
                rejoin |= await self._beat(link)
                next_beat = trio.current_time() + config.heart_beat_interval_s
            if trio.current_time() >= next_times:
                rejoin |= await self._report_times()
                next_times = trio.current_time() + min(_SYNC_REPORT_S, config.heart_beat_interval_s)
            if rejoin or await self._contradict(link):
                return
            await link.watch_until(min(next_beat, next_disk, next_times))

    async def _beat(self, link: Link) -> bool:
        membership = self._membership
        statistics = membership.statistics()
        body = b"" if statistics == self._sent_statistics else statistics.encode()
        rejoin = await self._send(ClusterCommand.HEARTBEAT, body)
        self._sent_statistics = statistics
        membership.heard()
        if membership.parameters.storage_ip_changed_auto_adjust:
            await self._read_changelog(link)
        return rejoin

    async def _report_times(self) -> bool:
        """89: how far the changes of each peer have come here, if that is news."""
        membership = self._membership
        times = dict(membership.sync_timestamps())
        if times == self._sent_times:
            return False
        report = SyncReport(
            tuple(
                (brief.storage_id, times.get(brief.storage_id, 0)) for brief in membership.members
            )
        )
        if not report.times:
            return False
        self._sent_times = times
        return await self._send(ClusterCommand.SYNC_REPORT, report.encode())

    async def _read_changelog(self, link: Link) -> None:
        """77: which members were deleted or changed their ip (section 3.7)."""
        for _ in range(_CHANGELOG_PARTS_MAX):
            part = await link.request(ClusterCommand.CHANGELOG)
            if not part:
                return
            await self._membership.take_changelog(part)

    async def _send(self, command: ClusterCommand, body: bytes) -> bool:
        """Send a report and use what its answer tells; True when this storage is to join again."""
        membership = self._membership
        changes = Changes.decode(await self.request(command, body))
        if changes.leader is not None:
            membership.took_leader(changes.leader)
        if changes.trunk_server is not None:
            membership.took_trunk_server(changes.trunk_server)
        if changes.group is None:
            return False
        for brief in changes.group:
            if brief.storage_id == membership.own_id:
                self.told = brief.status
        merged = membership.take_list(changes.group)
        if merged.differences:
            await self.request(
                ClusterCommand.REPLICA_CHANGE, b"".join(b.encode() for b in merged.differences)
            )
        return merged.rejoin

    async def _contradict(self, link: Link) -> bool:
        """59: bring a tracker that knows us wrongly to what the leader knows (section 3.6).

        Followers tell our status at JOIN only, and the leader only with heartbeats, so both are
        asked again before. True when something was changed: then this storage joins again.
        """
        membership = self._membership
        at_leader = membership.status
        leader = membership.leader
        if leader in (None, self.server) or at_leader is None or self.told is None:
            return False
        if not group_list.contradicts(self.told, at_leader):
            return False
        query = ServerQuery(membership.config.group_name, membership.my_ip, membership.port)
        answer = await link.request(ClusterCommand.GET_STORAGE_STATUS, query.encode())
        self.told = Brief.decode(answer).status
        if not group_list.contradicts(self.told, at_leader):
            return False
        assert leader is not None
        command = ClusterCommand.GET_STORAGE_STATUS
        try:
            answer = await ask_once(leader, membership.config, command, query.encode())
        except PROBLEMS:
            return False
        at_leader = Brief.decode(answer).status
        if not group_list.contradicts(self.told, at_leader):
            return False
        logger.info(
            "tracker %s knows this storage as %s, the leader as %s",
            self.server,
            self.told.name,
            at_leader.name,
        )
        await self.request(ClusterCommand.CHANGE_STATUS, bytes((at_leader,)))
        return True

"""Where this storage gets the data of its group from: settled with the trackers when it joins them.

Source: protocol/cluster.md sections 2.7 and 2.8.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING

import trio

from fdfs_storage.tracker_link import highest_status
from fdfsfuse.core import states
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.errors import StatusError
from fdfsfuse.proto.cluster import ClusterCommand, decode_optional_source
from fdfsfuse.proto.tracker import ServerStatus

if TYPE_CHECKING:
    from fdfs_storage.membership import Membership
    from fdfs_storage.tracker_task import TrackerTask

logger = logging.getLogger(__name__)


class DataSource:
    """The decision, which the storage's identity keeps, and what trackers say about it."""

    def __init__(self, membership: Membership) -> None:
        self._membership = membership
        self._identity = membership.identity
        self._decision = trio.Lock()
        self._decided = trio.Event()
        if self._identity.sync_old_done:
            self._decided.set()
        self._refused: set[ServerAddress] = set()
        """Trackers to which the source is unknown."""

    async def wait_decided(self) -> None:
        """Wait until it is decided, once in this storage's life."""
        await self._decided.wait()

    async def settle(self, task: TrackerTask) -> None:
        """87 once in this storage's life, else 88: who sends it the data of the group.

        Raises one of `PROBLEMS`: the tracker is to be joined again.
        """
        if not self._identity.sync_old_done:
            async with self._decision:
                if not self._identity.sync_old_done:
                    await self._decide(task)
        try:
            await task.request(ClusterCommand.SYNC_NOTIFY, self._identity.source.encode())
        except StatusError as exc:
            if exc.errno == errno.ENOENT:
                async with self._decision:
                    await self._is_unknown(task)
            raise
        self._refused.discard(task.server)

    async def _decide(self, task: TrackerTask) -> None:
        """87 (section 2.7)."""
        try:
            answer = await task.request(ClusterCommand.SYNC_DEST_REQUEST)
        except StatusError as exc:
            if exc.errno == errno.ENOENT:
                logger.warning("no storage of the group can send the initial copy yet")
            raise
        source = decode_optional_source(answer)
        if source is not None:
            logger.info("the initial copy comes from storage %s", source.source_id)
        else:
            await self._membership.founder.found_if_first(task.server)
        await trio.to_thread.run_sync(self._identity.decide_source, source)
        self._refused.clear()
        self._decided.set()

    async def _is_unknown(self, task: TrackerTask) -> None:
        """A tracker answered 88 with 2: our source was removed (section 2.8)."""
        membership = self._membership
        self._refused.add(task.server)
        if len(self._refused) < len(membership.config.tracker_servers):
            if task.server == membership.leader and membership.status in states.AVAILABLE:
                await trio.to_thread.run_sync(self._identity.replace_source, "")
            return
        status = await highest_status(membership.config, membership.my_ip, membership.port)
        answer = await task.request(ClusterCommand.SYNC_DEST_QUERY)
        source = decode_optional_source(answer)
        if status is None or status < ServerStatus.OFFLINE:
            logger.warning("the source of the initial copy was removed: another one is asked for")
            await trio.to_thread.run_sync(self._identity.reopen_source, source)
        else:
            await trio.to_thread.run_sync(self._identity.decide_source, source)
        self._refused.clear()

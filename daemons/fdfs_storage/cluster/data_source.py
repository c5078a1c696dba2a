"""Where this storage gets the data of its group from: settled with the trackers when it joins them.

Source: protocol/cluster.md sections 2.7 and 2.8.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from typing import Protocol

import trio

from fdfs_storage.cluster.founder import Founder
from fdfs_storage.cluster.identity import Identity
from fdfs_storage.cluster.place import Place
from fdfs_storage.cluster.tracker_link import highest_status
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.config import StorageConfig
from fdfsfuse.errors import StatusError
from fdfsfuse.proto.cluster import ClusterCommand, decode_optional_source
from fdfsfuse.proto.tracker import ServerStatus

logger = logging.getLogger(__name__)


class Tracker(Protocol):
    """The connection to a tracker that has been joined."""

    server: ServerAddress

    async def request(self, command: ClusterCommand, body: bytes = b"") -> bytes:
        """One exchange. Raises one of `PROBLEMS`."""


class DataSource:
    """The decision, which the storage's identity keeps, and what trackers say about it.

    Args:
        port: where this storage listens.
        is_whole: whether a tracker leads the others and knows this storage as one that has
            everything.
    """

    def __init__(
        self,
        config: StorageConfig,
        identity: Identity,
        place: Place,
        port: int,
        founder: Founder,
        is_whole: Callable[[ServerAddress], bool],
    ) -> None:
        self._config = config
        self._identity = identity
        self._place = place
        self._port = port
        self._founder = founder
        self._is_whole = is_whole
        self._decision = trio.Lock()
        self._decided = trio.Event()
        if self._identity.sync_old_done:
            self._decided.set()
        self._refused: set[ServerAddress] = set()
        """Trackers to which the source is unknown."""

    async def wait_decided(self) -> None:
        """Wait until it is decided, once in this storage's life."""
        await self._decided.wait()

    async def settle(self, tracker: Tracker) -> None:
        """87 once in this storage's life, else 88: who sends it the data of the group.

        Raises one of `PROBLEMS`: the tracker is to be joined again.
        """
        if not self._identity.sync_old_done:
            async with self._decision:
                if not self._identity.sync_old_done:
                    await self._decide(tracker)
        try:
            await tracker.request(ClusterCommand.SYNC_NOTIFY, self._identity.source.encode())
        except StatusError as exc:
            if exc.errno == errno.ENOENT:
                async with self._decision:
                    await self._source_is_unknown(tracker)
            raise
        self._refused.discard(tracker.server)

    async def _decide(self, tracker: Tracker) -> None:
        """87 (section 2.7)."""
        try:
            answer = await tracker.request(ClusterCommand.SYNC_DEST_REQUEST)
        except StatusError as exc:
            if exc.errno == errno.ENOENT:
                logger.warning("no storage of the group can send the initial copy yet")
            raise
        source = decode_optional_source(answer)
        if source is not None:
            logger.info("the initial copy comes from storage %s", source.source_id)
        else:
            await self._founder.found_if_first(tracker.server)
        await trio.to_thread.run_sync(self._identity.decide_source, source)
        self._refused.clear()
        self._decided.set()

    async def _source_is_unknown(self, tracker: Tracker) -> None:
        """A tracker answered 88 with 2: our source was removed (section 2.8)."""
        self._refused.add(tracker.server)
        if len(self._refused) < len(self._config.tracker_servers):
            if self._is_whole(tracker.server):
                await trio.to_thread.run_sync(self._identity.replace_source, "")
            return
        status = await highest_status(self._config, self._place.my_ip, self._port)
        answer = await tracker.request(ClusterCommand.SYNC_DEST_QUERY)
        source = decode_optional_source(answer)
        if status is None or status < ServerStatus.OFFLINE:
            logger.warning("the source of the initial copy was removed: another one is asked for")
            await trio.to_thread.run_sync(self._identity.reopen_source, source)
        else:
            await trio.to_thread.run_sync(self._identity.decide_source, source)
        self._refused.clear()

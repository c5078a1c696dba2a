"""Founding the tree of the group, which there must be one of."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable, Sequence

from fdfs_storage.cluster.tracker_link import ask_once
from fdfsfuse.client.link import PROBLEMS
from fdfsfuse.core import states
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.config import StorageConfig
from fdfsfuse.errors import FdfsError, StatusError
from fdfsfuse.proto import structs
from fdfsfuse.proto.cluster import Brief
from fdfsfuse.proto.cluster_status import AM_I_FOUNDER, FounderAnswer, FounderQuery
from fdfsfuse.proto.names import QUERY_VIEW

logger = logging.getLogger(__name__)


class Founder:
    """Founds the tree of the group if the trackers agree that this storage is to do so.

    Args:
        join_time: Unix seconds of this storage's first start.
        found: makes the tree unless there is one; called before it is written down that there is
            nothing to copy (so again after a crash in between).
    """

    def __init__(
        self,
        config: StorageConfig,
        own_id: str,
        join_time: int,
        found: Callable[[], Awaitable[None]],
    ) -> None:
        self._config = config
        self._own_id = own_id
        self._join_time = join_time
        self._found = found

    async def found_if_first(self, tracker: ServerAddress) -> None:
        """A tracker told that there is nothing to copy: found the tree, unless another one did.

        Raises one of `PROBLEMS` when the trackers cannot agree now: ask again later.
        """
        if await self._agreed(tracker, ()) is not False:
            await self._found()

    async def found_tree(self, members: Sequence[Brief], stock: Sequence[str]) -> None:
        """Found the tree of a group that has none, because an administrator says so.

        *members* are those of the group as the trackers told them, *stock* the C storages among
        them, which keep no trees.

        Raises:
            StatusError: 16 another storage founded it, or may have; 11 the trackers cannot agree
                now, or have not told the members yet.
            ConnectionProblem, ProtocolError: no tracker answers.
        """
        if not members:
            raise StatusError(errno.EAGAIN, "no tracker has told the members of the group yet")
        await self._check_no_tree(members)
        problem: FdfsError | None = None
        agreed = False
        for tracker in self._config.tracker_servers:
            try:
                may_found = await self._agreed(tracker, stock)
            except PROBLEMS as exc:
                problem = exc
                continue
            if may_found is False:
                raise StatusError(errno.EBUSY, "another storage founded the tree of the group")
            if may_found:
                agreed = True
                break  # a majority of our trackers has agreed
        if problem is not None and not agreed:
            raise problem
        await self._found()

    async def _agreed(self, tracker: ServerAddress, stock: Sequence[str]) -> bool | None:
        """Ask a tracker (141): "nothing to copy" is not enough to found a tree.

        None from stock trackers, which do not know the command (22): they have told all that they
        can. Raises one of `PROBLEMS` when the trackers cannot agree now: ask again later.
        """
        query = FounderQuery(self._config.group_name, self._own_id, self._join_time, list(stock))
        try:
            data = await ask_once(tracker, self._config, AM_I_FOUNDER, structs.encode(query))
        except StatusError as exc:
            if exc.errno == errno.EINVAL:
                return None
            raise
        answer = structs.decode(FounderAnswer, data)
        if not answer.founder:
            logger.warning(
                "the directory tree of %s is not founded by this storage: %s; its files can be "
                "reached by their ids",
                self._config.group_name,
                answer.reason,
            )
        return answer.founder

    async def _check_no_tree(self, members: Sequence[Brief]) -> None:
        """Ask the other members: trackers may have lost who founded the tree, or never know.

        Raises:
            StatusError: 16, one of them keeps a tree, or may.
        """
        for brief in members:
            if brief.storage_id == self._own_id or brief.status in states.GONE:
                continue
            server = ServerAddress(tuple(brief.ip.split(",")), brief.port)
            try:
                await ask_once(server, self._config, QUERY_VIEW)
            except StatusError as exc:
                if exc.errno in (errno.EINVAL, errno.ENOENT):
                    continue  # a stock storage, or one without a tree
                raise
            except PROBLEMS as exc:
                logger.warning("storage %s may keep a tree: %s", brief.storage_id, exc)
            raise StatusError(errno.EBUSY, f"storage {brief.storage_id} keeps a tree, or may")

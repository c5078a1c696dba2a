"""Asking whether this storage may found the tree of its group, which there must be one of."""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterable

from fdfs_storage.tracker_link import ask_once
from fdfsfuse.client.link import PROBLEMS
from fdfsfuse.core import states
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.config import StorageConfig
from fdfsfuse.errors import StatusError
from fdfsfuse.proto.cluster import Brief
from fdfsfuse.proto.cluster_status import (
    AM_I_FOUNDER,
    FounderAnswer,
    FounderQuery,
    decode,
    encode,
)
from fdfsfuse.proto.names import QUERY_VIEW

logger = logging.getLogger(__name__)


async def is_founder(
    tracker: ServerAddress, config: StorageConfig, query: FounderQuery
) -> bool | None:
    """Ask a tracker (141): "nothing to copy" is not enough to found a tree.

    None from stock trackers, which do not know the command (22): they have told all that they
    can. Raises one of `PROBLEMS` when the trackers cannot agree now: ask again later.
    """
    try:
        data = await ask_once(tracker, config, AM_I_FOUNDER, encode(query))
    except StatusError as exc:
        if exc.errno == errno.EINVAL:
            return None
        raise
    answer = decode(FounderAnswer, data)
    if not answer.founder:
        logger.warning(
            "the directory tree of %s is not founded by this storage: %s; its files can be "
            "reached by their ids",
            config.group_name,
            answer.reason,
        )
    return answer.founder


async def check_no_tree(members: Iterable[Brief], own_id: str, config: StorageConfig) -> None:
    """Ask the other members: trackers may have lost who founded the tree, or never know.

    Raises:
        StatusError: 16, one of them keeps a tree, or may.
    """
    for brief in members:
        if brief.storage_id == own_id or brief.status in states.GONE:
            continue
        server = ServerAddress(tuple(brief.ip.split(",")), brief.port)
        try:
            await ask_once(server, config, QUERY_VIEW)
        except StatusError as exc:
            if exc.errno in (errno.EINVAL, errno.ENOENT):
                continue  # a stock storage, or one without a tree
            raise
        except PROBLEMS as exc:
            logger.warning("storage %s may keep a tree: %s", brief.storage_id, exc)
        raise StatusError(errno.EBUSY, f"storage {brief.storage_id} keeps a tree, or may")

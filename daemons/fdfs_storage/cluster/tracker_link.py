"""How a storage connects to its trackers and to others of its group: from bind_addr."""

from __future__ import annotations

import errno
import random

import trio

from fdfsfuse.client.link import PROBLEMS, Link, connect_link
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.config import StorageConfig
from fdfsfuse.errors import FdfsError, StatusError
from fdfsfuse.proto.cluster import Brief, ClusterCommand
from fdfsfuse.proto.storage_identity import ServerQuery
from fdfsfuse.proto.tracker import ServerStatus

_FIRST_RETRY_S = 0.1
_GRACE_S = 5.0
"""How long the other trackers are waited for once one has answered."""


class Retry:
    """Growing delays with some chance in them, so that many storages do not come at once."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._delay_s = _FIRST_RETRY_S

    def next_delay(self, limit_s: float | None = None) -> float:
        """Seconds to wait now; *limit_s*, if given, counts instead of the usual limit."""
        delay_s = self._delay_s
        self._delay_s = min(delay_s * 2, limit_s or self._limit_s)
        return delay_s * random.uniform(0.8, 1.2)

    def reset(self) -> None:
        """It has worked: begin with a short delay again."""
        self._delay_s = _FIRST_RETRY_S


async def connect(server: ServerAddress, config: StorageConfig) -> Link:
    """Connect to a tracker or another storage. Raises ConnectFailed."""
    return await connect_link(
        server,
        bind=config.bind_addr if config.client_bind else (),
        connect_timeout_s=config.connect_timeout_s,
        timeout_s=config.network_timeout_s,
    )


async def ask_once(
    server: ServerAddress, config: StorageConfig, command: int, body: bytes = b""
) -> bytes:
    """One request on a connection of its own. Raises one of `fdfsfuse.client.link.PROBLEMS`."""
    link = await connect(server, config)
    try:
        return await link.request(command, body)
    finally:
        link.close()


async def ask_all(
    config: StorageConfig,
    command: int,
    body: bytes,
    tolerated: frozenset[int] = frozenset(),
    *,
    complete: bool = False,
) -> dict[ServerAddress, bytes]:
    """Ask all trackers at the same time; the answers of those that gave one.

    One that hangs does not hold up the others, unless their answers count only with all that there
    are (*complete*). A status in *tolerated* counts as an empty answer. Raises one of
    `fdfsfuse.client.link.PROBLEMS` when no tracker answered.
    """
    answers: dict[ServerAddress, bytes] = {}
    problems: list[FdfsError] = []

    async def ask(server: ServerAddress) -> None:
        try:
            answers[server] = await ask_once(server, config, command, body)
        except StatusError as exc:
            if exc.errno in tolerated:
                answers[server] = b""
            else:
                problems.append(exc)
        except PROBLEMS as exc:
            problems.append(exc)
        if answers and not complete:
            scope = nursery.cancel_scope
            scope.deadline = min(scope.deadline, trio.current_time() + _GRACE_S)

    async with trio.open_nursery() as nursery:
        for server in config.tracker_servers:
            nursery.start_soon(ask, server)
    if not answers:
        raise problems[0]
    return answers


async def highest_status(config: StorageConfig, my_ip: str, port: int) -> ServerStatus | None:
    """71: the status of this storage at the tracker where it is highest.

    None when no tracker knows it. Raises one of `fdfsfuse.client.link.PROBLEMS`.
    """
    query = ServerQuery(config.group_name, my_ip, port).encode()
    unknown = frozenset({errno.ENOENT})
    answers = await ask_all(
        config, ClusterCommand.GET_STORAGE_STATUS, query, unknown, complete=True
    )
    return max((Brief.decode(answer).status for answer in answers.values() if answer), default=None)

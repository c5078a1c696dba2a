"""What a storage asks trackers before it opens its data: who am I here, and what do all agree on.

Source: protocol/cluster.md sections 2.1 to 2.3.
"""

from __future__ import annotations

import errno
import ipaddress
import logging
from dataclasses import dataclass

import trio

from fdfs_storage.cluster.tracker_link import Retry, connect
from fdfsfuse.client.link import PROBLEMS, Link
from fdfsfuse.core.conf_file import ServerAddress
from fdfsfuse.core.config import StorageConfig
from fdfsfuse.core.storage_ids import StorageIds
from fdfsfuse.errors import ConfigError, ProtocolError, StatusError, UsageError
from fdfsfuse.proto.cluster import IP_SIZE, ClusterCommand
from fdfsfuse.proto.fileid import check_group_name
from fdfsfuse.proto.header import GROUP_NAME_SIZE, unpack_text
from fdfsfuse.proto.parameters import Parameters
from fdfsfuse.proto.storage_identity import (
    MyIpRequest,
    ServerQuery,
    StorageIdsPart,
    StorageIdsRequest,
    encode_port,
)

logger = logging.getLogger(__name__)

_MAX_RETRY_S = 2.0
_TURN_S = 3.0
"""How long a tracker is waited for before the next one is asked as well."""


@dataclass(frozen=True, slots=True)
class Place:
    """What trackers told about this storage's place in the cluster.

    ``my_ip`` is the address by which the first tracker sees us. ``storage_id`` is how trackers
    call us: an id of their table, or the ip. ``group_name`` is that of storage.conf, or of their
    table when it has none.
    """

    parameters: Parameters
    my_ip: str
    storage_id: str
    storage_ids: StorageIds | None = None
    group_name: str = ""

    @property
    def source_in_names(self) -> str:
        """What new file names carry as their source: the storage id or the ip (file-id.md 2)."""
        by_id = self.parameters.use_storage_id and self.parameters.id_type_in_filename == "id"
        return self.storage_id if by_id else self.my_ip


async def learn(config: StorageConfig, port: int) -> Place:
    """Ask the trackers in turn until one has told everything; waits for ever.

    Args:
        port: the port that this storage listens on (config.port may be 0).
    """
    retry = Retry(_MAX_RETRY_S)
    level = logging.WARNING
    while True:
        place = await _learn_from_any(config, port, level)
        if place is not None:
            return place
        level = logging.DEBUG
        await trio.sleep(retry.next_delay())


async def _learn_from_any(config: StorageConfig, port: int, level: int) -> Place | None:
    """What the first tracker tells that tells all; None when each has failed, logged at *level*."""
    found: list[Place] = []

    async def ask(server: ServerAddress, failed: trio.Event) -> None:
        try:
            place = await _learn_from(server, config, port)
        except PROBLEMS as exc:
            logger.log(level, "waiting for a tracker: %s: %s", server, exc)
            failed.set()
        else:
            logger.info("tracker %s knows this storage as %s", server, place.storage_id)
            found.append(place)
            nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        for server in config.tracker_servers:
            failed = trio.Event()
            nursery.start_soon(ask, server, failed)
            with trio.move_on_after(_TURN_S):
                await failed.wait()
    return found[0] if found else None


async def _learn_from(server: ServerAddress, config: StorageConfig, port: int) -> Place:
    link = await connect(server, config)
    try:
        group = config.group_name or await _ask_group_name(link, port)
        body = MyIpRequest(group, port).encode()
        text = await link.request(ClusterCommand.GET_MY_IP, body)
        my_ips = _decode_ips(text)
        parameters = Parameters.decode(await link.request(ClusterCommand.GET_PARAMETERS))
        if not parameters.use_storage_id:
            return Place(parameters, my_ips[0], my_ips[0], group_name=group)
        table = await _fetch_storage_ids(link, server)
        own_id = await _own_id(link, config, group, port, my_ips, parameters, table)
        return Place(parameters, my_ips[0], own_id, table, group)
    finally:
        link.close()


async def _ask_group_name(link: Link, port: int) -> str:
    """109: the group of this storage, by the tracker's table of storage ids."""
    try:
        answer = await link.request(ClusterCommand.GET_GROUP_NAME, encode_port(port))
    except StatusError as exc:
        raise StatusError(
            exc.errno or errno.ENOENT,
            "storage.conf has no group_name, and this storage is not in the table of storage ids "
            "of the tracker",
        ) from exc
    try:
        return check_group_name(unpack_text(answer[:GROUP_NAME_SIZE]))
    except UsageError as exc:
        raise ProtocolError(f"{answer[:100]!r} is no name of a group") from exc


def _decode_ips(body: bytes) -> list[str]:
    """``ip`` or ``ip1,ip2`` of an answer to 60."""
    try:
        if len(body) > 2 * IP_SIZE:
            raise ValueError("too long")
        return [str(ipaddress.ip_address(part)) for part in body.decode("ascii").split(",")]
    except ValueError as exc:
        raise ProtocolError(f"{body[:100]!r} is not an ip address") from exc


async def _fetch_storage_ids(link: Link, server: ServerAddress) -> StorageIds:
    lines: list[str] = []
    while True:
        body = StorageIdsRequest(len(lines), allow_empty=True).encode()
        part = StorageIdsPart.decode(await link.request(ClusterCommand.FETCH_STORAGE_IDS, body))
        lines += part.lines
        if len(lines) >= part.total:
            break
    try:
        return StorageIds.parse("\n".join(lines), f"storage ids of tracker {server}")
    except ConfigError as exc:
        raise ProtocolError(str(exc)) from exc


async def _own_id(
    link: Link,
    config: StorageConfig,
    group: str,
    port: int,
    my_ips: list[str],
    parameters: Parameters,
    table: StorageIds,
) -> str:
    if parameters.trust_storage_server_id:
        if config.server_id:
            return config.server_id
        for ip in my_ips:
            entry = table.find(group, ip, port)
            if entry is not None:
                return entry.storage_id
    query = ServerQuery(group, my_ips[0], port)
    answer = await link.request(ClusterCommand.GET_STORAGE_ID, query.encode())
    storage_id = answer.decode("ascii", "replace")
    if table.by_id(storage_id) is None:
        raise ProtocolError(f"the tracker gave the id {storage_id!r}, which is not in its table")
    return storage_id

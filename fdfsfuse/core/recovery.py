"""Decisions of the recovery of a lost disk (protocol/cluster.md section 7); no I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto

from fdfsfuse.core.states import ACTIVE, DELETED, GONE, INIT, IP_CHANGED
from fdfsfuse.core.storage_ids import RW_READ
from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.binlog import BinlogRecord
from fdfsfuse.proto.fileid import (
    METADATA_SUFFIX,
    FileKind,
    Location,
    decode_name,
    is_slave,
    parse_location,
)
from fdfsfuse.proto.tracker import ServerStatus, StorageStat

_LISTED = frozenset({ops.CREATE, ops.LINK, ops.RENAME})


class Way(Enum):
    """What a storage whose store path is empty does about it."""

    RECOVER = auto()
    """Fetch the files from another member."""
    JOIN_AS_NEW = auto()
    """The group does not count on it (any more): an initial copy is due anyway."""
    NOTHING = auto()
    """The group has no such store path yet: it was added here."""
    REFUSE = auto()
    """Nobody else has the files: an empty disk is more likely to be a disk that is not mounted."""


def choose_way(
    status: ServerStatus | None, members: Sequence[StorageStat], own_id: str, path_index: int
) -> Way:
    """Decide about the lost store path *path_index*.

    Args:
        status: the highest status that a tracker has of this storage, None when it is unknown.
        members: the group as trackers list it.
    """
    others = [m for m in members if m.storage_id != own_id and m.status not in GONE]
    if not others:
        return Way.REFUSE
    if path_index >= max(other.store_path_count for other in others):
        return Way.NOTHING
    if status in (None, INIT, IP_CHANGED, DELETED):
        return Way.JOIN_AS_NEW
    return Way.RECOVER


def choose_source(members: Sequence[StorageStat], own_id: str, turn: int) -> StorageStat | None:
    """The member to fetch from; another *turn* may give another one. None: nobody can now."""
    able = [
        member
        for member in members
        if member.storage_id != own_id and member.status == ACTIVE and member.rw_mode & RW_READ
    ]
    return able[turn % len(able)] if able else None


def list_entry(
    record: BinlogRecord, path_index: int, look: Callable[[Location], str | None], path_count: int
) -> BinlogRecord | None:
    """What the answer to 26 says for one binlog record, None for nothing.

    Args:
        look: what is on the disk now: None nothing, '' a regular file, else the name of the file
            that it links to.
    """
    if record.op.upper() not in _LISTED:
        return None
    try:
        location = parse_location(record.name, path_count)
    except ProtocolError:
        return None  # a store path that is not there any more
    if location.path_index != path_index:
        return None
    target = look(location)
    if target is None:
        return None
    op = ops.LINK if target else ops.CREATE
    return BinlogRecord(
        record.timestamp, op if record.is_own else op.lower(), record.name, other_name=target
    )


@dataclass(frozen=True, slots=True)
class Content:
    """What a name promises of its file's content."""

    size: int
    crc32: int


def promised_content(name: str) -> Content | None:
    """Size and checksum of a normal file, from its name; None when the name does not tell."""
    if name.endswith(METADATA_SUFFIX):
        return None
    try:
        info = decode_name(name)
    except ProtocolError:
        return None
    if info.kind is not FileKind.NORMAL or info.in_trunk or is_slave(name, info.in_trunk):
        return None
    return Content(info.size, info.crc32)

"""What a storage sends to its peers, and what their answers mean: decisions without I/O.

Source: protocol/cluster.md sections 4.3, 4.4 and 5.3 to 5.6. Records are sent with what is on the
disk when they are sent, not when they were written. So a record may find that its file has gone
(skip it, the deletion follows), or has become shorter (send what is left of it).

Beyond the reference, because records that are skipped there leave replicas different for good:

- a truncation that the peer did not carry out (17), and a rename, is followed by a look at its
  file, and by the whole file when that is another one. After a truncation the content counts: the
  size may be the same again because of what was sent meanwhile;
- a rename to a name that was deleted since is sent as the deletion of the old name;
- the deletion of a name that is in use again (a slave, metadata) is sent as the new content.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from enum import Enum, auto

from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.binlog import BinlogRecord
from fdfsfuse.proto.cluster import SyncSource
from fdfsfuse.proto.mark import Mark
from fdfsfuse.proto.tracker import ServerStatus

PUSHED = frozenset({ServerStatus.WAIT_SYNC, ServerStatus.SYNCING, ServerStatus.ACTIVE})
"""A peer in one of these is sent our changes."""
NEW = frozenset({ServerStatus.INIT, ServerStatus.WAIT_SYNC})
"""A peer in one of these has nothing of the group yet, whatever it had before."""
ENDED = frozenset({ServerStatus.DELETED, ServerStatus.IP_CHANGED, ServerStatus.NONE})


def must_ask(mark: Mark | None, status: ServerStatus) -> bool:
    """True when a tracker has to be asked (86) who makes the peer's initial copy."""
    return mark is None or status in (
        ServerStatus.INIT,
        ServerStatus.WAIT_SYNC,
        ServerStatus.SYNCING,
    )


def begin(mark: Mark | None, status: ServerStatus, own_id: str, source: SyncSource | None) -> Mark:
    """Where to begin, given the answer to 86. ``until`` without ``need_sync_old`` means: at the
    first record of that time."""
    ours = source is not None and source.source_id == own_id
    if mark is not None and status is ServerStatus.SYNCING and (mark.need_sync_old or not ours):
        return mark
    if source is None:
        return Mark()
    return Mark(need_sync_old=ours, until=source.until)


def may_push(mark: Mark, status: ServerStatus) -> bool:
    """True when a peer in *status* is sent records: others than its source wait for its copy."""
    return status in PUSHED if mark.need_sync_old else status is ServerStatus.ACTIVE


def concerns(record: BinlogRecord, mark: Mark) -> bool:
    """True when *record* is for the peer (section 4.4).

    Own changes always are. What others sent us is only part of an initial copy that we make:
    this is what keeps changes from going round. Unlike the reference we send it also when it
    reaches us after the copy is complete; otherwise nobody would.
    """
    if record.is_own:
        return True
    if not mark.need_sync_old or record.timestamp > mark.until:
        return False
    return record.op in "cdulr"


def received_until(mark: Mark) -> int:
    """Records of others that are later than this (Unix seconds) never concern the peer."""
    return mark.until if mark.need_sync_old else -1


class Send(Enum):
    """What a record is sent as."""

    SKIP = auto()
    CREATE = auto()
    UPDATE = auto()
    DELETE = auto()
    LINK = auto()
    APPEND = auto()
    MODIFY = auto()
    TRUNCATE = auto()
    RENAME = auto()


@dataclass(frozen=True, slots=True)
class Own:
    """The file of a record as it is here now."""

    size: int
    is_link: bool = False


def plan(
    record: BinlogRecord, own: Own | None, *, reusable: bool = False, again: bool = False
) -> Send:
    """What to send for *record*.

    Args:
        own: the file, None when it does not exist.
        reusable: its name may be used again for other content, as those of slaves and metadata.
            Only asked for deletions.
        again: the peer had acknowledged the record, but may have lost what it wrote: bytes are
            sent whatever the size of its file is, as far as they still exist.
    """
    kind = record.op.upper()
    if kind == ops.RENAME and own is None:
        return Send.DELETE
    if kind == ops.DELETE:
        if own is None:
            return Send.DELETE
        return Send.UPDATE if reusable and not own.is_link else Send.SKIP
    if own is None or own.is_link != (kind == ops.LINK):
        return Send.SKIP
    if kind in (ops.APPEND, ops.MODIFY):
        if own.size <= record.numbers[0] and record.numbers[1]:
            return Send.SKIP
        # What is left of bytes whose end was cut off has to be sent: the truncation brings none.
        whole = own.size >= sum(record.numbers)
        return Send.APPEND if kind == ops.APPEND and whole and not again else Send.MODIFY
    return _SIMPLE[kind]


_SIMPLE = {
    ops.CREATE: Send.CREATE,
    ops.UPDATE: Send.UPDATE,
    ops.LINK: Send.LINK,
    ops.TRUNCATE: Send.TRUNCATE,
    ops.RENAME: Send.RENAME,
}


class Next(Enum):
    """What follows on an answer."""

    DONE = auto()
    SEND_CREATE = auto()
    SEND_UPDATE = auto()
    COMPARE_SIZE = auto()
    """Ask the peer for its file's size (22); send the file whole if it is not ours."""
    COMPARE_CONTENT = auto()
    """Ask it for the size and the CRC-32 instead."""
    EXAMINE = auto()
    """The peer found that the content does not fit the name: is it our copy or the network?"""
    FAIL = auto()
    """Try again later; nothing behind it counts until then."""


def after_answer(sent: Send, status: int) -> Next:
    """What the status of an answer means for a record that was sent as *sent*."""
    if status == 0:
        # A peer that lacked a change of the old name has renamed something else than we did.
        return Next.COMPARE_SIZE if sent is Send.RENAME else Next.DONE
    if status == errno.EBADMSG:
        return Next.EXAMINE
    if status == errno.EEXIST and sent is not Send.LINK and sent is not Send.DELETE:
        return Next.COMPARE_CONTENT if sent is Send.TRUNCATE else Next.DONE
    if status == errno.ENOENT:
        if sent is Send.DELETE:
            return Next.DONE
        if sent in (Send.APPEND, Send.MODIFY):
            return Next.SEND_UPDATE
        if sent in (Send.RENAME, Send.TRUNCATE):
            return Next.SEND_CREATE
    return Next.FAIL

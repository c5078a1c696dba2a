"""What a storage does with the changes that its peers send: decisions without I/O.

Source: protocol/cluster.md sections 5.3 to 5.6, and beyond it: records come repeated (after a
restart of either side) and overtake each other (two members change the same file, and a third
hears of it in another order), so what is on the disk may be newer than what arrives.

How the better of two copies is told:

==================== =========================================================================
file                 the better copy
==================== =========================================================================
normal               size and CRC-32 are in its name: the one that fits. One that does not is
                     never stored
deleted              names are given once, so a normal file or an appender that was deleted
                     stays deleted; of others (slaves, metadata) the later change counts
slave, metadata      the one with the later time (file time, timestamp of the record)
appender             grows by records that follow, so a whole copy replaces it only when that is
                     longer and nothing was appended here since; an update (18) always does
==================== =========================================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum, auto

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.fileid import (
    METADATA_SUFFIX,
    NORMAL_NAME_LENGTH,
    TRUNK_NAME_LENGTH,
    FileKind,
    decode_name,
)

_SUFFIX = re.compile(r"\d{7}\Z|\d{0,5}\.[A-Za-z0-9._-]{1,6}\Z")


class Nature(Enum):
    """What the name of a file says about its content."""

    FIXED = auto()
    """It never changes, and its size and CRC-32 are in the name."""
    GROWING = auto()
    """An appender."""
    REPLACED = auto()
    """Metadata or a slave: a name that may be used again for other content."""


@dataclass(frozen=True, slots=True)
class Subject:
    """A file by its name. ``size`` and ``crc32`` count for FIXED ones only."""

    nature: Nature
    size: int = 0
    crc32: int = 0


_REPLACED = Subject(Nature.REPLACED)
_GROWING = Subject(Nature.GROWING)


def subject_of(name: str) -> Subject:
    """Classify a file name with ``Mxx/``.

    Short slaves look like normal files but for their last seven characters, as far as these tell.
    """
    if name.endswith(METADATA_SUFFIX):
        return _REPLACED
    try:
        info = decode_name(name)
    except ProtocolError:
        return _REPLACED
    if info.kind is FileKind.APPENDER:
        return _GROWING
    in_trunk = info.in_trunk and len(name) == TRUNK_NAME_LENGTH
    usual = len(name) == NORMAL_NAME_LENGTH and _SUFFIX.match(name[-7:])
    if info.kind is FileKind.SLAVE or not (in_trunk or usual):
        return _REPLACED
    return Subject(Nature.FIXED, info.size, info.crc32)


@dataclass(frozen=True, slots=True)
class Found:
    """The regular file that is on the disk: bytes, and file time in Unix seconds."""

    size: int
    mtime: int


class Verdict(Enum):
    """What to do with a whole file that a peer sends."""

    STORE = auto()
    KEEP = auto()
    """Drop what arrives: what is here is as good or better. Answered with 17."""
    COMPARE = auto()
    """Store it only if what is here does not fit the name (FIXED) or is not the same (others)."""
    REFUSE = auto()
    """It cannot be right: an error to the sender."""


def judge_whole(
    subject: Subject,
    size: int,
    timestamp: int,
    found: Found | None,
    deleted_at: int | None,
    *,
    update: bool,
    deleted_elsewhere: bool = False,
    orphaned: bool = False,
) -> Verdict:
    """A whole file of *size* bytes (16; *update*: 18) whose record has *timestamp*.

    Args:
        found: what has the name here, None when there is no regular file.
        deleted_at: when the name was deleted here last, by us or for a peer; None if it is not
            known to have been.
        deleted_elsewhere: the deletion was made at another member than the sender. Of two
            changes in one second it counts as the later one: a sender that makes again what it
            has deleted sends both in their order.
        orphaned: it is metadata, and its file was deleted (`is_orphaned`).
    """
    if orphaned:
        return Verdict.KEEP
    nature = subject.nature
    if found is None and stays_deleted(nature, timestamp, deleted_at, elsewhere=deleted_elsewhere):
        return Verdict.KEEP
    if nature is Nature.FIXED:
        if found is not None and found.size == subject.size:
            return Verdict.COMPARE
        return Verdict.STORE if size == subject.size else Verdict.REFUSE
    if found is None:
        return Verdict.STORE
    if nature is Nature.GROWING:
        if update or (found.size < size and found.mtime <= timestamp):
            return Verdict.STORE
        return Verdict.KEEP
    if timestamp < found.mtime:
        return Verdict.KEEP
    return Verdict.COMPARE if found.size == size else Verdict.STORE


def stays_deleted(
    nature: Nature, timestamp: int, deleted_at: int | None, *, elsewhere: bool
) -> bool:
    """True when a name is not to be made (again) by a record of *timestamp*.

    ``deleted_at`` and ``elsewhere``: as in `judge_whole`.
    """
    if deleted_at is None:
        return False
    return nature is not Nature.REPLACED or timestamp < deleted_at + elsewhere


def outlives(nature: Nature, found: Found | None, timestamp: int) -> bool:
    """True when a file was made or changed later than it was deleted elsewhere, at *timestamp*.

    Of two changes in one second the deletion counts as the later one.
    """
    return nature is Nature.REPLACED and found is not None and found.mtime > timestamp


def is_orphaned(master: Subject, timestamp: int, deleted_at: int | None, *, exists: bool) -> bool:
    """True for metadata that was set, on another member, before its file was deleted.

    Args:
        master: the file that it belongs to.
        timestamp: of the metadata's record.
        deleted_at: when the file was deleted here last, None if it is not known to have been.
        exists: the file is here.
    """
    if exists or deleted_at is None:
        return False
    # A slave may be made again, and its metadata may come before it.
    return master.nature is not Nature.REPLACED or timestamp <= deleted_at


class RangeVerdict(Enum):
    """What to do with a part of a file that a peer sends."""

    WRITE = auto()
    DONE = auto()
    """It is there already. Answered with 17."""
    MISSING = auto()
    """The file is missing or too short: the sender has to send it whole. Answered with 2."""


def judge_append(offset: int, length: int, found_size: int | None) -> RangeVerdict:
    """25: *length* bytes at *offset* of a file that has *found_size* here (None: no file)."""
    if found_size is None:
        return RangeVerdict.MISSING
    if found_size == offset:
        return RangeVerdict.WRITE
    return RangeVerdict.DONE if found_size >= offset + length else RangeVerdict.MISSING


def judge_modify(offset: int, found_size: int | None, *, holes: bool = False) -> RangeVerdict:
    """35: bytes at *offset* of a file that has *found_size* here (None: no file).

    With *holes*, bytes may be written behind the end: storages of our own kind let mounts write in
    any order and send everything in the order in which it was done, so what lacks now follows.
    """
    if found_size is None or (found_size < offset and not holes):
        return RangeVerdict.MISSING
    return RangeVerdict.WRITE


def judge_truncate(old_size: int, found_size: int | None) -> RangeVerdict:
    """37. A missing file is not an error: C senders would try for ever."""
    return RangeVerdict.WRITE if found_size == old_size else RangeVerdict.DONE

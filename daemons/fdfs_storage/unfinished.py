"""At start: what was logged before a crash, but not done any more (see `fdfs_storage.store`), and
what was done, but not logged any more (see `fdfs_storage.intents`).
"""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from fdfs_storage.files import unlink_quietly
from fdfsfuse.core.replicas import Nature, subject_of
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.binlog import BinlogRecord
from fdfsfuse.proto.fileid import METADATA_SUFFIX, Location, time_of_name

if TYPE_CHECKING:
    from fdfs_storage.store import Store

logger = logging.getLogger(__name__)


def finish_interrupted(store: Store) -> None:
    """Carry out what is the last record of its object and was logged before a crash only."""
    records = store.binlog.tail()
    if records:
        _take_back_part(store, records[-1])
    last: dict[str, BinlogRecord] = {}
    for record in records:
        last.pop(record.name, None)
        last[record.name] = record
    order = {name: number for number, name in enumerate(last)}
    for record in last.values():
        if not record.is_own:
            continue
        try:
            location = store.locate(record.name)
            if record.op == ops.RENAME:
                _finish_rename(store, store.locate(record.other_name), location)
            elif record.op == ops.DELETE:
                _finish_deletion(store, location)
                metadata = f"{record.name}{METADATA_SUFFIX}"
                # Later metadata is that of a file which is about to be made again.
                if order.get(metadata, -1) < order[record.name]:
                    store.write_metadata(location, b"")
            elif record.op == ops.TRUNCATE:
                _finish_truncation(store, location, *record.numbers)
        except (ProtocolError, StatusError, OSError):
            continue


def finish_changes(store: Store) -> None:
    """Log what was written of objects before a crash and is not logged; take appends back.

    A modification may be logged twice by that: the same bytes may have been written before, so a
    line in the binlog need not be that of this one.
    """
    left = store.intents.take_left()
    last = {record.name: record for record in store.binlog.tail() if record.is_own}
    for name, offset, length, old_size, append in left:
        record = last.get(name)
        try:
            location = store.locate(name)
            size = store.stat(location).st_size
            if append and record is not None and _is_of(record, offset, length):
                continue
            if append and size > old_size:
                logger.info("taking back what a client was appending to %s", name)
                os.truncate(store.path(location), old_size)
            elif not append and size > offset:
                logger.info("logging what a client was writing to %s", name)
                store.appenders.record_write(location, offset, min(length, size - offset), old_size)
        except (ProtocolError, StatusError, OSError) as exc:
            logger.warning("an interrupted change of %s: %s", name, exc)
    store.intents.clear()


def _take_back_part(store: Store, record: BinlogRecord) -> None:
    """Remove what *record*, the last one, has made if its content is not whole.

    That is not logged: after a loss of power, peers may have the whole file. What a peer was
    sending it sends again. What is longer than its name tells, or was not made when that says, is
    no part: a stock peer has sent it so, or it is a slave that looks like a normal file.
    """
    if record.op.upper() != ops.CREATE:
        return
    try:
        location, subject = store.locate(record.name), subject_of(record.name)
        if subject.nature is not Nature.FIXED or store.slot(location) is not None:
            return
        if record.timestamp != time_of_name(record.name):
            return
        if store.stat(location).st_size < subject.size:
            store.remove(location)
            logger.info("removed a part of %s, which a crash had cut off", record.name)
    except (ProtocolError, StatusError, OSError):
        pass  # it is no upload, or there is nothing of it


def _is_of(record: BinlogRecord, offset: int, length: int) -> bool:
    return record.op in (ops.APPEND, ops.MODIFY) and record.numbers == (offset, length)


def _finish_rename(store: Store, old: Location, new: Location) -> None:
    if not os.path.lexists(store.path(new)):
        store.rename(old, new)
        logger.info("finished renaming %s to %s", old.name, new.name)
    else:
        store.write_metadata(old, b"")


def _finish_deletion(store: Store, location: Location) -> None:
    path = store.path(location)
    slot = store.slot(location)
    if slot is not None and slot.exists():
        logger.info("finishing the deletion of %s", location.name)
        slot.clear()
    elif os.path.lexists(path):
        logger.info("finishing the deletion of %s", location.name)
        unlink_quietly(path)


def _finish_truncation(store: Store, location: Location, old_size: int, size: int) -> None:
    path = store.path(location)
    if os.lstat(path).st_size == old_size:
        logger.info("finishing the truncation of %s", location.name)
        os.truncate(path, size)

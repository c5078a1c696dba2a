"""At start: what was logged before a crash, but not done any more (see `fdfs_storage.store`)."""

from __future__ import annotations

import logging
import os
from typing import TYPE_CHECKING

from fdfs_storage.files import unlink_quietly
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.binlog import BinlogRecord
from fdfsfuse.proto.fileid import METADATA_SUFFIX, Location

if TYPE_CHECKING:
    from fdfs_storage.store import Store

logger = logging.getLogger(__name__)


def finish_interrupted(store: Store) -> None:
    """Carry out what is the last record of its object and was logged before a crash only."""
    last: dict[str, BinlogRecord] = {}
    for record in store.binlog.tail():
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

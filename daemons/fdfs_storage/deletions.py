"""Deleting objects; in which order, and why: `fdfs_storage.store`."""

from __future__ import annotations

import errno
import logging
import os
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import trio

from fdfs_storage.changes import Changes
from fdfs_storage.files import status_of, unlink_quietly
from fdfs_storage.metadata_files import MetadataFiles, deletion_time
from fdfs_storage.paths import Paths, metadata_location
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.fileid import METADATA_SUFFIX, Location, is_slave
from fdfsfuse.proto.trunk import is_trunk_name

if TYPE_CHECKING:
    from fdfs_storage.trunk import SlotPlace

logger = logging.getLogger(__name__)

_LARGE: Final = 16 << 20
_ON_DISK_S: Final = 30
"""Kernels have written a file by then. Unlinking it waits for the disk where freed blocks are
discarded: half a millisecond, where one that has no blocks yet takes 20 us."""
_DOOMED_MAX: Final = 1024


class Deletions:
    """Deletes the objects of a store.

    Args:
        wake: called when there is something for `finish`.
    """

    def __init__(
        self,
        paths: Paths,
        changes: Changes,
        metadata: MetadataFiles,
        wake: Callable[[], None],
    ) -> None:
        self._paths = paths
        self._changes = changes
        self._metadata = metadata
        self._wake = wake
        self._doomed: list[str] = []

    async def finish(self) -> None:
        """Give back the blocks of files that have lost their names."""
        doomed, self._doomed = self._doomed, []
        if doomed:
            await trio.to_thread.run_sync(_unlink_all, doomed)

    def close(self) -> None:
        """`finish`, without a thread."""
        doomed, self._doomed = self._doomed, []
        _unlink_all(doomed)

    def delete(self, location: Location) -> None:
        """Delete the object and its metadata.

        A slave that a C server stored as a link takes the file with it that it points to.

        Raises:
            StatusError: 2 it does not exist, 22 it is neither a file nor a link, 5.
        """
        path = self._paths.of(location)
        if is_trunk_name(location) and (slot := self._paths.slot(location)) is not None:
            self._delete_slot(location, slot)
            return
        try:
            info = os.lstat(path)
            mode = info.st_mode
            if not stat.S_ISREG(mode):
                if not stat.S_ISLNK(mode):
                    raise StatusError(errno.EINVAL, "neither a file nor a link")
                if is_slave(location.name, in_trunk=False):
                    self._delete_link_target(location)
            has_metadata = os.access(path + METADATA_SUFFIX, os.F_OK)
            now = time.time()
            timestamp = int(now)
            # Names of other files are given once, whatever their times say.
            if info.st_mtime > now and is_slave(location.name, in_trunk=False):
                timestamp = deletion_time(info)
            changes = self._changes
            changes.log(ops.DELETE, location, timestamp)
            self._unlink(location, path, info, now)
            changes.notify(ops.DELETE, location)
            if has_metadata:
                self._metadata.delete(metadata_location(location))
        except StatusError:
            raise
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def _delete_slot(self, location: Location, slot: SlotPlace) -> None:
        slot.stat()
        metadata = metadata_location(location)
        try:
            self._changes.log(ops.DELETE, location)
            slot.clear()
            self._changes.notify(ops.DELETE, location)
            if os.access(self._paths.of(metadata), os.F_OK):
                self._metadata.delete(metadata)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc

    def remove(self, location: Location) -> bool:
        """Remove the object's file, link or slot and log nothing; False when there is none.

        Raises OSError, StatusError.
        """
        slot = self._paths.slot(location)
        if slot is not None and slot.exists():
            slot.clear()
            return True
        path = self._paths.of(location)
        try:
            self._unlink(location, path, os.lstat(path), time.time())
        except FileNotFoundError:
            return False
        return True

    def _unlink(self, location: Location, path: str, info: os.stat_result, now: float) -> None:
        """Unlink; what takes long loses its name here and its blocks in the background."""
        at_once = info.st_size < _LARGE and now - info.st_ctime < _ON_DISK_S
        if at_once or len(self._doomed) >= _DOOMED_MAX or not stat.S_ISREG(info.st_mode):
            os.unlink(path)
            return
        temporary = self._paths.temporary(location.path_index)
        try:
            os.rename(path, temporary)
        except OSError:
            # Another name may need a block, which a full disk does not have: this gives some back.
            os.unlink(path)
            return
        self._doomed.append(temporary)
        self._wake()

    def _delete_link_target(self, link: Location) -> None:
        target = self._paths.link_target(link)
        if target is not None:
            try:
                self.delete(target)
            except StatusError as exc:
                logger.warning("%s, which a deleted link pointed to, stays: %s", target.name, exc)


def _unlink_all(paths: list[str]) -> None:
    for path in paths:
        unlink_quietly(path)

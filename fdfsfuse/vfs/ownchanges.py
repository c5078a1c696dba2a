"""Changes that this mount answers itself, before the storage has; none is of content.

In a directory of which it has the grant (`names.Grant`) nobody else can come between, so the mount
can tell what becomes of a change there as well as the storage. Nor does anybody know of what it has
made there since, so the same goes for attributes and xattrs of that. It sends the change, and the
program goes on at once; the storage carries out what it gets in the order of sending, whatever
happens to the connection or to this process. A change says which inodes it is about, so that it
does nothing else when it arrives late. What was not answered yet is waited for

* by requests of this mount that read, as the storage would still show them what was before;
* when the grant is recalled, because another mount wants to look;
* by fsync of a file or a directory.

A change that the storage refuses after all, for example because its disk is full, is told to the
next fsync of the directory or file, and changes are waited for again for a while. See the names
protocol in the documentation.
"""

from __future__ import annotations

import errno
import logging
import stat
import time
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from msgspec.structs import replace
from trio.lowlevel import ParkingLot

from fdfsfuse.core import acl
from fdfsfuse.errors import StatusError, UsageError
from fdfsfuse.proto import names
from fdfsfuse.proto.names import Attr
from fdfsfuse.vfs.directory import MISSING
from fdfsfuse.vfs.flights import directories_of
from fdfsfuse.vfs.ownfiles import entries_of, may_be_foreseen, may_be_refused

if TYPE_CHECKING:
    from fdfsfuse.vfs.context import Context
    from fdfsfuse.vfs.volume import Volume

log = logging.getLogger(__name__)

UNANSWERED_MAX: Final = 256
"""Another mount that looks has to wait for all of them."""
_SLOW_S: Final = 1.0
_SUSPENDED_S: Final = 5.0
_RENAME_NOREPLACE: Final = 1
_ERRORS_MAX: Final = 1000
_TIME_MIN_NS: Final = -(1 << 63)
_TIME_MAX_NS: Final = (1 << 63) - 1
_IN_TURN: Final = (
    names.Create,
    names.CreateFile,
    names.Remove,
    names.Rename,
    names.Link,
    names.SetAttr,
    names.SetXattr,
    names.RemoveXattr,
    names.StoreContent,
    names.NewObject,
    names.ReserveInodes,
    names.Grant,
)


def is_in_turn(request: names.Request) -> bool:
    """Whether the storage carries *request* out behind the changes that it got before.

    All others show what has been made so far.
    """
    return isinstance(request, _IN_TURN)


class OwnChanges:
    """The changes of a volume that were answered here and not by the storage.

    Attributes:
        count: how many there have been.
        refused: how many of them the storage has refused.
    """

    def __init__(self, context: Context, volume: Volume) -> None:
        self.count = 0
        self.refused = 0
        self._context = context
        self._volume = volume
        self._unanswered: dict[int, float] = {}
        self._oldest = 1
        self._answered = ParkingLot()
        self._waiting = 0
        self._asked: set[int] = set()
        self._suspended_until = float("-inf")
        self._errors: dict[int, int] = {}

    def __bool__(self) -> bool:
        return bool(self._unanswered)

    def __len__(self) -> int:
        return len(self._unanswered)

    # --- changes ---------------------------------------------------------------------------------

    async def create(self, request: names.Create) -> Attr | None:
        """mkdir, symlink and mknod.

        None, here and below: the storage has to be waited for.
        """
        own_files, memory = self._volume.own_files, self._volume.memory
        if stat.S_ISREG(request.mode) and request.parent not in memory.granted:
            return None  # open() has asked for it, if that was of use
        if not self._may(request.parent):
            return None
        if not own_files.has_numbers:
            await own_files.reserve()
            if not self._may(request.parent):
                return None
        ino = own_files.take_number(request.parent, request.name)
        directory = memory.attr(request.parent)
        if not ino or directory is None:
            return None
        request = replace(request, ino=ino)
        attr = request.made_in(directory.mode, directory.gid, ino)
        if not self._send(request, attr):
            await self._volume.wait_for_changes()
        return attr

    async def remove(self, request: names.Remove) -> Attr | None:
        """unlink and rmdir."""
        memory = self._volume.memory
        if not self._may(request.parent):
            return None
        attr = self._only_name(request.parent, request.name)
        if attr is None or stat.S_ISDIR(attr.mode) != request.directory:
            return None
        if request.directory and not (self._is_granted(attr.ino) and memory.is_empty(attr.ino)):
            return None
        request = replace(request, ino=attr.ino)
        if self._volume.own_files.concerned(request):
            return None
        answer = names.unlinked(attr, request.now_ns)
        if not self._send(request, answer):
            await self._volume.wait_for_changes()
        return answer

    async def rename(self, request: names.Rename) -> names.Renamed | None:
        """rename, perhaps over a file."""
        old, new = (request.parent, request.name), (request.new_parent, request.new_name)
        if request.flags & ~_RENAME_NOREPLACE or old == new:
            return None
        if may_be_refused(*new):
            return None
        if not (self._may(request.parent) and self._is_granted(request.new_parent)):
            return None
        moved = self._only_name(*old)
        there = self._volume.memory.lookup(*new)
        if moved is None or there is None:
            return None
        is_directory = stat.S_ISDIR(moved.mode)
        if is_directory and request.parent != request.new_parent:
            return None  # whether it would go into itself the storage knows
        replaced: Attr | None = None
        if there != MISSING:
            replaced = self._only_name(*new)
            if replaced is None or request.flags or is_directory or stat.S_ISDIR(replaced.mode):
                return None
        request = replace(request, ino=moved.ino, replaces=there)
        if self._volume.own_files.concerned(request):
            return None
        answer = names.Renamed(
            replace(moved, ctime_ns=request.now_ns),
            None if replaced is None else names.unlinked(replaced, request.now_ns),
        )
        if not self._send(request, answer):
            await self._volume.wait_for_changes()
        return answer

    async def set_attributes(self, request: names.SetAttr) -> Attr | None:
        """chmod, chown and utimens."""
        attr = self._secret(request.ino)
        if attr is None:
            return None
        xattrs = self._volume.memory.xattrs(request.ino)
        if request.mode is not None and (xattrs is None or acl.ACCESS in xattrs):
            return None
        if self._volume.own_files.concerned(request):
            return None
        times = (request.atime_ns, request.mtime_ns)
        if not all(t is None or _TIME_MIN_NS <= t <= _TIME_MAX_NS for t in times):
            return None
        request = replace(request, granted=True)
        answer = request.applied_to(attr)
        if not self._send(request, answer):
            await self._volume.wait_for_changes()
        return answer

    async def change_xattr(self, request: names.SetXattr | names.RemoveXattr) -> bool:
        """setxattr and removexattr, not of an ACL. False: the storage has to be waited for."""
        xattrs = self._volume.memory.xattrs(request.ino)
        if xattrs is None or not may_be_foreseen(request, xattrs):
            return False
        attr = self._secret(request.ino)
        if attr is None or self._volume.own_files.concerned(request):
            return False
        if not self._send(replace(request, granted=True), attr):
            await self._volume.wait_for_changes()
        return True

    def _secret(self, ino: int) -> Attr | None:
        """An inode, if nobody else can know of it and changes of it may be answered here."""
        memory = self._volume.memory
        attr = memory.attr(ino)
        if attr is None:
            return None
        if stat.S_ISDIR(attr.mode):
            return attr if self._may(ino) else None
        return attr if memory.is_secret(ino) and self._may(memory.parent(ino)) else None

    def _may(self, directory: int) -> bool:
        """Whether changes in a directory may be answered here. If only for want of its grant, that
        is asked for.
        """
        volume, unanswered = self._volume, self._unanswered
        if self._context.options.dirsync or self._waiting:
            return False
        if volume.down or not volume.backend.is_prompt:
            return False
        now = time.monotonic()
        if now < self._suspended_until or len(unanswered) >= UNANSWERED_MAX:
            return False
        if unanswered:
            # Not the dict's first key: a dict searches it past all that were removed before.
            while self._oldest not in unanswered:
                self._oldest += 1
            if now - unanswered[self._oldest] > _SLOW_S:
                return False
        return self._is_granted(directory)

    def _is_granted(self, directory: int) -> bool:
        """Whether the mount has the grant of a directory; else that is asked for."""
        if directory in self._volume.memory.granted:
            return True
        self._ask_for(directory)
        return False

    def _only_name(self, parent: int, name: bytes) -> Attr | None:
        """The inode that a name stands for, if it has no other name by which others may look."""
        memory = self._volume.memory
        ino = memory.lookup(parent, name)
        attr = memory.attr(ino) if ino else None
        if attr is None or (attr.nlink != 1 and not stat.S_ISDIR(attr.mode)):
            return None
        return attr

    def _ask_for(self, directory: int) -> None:
        """Ask for a grant behind the change that is made now."""
        if directory not in self._asked and self._volume.own_files.may_ask_for(directory):
            self._asked.add(directory)
            self._context.spawn(self._ask, directory)

    async def _ask(self, directory: int) -> None:
        try:
            await self._volume.own_files.ask_for(directory)
        finally:
            self._asked.discard(directory)

    # --- answers ---------------------------------------------------------------------------------

    def _send(self, request: Any, answer: Any) -> bool:
        """Send a change and foresee its answer. False: wait, it would be lost with this process."""
        memory = self._volume.memory
        memory.flights.foresee(request, answer)
        memory.changed_here(request, answer)
        self.count = number = self.count + 1
        self._unanswered[number] = time.monotonic()
        return self._volume.backend.post(request, partial(self._ended, number, request))

    def _ended(self, number: int, request: names.Request, error: Exception | None) -> None:
        del self._unanswered[number]
        if error is not None:
            self._refuse(request, error)
        if self._waiting:
            self._answered.unpark_all()

    def _refuse(self, request: names.Request, error: Exception) -> None:
        volume = self._volume
        self.refused += 1
        self._suspended_until = time.monotonic() + _SUSPENDED_S
        log.error(
            "%s: a change that was answered already could not be made: %s: %s",
            volume.name.decode("ascii", "replace"),
            request,
            error,
        )
        if isinstance(error, UsageError):
            return  # the mount ends
        directories = directories_of(request)
        status = error.errno if isinstance(error, StatusError) else None
        for directory in directories:
            if len(self._errors) < _ERRORS_MAX:
                self._errors[directory] = status or errno.EIO
        inos = {*directories, *_inodes(request)}
        volume.memory.revoke(inos)
        volume.recalls.never_made(inos, entries_of(request))

    async def wait(self) -> None:
        """Wait until the storage has answered everything; meanwhile nothing is answered here."""
        if not self._unanswered:
            return  # there may not even be a session yet
        self._waiting += 1
        self._volume.backend.hurry()
        try:
            while self._unanswered:
                await self._answered.park()
        finally:
            self._waiting -= 1

    def take_error(self, ino: int) -> int:
        """The errno of a change of it, or in the directory, that was refused, once; 0: none."""
        return self._errors.pop(ino, 0)


def _inodes(request: Any) -> tuple[int, ...]:
    """The inodes that a change is about."""
    if isinstance(request, names.Rename):
        return (request.ino, request.replaces) if request.replaces else (request.ino,)
    return (request.ino,)

"""Changes of names and attributes that the mount answers before the storage has made them.

While a mount holds the grant of a directory (`names.Grant`) no other mount can see or change it, so
the mount knows the outcome of a change there as well as the storage does. The same holds for the
attributes and xattrs of inodes that it has made there since: nobody else knows of them. It sends
the change and lets the program go on at once. The storage carries changes out in the order in which
they were sent, even if the connection breaks or this process dies. Each change names the inodes it
is about, so one that arrives late cannot hit another inode. Changes of content are never answered
this way.

Changes without an answer yet are waited for

* by requests of this mount that read: the storage would still show the state before the changes;
* when the grant is recalled, because another mount wants to look;
* by fsync of a file or a directory.

If the storage refuses a change after all, for example because its disk is full, the next fsync of
the file or directory fails with that error, and for some seconds every change waits for the storage
again. See the names protocol in the documentation.
"""

from __future__ import annotations

import errno
import logging
import stat
import time
from functools import partial
from typing import TYPE_CHECKING, Final, TypeAlias

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

UNANSWERED_MAX: Final = 1024
"""Changes under way at a time: another mount that wants to look waits for all of them."""
_SLOW_S: Final = 1.0
"""While the oldest change has had no answer for so long, further ones wait for theirs."""
_SUSPENDED_S: Final = 5.0
"""How long changes wait for their answers after the storage has refused one."""
_ERRORS_MAX: Final = 1000
"""Inodes whose refused changes are remembered for fsync."""
_RENAME_NOREPLACE: Final = 1
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
"""Requests that the storage carries out after the changes that it was sent before."""
_Change: TypeAlias = (
    names.Create | names.Remove | names.Rename | names.SetAttr | names.SetXattr | names.RemoveXattr
)


def is_in_turn(request: names.Request) -> bool:
    """Whether the storage carries *request* out after all changes that were sent before it.

    Any other request may be answered earlier, with the state before these changes.
    """
    return isinstance(request, _IN_TURN)


class OwnChanges:
    """The changes of one volume that the mount answers itself.

    The methods named after a change send it, and return what the storage will answer. They return
    None, or False, and send nothing if the caller has to ask the storage.

    Attributes:
        count: changes answered here since the mount began.
        refused: how many of these the storage has refused.
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
        """mkdir, symlink and mknod."""
        own_files, memory = self._volume.own_files, self._volume.memory
        if stat.S_ISREG(request.mode) and request.parent not in memory.granted:
            return None  # the create before has asked for the grant, if it was worth having
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
        await self._send(request, attr)
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
        await self._send(request, answer)
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
            return None  # only the storage can tell whether it would move below itself
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
        await self._send(request, answer)
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
        await self._send(request, answer)
        return answer

    async def change_xattr(self, request: names.SetXattr | names.RemoveXattr) -> bool:
        """setxattr and removexattr, except of ACLs. Returns whether the change was sent."""
        xattrs = self._volume.memory.xattrs(request.ino)
        if xattrs is None or not may_be_foreseen(request, xattrs):
            return False
        attr = self._secret(request.ino)
        if attr is None or self._volume.own_files.concerned(request):
            return False
        await self._send(replace(request, granted=True), attr)
        return True

    def _secret(self, ino: int) -> Attr | None:
        """The attributes of an inode that nobody else can know of, if it may be changed here."""
        memory = self._volume.memory
        attr = memory.attr(ino)
        if attr is None:
            return None
        if stat.S_ISDIR(attr.mode):
            return attr if self._may(ino) else None
        return attr if memory.is_secret(ino) and self._may(memory.parent(ino)) else None

    def _may(self, directory: int) -> bool:
        """Whether changes in *directory* may be answered here; asks for a missing grant."""
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
        """Whether the mount has the grant of *directory*; if not, it is asked for."""
        if directory in self._volume.memory.granted:
            return True
        self._ask_for(directory)
        return False

    def _only_name(self, parent: int, name: bytes) -> Attr | None:
        """The inode behind a name if it has no other name, by which other mounts may find it."""
        memory = self._volume.memory
        ino = memory.lookup(parent, name)
        attr = memory.attr(ino) if ino else None
        if attr is None or (attr.nlink != 1 and not stat.S_ISDIR(attr.mode)):
            return None
        return attr

    def _ask_for(self, directory: int) -> None:
        """Ask for a grant in the background, while the present change goes its usual way."""
        if directory not in self._asked and self._volume.own_files.may_ask_for(directory):
            self._asked.add(directory)
            self._context.spawn(self._ask, directory)

    async def _ask(self, directory: int) -> None:
        try:
            await self._volume.own_files.ask_for(directory)
        finally:
            self._asked.discard(directory)

    # --- answers ---------------------------------------------------------------------------------

    async def _send(self, request: _Change, answer: Attr | names.Renamed) -> None:
        """Send a change whose *answer* is known, and remember what it has changed.

        Returns at once if the change will arrive even if this process is killed now; otherwise
        when the storage has made it.
        """
        memory = self._volume.memory
        memory.flights.foresee(request, answer)
        memory.changed_here(request, answer)
        self.count = number = self.count + 1
        self._unanswered[number] = time.monotonic()
        if not self._volume.backend.post(request, partial(self._ended, number, request)):
            await self._volume.wait_for_changes()

    def _ended(self, number: int, request: _Change, error: Exception | None) -> None:
        del self._unanswered[number]
        if error is not None:
            self._refuse(request, error)
        if self._waiting:
            self._answered.unpark_all()

    def _refuse(self, request: _Change, error: Exception) -> None:
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
            return  # not refused: the session was closed, as the mount ends
        directories = directories_of(request)
        status = error.errno if isinstance(error, StatusError) else None
        for directory in directories:
            if len(self._errors) < _ERRORS_MAX:
                self._errors[directory] = status or errno.EIO
        inos = {*directories, *_inodes(request)}
        volume.memory.revoke(inos)
        volume.recalls.never_made(inos, entries_of(request))

    async def wait(self) -> None:
        """Wait until the storage has answered all changes. Meanwhile none is answered here."""
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
        """The errno with which a change of *ino* or in it was refused, only once; 0 for none."""
        return self._errors.pop(ino, 0)


def _inodes(request: _Change) -> tuple[int, ...]:
    """The inodes that *request*, a change that was sent, is about."""
    if isinstance(request, names.Rename):
        return (request.ino, request.replaces) if request.replaces else (request.ino,)
    return (request.ino,)

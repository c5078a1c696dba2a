"""Files that this mount makes on its own, before the storage is told of them.

In a directory of which it has the grant (`names.Grant`) a mount answers a create() itself: the
file is *unborn*. Like any content that is not stored yet it lives in a `FileState`, which is told
to the storage, name, attributes, xattrs and content at once (`names.CreateFile`),

* with the flush or fsync of it, and when it was kept open for a while;
* before a request of this mount that concerns it, or lists its directory, is sent;
* when the grant is recalled, because another mount wants to look.

What a mount that dies had not flushed is lost, the file along with it. See the names protocol in
the documentation.
"""

from __future__ import annotations

import errno
import stat
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, Final

import trio

from fdfsfuse.core import acl
from fdfsfuse.core.recent import Recent
from fdfsfuse.errors import ConnectFailed, StatusError
from fdfsfuse.proto import names
from fdfsfuse.proto.names import Attr
from fdfsfuse.vfs.directory import MISSING
from fdfsfuse.vfs.lock import Lock

if TYPE_CHECKING:
    from fdfsfuse.vfs.files import FileState
    from fdfsfuse.vfs.volume import Volume

UNBORN_MAX: Final = 1000
"""Files that may be unborn at a time: another mount that looks waits for all in a directory."""
_BLOCK: Final = 1024
_REFUSED_S: Final = 1.0
_REFUSED_MAX: Final = 1024
_NOT_CONCERNED: Final = (names.CreateFile, names.Grant, names.ReserveInodes)


class OwnFiles:
    """The unborn files of a volume, and numbers for more of them."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._by_ino: dict[int, FileState] = {}
        self._by_name: dict[tuple[int, bytes], FileState] = {}
        self._refused: Recent[int, float] = Recent(_REFUSED_MAX)
        self._reserving = Lock()
        self._next = self._end = 0
        self._session = 0

    def __bool__(self) -> bool:
        return bool(self._by_ino)

    # --- may we? ---------------------------------------------------------------------------------

    async def number_for(self, parent: int, name: bytes) -> int:
        """The number for a file that this mount may make on its own; 0: the storage has to."""
        granted = self._volume.memory.granted
        if parent not in granted or not self.has_numbers:
            if not self._may_make(parent, name):
                return 0
            if parent not in granted and not await self.ask_for(parent):
                return 0
            await self.reserve()
        return self.take_number(parent, name)

    @property
    def has_numbers(self) -> bool:
        """Whether there are numbers left for new inodes."""
        return self._next < self._end

    def take_number(self, parent: int, name: bytes) -> int:
        """The number for something that is made without asking; 0: it may not be, or none left."""
        granted = self._volume.memory.granted
        if parent not in granted or self._next == self._end or not self._may_make(parent, name):
            return 0
        self._next += 1
        return self._next - 1

    def _may_make(self, parent: int, name: bytes) -> bool:
        """Whether there could be something new under a name, given the grant of its directory."""
        volume, memory = self._volume, self._volume.memory
        return (
            memory.lookup(parent, name) == MISSING
            and (parent, name) not in self._by_name
            and memory.attr(parent) is not None
            and not may_be_refused(parent, name)
            and len(self._by_ino) < UNBORN_MAX
            and not volume.down
            and volume.backend.connected
        )

    def may_ask_for(self, directory: int) -> bool:
        """Whether the grant of a directory was not refused just now."""
        now = time.monotonic()
        return self._refused.get(directory, now) <= now

    async def ask_for(self, directory: int) -> bool:
        """Ask for the grant of a directory, unless it was refused just now. Whether it is given."""
        if not self.may_ask_for(directory):
            return False
        try:
            await self._volume.call(names.Grant(directory))
        except StatusError:
            self._refused[directory] = time.monotonic() + _REFUSED_S
            return False
        return True

    async def reserve(self) -> None:
        """Ask for numbers, unless there are some left."""
        async with self._reserving:
            if self.has_numbers:
                return
            session = self._session
            reserved: names.Reserved = await self._volume.call(names.ReserveInodes(_BLOCK))
            if session == self._session:
                self._next, self._end = reserved.first, reserved.first + reserved.count

    def lost(self) -> list[FileState]:
        """The lease is lost: numbers are the session's. The files that are unborn now."""
        self._session += 1
        self._next = self._end = 0
        return list(self._by_ino.values())

    # --- what is unborn --------------------------------------------------------------------------

    def add(self, parent: int, name: bytes, state: FileState) -> None:
        """A file was made."""
        self._by_ino[state.ino] = self._by_name[parent, name] = state

    def remove(self, parent: int, name: bytes, state: FileState) -> None:
        """The storage has the file, or it never will."""
        del self._by_ino[state.ino], self._by_name[parent, name]

    def inside(self, directories: Collection[int] | None) -> list[FileState]:
        """The files in these directories; None: all."""
        return [
            state
            for (parent, _), state in self._by_name.items()
            if directories is None or parent in directories
        ]

    async def tell_before(self, request: names.Request) -> None:
        """Tell the storage of all files that *request* may concern.

        Raises:
            ConnectFailed: for want of an answer. The request's own would not be right: a directory
                that looks empty would go. What the storage has refused to make is not there.
        """
        states = self.concerned(request)
        if states and any(state.unreachable for state in await tell(states)):
            raise ConnectFailed("the storage could not be told of a file that was made")

    def concerned(self, request: Any) -> Collection[FileState]:
        """The unborn files that *request* may concern."""
        if not self._by_ino or isinstance(request, _NOT_CONCERNED):
            return ()
        found: dict[int, FileState] = {}
        directories: set[int] = set()
        ino = getattr(request, "ino", None)
        if ino is not None:
            directories.add(ino)
            if ino in self._by_ino:
                found[ino] = self._by_ino[ino]
        for entry in entries_of(request):
            state = self._by_name.get(entry)
            if state is not None:
                found[state.ino] = state
            elif isinstance(request, names.Rename | names.Remove):
                # Perhaps a directory that is to go, which must not look empty.
                known = self._volume.memory.lookup(*entry)
                if known is None:
                    return self.inside(None)
                directories.add(known)
        for state in self.inside(directories) if directories else ():
            found[state.ino] = state
        return found.values()


def may_be_refused(parent: int, name: bytes) -> bool:
    """Whether a new name is too long, or looks like a store path, ``M00``: the storage decides."""
    reserved = parent == names.ROOT_INO and len(name) == 3 and name.startswith(b"M")
    return reserved or len(name) > names.NAME_MAX


def may_be_foreseen(
    request: names.SetXattr | names.RemoveXattr, xattrs: dict[bytes, bytes]
) -> bool:
    """Whether the storage will certainly do what a change of *xattrs*, all of an inode, says."""
    if request.name in acl.NAMES:
        return False
    if isinstance(request, names.RemoveXattr):
        return request.name in xattrs
    return names.size_of_xattrs(request.applied_to(xattrs)) <= names.XATTRS_SMALL_MAX


def entries_of(request: Any) -> list[tuple[int, bytes]]:
    """The names that a request is about."""
    entries = []
    if isinstance(request, names.Lookup | names.Create | names.Remove | names.Link | names.Adopt):
        entries.append((request.parent, request.name))
    elif isinstance(request, names.Rename):
        entries += [(request.parent, request.name), (request.new_parent, request.new_name)]
    return entries


async def tell(states: Collection[FileState]) -> list[FileState]:
    """Tell the storage of unborn files; return those that it could not be told of.

    That is reported to who has them open.
    """
    async with trio.open_nursery() as nursery:
        for state in states:
            nursery.start_soon(state.be_born)
    return [state for state in states if state.birth is not None]


class Birth:
    """What the storage has to be told of an unborn file beside its attributes.

    ``made_ns``: when it was made, which is also a time of its directory. ``xattrs``: all of them.
    """

    __slots__ = ("made_ns", "name", "parent", "xattrs")

    def __init__(self, parent: int, name: bytes, made_ns: int) -> None:
        self.parent = parent
        self.name = name
        self.made_ns = made_ns
        self.xattrs: dict[bytes, bytes] = {}

    def request(self, volume: Volume, attr: Attr, data: bytes) -> names.CreateFile:
        """*attr*: the attributes as the kernel has been told them."""
        # Of later changes in the directory the storage knows already.
        parent = volume.memory.attr(self.parent)
        return names.CreateFile(
            self.parent,
            self.name,
            attr.ino,
            stat.S_IMODE(attr.mode),
            attr.uid,
            attr.gid,
            attr.atime_ns,
            attr.mtime_ns,
            attr.ctime_ns,
            self.made_ns if parent is None else parent.mtime_ns,
            data,
            self.xattrs,
        )


def taken(exc: StatusError) -> bool:
    """Whether somebody else has taken the name since the grant ended, or its directory is gone."""
    return exc.errno in (errno.EEXIST, errno.ENOENT, errno.ENOTDIR)

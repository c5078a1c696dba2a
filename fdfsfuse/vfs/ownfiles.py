"""New files that only this mount knows of yet.

While a mount holds the grant of a directory (`names.Grant`) it answers a create() there itself. The
file is *unborn* until the storage is told of it. Like any content that is not stored yet it lives
in a `FileState`. One request (`names.CreateFile`) tells the storage name, attributes, xattrs and
content of the file. It is sent

* by flush and fsync of the file, and after it has been open for some seconds;
* before a request of this mount that concerns the file or lists its directory;
* when the grant is recalled, because another mount wants to look.

If the mount dies before that, the file is lost with its content. See the names protocol in the
documentation.
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
"""Unborn files at a time: another mount that looks waits for all those of the directory."""
_BLOCK: Final = 1024
"""Inode numbers that are reserved by one request."""
_REFUSED_S: Final = 1.0
"""How long a grant is not asked for again after it was refused."""
_REFUSED_MAX: Final = 1024
_NOT_CONCERNED: Final = (names.CreateFile, names.Grant, names.ReserveInodes)
"""Requests that no unborn file has to be told before."""


class OwnFiles:
    """The unborn files of one volume, and reserved inode numbers for more of them."""

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

    # --- grants and numbers ----------------------------------------------------------------------

    async def number_for(self, parent: int, name: bytes) -> int:
        """An inode number for a new file that may stay unborn; 0: ask the storage to make it."""
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
        """Whether there are reserved numbers left."""
        return self._next < self._end

    def take_number(self, parent: int, name: bytes) -> int:
        """As `number_for`, for an inode of any type, but without asking for grant or numbers."""
        granted = self._volume.memory.granted
        if parent not in granted or self._next == self._end or not self._may_make(parent, name):
            return 0
        self._next += 1
        return self._next - 1

    def _may_make(self, parent: int, name: bytes) -> bool:
        """Whether a new inode under this name is certain to be accepted, given the grant."""
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
        """Ask for the grant of a directory, unless it was refused just now.

        Returns whether the storage gave it.
        """
        if not self.may_ask_for(directory):
            return False
        try:
            await self._volume.call(names.Grant(directory))
        except StatusError:
            self._refused[directory] = time.monotonic() + _REFUSED_S
            return False
        return True

    async def reserve(self) -> None:
        """Have numbers reserved, unless there are some left."""
        async with self._reserving:
            if self.has_numbers:
                return
            session = self._session
            reserved: names.Reserved = await self._volume.call(names.ReserveInodes(_BLOCK))
            if session == self._session:
                self._next, self._end = reserved.first, reserved.first + reserved.count

    def lost(self) -> list[FileState]:
        """The lease is lost, and with the session its numbers. Returns the files still unborn."""
        self._session += 1
        self._next = self._end = 0
        return list(self._by_ino.values())

    # --- unborn files ----------------------------------------------------------------------------

    def add(self, parent: int, name: bytes, state: FileState) -> None:
        """Take note of a new file."""
        self._by_ino[state.ino] = self._by_name[parent, name] = state

    def remove(self, parent: int, name: bytes, state: FileState) -> None:
        """Drop a file that the storage has now, or never will have."""
        del self._by_ino[state.ino], self._by_name[parent, name]

    def inside(self, directories: Collection[int] | None) -> list[FileState]:
        """The unborn files in these directories, or in all if None."""
        return [
            state
            for (parent, _), state in self._by_name.items()
            if directories is None or parent in directories
        ]

    async def tell_before(self, request: names.Request) -> None:
        """Tell the storage of all unborn files that *request*, which is to be sent, may concern.

        Raises:
            ConnectFailed: the storage gave no answer, so its answer to *request* could be wrong: it
                would remove a directory that looks empty. A file that it refuses raises nothing
                here, because it does not exist then.
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
                # Perhaps a directory that is to be removed: it must not look empty.
                known = self._volume.memory.lookup(*entry)
                if known is None:
                    return self.inside(None)
                directories.add(known)
        for state in self.inside(directories) if directories else ():
            found[state.ino] = state
        return found.values()


def may_be_refused(parent: int, name: bytes) -> bool:
    """Whether the storage may refuse a new name: it is too long, or like a store path, ``M00``."""
    reserved = parent == names.ROOT_INO and len(name) == 3 and name.startswith(b"M")
    return reserved or len(name) > names.NAME_MAX


def may_be_foreseen(
    request: names.SetXattr | names.RemoveXattr, xattrs: dict[bytes, bytes]
) -> bool:
    """Whether the storage is certain to accept a change of *xattrs*, which are all of an inode."""
    if request.name in acl.NAMES:
        return False
    if isinstance(request, names.RemoveXattr):
        return request.name in xattrs
    return names.size_of_xattrs(request.applied_to(xattrs)) <= names.XATTRS_SMALL_MAX


def entries_of(request: Any) -> list[tuple[int, bytes]]:
    """The (directory, name) pairs that *request* names."""
    entries = []
    if isinstance(request, names.Lookup | names.Create | names.Remove | names.Link | names.Adopt):
        entries.append((request.parent, request.name))
    elif isinstance(request, names.Rename):
        entries += [(request.parent, request.name), (request.new_parent, request.new_name)]
    return entries


async def tell(states: Collection[FileState]) -> list[FileState]:
    """Tell the storage of unborn files, in parallel.

    Returns those that are still unborn. Why is reported to the programs that have them open.
    """
    async with trio.open_nursery() as nursery:
        for state in states:
            nursery.start_soon(state.be_born)
    return [state for state in states if state.birth is not None]


class Birth:
    """What the storage has to be told of an unborn file besides its attributes and content.

    Attributes:
        made_ns: when it was made, in Unix nanoseconds; its directory changed at that time, too.
        xattrs: all of its extended attributes.
    """

    __slots__ = ("made_ns", "name", "parent", "xattrs")

    def __init__(self, parent: int, name: bytes, made_ns: int) -> None:
        self.parent = parent
        self.name = name
        self.made_ns = made_ns
        self.xattrs: dict[bytes, bytes] = {}

    def request(self, volume: Volume, attr: Attr, data: bytes) -> names.CreateFile:
        """The request for a file with these attributes, as the kernel knows them, and content."""
        # The storage may already know of later changes in the directory: keep their time.
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
    """Whether CreateFile failed because the name was taken, or its directory has gone."""
    return exc.errno in (errno.EEXIST, errno.ENOENT, errno.ENOTDIR)

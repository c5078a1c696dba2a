"""What all parts of a mount share: options, memory budgets, background tasks, and caches."""

from __future__ import annotations

import logging
import stat
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
from msgspec.structs import replace

from fdfsfuse.core.recent import Recent
from fdfsfuse.errors import FdfsError
from fdfsfuse.proto.names import Attr
from fdfsfuse.vfs.ahead import Contents
from fdfsfuse.vfs.budget import Budget
from fdfsfuse.vfs.directory import MISSING
from fdfsfuse.vfs.numbers import ROOT, Numbers
from fdfsfuse.vfs.options import VfsOptions

if TYPE_CHECKING:
    from fdfsfuse.vfs.files import FileState
    from fdfsfuse.vfs.recalls import Kernel
    from fdfsfuse.vfs.volume import Volume

log = logging.getLogger(__name__)

_OBJECTS_MAX = 16_384
_PAGES_MAX = 65_536


class ObjectAttrs:
    """Attributes of objects without a name. FastDFS clients change these without a recall to us.

    So they are used for ``timeout_s`` after the answer came, and the kernel is given what is left
    of that time.
    """

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self._attrs: Recent[int, tuple[float, Attr]] = Recent(_OBJECTS_MAX)

    def put(self, number: int, attr: Attr) -> None:
        """Keep attributes that have just come with an answer."""
        self._attrs[number] = (time.monotonic(), attr)

    def get(self, number: int) -> tuple[Attr, float] | None:
        """The attributes, and for how many seconds they may still be used; None if too old."""
        found = self._attrs.get(number)
        if found is None:
            return None
        left = found[0] + self._timeout_s - time.monotonic()
        return (found[1], left) if left > 0 else None

    def drop(self, number: int) -> None:
        """Forget the attributes."""
        self._attrs.pop(number, None)


class Pages:
    """Which version of its content the kernel's pages of a file are of."""

    def __init__(self) -> None:
        self._versions: Recent[int, int] = Recent(_PAGES_MAX)

    def version(self, number: int) -> int | None:
        """The version of the pages; None if it is not known, or there may be none."""
        return self._versions.get(number)

    def are(self, number: int, version: int) -> None:
        """Note that from now on the kernel's pages are of *version*."""
        self._versions[number] = version

    def stored(self, number: int, old: int, new: int) -> None:
        """Note that this mount has stored what was written through the kernel's pages.

        These are right only if nobody else has changed the content in between.
        """
        if self._versions.get(number) == old and new == old + 1:
            self._versions[number] = new
        else:
            self._versions.pop(number, None)

    def drop(self, number: int) -> bool:
        """Note that the pages are outdated. Returns whether there may have been any."""
        return self._versions.pop(number, None) is not None


class Entry(NamedTuple):
    """What the kernel is told of an inode: number, attributes, and how long it may rely on them.

    ``number`` 0: the name does not exist.
    """

    number: int
    attr: Attr
    attr_timeout_s: float
    entry_timeout_s: float


_NO_ATTR = Attr(0, 0, 0, 0, 0, 0, 0, 0, 0, 0, version=0)
NO_ENTRY = Entry(0, _NO_ATTR, 0.0, 0.0)


class Context:
    """See the module. ``spawn`` works only while the mount runs.

    Attributes:
        numbers: inode numbers, and which of them the kernel knows.
        volumes_at: the inode number of the directory that lists the volumes: `ROOT`, or 0 (none) if
            the mount shows a single volume.
        volumes: those that the trackers have told.
        states: the files that are open or not stored yet, by inode number.
        objects, pages, contents: see their classes.
        dirty: memory for content that is not stored yet.
        clean_used, read_ahead_used: bytes of clean content, and of read-ahead, in memory.
    """

    def __init__(self, options: VfsOptions, kernel: Kernel) -> None:
        self.options = options
        self.kernel = kernel
        self.numbers = Numbers()
        self.volumes_at = 0 if options.top else ROOT
        self.volumes: list[Volume] = []
        self.states: dict[int, FileState] = {}
        self.objects = ObjectAttrs(options.attr_timeout_s)
        self.pages = Pages()
        self.contents = Contents(min(options.ahead_bytes, options.read_ahead_bytes))
        self.dirty = Budget(options.dirty_bytes, self._relieve, options.patience_s)
        self.clean_used = 0
        self.read_ahead_used = 0
        self.nursery: trio.Nursery | None = None

    def entry(
        self,
        volume: Volume,
        attr: Attr,
        parent: int = 0,
        name: bytes = b"",
        left_s: float | None = None,
    ) -> Entry:
        """The entry of an inode that *volume* has described.

        Args:
            parent, name: the directory (inode number of the volume) and name under which the
                kernel is told of it.
            left_s: `Memory.left`, if the caller knows it already.
        """
        number = self.numbers.of_inode(volume.number, attr.ino)
        memory = volume.memory
        if left_s is None:
            left_s = memory.left()
        known = memory.knows(attr)
        attr_s = left_s if known else 0.0
        entry_s = attr_s
        if parent:
            entry_s = left_s if memory.give(parent, name, attr.ino) else 0.0
        state = self.states.get(number)
        if state is not None:
            if known and (state.attr is not attr or state.outdated):
                state.fresh_attr(attr)
            attr = state.attributes(attr)
        return Entry(number, attr, attr_s, entry_s)

    def no_entry(self, volume: Volume, parent: int, name: bytes) -> Entry:
        """The entry for a name that does not exist in a directory of *volume*."""
        memory = volume.memory
        return Entry(0, _NO_ATTR, 0.0, memory.left() if memory.give(parent, name, MISSING) else 0.0)

    def has_requests(self) -> bool:
        """Whether a request of this mount, or a change that was answered here, is in flight."""
        return any(volume.waiting or volume.own_changes for volume in self.volumes)

    def told(self, volume: Volume, attr: Attr) -> None:
        """Pass attributes from an answer of *volume* on to the file, if it is open."""
        state = self.states.get(self.numbers.of_inode(volume.number, attr.ino))
        if state is not None and volume.memory.knows(attr):
            state.fresh_attr(attr)

    def object_attr(self, attr: Attr) -> Attr:
        """*attr* of an object, if it has no name: the mount's owner, 0644, one link.

        Nobody counts the changes of its content, so the mtime has to do as the version.
        """
        if attr.ino:
            return attr
        options = self.options
        return replace(
            attr,
            mode=stat.S_IFREG | 0o644 & ~options.umask,
            nlink=1,
            uid=options.uid,
            gid=options.gid,
            version=attr.mtime_ns,
        )

    def object_entry(self, number: int, attr: Attr) -> Entry:
        """The entry of an object without a name, from an answer that has just come."""
        self.objects.put(number, attr)
        timeout_s = self.options.attr_timeout_s
        state = self.states.get(number)
        if state is not None:
            state.fresh_attr(attr)
        return Entry(number, attr, timeout_s, timeout_s)

    def _relieve(self) -> None:
        for state in sorted(self.states.values(), key=lambda state: state.dirty_since):
            state.relieve()

    def spawn(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Run *function* in the background. Its errors are logged, never the mount's end."""
        assert self.nursery is not None
        self.nursery.start_soon(self._guard, function, *args)

    async def _guard(self, function: Callable[..., Awaitable[object]], *args: Any) -> None:
        try:
            await function(*args)
        except (FdfsError, OSError) as exc:
            log.debug("%s: %s", getattr(function, "__qualname__", function), exc)
        except Exception:
            log.exception("error in the background task %r", function)

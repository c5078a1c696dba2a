"""What all parts of a mount share: options, memory budgets, background tasks, attribute memory."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import trio
from msgspec.structs import replace

from fdfsfuse.errors import FdfsError
from fdfsfuse.proto.names import Attr
from fdfsfuse.vfs.budget import Budget
from fdfsfuse.vfs.lru import Recent
from fdfsfuse.vfs.numbers import ROOT, Numbers
from fdfsfuse.vfs.options import VfsOptions

if TYPE_CHECKING:
    from fdfsfuse.vfs.files import FileState

log = logging.getLogger(__name__)

_ATTRS_MAX = 16_384
_PAGES_MAX = 65_536


class AttrMemory:
    """Attributes that answers brought, and the content version of the kernel's pages.

    An entry is used for ``timeout_s`` after the answer came; the kernel gets what is left of that
    time. Own changes replace entries at once.
    """

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self._attrs: Recent[int, tuple[float, Attr]] = Recent(_ATTRS_MAX)
        self._pages: Recent[int, int] = Recent(_PAGES_MAX)

    def put(self, number: int, attr: Attr) -> None:
        """An answer that has just come."""
        self._attrs[number] = (time.monotonic(), attr)

    def get(self, number: int) -> tuple[Attr, float] | None:
        """The attributes and for how many seconds they are still good; None when too old."""
        found = self._attrs.get(number)
        if found is None:
            return None
        left = found[0] + self.timeout_s - time.monotonic()
        return (found[1], left) if left > 0 else None

    def since(self, number: int, moment: float) -> Attr | None:
        """Attributes that came after *moment* (time.monotonic)."""
        found = self._attrs.get(number)
        return found[1] if found is not None and found[0] > moment else None

    def directory_changed(self, number: int, now_ns: int, links: int) -> None:
        """An own change in a directory: its times, and *links* more or less subdirectories.

        The kernel asks for the attributes after each change, to check permissions.
        """
        found = self._attrs.get(number)
        if found is not None:
            at, attr = found
            nlink = attr.nlink + links
            attr = replace(attr, mtime_ns=now_ns, ctime_ns=now_ns, nlink=nlink)
            # Not through __setitem__: it is not newer than it was.
            dict.__setitem__(self._attrs, number, (at, attr))

    def drop(self, number: int) -> None:
        """Forget the attributes."""
        self._attrs.pop(number, None)

    def forget(self, number: int) -> None:
        """The kernel does not know the inode any more, nor holds pages of it."""
        self._attrs.pop(number, None)
        self._pages.pop(number, None)

    def pages_version(self, number: int) -> int | None:
        """The content version that the kernel may hold pages of."""
        return self._pages.get(number)

    def pages_are(self, number: int, version: int) -> None:
        """From now on the kernel's pages are of this version."""
        self._pages[number] = version

    def content_stored(self, number: int, old: int, new: int) -> None:
        """This mount changed the content; the kernel's pages followed the writes.

        They are right only when nobody else changed the content in between.
        """
        if self._pages.get(number) == old and new == old + 1:
            self._pages[number] = new
        else:
            self._pages.pop(number, None)


class Entry(NamedTuple):
    """What the kernel is told of an inode: its number, attributes, and how long these hold."""

    number: int
    attr: Attr
    attr_timeout_s: float
    entry_timeout_s: float


class Context:
    """See the module. ``spawn`` works between the start and the end of the mount.

    ``states`` has the files that are open or not stored, by number. ``volumes_at`` is the number of
    the directory that lists the volumes: `ROOT`, or 0 (none) when the mount shows one volume.
    """

    def __init__(self, options: VfsOptions) -> None:
        self.options = options
        self.numbers = Numbers()
        self.volumes_at = 0 if options.top else ROOT
        self.states: dict[int, FileState] = {}
        self.attrs = AttrMemory(options.attr_timeout_s)
        self.dirty = Budget(options.dirty_bytes, self._relieve, options.timeout_s)
        self.clean_used = 0
        self.read_ahead_used = 0
        self.nursery: trio.Nursery | None = None

    def entry(self, number: int, attr: Attr) -> Entry:
        """The entry of an inode that an answer has just described."""
        self.attrs.put(number, attr)
        timeout_s = self.options.attr_timeout_s
        state = self.states.get(number)
        if state is not None:
            state.fresh_attr(attr)
            attr = state.attributes(attr)
        return Entry(number, attr, timeout_s, timeout_s)

    def remembered(self, number: int) -> Entry | None:
        """The entry of an inode, if what is known of it is not too old."""
        found = self.attrs.get(number)
        if found is None:
            return None
        attr, left_s = found
        state = self.states.get(number)
        return Entry(number, state.attributes(attr) if state else attr, left_s, left_s)

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

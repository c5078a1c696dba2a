"""Requests of this mount that are in flight, and whether their answers may be remembered.

A request is in flight from `Flights.begin` to `Flights.end`. What its answer says of an inode may
be remembered only if that inode was not recalled since the request was sent: the answer may be
older than the recall. Two requests about one inode may be answered in either order, so if they
overlap, neither answer is remembered; an exception are a directory's times and link count, because
what several changes in it do to them is the same in any order.

Only decisions: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from fdfsfuse.proto import names

_MARKS_MAX: Final = 10_000


class Flights:
    """See the module. *began* is always the number of a request, as `begin` returned it.

    Attributes:
        serial: the number of the latest request.
    """

    def __init__(self) -> None:
        self.serial = 0
        self._requests: dict[int, names.Request] = {}
        self._locked: dict[int, int] = {}
        # `serial` at the time when all inodes, or an inode: was recalled; was described by an
        # answer; had entries changed.
        self._recalled_all = 0
        self._recalled: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self._changed: dict[int, int] = {}

    def begin(self, request: names.Request) -> int:
        """A request is about to be sent. Returns its number."""
        self.serial = began = self.serial + 1
        self._requests[began] = request
        return began

    def end(self, began: int) -> None:
        """The request is over."""
        del self._requests[began]
        if not self._requests:
            self._recalled.clear()
            self._told.clear()
            self._changed.clear()
        elif len(self._told) + len(self._recalled) > _MARKS_MAX:
            self.recall_all()  # too many to tell apart

    @contextmanager
    def locked(self, directory: int) -> Iterator[None]:
        """Inside, the kernel has *directory* locked, for a call that makes several requests."""
        self._locked[directory] = self._locked.get(directory, 0) + 1
        try:
            yield
        finally:
            self._locked[directory] -= 1
            if not self._locked[directory]:
                del self._locked[directory]

    def concern(self, directory: int) -> bool:
        """Whether a request that concerns *directory* is in flight: the kernel may lock it."""
        return directory in self._locked or any(
            directory in directories_of(request) for request in self._requests.values()
        )

    # --- what may be kept ------------------------------------------------------------------------

    def is_fresh(self, ino: int, began: int) -> bool:
        """Whether nothing of the inode was recalled since the request was sent."""
        return began > self._recalled_all and began > self._recalled.get(ino, 0)

    def told(self, ino: int, began: int) -> bool:
        """An answer tells the attributes of *ino*. Returns whether they may be remembered."""
        # `is_fresh`, written out: this is done for each entry of a listing.
        if began <= self._recalled_all or began <= self._recalled.get(ino, 0):
            return False
        overlaps = self._told.get(ino, 0) >= began or self._changed.get(ino, 0) >= began
        if len(self._requests) > 1:
            self._told[ino] = self.serial
        return not overlaps

    def changed(self, directory: int, began: int) -> bool:
        """The request has changed entries of *directory*.

        Returns whether its effect on times and link count may be added to the remembered ones. It
        may whatever other changes were made meanwhile.
        """
        if not self.is_fresh(directory, began) or self._told.get(directory, 0) >= began:
            return False
        if len(self._requests) > 1:
            self._changed[directory] = self.serial
        return True

    # --- what may not ----------------------------------------------------------------------------

    def recall(self, ino: int) -> None:
        """Answers to requests now in flight may be outdated as to the inode."""
        if self._requests:
            self._recalled[ino] = self.serial

    def recall_all(self) -> None:
        """Answers to requests now in flight may be outdated altogether."""
        self._recalled_all = self.serial
        self._recalled.clear()
        self._told.clear()
        self._changed.clear()

    def foresee(self, request: names.Request, answer: names.Attr | names.Renamed) -> None:
        """A change is answered by the mount itself; see `fdfsfuse.vfs.ownchanges`.

        Requests sent before it may be answered with the state before it or after it.
        """
        if not self._requests:
            return
        for ino in _inodes_of(answer):
            self._recalled[ino] = self.serial
        if any(type(flight) in _TELL_NAMES for flight in self._requests.values()):
            for ino in directories_of(request):
                self._recalled[ino] = self.serial


def _inodes_of(answer: names.Attr | names.Renamed) -> list[int]:
    """The inodes whose attributes are in *answer*."""
    if isinstance(answer, names.Renamed):
        return [attr.ino for attr in (answer.moved, answer.replaced) if attr is not None]
    return [answer.ino]


def directories_of(request: names.Request) -> tuple[int, ...]:
    """Inodes that the kernel may have locked while the request is in flight."""
    find = _LOCKED.get(type(request))
    return find(request) if find is not None else ()


def _parent(request: Any) -> tuple[int, ...]:
    return (request.parent,)


def _ino(request: Any) -> tuple[int, ...]:
    return (request.ino,)


_LOCKED: dict[type, Callable[[Any], tuple[int, ...]]] = {
    names.Lookup: _parent,
    names.Create: _parent,
    names.Remove: _parent,
    names.Link: _parent,
    names.Adopt: _parent,
    names.Rename: lambda request: (request.parent, request.new_parent),
    names.ReadDir: _ino,
    names.SetAttr: _ino,
    names.SetXattr: _ino,
    names.RemoveXattr: _ino,
    names.ListXattrs: _ino,
    names.Truncate: _ino,
    names.StoreContent: _ino,
    names.CreateFile: _ino,
    names.NameObject: _ino,
    names.CommitWrite: _ino,
    names.MakeWritable: _ino,
}

_TELL_NAMES = frozenset((names.Lookup, names.ReadDir, names.Open))

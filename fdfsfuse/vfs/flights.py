"""Requests of this mount that are in flight, and whether what their answers tell may be kept.

A request in flight is counted by `Flights.begin` and `Flights.end`, and what its answer tells is
kept only if nothing of it was recalled since it was sent: the answer may be older than the recall.
Two requests of this mount about one inode may be answered in either order, so what they tell is not
kept if they overlapped, except for a directory's times and link count after changes in it, which
add up in any order.

Only decisions: no I/O, no clock.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from fdfsfuse.proto import names

_MARKS_MAX: Final = 10_000


class Flights:
    """See the module. *began* is always the number that `begin` gave to a request.

    Attributes:
        serial: the number that `begin` gave last.
    """

    def __init__(self) -> None:
        self.serial = 0
        self._requests: dict[int, names.Request] = {}
        self._locked: dict[int, int] = {}
        # By inode: `serial` when it was recalled, told of by an answer, changed as a directory.
        self._recalled_all = 0
        self._recalled: dict[int, int] = {}
        self._told: dict[int, int] = {}
        self._changed: dict[int, int] = {}

    def begin(self, request: names.Request) -> int:
        """A request is about to be sent; gives its number."""
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
        """The kernel has the directory locked for a call that makes several requests."""
        self._locked[directory] = self._locked.get(directory, 0) + 1
        try:
            yield
        finally:
            self._locked[directory] -= 1
            if not self._locked[directory]:
                del self._locked[directory]

    def concern(self, directory: int) -> bool:
        """Whether a request about the directory is in flight: the kernel may have it locked."""
        return directory in self._locked or any(
            directory in directories_of(request) for request in self._requests.values()
        )

    # --- what may be kept ------------------------------------------------------------------------

    def is_fresh(self, ino: int, began: int) -> bool:
        """Whether nothing of the inode was recalled since the request was sent."""
        return began > self._recalled_all and began > self._recalled.get(ino, 0)

    def is_alone(self, ino: int, began: int) -> bool:
        """`is_fresh`, and no other request that told of the inode has overlapped."""
        overlaps = self._told.get(ino, 0) >= began or self._changed.get(ino, 0) >= began
        return not overlaps and self.is_fresh(ino, began)

    def told(self, ino: int, began: int) -> bool:
        """The answer to a request tells the attributes of an inode: whether they may be kept."""
        if began <= self._recalled_all or began <= self._recalled.get(ino, 0):
            return False
        overlaps = self._told.get(ino, 0) >= began or self._changed.get(ino, 0) >= began
        if len(self._requests) > 1:
            self._told[ino] = self.serial
        return not overlaps

    def changed(self, directory: int, began: int) -> bool:
        """The request has changed something in a directory: whether the change may be added.

        It may be added to the attributes that are known, whatever else was changed meanwhile.
        """
        if not self.is_fresh(directory, began) or self._told.get(directory, 0) >= began:
            return False
        if len(self._requests) > 1:
            self._changed[directory] = self.serial
        return True

    # --- what may not ----------------------------------------------------------------------------

    def recall(self, ino: int) -> None:
        """What requests that are in flight tell of the inode may be outdated."""
        if self._requests:
            self._recalled[ino] = self.serial

    def recall_all(self) -> None:
        """Whatever requests that are in flight tell may be outdated."""
        self._recalled_all = self.serial
        self._recalled.clear()
        self._told.clear()
        self._changed.clear()

    def foresee(self, request: Any, answer: Any) -> None:
        """A request that was sent just now is answered here; see `fdfsfuse.vfs.ownchanges`.

        What was asked before may be answered as it was before, or as it is after this.
        """
        if not self._requests:
            return
        for ino in _inodes_of(answer):
            self._recalled[ino] = self.serial
        if any(type(flight) in _TELL_NAMES for flight in self._requests.values()):
            for ino in directories_of(request):
                self._recalled[ino] = self.serial


def _inodes_of(answer: Any) -> list[int]:
    """The inodes whose attributes an answer tells."""
    if isinstance(answer, names.Renamed):
        return [attr.ino for attr in (answer.moved, answer.replaced) if attr is not None]
    return [answer.ino]


def directories_of(request: Any) -> tuple[int, ...]:
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

"""What this mount remembers of a volume: attributes, xattrs and names that its storage has sent.

All of it is right until the storage recalls it, or until the session's lease has run out, as the
storage need not call back after that. `Memory.left` is the time until then. It bounds every answer
that is given from memory, and every timeout that the kernel is given.

Requests overlap with recalls, and with each other. `fdfsfuse.vfs.flights` decides whether an answer
may be remembered.

Only decisions: no I/O, and no clock but the one that leases are measured with.
"""

from __future__ import annotations

import errno
import stat
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable
from typing import Any, Final

from msgspec.structs import replace

from fdfsfuse.client.names.lease import Lease
from fdfsfuse.core import acl
from fdfsfuse.core.recent import Recent
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import names
from fdfsfuse.proto.names import Attr
from fdfsfuse.vfs.directory import MISSING, Directory
from fdfsfuse.vfs.flights import Flights

_RENAME_EXCHANGE: Final = 2
_MISSES: Final = 3


class Memory:
    """See the module. *began* is always the number of a request, from `Flights.begin`.

    Args:
        now: the clock that leases run on, in seconds.
        lease: until when, on that clock, the session is certain to last.
        limit: most inodes, and most names, that are remembered.

    Attributes:
        granted: the directories of which this mount has the grant, each with the number of the
            latest request at the time when it was given.
        flights: the requests that are in flight.
    """

    def __init__(self, now: Callable[[], float], lease: Lease, limit: int) -> None:
        self._now = now
        self._lease = lease
        self._limit = limit
        self._attrs: Recent[int, Attr] = Recent(limit)
        self._parents: Recent[int, int] = Recent(limit)
        self._xattrs: Recent[int, dict[bytes, bytes]] = Recent(limit)
        self._directories: OrderedDict[int, Directory] = OrderedDict()
        self.granted: dict[int, int] = {}
        self._made: Recent[int, int] = Recent(limit)
        self._names = 0
        self._forgotten_until = float("-inf")
        self.flights = Flights()

    def usage(self) -> dict[str, int]:
        """How many inodes and names are remembered, and the limit. May be called in any thread."""
        return {"inodes": len(self._attrs), "names": self._names, "limit": self._limit}

    # --- looking ---------------------------------------------------------------------------------

    def left(self) -> float:
        """Seconds for which what is remembered may be relied upon; 0: not at all."""
        left = self._lease.usable_until - self._now()
        return left if left > 0.0 else 0.0

    def attr(self, ino: int) -> Attr | None:
        """The attributes of an inode; None if they are not known."""
        attr = self._attrs.get(ino)
        return attr if attr is not None and self._now() < self._lease.usable_until else None

    def last_attr(self, ino: int) -> Attr | None:
        """The attributes of an inode as they were sent last, even if the lease has ended since."""
        return self._attrs.get(ino)

    def knows(self, attr: Attr) -> bool:
        """Whether *attr* is the very object that is remembered, whatever is left of the lease."""
        return self._attrs.get(attr.ino) is attr

    def xattrs(self, ino: int) -> dict[bytes, bytes] | None:
        """All extended attributes of an inode; None if they are not known."""
        found = self._xattrs.get(ino)
        return found if found is not None and self._now() < self._lease.usable_until else None

    def lookup(self, parent: int, name: bytes) -> int | None:
        """The inode of a name, MISSING, or None when it is not known."""
        directory = self._directories.get(parent)
        if directory is None:
            return None
        ino = directory.get(name)
        return ino if ino is not None and self._now() < self._lease.usable_until else None

    def parent(self, ino: int) -> int:
        """A directory in which the inode was seen, perhaps long ago; 0 if none is known."""
        return self._parents.get(ino, 0)

    def is_secret(self, ino: int) -> bool:
        """Whether no other mount can know of *ino*, which is not a directory.

        That is so if this mount has made it, and has had the grant of its directory ever since.
        """
        began = self.granted.get(self._parents.get(ino, 0))
        return began is not None and self._made.get(ino, 0) > began

    def tell(self, ino: int) -> None:
        """From now on others may know of the inode: it is not `is_secret` any more."""
        self._made.pop(ino, None)

    def is_empty(self, ino: int) -> bool:
        """Whether a directory is known to have no entries."""
        directory = self._directories.get(ino)
        return (
            directory is not None
            and directory.complete
            and not directory.unknown
            and not any(directory.names.values())
            and self._now() < self._lease.usable_until
        )

    def entries(self, ino: int, limit: int) -> list[tuple[bytes, Attr]] | None:
        """All entries of a directory; None if not all are known, or they are more than *limit*."""
        directory = self._directories.get(ino)
        if (
            directory is None
            or not directory.complete
            or directory.unknown
            or len(directory.names) > limit
            or self._now() >= self._lease.usable_until
        ):
            return None
        attrs = self._attrs
        found = []
        for name, child in directory.names.items():
            if child != MISSING:
                attr = attrs.get(child)
                if attr is None:
                    return None
                found.append((name, attr))
        return found

    def should_list(self, parent: int) -> bool:
        """Whether so many names were not found that listing the directory, once, may save more."""
        directory = self._directories.get(parent)
        return directory is not None and directory.misses == _MISSES

    def give(self, parent: int, name: bytes, ino: int) -> bool:
        """The kernel is about to be told of a name.

        Returns whether it may rely on that for as long as `left` says.
        """
        directory = self._directories.get(parent)
        if directory is None or directory.get(name) != ino:
            return False
        directory.until = max(directory.until, self._lease.usable_until)
        return True

    def in_use(self, directory: int) -> bool:
        """Whether the kernel may still rely on a name of the directory."""
        found = self._directories.get(directory)
        until = found.until if found is not None else self._forgotten_until
        return until > self._now()

    def unknown_left(self) -> float:
        """Seconds for which the kernel may rely on names that are not remembered here any more."""
        return max(0.0, self._forgotten_until - self._now())

    def names_in_use(self) -> list[tuple[int, bytes]]:
        """The remembered (directory, name) pairs on which the kernel may rely."""
        now = self._now()
        return [
            (ino, name)
            for ino, directory in self._directories.items()
            if directory.until > now
            for name in directory.names
        ]

    # --- learning --------------------------------------------------------------------------------

    def learn(self, request: names.Request, answer: Any, began: int) -> None:
        """Remember what the answer to a request says. To be called before its `Flights.end`."""
        learn = _LEARN.get(type(request))
        if learn is not None:
            learn(self, request, answer, began)

    def refused(self, request: names.Request, error: StatusError, began: int) -> None:
        """Remember what follows from an error: a name that does not exist."""
        if isinstance(request, names.Lookup) and error.errno == errno.ENOENT:
            self._name(request.parent, request.name, MISSING, began)
            directory = self._directories.get(request.parent)
            if directory is not None:
                directory.misses += 1

    def _attr(self, attr: Attr, began: int) -> None:
        ino = attr.ino
        if not ino:
            return
        if self.flights.told(ino, began):
            self._attrs[ino] = attr
        else:
            # It may still be newer than what is remembered, so neither may be relied upon.
            self._attrs.pop(ino, None)

    def _name(self, parent: int, name: bytes, ino: int, began: int) -> None:
        if not self.flights.is_fresh(parent, began):
            self._drop_name(parent, name)
            return
        directory = self._directory(parent)
        if ino != MISSING:
            self._parents[ino] = parent
        before = len(directory.names)
        directory.unknown.discard(name)
        if ino == MISSING and directory.complete:
            directory.names.pop(name, None)
        else:
            directory.names[name] = ino
        self._names += len(directory.names) - before
        while self._names > self._limit:
            self._forget_directory(next(iter(self._directories)))

    def _directory(self, ino: int) -> Directory:
        directory = self._directories.get(ino)
        if directory is None:
            directory = self._directories[ino] = Directory()
            # Names of it that are not remembered any more may be among those the kernel relies on.
            directory.until = self._forgotten_until
            self._names += 1
        return directory

    def _forget_directory(self, ino: int) -> None:
        directory = self._directories.pop(ino)
        self._names -= len(directory.names) + 1
        self._forgotten_until = max(self._forgotten_until, directory.until)

    def _changed_in(self, parent: int, now_ns: int, links: int, began: int) -> None:
        """Follow an own change in a directory: its times, and *links* more subdirectories.

        This spares a request: the kernel asks for the attributes after each change, to check
        permissions.
        """
        attr = self._attrs.get(parent)
        if attr is None:
            return
        if not self.flights.changed(parent, began):
            del self._attrs[parent]
            return
        dict.__setitem__(
            self._attrs,
            parent,
            replace(
                attr,
                mtime_ns=now_ns,
                ctime_ns=now_ns,
                nlink=attr.nlink + links,
            ),
        )

    def _learn_attr(self, request: Any, answer: Attr, began: int) -> None:
        self._attr(answer, began)

    def _learn_set_attr(self, request: names.SetAttr, answer: Attr, began: int) -> None:
        self._attr(answer, began)
        if request.mode is not None and acl.ACCESS in self._xattrs.get(request.ino, ()):
            # The storage has changed the ACL along with the mode.
            del self._xattrs[request.ino]

    def _learn_lookup(self, request: names.Lookup, answer: Attr, began: int) -> None:
        self._attr(answer, began)
        self._name(request.parent, request.name, answer.ino, began)

    def _learn_open(self, request: names.Open, answer: names.Opened, began: int) -> None:
        self._attr(answer.attr, began)
        for entry in answer.following:
            self._attr(entry.attr, began)
            self._name(answer.parent, entry.name, entry.attr.ino, began)

    def _learn_listing(self, request: names.ReadDir, answer: names.Listing, began: int) -> None:
        ino = request.ino
        directory = self._directory(ino)
        directory.misses += 1
        for entry in answer.entries:
            self._attr(entry.attr, began)
            self._name(ino, entry.name, entry.attr.ino, began)
        if self._directories.get(ino) is not directory:
            return  # it was forgotten at once, as it has more names than may be remembered
        if not self.flights.is_fresh(ino, began):
            directory.listed = -1
            return
        if request.cookie in (0, directory.listed) and not directory.complete:
            directory.listed = answer.entries[-1].cookie if answer.entries else request.cookie
            directory.complete = answer.end
        if answer.end and not request.cookie:
            directory.unknown.clear()  # names that are not in a complete listing do not exist

    def _learn_create(self, request: names.Create, answer: Attr, began: int) -> None:
        self._attr(answer, began)
        self._name(request.parent, request.name, answer.ino, began)
        is_directory = stat.S_ISDIR(request.mode)
        if is_directory and self.flights.is_fresh(answer.ino, began):
            self._directory(answer.ino).complete = True
            if request.ino:
                self.granted[answer.ino] = began
        self._changed_in(request.parent, request.now_ns, int(is_directory), began)

    def made(self, parent: int, name: bytes, attr: Attr, now_ns: int) -> None:
        """Remember a file that this mount has made without asking the storage."""
        request = names.Create(parent, name, attr.mode, attr.uid, attr.gid, now_ns)
        self.changed_here(request, attr)

    def changed_here(self, request: names.Request, answer: Any) -> None:
        """Remember a change that this mount answers itself, ahead of the storage."""
        began = self.flights.begin(request)
        self.learn(request, answer, began)
        self.flights.end(began)
        if isinstance(request, names.Create):
            self._xattrs[answer.ino] = {}
            self._made[answer.ino] = began

    def _learn_file(self, request: names.CreateFile, answer: Attr, began: int) -> None:
        # No change of the directory: that was followed when the file was made.
        self._attr(answer, began)
        self._name(request.parent, request.name, answer.ino, began)

    def _learn_grant(self, request: names.Grant, answer: names.Done, began: int) -> None:
        if self.flights.is_fresh(request.ino, began):
            self.granted[request.ino] = self.flights.serial

    def _learn_link(self, request: names.Link, answer: Attr, began: int) -> None:
        self.tell(answer.ino)
        self._attr(answer, began)
        self._name(request.parent, request.name, answer.ino, began)
        self._changed_in(request.parent, request.now_ns, 0, began)

    def _learn_remove(self, request: names.Remove, answer: Attr, began: int) -> None:
        self._attr(answer, began)
        self._name(request.parent, request.name, MISSING, began)
        self._changed_in(request.parent, request.now_ns, -int(request.directory), began)
        self.tell(answer.ino)
        if request.directory:
            self.granted.pop(answer.ino, None)

    def _learn_rename(self, request: names.Rename, answer: names.Renamed, began: int) -> None:
        moved, replaced = answer.moved, answer.replaced
        old, new = (request.parent, request.name), (request.new_parent, request.new_name)
        self._attr(moved, began)
        if replaced is not None:
            self._attr(replaced, began)
            self.tell(replaced.ino)
        if request.parent != request.new_parent:
            self.tell(moved.ino)
        # Renaming one name of an inode over another one does nothing at all.
        is_directory = stat.S_ISDIR(moved.mode)
        unclear = replaced is None and ((moved.nlink > 1 and not is_directory) or old == new)
        moves = is_directory and request.parent != request.new_parent
        for parent in {request.parent, request.new_parent}:
            if unclear or moves or (replaced and stat.S_ISDIR(replaced.mode)):
                # How times or link counts change is not worth following.
                self._attrs.pop(parent, None)
            else:
                self._changed_in(parent, request.now_ns, 0, began)
        if unclear:
            self._drop_name(*old)
            self._drop_name(*new)
            return
        exchanged = replaced is not None and request.flags == _RENAME_EXCHANGE
        self._name(*old, replaced.ino if replaced is not None and exchanged else MISSING, began)
        self._name(*new, moved.ino, began)

    def _learn_adopt(self, request: names.Adopt, answer: names.Renamed, began: int) -> None:
        self._attr(answer.moved, began)
        if answer.replaced is not None:
            self._attr(answer.replaced, began)
        self._name(request.parent, request.name, answer.moved.ino, began)
        self._changed_in(request.parent, request.now_ns, 0, began)

    def _learn_xattrs(self, request: names.ListXattrs, answer: names.Xattrs, began: int) -> None:
        if not request.ino:
            return
        if self.flights.is_fresh(request.ino, began):
            self._xattrs[request.ino] = answer.xattrs
        for ino, xattrs in answer.following.items():
            if ino not in self._xattrs and self.flights.is_fresh(ino, began):
                self._xattrs[ino] = xattrs

    def _learn_xattr(
        self, request: names.SetXattr | names.RemoveXattr, answer: object, began: int
    ) -> None:
        ino = request.ino
        attr, known = self._attrs.get(ino), self._xattrs.get(ino)
        unclear = not self.flights.told(ino, began)
        self.forget(ino)
        if request.name == acl.DEFAULT:
            # New files may have to inherit it now, which only the storage does: the grant ends.
            self.granted.pop(ino, None)
        if unclear or request.name in acl.NAMES:
            return
        if attr is not None:
            self._attrs[ino] = replace(attr, ctime_ns=request.now_ns)
        if known is not None:
            self._xattrs[ino] = request.applied_to(known)

    # --- forgetting ------------------------------------------------------------------------------

    def forget(self, ino: int) -> None:
        """Drop the attributes of an inode: they have changed, or nobody needs them."""
        self._attrs.pop(ino, None)
        self._xattrs.pop(ino, None)
        self.flights.recall(ino)

    def _drop_name(self, parent: int, name: bytes) -> None:
        directory = self._directories.get(parent)
        if directory is not None and directory.drop(name):
            self._names -= 1

    def recall(self, inos: Iterable[int], entries: Iterable[tuple[int, bytes]]) -> None:
        """Drop what the storage has recalled: inodes, and names."""
        for ino in inos:
            self.forget(ino)
            self.tell(ino)
        for parent, name in entries:
            self._drop_name(parent, name)

    def revoke(self, directories: Collection[int] | None) -> None:
        """Drop the grants of these directories, or of all if None."""
        if directories is None:
            self.granted.clear()
            self.flights.recall_all()
        else:
            for ino in directories:
                self.granted.pop(ino, None)
                self.flights.recall(ino)

    def kept(self, inos: Iterable[int]) -> list[int]:
        """Those of *inos* that are directories on which the kernel relies; forgets the others."""
        kept = []
        for ino in inos:
            if self.in_use(ino):
                kept.append(ino)
            elif ino in self._directories:
                self._forget_directory(ino)
        return kept

    def clear(self) -> None:
        """Forget everything."""
        self._attrs.clear()
        self._parents.clear()
        self._xattrs.clear()
        self._made.clear()
        self._directories.clear()
        self.granted.clear()
        self._names = 0
        self.flights.recall_all()


_LEARN: dict[type, Callable[[Memory, Any, Any, int], None]] = {
    names.Lookup: Memory._learn_lookup,
    names.GetAttr: Memory._learn_attr,
    names.LookupObject: Memory._learn_attr,
    names.ReadDir: Memory._learn_listing,
    names.Open: Memory._learn_open,
    names.ListXattrs: Memory._learn_xattrs,
    names.Create: Memory._learn_create,
    names.CreateFile: Memory._learn_file,
    names.Grant: Memory._learn_grant,
    names.Remove: Memory._learn_remove,
    names.Rename: Memory._learn_rename,
    names.Link: Memory._learn_link,
    names.Adopt: Memory._learn_adopt,
    names.SetAttr: Memory._learn_set_attr,
    names.SetXattr: Memory._learn_xattr,
    names.RemoveXattr: Memory._learn_xattr,
    names.StoreContent: Memory._learn_attr,
    names.NameObject: Memory._learn_attr,
    names.MakeWritable: Memory._learn_attr,
    names.CommitWrite: Memory._learn_attr,
    names.Truncate: Memory._learn_attr,
}

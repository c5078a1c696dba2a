"""Answers, pushes and plain exchanges of the names protocol; see `fdfsfuse.proto.names`."""

from __future__ import annotations

import msgspec


class Message(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Base of all messages."""


# --- answers -------------------------------------------------------------------------------------


class Attr(Message, frozen=True):
    """One inode. ``ino`` 0 is an unnamed object, of which only size, times and file_id are known.

    ``mode`` includes the file type. ``file_id`` is '' while a file has no object (empty file,
    directory, ...). ``version`` counts the changes of content. ``target`` is a symlink's.
    ``in_place`` tells that the object is an appender that WRITE_OBJECT may change.
    """

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    version: int
    file_id: str = ""
    target: bytes = b""
    in_place: bool = False


class DirEntry(Message, frozen=True):
    """A directory entry; listing goes on behind it with ``cookie``."""

    cookie: int
    name: bytes
    attr: Attr


class Listing(Message, frozen=True):
    """Entries in cookie order; ``end`` tells that there are no more."""

    entries: list[DirEntry]
    end: bool


class FollowingEntry(Message, frozen=True):
    """An entry that was not asked for by its own name; ``data`` as in `Opened`."""

    name: bytes
    attr: Attr
    data: bytes | None = None


class Opened(Message, frozen=True):
    """``data`` is None when the content is longer than asked for (or could not be read here).

    ``following`` are entries of the directory ``parent``; see `fdfsfuse.proto.names.Open`.
    """

    attr: Attr
    data: bytes | None = None
    parent: int = 0
    following: list[FollowingEntry] = []


class Xattrs(Message, frozen=True):
    """Names with their namespace (``user.width``) and values.

    ``following`` are those of further inodes; see `fdfsfuse.proto.names.ListXattrs`.
    """

    xattrs: dict[bytes, bytes]
    following: dict[int, dict[bytes, bytes]] = {}


class Space(Message, frozen=True):
    """Bytes; ``available_bytes`` is what uploads may still use (reserved space taken off).

    ``files`` counts inodes.
    """

    total_bytes: int
    free_bytes: int
    available_bytes: int
    files: int


class ObjectEntry(Message, frozen=True):
    """``name`` is the last part of the path; ``attr`` is None for directories."""

    name: str
    attr: Attr | None = None


class ObjectListing(Message, frozen=True):
    """Entries sorted by name; ``end`` tells that there are no more."""

    entries: list[ObjectEntry]
    end: bool


class PathList(Message, frozen=True):
    """Absolute paths inside the volume, e.g. ``b"/photos/a.jpg"``."""

    paths: list[bytes]


class Outcome(Message, frozen=True):
    """``answer``: the encoded answer struct of a change that was made; None when it was not."""

    answer: bytes | None


class Renamed(Message, frozen=True):
    """The inode that moved, and the one that lost ``new_name`` (or was exchanged), if any."""

    moved: Attr
    replaced: Attr | None = None


class ObjectMade(Message, frozen=True):
    """The pending object. Its content goes to this storage by WRITE_OBJECT with the view."""

    file_id: str
    view: int


class Reserved(Message, frozen=True):
    """The numbers ``first`` .. ``first + count - 1``."""

    first: int
    count: int


class Done(Message, frozen=True):
    """The answer that says nothing but success."""


# --- pushes --------------------------------------------------------------------------------------


class NotPrimaryAnyMore(Message, tag=1, frozen=True):
    """This storage gave up the tree; open requests will not be answered here."""


class InSync(Message, tag=3, frozen=True):
    """The other storages (their ids) that have all content of which the session is told.

    Sent first of all, and when it changes: before anything is acknowledged that one of them lacks.
    """

    storages: list[str]


class Recall(Message, tag=2, frozen=True):
    """Somebody else has changed something: drop it, then answer with ``Recalled`` ``number``.

    The change is acknowledged when all sessions that held it have answered, or cannot hold it any
    more. What is named here is not held from then on. A connection that was taken up gets its
    unanswered recalls first of all.

    ``attrs``: inodes whose attributes (or xattrs) changed. ``content``: those of them whose
    content changed. ``names``: (directory, name) of entries that came, went or point elsewhere; the
    directory is in ``attrs``. ``unused``: inodes that the storage would like to be rid of.
    ``everything``: the storage does not know what the session holds (it was restarted).

    A recall of ``grants`` (directories; ``all_grants``: whatever the session may have) names
    nothing else, and does not take away what is held. Before it is confirmed the session has told
    of all files that it has made there (`CreateFile`) and got the answers.
    """

    number: int
    attrs: list[int]
    content: list[int]
    names: list[tuple[int, bytes]]
    unused: list[int]
    everything: bool = False
    grants: list[int] = []
    all_grants: bool = False


# --- plain exchanges -----------------------------------------------------------------------------


class View(Message, frozen=True):
    """Who keeps the group's tree: ``number`` counts up, ``primary`` and ``members`` are ids.

    ``volume_id`` is 32 hex digits drawn when the tree was founded. A storage that has no tree
    answers QUERY_VIEW with status 2.
    """

    number: int
    primary: str
    members: list[str]
    volume_id: str


class OpenSession(Message, frozen=True):
    """Open a session, or take up ``session`` again after its connection broke.

    ``session`` 0 opens a new one. ``token`` (16 random bytes chosen by the mount) must be the same
    when a session is taken up. ``client`` describes the mount to people: ``host:/mnt:pid``.
    ``version`` 1: the client keeps nothing that it was told, so nothing is recalled from it.
    ``lease_s``: a shorter lease than the storage would grant; 0 for what it grants.
    """

    version: int
    session: int
    token: bytes
    client: str
    lease_s: float = 0.0


class SessionOpened(Message, frozen=True):
    """The session, its lease in seconds and the view that the primary acts in."""

    version: int
    session: int
    lease_s: float
    view: View


class WriteObject(Message, frozen=True):
    """Head of WRITE_OBJECT: ``length`` bytes at ``offset`` of an appender, holes allowed.

    ``more`` are (offset, length) of further pieces, at most WRITE_PIECES_MAX: their bytes follow in
    this order. They are written one after the other; after a failure those before it may be there.
    Only a pending or a named, in-place object; ``view`` must be the storage's view. 2 no such
    object (any more), 22 not allowed, NOT_PRIMARY wrong view.
    """

    file_id: str
    view: int
    offset: int
    length: int
    more: list[tuple[int, int]] = []

    def pieces(self) -> list[tuple[int, int]]:
        """(offset, length) of all pieces."""
        return [(self.offset, self.length), *self.more]


class TruncateObject(Message, frozen=True):
    """Set the size of an appender, as WriteObject may change it."""

    file_id: str
    view: int
    size: int

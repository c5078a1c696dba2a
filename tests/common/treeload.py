"""Load on a volume's tree with an exact model of what was acknowledged.

A `TreeWorker` changes one directory through a session of its own, one operation at a time. When
the storage dies, the worker knows exactly one operation whose outcome is open; taking the
session up again and sending it again must settle it.
"""

from __future__ import annotations

import contextlib
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from fdfsfuse.proto import names
from tests.common.plain import Address, PlainError
from tests.common.session import BlockingSession, write_object
from tests.common.waiting import wait_until

NAMES = [f"n{number}".encode() + suffix for number in range(12) for suffix in (b"", b".jpg")]
XATTRS = (b"user.width", b"user.height", b"user.comment")
BROKEN = (ConnectionError, EOFError, TimeoutError)
"""What a connection raises when the storage dies."""


@dataclass
class Inode:
    """What is known of one inode."""

    ino: int
    directory: bool
    content: bytes = b""
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    names: set[bytes] = field(default_factory=set)

    def view(self) -> tuple[object, ...]:
        """What the storage must show of it."""
        links = 0 if self.directory else len(self.names)
        return self.ino, self.directory, self.content, dict(self.xattrs), links


Effect = Callable[[object], None]


def connect(
    address: Address, timeout_s: float = 60.0, *, old: BlockingSession | None = None
) -> BlockingSession:
    """Open a session, or take *old* up again, as soon as the storage lets us."""

    def attempt() -> BlockingSession | None:
        with contextlib.suppress(*BROKEN):
            if old is not None:
                old.take_up()
                return old
            return BlockingSession(address)
        return None

    return wait_until(attempt, f"a session at {address}", timeout_s=timeout_s)


def show_directory(session: BlockingSession, ino: int) -> dict[bytes, tuple[object, ...]]:
    """Name -> (ino, directory?, content, xattrs, links) of one directory, as the storage has it."""
    shown: dict[bytes, tuple[object, ...]] = {}
    for entry in session.read_dir(ino):
        attr = entry.attr
        directory = attr.mode & 0o170000 == 0o040000
        content = b"" if directory else session.read(attr.ino)
        xattrs = session.xattrs(attr.ino)
        links = 0 if directory else attr.nlink
        shown[entry.name] = (attr.ino, directory, content, xattrs, links)
    return shown


class TreeWorker:
    """Random changes of one directory; see the module's text.

    Args:
        retry: after a break, take the session up and send the open operation again; without it,
            open a new session and look which of the two possible outcomes happened.
    """

    def __init__(self, address: Address, name: bytes, seed: int, *, retry: bool = True) -> None:
        self.address = address
        self.retry = retry
        self.draw = random.Random(seed)
        self.entries: dict[bytes, Inode] = {}
        self.acknowledged = 0
        self.breaks = 0
        self.kinds: dict[str, int] = {}
        self.session = BlockingSession(address)
        self.directory = self.session.mkdir(names.ROOT_INO, name).ino

    def run(self, stop: threading.Event) -> None:
        """Work until *stop*; goes on over breaks."""
        while not stop.is_set():
            self.step()

    def step(self) -> None:
        """One change of the tree."""
        request, effect = self.draw_change()
        try:
            answer = self._exchange(request)
        except BROKEN:
            self.breaks += 1
            if not self.retry:
                self._find_out(effect)
                return
            answer = self._settle()
        if isinstance(answer, OSError):
            if answer.errno != names.SESSION_ENDED:
                raise answer
            # This machine was too busy for the lease.
            self._find_out(effect)
            return
        effect(answer)
        self.acknowledged += 1
        kind = type(request).__name__
        self.kinds[kind] = self.kinds.get(kind, 0) + 1

    def _exchange(self, request: names.Request) -> object:
        self.session.send(request)
        return self.session.receive()[2]

    def _settle(self) -> object:
        while True:
            connect(self.address, old=self.session)
            with contextlib.suppress(*BROKEN):
                return self.session.receive()[2]

    def _find_out(self, effect: Effect) -> None:
        self.session.sock.close()
        self.session = connect(self.address)
        shown = show_directory(self.session, self.directory)
        if shown == self.expected():
            return
        effect(None)
        shown = show_directory(self.session, self.directory)
        assert shown == self.expected(), "half an operation"

    def expected(self) -> dict[bytes, tuple[object, ...]]:
        """What `show_directory` must say."""
        return {name: inode.view() for name, inode in self.entries.items()}

    def check(self) -> None:
        """Compare the directory with what was acknowledged."""
        with connect(self.address) as session:
            shown, expected = show_directory(session, self.directory), self.expected()
        for name in sorted(shown.keys() | expected.keys()):
            # Not their texts: the order of the attributes may differ.
            there, wanted = shown.get(name), expected.get(name)
            assert there == wanted, f"{name!r}: {_short(there)} instead of {_short(wanted)}"
        assert shown == expected

    # --- changes; each returns the request and what it does to the model ------------------------

    def draw_change(self) -> tuple[names.Request, Effect]:
        """A change that must succeed in the directory as it is."""
        files = [name for name, inode in self.entries.items() if not inode.directory]
        missing = [name for name in NAMES if name not in self.entries]
        choices: list[Callable[[], tuple[names.Request, Effect]]] = []
        if missing:
            choices += [lambda: self.change_create(self.draw.choice(missing))] * 3
        if files:
            choices += [lambda: self.change_store(self.draw.choice(files))] * 5
            choices += [lambda: self.change_xattr(self.draw.choice(files))]
            choices += [lambda: self.change_rename(self.draw.choice(files))] * 2
        if files and missing:
            choices += [
                lambda: self.change_link(self.draw.choice(files), self.draw.choice(missing))
            ]
        if self.entries:
            choices += [lambda: self.change_remove(self.draw.choice(list(self.entries)))] * 2
        return self.draw.choice(choices)()

    def change_create(self, name: bytes) -> tuple[names.Request, Effect]:
        directory = self.draw.random() < 0.2
        mode = 0o040755 if directory else 0o100644
        request = names.Create(self.directory, name, mode, 0, 0, time.time_ns())

        def effect(answer: object) -> None:
            attr = answer or self.session.lookup(self.directory, name)
            assert isinstance(attr, names.Attr)
            self.entries[name] = Inode(attr.ino, directory, names={name})

        return request, effect

    def change_store(self, name: bytes) -> tuple[names.Request, Effect]:
        inode = self.entries[name]
        size = self.draw.choice((0, 1, 100, 4096, 20_000, 300_000))
        data = self.draw.randbytes(size)
        request = names.StoreContent(inode.ino, data, time.time_ns())

        def effect(_: object) -> None:
            inode.content = data

        return request, effect

    def change_xattr(self, name: bytes) -> tuple[names.Request, Effect]:
        inode = self.entries[name]
        xattr = self.draw.choice(XATTRS)
        value = b"%d" % self.draw.randrange(10**6)
        request = names.SetXattr(inode.ino, xattr, value, 0, time.time_ns())

        def effect(_: object) -> None:
            inode.xattrs[xattr] = value

        return request, effect

    def change_rename(self, name: bytes) -> tuple[names.Request, Effect]:
        inode = self.entries[name]
        allowed = [n for n in NAMES if n not in self.entries or not self.entries[n].directory]
        new = self.draw.choice(allowed)
        request = names.Rename(self.directory, name, self.directory, new, 0, time.time_ns())

        def effect(_: object) -> None:
            replaced = self.entries.get(new)
            if replaced is inode:
                return  # two names of one inode: POSIX says that nothing happens
            if replaced is not None:
                replaced.names.discard(new)
            del self.entries[name]
            self.entries[new] = inode
            inode.names.discard(name)
            inode.names.add(new)

        return request, effect

    def change_link(self, name: bytes, new: bytes) -> tuple[names.Request, Effect]:
        inode = self.entries[name]
        request = names.Link(inode.ino, self.directory, new, time.time_ns())

        def effect(_: object) -> None:
            self.entries[new] = inode
            inode.names.add(new)

        return request, effect

    def change_remove(self, name: bytes) -> tuple[names.Request, Effect]:
        inode = self.entries[name]
        request = names.Remove(self.directory, name, inode.directory, time.time_ns())

        def effect(_: object) -> None:
            del self.entries[name]
            inode.names.discard(name)

        return request, effect


def make_pending(session: BlockingSession, ino: int, data: bytes) -> names.ObjectMade:
    """Upload *data* as an object that belongs to the session and has no name yet."""
    made = session.call(names.NewObject(ino), names.ObjectMade)
    half = len(data) // 2
    write_object(session.address, made.file_id, made.view, 0, data[:half])
    write_object(session.address, made.file_id, made.view, half, data[half:])
    return made


def name_pending(
    session: BlockingSession, ino: int, made: names.ObjectMade, size: int
) -> names.Attr:
    """Make a pending object the content of the inode."""
    return session.call(names.NameObject(ino, made.file_id, size, time.time_ns()), names.Attr)


def status_of(call: Callable[[], object]) -> int:
    """The errno that *call* fails with, 0 when it succeeds."""
    try:
        call()
    except PlainError as exc:
        return exc.status
    except OSError as exc:
        return exc.errno or 0
    return 0


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 200 else f"{text[:200]}... {hash(text)}"

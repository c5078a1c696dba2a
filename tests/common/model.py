"""Random file operations, done in the same way below two directories.

`Runner` draws operations from a seed and does each of them below both roots; results, errnos and
attributes must agree. Times are compared when they were set (those before NOW_NS).
"""

from __future__ import annotations

import mmap
import os
import random
import stat
import zlib
from collections.abc import Callable
from pathlib import Path

from tests.common.trees import errno_name, set_time_ns
from tests.common.twin import EXCHANGE, NOREPLACE, renameat2

NAMES = ("a", "b", "c", "d", "e.txt", "f", "\u00e9")
SIZES = (0, 1, 10, 4095, 4096, 5000, 70_000, 300_000, (1 << 20) - 1, 1 << 20, (1 << 20) + 1)
BIG_SIZES = (1_500_000, 2_200_000, 5_000_000)
OPEN_FLAGS = (
    os.O_RDONLY,
    os.O_RDWR,
    os.O_WRONLY,
    os.O_RDWR | os.O_CREAT,
    os.O_RDWR | os.O_CREAT,
    os.O_WRONLY | os.O_CREAT | os.O_EXCL,
    os.O_RDWR | os.O_CREAT | os.O_TRUNC,
    os.O_WRONLY | os.O_TRUNC,
    os.O_WRONLY | os.O_CREAT | os.O_APPEND,
    os.O_RDWR | os.O_APPEND,
    os.O_RDONLY | os.O_DIRECTORY,
    os.O_RDWR | os.O_NOFOLLOW,
)
XATTRS = ("user.width", "user.height", "user.long-name" + "x" * 70, "user.c")
MAX_OPEN = 8
MAX_SIZE = 8 << 20


def describe(status: os.stat_result) -> tuple[object, ...]:
    """What two file systems must agree on; directories' link counts and sizes are their own."""
    mode = status.st_mode
    directory = stat.S_ISDIR(mode)
    return (
        stat.filemode(mode),
        None if directory else status.st_nlink,
        status.st_uid,
        status.st_gid,
        None if directory else status.st_size,
        set_time_ns(status.st_mtime_ns),
    )


class Disagreement(AssertionError):
    """The two directories gave different results."""


class Runner:
    """Runs the same operations below *left* (the model) and *right* (the file system tested)."""

    def __init__(self, left: Path, right: Path, seed: int) -> None:
        self.roots = (os.fspath(left), os.fspath(right))
        self.seed = seed
        self.draw = random.Random(seed)
        self.handles: list[tuple[int, int]] = []
        self.history: list[str] = []
        self.results: dict[str, int] = {}
        self._operations: list[tuple[int, Callable[[], None]]] = [
            (10, self.op_write_file),
            (8, self.op_open),
            (10, self.op_handle_write),
            (8, self.op_handle_read),
            (4, self.op_handle_truncate),
            (3, self.op_handle_map),
            (4, self.op_handle_close),
            (2, self.op_handle_sync),
            (3, self.op_handle_stat),
            (8, self.op_read_file),
            (5, self.op_truncate),
            (6, self.op_append),
            (6, self.op_mkdir),
            (3, self.op_rmdir),
            (6, self.op_unlink),
            (9, self.op_rename),
            (3, self.op_rename_flags),
            (5, self.op_link),
            (3, self.op_symlink),
            (2, self.op_readlink),
            (8, self.op_stat),
            (8, self.op_list),
            (3, self.op_chmod),
            (3, self.op_chown),
            (4, self.op_utime),
            (4, self.op_setxattr),
            (3, self.op_removexattr),
            (4, self.op_getxattrs),
            (1, self.op_mkfifo),
            (1, self.op_access),
        ]

    def run(self, count: int) -> None:
        """Do *count* operations, then close what is open."""
        operations = [operation for _, operation in self._operations]
        weights = [weight for weight, _ in self._operations]
        for operation in self.draw.choices(operations, weights, k=count):
            operation()
        self.close()

    def step(self, number: int, draw: random.Random) -> None:
        """Do one operation, chosen by *number*, with what *draw* gives."""
        self.draw = draw
        self._operations[number % len(self._operations)][1]()

    def close(self) -> None:
        """Close all handles."""
        while self.handles:
            self._close(0)

    # --- machinery ----------------------------------------------------------------------------

    def both(self, what: str, call: Callable[[int, str], object]) -> object:
        """Do *call(side, root)* on both sides and compare the results or errnos.

        Returns the common result, or the OSError.
        """
        self.history.append(what)
        outcomes: list[object] = []
        errors: list[str] = []
        for side, root in enumerate(self.roots):
            try:
                outcomes.append(call(side, root))
                errors.append("")
            except OSError as exc:
                outcomes.append(exc)
                errors.append(errno_name(exc.errno or 0))
        shown = [error or _short(outcome) for error, outcome in zip(errors, outcomes, strict=True)]
        self.history[-1] = f"{what} -> {shown[0]}"
        kind = what.split(" ", 1)[0]
        key = f"{kind}: {'failed' if errors[0] else 'done'}"
        self.results[key] = self.results.get(key, 0) + 1
        if errors[0] != errors[1] or (not errors[0] and outcomes[0] != outcomes[1]):
            last = "\n".join(f"  {line}" for line in self.history[-40:])
            raise Disagreement(
                f"seed {self.seed}, operation {len(self.history)}: {what}\n"
                f"  model: {shown[0]}\n  here:  {shown[1]}\nhistory:\n{last}"
            )
        return outcomes[0]

    def path(self, kind: str = "") -> str:
        """A relative path: one of an entry that is there (of that file type, if there is one),
        or one of which some parts may be missing or no directories."""
        if self.draw.random() < 0.5 and (paths := self._existing(kind)):
            return self.draw.choice(paths)
        depth = self.draw.choices((1, 2, 3), (5, 4, 2))[0]
        return "/".join(self.draw.choice(NAMES) for _ in range(depth))

    def _existing(self, kind: str) -> list[str]:
        paths: list[str] = []
        root = self.roots[0]
        for base, directories, files in os.walk(root):
            for name in (*directories, *files):
                path = os.path.join(base, name)
                if stat.filemode(os.lstat(path).st_mode)[0] == (kind or "-") or not kind:
                    paths.append(os.path.relpath(path, root))
        return sorted(paths)

    def data(self) -> bytes:
        size = self.draw.choice(BIG_SIZES if self.draw.random() < 0.06 else SIZES)
        return (
            self.draw.randbytes(min(size, 4096)) * (size // 4096 + 1)
            if size > 4096
            else (self.draw.randbytes(size))
        )

    def offset(self) -> int:
        return self.draw.choice((0, 1, 100, 4096, 65_536, 1 << 20, self.draw.randrange(3 << 20)))

    def handle(self) -> int | None:
        """The number of an open handle, or None when there is none."""
        return self.draw.randrange(len(self.handles)) if self.handles else None

    # --- files by name ------------------------------------------------------------------------

    def op_write_file(self) -> None:
        path, data = self.path("-"), self.data()

        def call(_side: int, root: str) -> object:
            fd = os.open(
                f"{root}/{path}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK, 0o644
            )
            try:
                _write(fd, data)
            finally:
                os.close(fd)
            return describe(os.stat(f"{root}/{path}"))

        self.both(f"write_file {path} {len(data)}", call)

    def op_append(self) -> None:
        path, data = self.path("-"), self.draw.randbytes(self.draw.choice((1, 100, 5000)))

        def call(_side: int, root: str) -> object:
            fd = os.open(f"{root}/{path}", os.O_WRONLY | os.O_APPEND | os.O_NONBLOCK)
            try:
                _write(fd, data)
                return os.fstat(fd).st_size
            finally:
                os.close(fd)

        self.both(f"append {path} {len(data)}", call)

    def op_read_file(self) -> None:
        path = self.path("-")

        def call(_side: int, root: str) -> object:
            fd = os.open(f"{root}/{path}", os.O_RDONLY | os.O_NONBLOCK)
            try:
                return _read_all(fd)
            finally:
                os.close(fd)

        self.both(f"read_file {path}", call)

    def op_truncate(self) -> None:
        path, size = self.path("-"), self.draw.choice((*SIZES, 2_000_000))

        def call(_side: int, root: str) -> object:
            os.truncate(f"{root}/{path}", size)
            return describe(os.stat(f"{root}/{path}"))

        self.both(f"truncate {path} {size}", call)

    # --- open files ---------------------------------------------------------------------------

    def op_open(self) -> None:
        if len(self.handles) >= MAX_OPEN:
            self._close(self.draw.randrange(MAX_OPEN))
        path, flags = self.path("-"), self.draw.choice(OPEN_FLAGS) | os.O_NONBLOCK
        mode = self.draw.choice((0o644, 0o600, 0o755))
        fds: list[int] = []

        def call(_side: int, root: str) -> object:
            fds.append(os.open(f"{root}/{path}", flags, mode))
            return describe(os.fstat(fds[-1]))

        try:
            self.both(f"open {path} {flags:#o} {mode:o}", call)
        finally:
            if len(fds) == 2:
                self.handles.append((fds[0], fds[1]))
            else:
                for fd in fds:
                    os.close(fd)

    def op_handle_write(self) -> None:
        number = self.handle()
        if number is None:
            return
        fds, data, offset = self.handles[number], self.data(), self.offset()
        if offset + len(data) > MAX_SIZE:
            return

        def call(side: int, _root: str) -> object:
            return os.pwrite(fds[side], data, offset), os.fstat(fds[side]).st_size

        self.both(f"pwrite #{number} {offset} {len(data)}", call)

    def op_handle_read(self) -> None:
        number = self.handle()
        if number is None:
            return
        fds, offset, count = self.handles[number], self.offset(), self.draw.choice(SIZES)

        def call(side: int, _root: str) -> object:
            return zlib.crc32(os.pread(fds[side], count, offset))

        self.both(f"pread #{number} {offset} {count}", call)

    def op_handle_truncate(self) -> None:
        number = self.handle()
        if number is None:
            return
        fds, size = self.handles[number], self.draw.choice((*SIZES, 2_000_000))

        def call(side: int, _root: str) -> object:
            os.ftruncate(fds[side], size)
            return describe(os.fstat(fds[side]))

        self.both(f"ftruncate #{number} {size}", call)

    def op_handle_map(self) -> None:
        """Write some bytes through a shared mapping, and read others."""
        number = self.handle()
        if number is None:
            return
        fds, offset, data = self.handles[number], self.offset(), self.draw.randbytes(100)

        def call(side: int, _root: str) -> object:
            fd = fds[side]
            info = os.fstat(fd)
            # What a directory says its size is differs between file systems.
            if not stat.S_ISREG(info.st_mode) or info.st_size < offset + len(data):
                return None
            start = offset & ~(mmap.ALLOCATIONGRANULARITY - 1)
            length = offset - start + len(data)
            try:
                area = mmap.mmap(fd, length, access=mmap.ACCESS_WRITE, offset=start)
            except PermissionError:
                area = mmap.mmap(fd, length, access=mmap.ACCESS_READ, offset=start)
                with area:
                    return zlib.crc32(area)
            with area:
                area[offset - start :] = data
                return zlib.crc32(area)

        self.both(f"map #{number} {offset}", call)

    def op_handle_sync(self) -> None:
        number = self.handle()
        if number is not None:
            fds = self.handles[number]
            self.both(f"fsync #{number}", lambda side, _root: os.fsync(fds[side]))

    def op_handle_stat(self) -> None:
        number = self.handle()
        if number is not None:
            fds = self.handles[number]
            self.both(f"fstat #{number}", lambda side, _root: describe(os.fstat(fds[side])))

    def op_handle_close(self) -> None:
        number = self.handle()
        if number is not None:
            self._close(number)

    def _close(self, number: int) -> None:
        fds = self.handles.pop(number)
        self.both(f"close #{number}", lambda side, _root: os.close(fds[side]))

    # --- names --------------------------------------------------------------------------------

    def op_mkdir(self) -> None:
        path, mode = self.path(), self.draw.choice((0o755, 0o700, 0o2755))
        self.both(f"mkdir {path} {mode:o}", lambda _, root: os.mkdir(f"{root}/{path}", mode))

    def op_rmdir(self) -> None:
        path = self.path("d")
        self.both(f"rmdir {path}", lambda _, root: os.rmdir(f"{root}/{path}"))

    def op_unlink(self) -> None:
        path = self.path()
        self.both(f"unlink {path}", lambda _, root: os.unlink(f"{root}/{path}"))

    def op_rename(self) -> None:
        old, new = self.path(), self.path()

        def call(_side: int, root: str) -> object:
            os.rename(f"{root}/{old}", f"{root}/{new}")
            return describe(os.lstat(f"{root}/{new}"))

        self.both(f"rename {old} {new}", call)

    def op_rename_flags(self) -> None:
        old, new = self.path(), self.path()
        flags = self.draw.choice((NOREPLACE, EXCHANGE))

        def call(_side: int, root: str) -> object:
            renameat2(f"{root}/{old}", f"{root}/{new}", flags)
            return describe(os.lstat(f"{root}/{new}"))

        self.both(f"rename_flags {old} {new} {flags}", call)

    def op_link(self) -> None:
        old, new = self.path("-"), self.path()

        def call(_side: int, root: str) -> object:
            os.link(f"{root}/{old}", f"{root}/{new}", follow_symlinks=False)
            return describe(os.lstat(f"{root}/{old}"))

        self.both(f"link {old} {new}", call)

    def op_symlink(self) -> None:
        target, path = self.path(), self.path()
        self.both(f"symlink {target} {path}", lambda _, root: os.symlink(target, f"{root}/{path}"))

    def op_readlink(self) -> None:
        path = self.path("l")
        self.both(f"readlink {path}", lambda _, root: os.readlink(f"{root}/{path}"))

    def op_mkfifo(self) -> None:
        path = self.path()
        self.both(f"mkfifo {path}", lambda _, root: os.mkfifo(f"{root}/{path}", 0o640))

    def op_list(self) -> None:
        path = self.draw.choice((".", self.path()))

        def call(_side: int, root: str) -> object:
            with os.scandir(f"{root}/{path}") as entries:
                return sorted((e.name, e.is_dir(follow_symlinks=False)) for e in entries)

        self.both(f"list {path}", call)

    # --- attributes ---------------------------------------------------------------------------

    def op_stat(self) -> None:
        path, follow = self.path(), self.draw.random() < 0.3
        self.both(
            f"stat {path} {follow}",
            lambda _, root: describe(os.stat(f"{root}/{path}", follow_symlinks=follow)),
        )

    def op_access(self) -> None:
        path, mode = self.path(), self.draw.choice((os.R_OK, os.W_OK, os.X_OK))
        self.both(f"access {path} {mode}", lambda _, root: os.access(f"{root}/{path}", mode))

    def op_chmod(self) -> None:
        path = self.path()
        mode = self.draw.choice((0o644, 0o755, 0o600, 0o1777, 0o4755, 0o2755))
        if os.geteuid() != 0:
            mode |= 0o700  # or nothing could be done in a directory from then on

        def call(_side: int, root: str) -> object:
            os.chmod(f"{root}/{path}", mode)
            return describe(os.stat(f"{root}/{path}"))

        self.both(f"chmod {path} {mode:o}", call)

    def op_chown(self) -> None:
        if os.geteuid() != 0:
            return
        path, uid, gid = self.path(), self.draw.choice((-1, 0, 1000)), self.draw.choice((-1, 0, 50))

        def call(_side: int, root: str) -> object:
            os.chown(f"{root}/{path}", uid, gid, follow_symlinks=False)
            return describe(os.lstat(f"{root}/{path}"))

        self.both(f"chown {path} {uid} {gid}", call)

    def op_utime(self) -> None:
        path = self.path()
        times = (self.draw.randrange(10**18), self.draw.randrange(-(10**18), 10**18))

        def call(_side: int, root: str) -> object:
            os.utime(f"{root}/{path}", ns=times, follow_symlinks=False)
            return os.lstat(f"{root}/{path}").st_mtime_ns

        self.both(f"utime {path} {times}", call)

    def op_setxattr(self) -> None:
        path, name = self.path(self.draw.choice("--d")), self.draw.choice(XATTRS)
        value = self.draw.randbytes(self.draw.choice((0, 4, 100, 256, 257)))
        flags = self.draw.choice((0, 0, os.XATTR_CREATE, os.XATTR_REPLACE))
        self.both(
            f"setxattr {path} {name} {len(value)} {flags}",
            lambda _, root: os.setxattr(
                f"{root}/{path}", name, value, flags, follow_symlinks=False
            ),
        )

    def op_removexattr(self) -> None:
        path, name = self.path("-"), self.draw.choice(XATTRS)
        self.both(
            f"removexattr {path} {name}",
            lambda _, root: os.removexattr(f"{root}/{path}", name, follow_symlinks=False),
        )

    def op_getxattrs(self) -> None:
        path = self.path()

        def call(_side: int, root: str) -> object:
            full = f"{root}/{path}"
            names = sorted(n for n in os.listxattr(full) if n.startswith("user."))
            return [(name, os.getxattr(full, name)) for name in names]

        self.both(f"getxattrs {path}", call)


def _write(fd: int, data: bytes) -> None:
    """To a file only: what is written to a fifo changes its times on local file systems, but FUSE
    has no message that would tell a mount of it."""
    if stat.S_ISREG(os.fstat(fd).st_mode):
        os.write(fd, data)


def _read_all(fd: int) -> tuple[int, int]:
    """Length and crc32 of what is left to read."""
    crc = length = 0
    while data := os.read(fd, 1 << 20):
        crc, length = zlib.crc32(data, crc), length + len(data)
    return length, crc


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) < 300 else text[:300] + "..."

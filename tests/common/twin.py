"""The same system calls below two directories, one local and one on a mount: the same outcomes.

`Twin.same` runs a function once with each directory as the working directory, so paths are alike on
both sides, and notes where result or errno differ; `Twin.check` fails with all that was noted.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.common.trees import errno_name

_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD = -100
_CLOCK_REALTIME_COARSE = 5
UTIME_NOW, UTIME_OMIT = (1 << 30) - 1, (1 << 30) - 2
NOREPLACE, EXCHANGE = 1, 2
_SHOWN = 40


def renameat2(old: str, new: str, flags: int) -> None:
    """rename(2) with flags. Raises OSError."""
    arguments = (_AT_FDCWD, os.fsencode(old), _AT_FDCWD, os.fsencode(new), flags)
    if _libc.renameat2(*arguments):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class _Timespec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("ns", ctypes.c_long))


def utimensat(path: str, atime: tuple[int, int], mtime: tuple[int, int]) -> None:
    """utimensat(2) with (seconds, ns), where ns may be UTIME_NOW or UTIME_OMIT. Raises OSError."""
    times = (_Timespec * 2)(_Timespec(*atime), _Timespec(*mtime))
    if _libc.utimensat(_AT_FDCWD, os.fsencode(path), times, 0):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


@contextlib.contextmanager
def as_user(uid: int, gid: int, groups: Sequence[int] = ()) -> Iterator[None]:
    """Act as another user; needs root."""
    old_uid, old_gid, old_groups = os.geteuid(), os.getegid(), os.getgroups()
    os.setgroups(groups)
    os.setegid(gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(old_uid)
        os.setegid(old_gid)
        os.setgroups(old_groups)


@contextlib.contextmanager
def inside(directory: Path) -> Iterator[None]:
    """Work in *directory*."""
    old = os.open(".", os.O_PATH | os.O_DIRECTORY)
    os.chdir(directory)
    try:
        yield
    finally:
        os.fchdir(old)
        os.close(old)


def coarse_time_ns() -> int:
    """The clock by which file systems set times: it may lag behind, but no file is older."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


def tick() -> None:
    """Wait until the coarse clock has moved on."""
    start = coarse_time_ns()
    while coarse_time_ns() == start:
        time.sleep(0.001)


def look(path: str) -> tuple[object, ...]:
    """What two file systems must agree on of one entry, times excepted."""
    status = os.lstat(path)
    kind = stat.S_IFMT(status.st_mode)
    return (
        stat.filemode(status.st_mode),
        status.st_nlink,
        status.st_uid,
        status.st_gid,
        None if kind == stat.S_IFDIR else status.st_size,
        status.st_rdev if kind in (stat.S_IFCHR, stat.S_IFBLK) else None,
        os.readlink(path) if kind == stat.S_IFLNK else None,
    )


def look_around() -> str:
    """`look` at everything below the working directory, one line each."""
    seen = [f". {look('.')}"]
    for base, directories, files in os.walk("."):
        for name in (*directories, *files):
            path = os.path.join(base, name)
            seen.append(f"{path!r} {look(path)}")
    return "\n".join(sorted(seen))


def outcome(action: Callable[..., object], *args: object) -> str:
    """What *action* returns, or the name of the errno that it fails with."""
    try:
        return str(action(*args))
    except OSError as exc:
        return errno_name(exc.errno or 0)


class User(NamedTuple):
    """Ids to act under."""

    uid: int
    gid: int
    groups: Sequence[int] = ()


ROOT = User(0, 0)


class Wanted(NamedTuple):
    """An entry for `restore`: of the type in *mode*, a symlink to *target*, or a link to *link*."""

    mode: int
    user: User = ROOT
    target: str = ""
    content: bytes = b""
    link: str = ""

    def found(self, name: str) -> bool:
        """Whether it is there as wanted, as far as attributes tell."""
        try:
            status = os.lstat(name)
        except FileNotFoundError:
            return False
        if stat.S_ISLNK(status.st_mode):
            return self.target != "" and os.readlink(name) == self.target
        if self.link:
            return os.path.samestat(status, os.lstat(self.link))
        if (status.st_mode, status.st_uid, status.st_gid) != (self.mode, *self.user[:2]):
            return False
        return not stat.S_ISREG(self.mode) or status.st_size == len(self.content)

    def make(self, name: str) -> None:
        """Make it."""
        if self.link:
            os.link(self.link, name)
            return
        kind = stat.S_IFMT(self.mode)
        if self.target:
            os.symlink(self.target, name)
        elif kind == stat.S_IFDIR:
            os.mkdir(name)
        else:
            os.mknod(name, kind | 0o600, os.makedev(1, 3) if kind == stat.S_IFCHR else 0)
        if self.content:
            with open(name, "wb") as file:
                file.write(self.content)
        os.lchown(name, self.user.uid, self.user.gid)
        if not self.target:
            os.chmod(name, stat.S_IMODE(self.mode))


def restore(entries: Mapping[str, Wanted]) -> None:
    """Make the working directory hold *entries* and nothing else, with as little work as can be."""
    for base, directories, files in os.walk("."):
        for name in (*directories, *files):
            path = os.path.relpath(os.path.join(base, name), ".")
            if path not in entries:
                remove(path)
    for name, wanted in entries.items():
        if not wanted.found(name):
            remove(name)
            wanted.make(name)


def remove(path: str) -> None:
    """Remove what is there, of whatever type; a directory with what is in it."""
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            os.unlink(path)


class Twin:
    """See the module. *left* is the model, *right* is tested; both must be empty directories."""

    def __init__(self, left: Path, right: Path) -> None:
        for base in (left, right):
            base.chmod(0o755)
        self._bases = (left, right)
        self._scenes = 0
        self.roots = self._bases
        self.checks = 0
        self.differences: list[str] = []

    def scene(self, make: Callable[..., object], *args: object) -> None:
        """Go on in new directories, furnished by *make* with *args*."""
        self._scenes += 1
        self.roots = (
            self._bases[0] / f"scene{self._scenes}",
            self._bases[1] / f"scene{self._scenes}",
        )
        for root in self.roots:
            root.mkdir()
            root.chmod(0o755)
            with inside(root):
                make(*args)

    def same(self, what: str, action: Callable[..., object], *args: object) -> str:
        """Do *action* with *args* on both sides; returns the outcome on the left."""
        outcomes = []
        for root in self.roots:
            with inside(root):
                outcomes.append(outcome(action, *args))
        self.checks += 1
        left, right = outcomes
        if left != right:
            self.differences.append(
                f"{what}:\n  model {_only_in(left, right)}\n  mount {_only_in(right, left)}"
            )
        return left

    def check(self) -> None:
        """Fail when there was a difference."""
        shown = "\n".join(self.differences[:_SHOWN])
        count = len(self.differences)
        assert not count, f"{count} of {self.checks} outcomes differ:\n{shown}"


def _only_in(text: str, other: str) -> str:
    """The lines of *text* that *other* does not have."""
    others = other.splitlines()
    return "\n        ".join(line for line in text.splitlines() if line not in others)[:2000]

"""Which of mtime and ctime, of the object and of its parents, each operation sets.

Access times are left out: the mount does not change them by reading.
"""

from __future__ import annotations

import os
import random
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from fdfsfuse.proto.names import TIME_MAX_NS, TIME_MIN_NS
from tests.common.mount import Mount
from tests.common.twin import (
    NOREPLACE,
    UTIME_NOW,
    UTIME_OMIT,
    Twin,
    coarse_time_ns,
    renameat2,
    tick,
    utimensat,
)

PAST_NS = 1_000_000_000_123_456_789
ENTRIES = ("file", "big", "dir", "dir/child", "dir2", "dir2/sub", "link", "fifo", ".")


def furnish(what: str = "") -> None:
    Path("file").write_bytes(b"content")
    Path("big").write_bytes(bytes(1_500_000) if "big" in what else b"not now")
    for name in ("dir", "dir2", "dir2/sub"):
        os.mkdir(name)
    Path("dir/child").write_bytes(b"child")
    os.symlink("file", "link")
    os.mkfifo("fifo")
    os.setxattr("file", "user.there", b"1")


def times() -> dict[str, tuple[int, int]]:
    found = {}
    for name in ENTRIES:
        try:
            status = os.lstat(name)
        except FileNotFoundError:
            continue
        found[name] = (status.st_mtime_ns, status.st_ctime_ns)
    return found


def written(path: str, data: bytes, flags: int = 0, offset: int = 0) -> None:
    fd = os.open(path, os.O_WRONLY | flags)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)


def opened(path: str, flags: int) -> None:
    os.close(os.open(path, flags, 0o644))


def seen_before_close(path: str) -> bool:
    """The time of a write shows at once and stays as it is when the file is closed."""
    fd = os.open(path, os.O_WRONLY)
    os.write(fd, b"x")
    status = os.fstat(fd)
    tick()
    os.close(fd)
    after = os.stat(path)
    return (status.st_mtime_ns, status.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)


def steps(*calls: Callable[[], object]) -> Callable[[], None]:
    """One call after the other."""

    def action() -> None:
        for call in calls:
            call()

    return action


OPERATIONS: dict[str, Callable[[], object]] = {
    "stat": lambda: os.stat("file").st_size,
    "read": lambda: Path("file").read_bytes(),
    "open": lambda: opened("file", os.O_RDWR),
    "open creat existing": lambda: opened("file", os.O_RDWR | os.O_CREAT),
    "write": lambda: written("file", b"x"),
    "write nothing": lambda: written("file", b""),
    "append": lambda: written("file", b"x", os.O_APPEND),
    "write far": lambda: written("file", b"x", offset=3 << 20),
    "write big": lambda: written("big", b"x", offset=100),
    "write big times": lambda: seen_before_close("big"),
    "write times": lambda: seen_before_close("file"),
    "open trunc": lambda: opened("file", os.O_WRONLY | os.O_TRUNC),
    "open trunc big": lambda: opened("big", os.O_WRONLY | os.O_TRUNC),
    "truncate shorter": lambda: os.truncate("file", 3),
    "truncate longer": lambda: os.truncate("file", 300),
    "truncate same": lambda: os.truncate("file", 7),
    "truncate 0": lambda: os.truncate("file", 0),
    "truncate big": lambda: os.truncate("big", 1_200_000),
    "truncate big same": lambda: os.truncate("big", 1_500_000),
    "truncate big longer": lambda: os.truncate("big", 1 << 31),
    "chmod": lambda: os.chmod("file", 0o600),
    "chmod same": lambda: os.chmod("file", 0o644),
    "chmod directory": lambda: os.chmod("dir", 0o700),
    "chown": lambda: os.chown("file", os.getuid(), os.getgid()),
    "lchown": lambda: os.lchown("link", os.getuid(), os.getgid()),
    "utime": lambda: os.utime("file", ns=(5, PAST_NS - 5)),
    "lutime": lambda: os.utime("link", ns=(5, PAST_NS - 5), follow_symlinks=False),
    "touch": lambda: os.utime("file"),
    "utimensat now": lambda: utimensat("file", (0, UTIME_OMIT), (0, UTIME_NOW)),
    "utimensat omit": lambda: utimensat("file", (5, 6), (0, UTIME_OMIT)),
    "utimensat nothing": lambda: utimensat("file", (0, UTIME_OMIT), (0, UTIME_OMIT)),
    "utimensat both": lambda: utimensat("dir", (0, UTIME_NOW), (PAST_NS // 10**9, 5)),
    "utimensat wrong": lambda: utimensat("file", (0, 10**9), (0, 0)),
    "setxattr": lambda: os.setxattr("file", "user.x", b"1"),
    "setxattr directory": lambda: os.setxattr("dir", "user.x", b"1"),
    "removexattr": lambda: os.removexattr("file", "user.there"),
    "create": lambda: opened("dir/new", os.O_CREAT | os.O_WRONLY),
    "create exclusive": lambda: opened("dir/new", os.O_CREAT | os.O_EXCL),
    "mkdir": lambda: os.mkdir("dir/new"),
    "mkfifo": lambda: os.mkfifo("dir/new"),
    "mknod": lambda: os.mknod("dir/new", stat.S_IFREG | 0o644),
    "symlink": lambda: os.symlink("x", "dir/new"),
    "link": lambda: os.link("file", "dir/new"),
    "unlink": lambda: os.unlink("dir/child"),
    "unlink one of two": steps(
        lambda: os.link("file", "dir/new"), tick, lambda: os.unlink("dir/new")
    ),
    "rmdir": lambda: os.rmdir("dir2/sub"),
    "rename": lambda: os.rename("file", "dir/new"),
    "rename back": steps(lambda: os.rename("file", "new"), lambda: os.rename("new", "file")),
    "rename in place": lambda: os.rename("dir/child", "dir/other"),
    "rename over": lambda: os.rename("file", "dir/child"),
    "rename directory": steps(
        lambda: os.rename("dir2/sub", "dir/sub"), lambda: os.rename("dir/sub", "dir2/sub")
    ),
    "rename directory over": steps(
        lambda: os.mkdir("dir/new"), lambda: os.rename("dir2/sub", "dir/new")
    ),
    "rename to same inode": steps(
        lambda: os.link("file", "new"), tick, lambda: os.rename("file", "new")
    ),
    "failed create": lambda: opened("file", os.O_CREAT | os.O_EXCL),
    "failed mkdir": lambda: os.mkdir("dir"),
    "failed unlink": lambda: os.unlink("dir"),
    "failed rmdir": lambda: os.rmdir("dir"),
    "failed rename": lambda: os.rename("dir", "dir/child/x"),
    "failed noreplace": lambda: renameat2("file", "dir/child", NOREPLACE),
    "failed link": lambda: os.link("file", "dir"),
    "failed truncate": lambda: os.truncate("dir", 1),
    "failed setxattr": lambda: os.setxattr("file", "user.none", b"", os.XATTR_REPLACE),
}


def test_which_times_operations_set(local: Path, volume: Path) -> None:
    twin = Twin(local, volume)
    for what, action in OPERATIONS.items():
        twin.scene(furnish, what)

        def attempt(action: Callable[[], object] = action) -> str:
            for name in reversed(ENTRIES):
                os.utime(name, ns=(PAST_NS, PAST_NS), follow_symlinks=False)
            before = times()
            tick()
            start_ns = coarse_time_ns()
            try:
                result = repr(action())
            except OSError as exc:
                result = f"errno {exc.errno}"
            after = times()
            lines = [result]
            for name, (mtime_ns, ctime_ns) in after.items():
                changed = (mtime_ns != before[name][0], ctime_ns != before[name][1])
                # What is set to now is not set to anything else.
                now = mtime_ns <= PAST_NS or mtime_ns >= start_ns
                lines.append(f"{name} {changed} {now}")
            return "\n".join(lines)

        twin.same(what, attempt)
    twin.check()


@pytest.mark.parametrize("kind", ["file", "dir", "link", "fifo"])
def test_times_that_are_set(kind: str, local: Path, volume: Path) -> None:
    """Nanoseconds, before 1970, after 2038, one time without the other."""
    twin = Twin(local, volume)
    twin.scene(furnish)
    second = 10**9
    values = (
        0,
        1,
        999_999_999,
        -1,
        -second,
        -2 * second + 1,
        -(2**31) * second,
        (2**31 - 1) * second + 999_999_999,
        2**31 * second,
        2**32 * second + 5,
        (2**33 + 12345) * second + 678,
    )
    for value in values:
        for pair in ((value, 7), (7, value), (value, value)):

            def attempt(pair: tuple[int, int] = pair) -> tuple[int, int]:
                os.utime(kind, ns=pair, follow_symlinks=False)
                status = os.lstat(kind)
                return status.st_atime_ns, status.st_mtime_ns

            twin.same(f"utime {pair}", attempt)
    twin.check()


@pytest.mark.parametrize(
    ("time_s", "kept_ns"), [(-62_135_596_800, TIME_MIN_NS), (253_402_300_799, TIME_MAX_NS)]
)
def test_the_nearest_time_that_can_be_kept(
    time_s: int, kept_ns: int, volume: Path, mounted: Mount
) -> None:
    """Of the years 1 and 9999, in a new file and in one that is stored."""
    path = volume / "file"
    path.touch()
    for _ in range(2):
        os.utime(path, (time_s, time_s))
        mounted.clear_caches()
        status = path.stat()
        assert (status.st_atime_ns, status.st_mtime_ns) == (kept_ns, kept_ns)
    path.unlink()


@pytest.mark.parametrize("size", [7, 3 << 20])
@pytest.mark.parametrize("mode", ["w", "r+"])
def test_a_future_mtime_leaves_ctime(volume: Path, mounted: Mount, mode: str, size: int) -> None:
    path = volume / "future"
    path.write_text("before")
    if mode == "w":
        path.unlink()
    with path.open(mode) as file:
        file.write("c" * size)
        file.flush()
        os.utime(file.fileno(), (2**32, 2**32))
        assert os.fstat(file.fileno()).st_ctime <= time.time()
    mounted.clear_caches()
    assert path.stat().st_ctime <= time.time() < path.stat().st_mtime
    path.unlink()


def _touch(place: Path) -> set[int]:
    os.utime(place / "touched")
    status = (place / "touched").stat()
    return {status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns}


def _set_only_mtime(place: Path) -> set[int]:
    utimensat(str(place / "touched"), (0, UTIME_OMIT), (0, UTIME_NOW))
    return {(place / "touched").stat().st_mtime_ns}


def _changed(path: Path) -> set[int]:
    status = path.stat()
    return {status.st_mtime_ns, status.st_ctime_ns}


def _write(place: Path) -> set[int]:
    written(str(place / "written"), b"x")
    return _changed(place / "written")


def _write_on(place: Path) -> set[int]:
    with (place / "written").open("ab", buffering=0) as file:
        file.write(b"x")
        return _changed(place / "written")


def _truncate(place: Path) -> set[int]:
    os.truncate(place / "written", 2)
    return _changed(place / "written")


def _make(place: Path) -> set[int]:
    (place / "dir/made").write_text("x")
    times_ns = _changed(place / "dir/made") | _changed(place / "dir")
    (place / "dir/made").unlink()
    return times_ns


def _make_directory(place: Path) -> set[int]:
    (place / "dir/made").mkdir()
    times_ns = _changed(place / "dir/made") | _changed(place / "dir")
    (place / "dir/made").rmdir()
    return times_ns


def _move(place: Path) -> set[int]:
    os.rename(place / "touched", place / "dir/moved")
    times_ns = _changed(place / "dir") | _changed(place)
    os.rename(place / "dir/moved", place / "touched")
    return times_ns | {(place / "touched").stat().st_ctime_ns}


def _chmod(place: Path) -> set[int]:
    os.chmod(place / "touched", 0o640)
    return {(place / "touched").stat().st_ctime_ns}


def _set_xattr(place: Path) -> set[int]:
    os.setxattr(place / "touched", "user.x", b"1")
    return {(place / "touched").stat().st_ctime_ns}


@pytest.mark.parametrize("where", ["local", "volume"])
def test_what_is_done_later_is_not_older(where: str, request: pytest.FixtureRequest) -> None:
    """Whether the kernel chooses the time (``touch``) or the file system; ``make`` relies on it."""
    place: Path = request.getfixturevalue(where)
    (place / "dir").mkdir()
    for name in ("touched", "written"):
        (place / name).touch()
    changes = (_make, _make_directory, _move, _write, _write_on, _truncate, _chmod, _set_xattr)
    draw = random.Random(7)
    latest, before = 0, "nothing"
    for turn in range(300):
        # Every other time one that the kernel chooses.
        action = draw.choice(changes if turn % 2 else (_touch, _set_only_mtime))
        times_ns = action(place)
        assert latest <= min(times_ns), f"{action.__name__} after {before}"
        assert max(times_ns) <= time.time_ns()
        latest, before = max(times_ns), action.__name__


def test_times_are_the_same_wherever_they_are_looked_at(volume: Path, mounted: Mount) -> None:
    """What is stored is what was shown, and an exact time that is set just now stays."""
    path = volume / "file"
    for _ in range(20):
        path.write_text("x")
        os.utime(path)
        source = path.stat()
        os.utime(path, ns=(source.st_atime_ns, source.st_mtime_ns))
        assert _times(path) == (source.st_atime_ns, source.st_mtime_ns)
        exact_ns = time.time_ns()
        os.utime(path, ns=(exact_ns, exact_ns))
        assert _times(path) == (exact_ns, exact_ns)
        mounted.clear_caches()
        assert _times(path) == (exact_ns, exact_ns)
    path.unlink()


def _times(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_atime_ns, status.st_mtime_ns

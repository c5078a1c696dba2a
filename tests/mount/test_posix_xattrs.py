"""Extended attributes: flags, sizes, names and kinds of files, as on a local file system."""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.common.mount import Mount
from tests.common.twin import Twin

CREATE, REPLACE = os.XATTR_CREATE, os.XATTR_REPLACE
KINDS = ("file", "empty", "big", "dir", "fifo", "sock")
VALUES = (b"", b"v", b"x" * 256, b"x" * 257, b"a\0b\x01\x02", bytes(range(256)), b"x" * 600)
NAMES = (
    "user.a",
    "user.width",
    "user." + "n" * 59,
    "user." + "n" * 60,
    "user." + "n" * 250,
    "user." + "n" * 251,
    "user.with blank",
    "user.\udcff\udcfe",
    "user.a.b.c",
    "user.",
    "trusted.a",
    "security.a",
    "system.a",
    "nonsense",
    "",
    "other.a",
)
_libc = ctypes.CDLL(None, use_errno=True)


def furnish() -> None:
    Path("file").write_bytes(b"content")
    Path("empty").touch()
    Path("big").write_bytes(bytes(1_200_000))
    os.mkdir("dir")
    os.mkfifo("fifo")
    os.mknod("sock", stat.S_IFSOCK | 0o644)
    os.symlink("file", "link")


def listed(path: str) -> list[tuple[str, bytes]]:
    names = sorted(os.listxattr(path, follow_symlinks=False))
    return [(name, os.getxattr(path, name, follow_symlinks=False)) for name in names]


@pytest.fixture
def twin(local: Path, volume: Path) -> Twin:
    made = Twin(local, volume)
    made.scene(furnish)
    return made


def test_flags(twin: Twin) -> None:
    for kind in KINDS:
        for name in ("user.a", "user." + "n" * 80, "trusted.a"):
            for flags in (0, REPLACE, CREATE, CREATE, REPLACE, 0, CREATE | REPLACE, 7):

                def attempt(kind: str = kind, name: str = name, flags: int = flags) -> None:
                    os.setxattr(kind, name, b"%d" % flags, flags)

                twin.same(f"{kind} {name[:9]} {flags}", attempt)
            twin.same(f"remove {kind} {name[:9]}", os.removexattr, kind, name)
            twin.same(f"again {kind} {name[:9]}", os.removexattr, kind, name)
            twin.same(f"create again {kind}", os.setxattr, kind, name, b"", CREATE)
        twin.same(f"list {kind}", listed, kind)
    twin.check()


@pytest.mark.parametrize("kind", ["file", "empty", "dir"])
def test_names_and_values(kind: str, twin: Twin, mounted: Mount) -> None:
    for name in NAMES:
        for value in VALUES:
            twin.same(f"{name[:20]!r} {value[:9]!r}", os.setxattr, kind, name, value)
            twin.same(f"get {name[:20]!r}", os.getxattr, kind, name)
        twin.same(f"list after {name[:20]!r}", lambda: [n for n, _ in listed(kind)])
        if name != "user.a":  # local ones have room for few
            twin.same(f"remove {name[:20]!r}", os.removexattr, kind, name)
    mounted.clear_caches()
    twin.same("list", lambda: listed(kind))
    twin.check()


def test_what_has_none(twin: Twin) -> None:
    calls: dict[str, Callable[[], object]] = {
        "set on link": lambda: os.setxattr("link", "user.a", b"1", follow_symlinks=False),
        "trusted on link": lambda: os.setxattr("link", "trusted.a", b"1", follow_symlinks=False),
        "list link": lambda: listed("link"),
        "set through link": lambda: os.setxattr("link", "user.a", b"1"),
        "list through link": lambda: os.listxattr("link"),
        "get none": lambda: os.getxattr("file", "user.none"),
        "replace none": lambda: os.setxattr("file", "user.none", b"", REPLACE),
        "too large": lambda: os.setxattr("file", "user.x", bytes(65_537)),
        "descriptor": lambda: _through_descriptor(),
    }
    for what, call in calls.items():
        twin.same(what, call)
    twin.check()


def _through_descriptor() -> list[str]:
    fd = os.open("file", os.O_RDONLY)
    try:
        os.setxattr(fd, "user.fd", b"1")
        os.unlink("file")
        os.setxattr(fd, "user.gone", b"2")
        return sorted(os.listxattr(fd))
    finally:
        os.close(fd)


def test_small_buffers(twin: Twin) -> None:
    """0 asks for the size, less than that is ERANGE."""

    def attempt() -> list[tuple[int, int]]:
        os.setxattr("file", "user.a", b"0123456789")
        get = partial(_libc.getxattr, b"file", b"user.a")
        list_names = partial(_libc.listxattr, b"file")
        found = []
        for size in (0, 1, 9, 10, 100):
            buffer = ctypes.create_string_buffer(max(size, 1))
            for call in (get, list_names):
                ctypes.set_errno(0)
                found.append((call(buffer, size), ctypes.get_errno()))
        return found

    twin.same("sizes", attempt)
    twin.check()


def test_large_ones(volume: Path, mounted: Mount) -> None:
    """More than a local file system takes: 64 KiB each, half a MiB in all."""
    path = volume / "file"
    path.write_bytes(b"x")
    for number in range(7):
        os.setxattr(path, f"user.{number}", bytes([number]) * 65_536)
    os.setxattr(path, "user.7", bytes(60_000))
    with pytest.raises(OSError, match="No space"):
        os.setxattr(path, "user.8", bytes(10_000))
    path.write_bytes(b"another object")
    mounted.clear_caches()
    assert os.getxattr(path, "user.6") == bytes([6]) * 65_536


def test_they_follow_the_file(twin: Twin, mounted: Mount) -> None:
    """Through rename, link, overwriting, truncating and growing over 1 MiB."""

    def attempt() -> list[object]:
        for name, value in (("user.width", b"1024"), ("user.bin", b"\0\1"), ("trusted.x", b"t")):
            os.setxattr("file", name, value)
        found: list[object] = []
        os.rename("file", "new")
        os.link("new", "dir/link")
        found.append(listed("dir/link"))
        Path("new").write_bytes(b"longer content")
        found.append(listed("new"))
        os.truncate("new", 0)
        os.removexattr("dir/link", "user.bin")
        found.append(listed("new"))
        with open("new", "ab") as file:
            file.write(bytes(2_000_000))
        os.setxattr("new", "user.width", b"2048")
        found.append(listed("dir/link"))
        os.truncate("new", 10)
        found.append(listed("new"))
        return found

    twin.same("follow", attempt)
    mounted.clear_caches()
    twin.same("after", lambda: listed("new"))
    twin.check()

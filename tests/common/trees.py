"""Directory trees for tests: making one with all kinds of entries, and comparing two."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import shutil
import stat
import subprocess
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

NOW_NS = 1_500_000_000 * 10**9
"""Times after this come from the clock; tests set only times before it."""
SMALL_CONTENT_MAX = 1 << 20


@dataclass(frozen=True)
class Node:
    """What a tree has under one path. Times that come from the clock are None."""

    kind: str
    mode: int
    uid: int
    gid: int
    size: int | None
    links: tuple[str, ...]
    mtime_ns: int | None
    content: str
    xattrs: tuple[tuple[str, bytes], ...]


def set_time_ns(mtime_ns: int) -> int | None:
    """A time that a test set, or None for one that comes from the clock."""
    return mtime_ns if mtime_ns < NOW_NS else None


def user_xattrs(path: str) -> dict[str, bytes]:
    """The ``user.*`` xattrs of a file, directory or symlink (which has none)."""
    names = os.listxattr(path, follow_symlinks=False)
    return {
        name: os.getxattr(path, name, follow_symlinks=False)
        for name in sorted(names)
        if name.startswith("user.")
    }


def snapshot(root: Path) -> dict[str, Node]:
    """Every entry below *root* by its relative path."""
    entries: dict[str, os.stat_result] = {}
    links: dict[int, list[str]] = {}
    pending = [os.fspath(root)]
    while pending:
        with os.scandir(pending.pop()) as directory:
            for entry in directory:
                name = os.path.relpath(entry.path, root)
                status = os.lstat(entry.path)
                entries[name] = status
                links.setdefault(status.st_ino, []).append(name)
                if stat.S_ISDIR(status.st_mode):
                    pending.append(entry.path)
    nodes: dict[str, Node] = {}
    for name, status in sorted(entries.items()):
        path = os.path.join(root, name)
        content, size = "", None
        if stat.S_ISREG(status.st_mode):
            data = Path(path).read_bytes()
            content, size = f"{len(data)} bytes, crc {zlib.crc32(data):08x}", status.st_size
        elif stat.S_ISLNK(status.st_mode):
            content, size = os.readlink(path), status.st_size
        nodes[name] = Node(
            kind=stat.filemode(status.st_mode)[0],
            mode=stat.S_IMODE(status.st_mode),
            uid=status.st_uid,
            gid=status.st_gid,
            size=size,
            links=tuple(sorted(links[status.st_ino])),
            mtime_ns=set_time_ns(status.st_mtime_ns),
            content=content,
            xattrs=tuple(user_xattrs(path).items()),
        )
    return nodes


def differences(left: dict[str, Node], right: dict[str, Node]) -> list[str]:
    """What two snapshots do not have in common, one line for each path."""
    lines = []
    for name in sorted(left.keys() | right.keys()):
        if left.get(name) != right.get(name):
            lines.append(f"{name!r}:\n    {left.get(name)}\n    {right.get(name)}")
    return lines


def assert_same_tree(left: Path, right: Path) -> None:
    """Fail with the list of differences unless both trees are the same."""
    lines = differences(snapshot(left), snapshot(right))
    assert not lines, f"{left} and {right} differ:\n" + "\n".join(lines)


def make_tree(root: Path, *, seed: int = 1, files: int = 40, strange: bool = True) -> None:
    """Fill *root* with files of many sizes, links, modes, times and names.

    With *strange*, also with fifos, dangling links, xattrs that FastDFS metadata cannot hold and
    names that are not UTF-8.
    """
    draw = random.Random(seed)
    root.mkdir(exist_ok=True)
    directories = [root]
    for number in range(max(3, files // 8)):
        directory = draw.choice(directories) / f"dir {number}"
        directory.mkdir()
        directories.append(directory)
    sizes = [0, 1, 4095, 4096, 4097, 70_000, SMALL_CONTENT_MAX, SMALL_CONTENT_MAX + 1, 3_000_000]
    made: list[Path] = []
    for number in range(files):
        path = draw.choice(directories) / f"file{number}.{draw.choice(['txt', 'c', 'tar.gz', ''])}"
        size = sizes[number] if number < len(sizes) else int(draw.expovariate(1 / 8000))
        path.write_bytes(draw.randbytes(size))
        path.chmod(draw.choice([0o644, 0o600, 0o755, 0o444, 0o664]))
        made.append(path)
    os.link(made[3], root / "hard link")
    os.link(made[3], directories[1] / "another hard link")
    (root / "symlink").symlink_to(made[5].relative_to(root))
    (root / "empty").mkdir()
    os.setxattr(made[2], "user.width", b"1024")
    os.setxattr(made[2], "user.empty", b"")
    os.setxattr(directories[1], "user.comment", b"a directory")
    if strange:
        os.mkfifo(root / "fifo", 0o640)
        (root / "dangling").symlink_to("/nowhere/at all")
        os.setxattr(made[4], "user." + "n" * 100, b"v" * 700)
        os.setxattr(made[4], "user.bytes", b"\x01\x02\x00\xff")
        for raw in (b"new\nline", b"\xff\xfe not utf-8", "\u6f22\u5b57 \U0001f600".encode()):
            (root / os.fsdecode(raw)).write_bytes(raw)
        (root / "setuid").write_bytes(b"#!/bin/sh\n")
        (root / "setuid").chmod(0o4755)
        (root / "sticky").mkdir()
        (root / "sticky").chmod(0o1777)
        long = root / ("l" * 255)
        long.write_bytes(b"the longest name")
    # Times last and bottom up: making entries changes those of directories.
    for base, _, names in os.walk(root, topdown=False):
        for name in [*names, ""]:
            path = Path(base) / name if name else Path(base)
            when = draw.randrange(10**9) * 10**9 + draw.randrange(10**9)
            os.utime(path, ns=(when, when), follow_symlinks=False)


def need(command: str) -> str:
    """Path of a common tool; without it the test is skipped, but fails in CI."""
    path = shutil.which(command)
    if path is None:
        text = f"{command} is not installed"
        if os.environ.get("CI"):
            pytest.fail(text)
        pytest.skip(text)
    return path


def run(
    command: Sequence[str | Path], cwd: Path | None = None, *, check: bool = True
) -> subprocess.CompletedProcess[bytes]:
    """Run a tool with a fixed environment; a failure shows what it printed."""
    need(str(command[0]))
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": "/nonexistent",
        "LC_ALL": "C",
        "TZ": "UTC",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_AUTHOR_NAME": "A",
        "GIT_AUTHOR_EMAIL": "a@example.org",
        "GIT_COMMITTER_NAME": "A",
        "GIT_COMMITTER_EMAIL": "a@example.org",
        "GIT_AUTHOR_DATE": "1700000000 +0000",
        "GIT_COMMITTER_DATE": "1700000000 +0000",
    }
    done = subprocess.run(
        [os.fspath(part) for part in command],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    if check and done.returncode != 0:
        text = (done.stdout + done.stderr).decode(errors="replace")
        raise AssertionError(f"{command} ended with {done.returncode}:\n{text[-4000:]}")
    return done


def directory_with_xattrs(candidates: Sequence[Path]) -> Path | None:
    """The first of *candidates* whose file system keeps ``user.*`` xattrs."""
    for candidate in candidates:
        with contextlib.suppress(OSError), tempfile.TemporaryDirectory(dir=candidate) as probe:
            os.setxattr(probe, "user.probe", b"1")
            return candidate
    return None


def errno_name(number: int) -> str:
    """``ENOENT`` for 2."""
    return errno.errorcode.get(number, str(number))

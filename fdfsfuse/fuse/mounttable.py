"""The kernel's table of mounts, and paths as it has them.

Nothing here asks a mount anything: it may hang.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FILE_SYSTEM_TYPE = "fuse.fdfs"
_LINKS_MAX = 40


class MountEntry(NamedTuple):
    """One line of the table; ``device`` is ``major:minor``."""

    point: str
    device: str
    type: str


def mounts() -> list[str]:
    """Where our file systems are mounted."""
    return [entry.point for entry in _entries() if entry.type == FILE_SYSTEM_TYPE]


def mounted_on(path: Path) -> MountEntry | None:
    """What is mounted on *path* (last), which is without symlinks."""
    found = None
    for entry in _entries():
        if entry.point == str(path):
            found = entry
    return found


def device_of(path: Path) -> str:
    """``major:minor`` of the mount on *path*, or '' when nothing is mounted there."""
    entry = mounted_on(path)
    return entry.device if entry is not None else ""


def resolve(path: str) -> str:
    """The absolute path without symlinks. Raises OSError (ELOOP)."""
    for _ in range(_LINKS_MAX):
        parent, name = os.path.split(os.path.abspath(path))
        path = os.path.join(os.path.realpath(parent), name)
        try:
            # An lstat() would be a question to what is mounted there.
            target = os.readlink(path)
        except OSError:
            return path
        path = os.path.join(os.path.dirname(path), target)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)


def _entries() -> Iterator[MountEntry]:
    """``36 35 98:0 / /mnt rw - TYPE SOURCE OPTIONS``, one after the other."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            left, _, right = line.partition(" - ")
            fields = left.split(" ")
            # Blanks, tabs, line breaks and backslashes are written as octal numbers.
            point = re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields[4])
            yield MountEntry(point, fields[2], right.partition(" ")[0])

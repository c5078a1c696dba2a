"""The mounts of fdfsfuse on this machine."""

from __future__ import annotations

import re

FILE_SYSTEM_TYPE = "fuse.fdfs"


def mounts() -> list[str]:
    """Mount points, from the kernel's table; asks nothing of the mounts themselves."""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return [point for line in table if (point := _mount_point(line)) is not None]


def _mount_point(line: str) -> str | None:
    """``36 35 98:0 / /mnt rw - TYPE SOURCE OPTIONS`` -> ``/mnt``, if it is one of ours."""
    fields, _, rest = line.rstrip("\n").partition(" - ")
    if rest.partition(" ")[0] != FILE_SYSTEM_TYPE:
        return None
    # Blanks, tabs, line breaks and backslashes are written as octal numbers.
    return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), fields.split(" ")[4])

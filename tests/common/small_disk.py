"""A disk of a few MiB, for tests that fill it."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.common.waiting import wait_until


class SmallDisk:
    """A file system of its own at *path*."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._filler = path / "filler"

    def fill(self) -> None:
        """Leave no byte free."""
        fd = os.open(self._filler, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for size in (1 << 20, 4096, 1):
                with contextlib.suppress(OSError):
                    while os.write(fd, bytes(size)) == size:
                        pass
        finally:
            os.close(fd)

    def make_room(self) -> None:
        """Give back what `fill` took."""
        self._filler.unlink()


def why_no_small_disk() -> str | None:
    """Why no file system can be made here, or None when it can."""
    return None if os.geteuid() == 0 else "mounting a small disk needs root"


@contextlib.contextmanager
def small_disk(path: Path, size_mib: int) -> Iterator[SmallDisk]:
    """Mount one on the new directory *path*, and unmount it afterwards. Needs root."""
    path.mkdir(parents=True, exist_ok=True)
    options = f"size={size_mib}m,mode=0755"
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "fdfs-test", str(path)], check=True)
    try:
        yield SmallDisk(path)
    finally:

        def unmounted() -> bool:
            return subprocess.run(["umount", str(path)], capture_output=True).returncode == 0

        wait_until(unmounted, f"umount {path}")

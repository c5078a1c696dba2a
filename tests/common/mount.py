"""fdfs-mount as a process, for tests and benchmarks, and what mounts there are on this machine."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from tests.common.processes import STOP_TIMEOUT_S, Process, ProcessDied, program
from tests.common.waiting import wait_until

if TYPE_CHECKING:
    from tests.common.cluster import Cluster


class Mount(Process):
    """fdfs-mount on a directory, in the foreground by default.

    In the background `process` ends when the mount answers; the one that goes on is found by
    its mount point.
    """

    def __init__(
        self, cluster: Cluster, path: Path, options: Sequence[str] = (), *, background: bool = False
    ) -> None:
        trackers = ",".join(tracker.endpoint for tracker in cluster.trackers)
        command = [program("fdfs-mount"), trackers, str(path)]
        if not background:
            command.append("-f")
        if options:
            command += ["-o", ",".join(options)]
        super().__init__(f"mount-{path.name}", command, cluster.directory / "mounts")
        self.cluster = cluster
        self.path = path
        self.background = background
        self._shows_volumes = True

    def __enter__(self) -> Mount:
        try:
            self.mount()
        except BaseException:
            self.cleanup()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self.unmount()
        finally:
            self.cleanup()

    def show_only(self, top: str) -> None:
        """Mount ``VOLUME`` or ``VOLUME/DIRECTORY``; called before mounting."""
        self.command[1] = f"{self.cluster.tracker.endpoint}/{top}"
        self._shows_volumes = False

    def mount(self) -> None:
        """Start fdfs-mount and wait until the volumes are there."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.launch()
        if self.background:
            code = self.wait()
            if code != 0:
                raise ProcessDied(f"fdfs-mount ended with {code}\n{self.log_tail()}")
        self.wait_mounted()

    def wait_mounted(self, timeout_s: float = 60.0) -> None:
        """Wait until the mount point is mounted and shows the cluster's volumes."""
        groups = {storage.group for storage in self.cluster.storages}
        volumes = groups if self._shows_volumes else set()

        def mounted() -> bool:
            if not self.background and not self.running:
                raise ProcessDied(f"{self.name} ended with {self.wait()}\n{self.log_tail()}")
            return is_mounted(self.path) and volumes <= set(os.listdir(self.path))

        try:
            wait_until(mounted, f"{self.path} to be mounted", timeout_s=timeout_s)
        except TimeoutError as exc:
            raise TimeoutError(f"{exc}\n{self.log_tail()}") from None

    def unmount(self, timeout_s: float = STOP_TIMEOUT_S) -> None:
        """Unmount as a user does, and wait for a clean end of the process."""
        wait_until(lambda: unmount(self.path), f"umount {self.path}", timeout_s=timeout_s)
        if self._process is not None and not self.background:
            code = self.wait(timeout_s)
            if code != 0:
                raise ProcessDied(f"{self.name} ended with {code}\n{self.log_tail()}")

    def remount(self) -> None:
        """Unmount and mount again: nothing is cached by the kernel or by the mount."""
        self.unmount()
        self.mount()

    def cleanup(self) -> None:
        """Leave nothing behind, whatever state the mount is in."""
        if is_mounted(self.path):
            unmount(self.path, lazy=True)
        if self.running:
            try:
                self.wait(timeout_s=2)
            except TimeoutError:
                self.kill()

    def clear_caches(self) -> None:
        """Drop what the kernel caches of all file systems (needs root), else remount."""
        os.sync()
        try:
            Path("/proc/sys/vm/drop_caches").write_text("3")
        except OSError:
            self.remount()


def is_mounted(path: Path) -> bool:
    """True when something is mounted on *path*; asks the kernel's table, never the mount."""
    wanted = str(path.absolute())
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        return any(line.split(" ")[4].replace("\\040", " ") == wanted for line in table)


def unmount(path: Path, *, lazy: bool = False) -> bool:
    """fusermount3 -u; False when the mount point is busy."""
    command = ["fusermount3", "-u", *(["-z"] if lazy else []), str(path)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True).returncode == 0


def why_no_fuse() -> str | None:
    """Why no file system can be mounted here, or None when it can."""
    if sys.platform != "linux":
        return "FUSE tests need Linux"
    if not shutil.which("fusermount3"):
        return "fusermount3 is not installed (package fuse3)"
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        return "/dev/fuse cannot be opened"
    return None

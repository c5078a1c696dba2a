"""The clock by which a mount dates what it changes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from fdfsfuse.vfs import clock


def test_it_goes_with_the_times_that_the_kernel_sets(tmp_path: Path) -> None:
    """Of any local file, in the order of the calls; so it does with that of another mount."""
    path = tmp_path / "file"
    path.touch()
    before = 0
    for _ in range(2000):
        now = clock.now_ns()
        os.utime(path)
        stamp = path.stat().st_mtime_ns
        assert before <= now <= stamp <= time.time_ns()
        before = stamp


def test_it_is_the_time(tmp_path: Path) -> None:
    assert time.time_ns() - 10**9 < clock.now_ns() <= time.time_ns()

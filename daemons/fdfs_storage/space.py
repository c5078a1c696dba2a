"""How much space the store paths have, and whether an upload may use it.

Source: protocol/load-balancing.md section 2. MB are 2^20 bytes; free means available to
unprivileged users.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from fdfsfuse.core.conf_file import ReservedSpace

_MIB = 1 << 20
_REFRESH_S = 1.0


class PathSpace(NamedTuple):
    """One store path's size and free space."""

    total_mb: int
    free_mb: int


@dataclass(frozen=True, slots=True)
class TotalSpace:
    """All store paths together, in bytes; paths on one file system count once.

    ``available_bytes`` is what uploads may still use: the reserved space is taken off.
    """

    total_bytes: int
    free_bytes: int
    available_bytes: int


class Space:
    """Free space of *paths*, asked again when the last answer is older than a second."""

    def __init__(self, paths: Sequence[str]) -> None:
        self._reserved = ReservedSpace()
        self._paths = list(paths)
        self._cached: list[PathSpace] = []
        self._takes_small: list[bool] = []
        self._next_refresh = 0.0

    def reserve(self, reserved: ReservedSpace) -> None:
        """Set what uploads must leave free."""
        self._reserved = reserved
        self._next_refresh = 0.0

    def paths(self) -> list[PathSpace]:
        """Space of each store path, at most a second old."""
        now = time.monotonic()
        if now >= self._next_refresh:
            self._refresh(now)
        return self._cached

    def fits(self, index: int, size: int) -> bool:
        """True when store path *index* takes an upload of *size* bytes."""
        now = time.monotonic()
        if now >= self._next_refresh:
            self._refresh(now)
        # Whole MB count.
        return self._takes_small[index] if size < _MIB else self._takes(index, size)

    def _refresh(self, now: float) -> None:
        self._next_refresh = now + _REFRESH_S
        self._cached = [_path_space(path) for path in self._paths]
        self._takes_small = [self._takes(index, 0) for index in range(len(self._paths))]

    def _takes(self, index: int, size: int) -> bool:
        space, count = self._cached[index], len(self._paths)
        return self._reserved.path_has_space(space.free_mb, space.total_mb, count, size)

    def total(self) -> TotalSpace:
        """The sum over all file systems, as ``df`` would say it."""
        seen: set[int] = set()
        total = free = available = 0
        for path in self._paths:
            device = os.stat(path).st_dev
            if device in seen:
                continue
            seen.add(device)
            space = _path_space(path)
            total += space.total_mb
            free += space.free_mb
            available += max(0, space.free_mb - self._reserved_mb(space))
        return TotalSpace(total * _MIB, free * _MIB, available * _MIB)

    def _reserved_mb(self, space: PathSpace) -> int:
        if self._reserved.ratio is None:
            return self._reserved.mb // len(self._paths)
        return int(space.total_mb * self._reserved.ratio)


def _path_space(path: str) -> PathSpace:
    answer = os.statvfs(path)
    return PathSpace(
        answer.f_blocks * answer.f_frsize // _MIB, answer.f_bavail * answer.f_frsize // _MIB
    )

"""The report about a mount that its control socket gives; docs/mount.rst describes the keys.

It is made in a thread of its own while the mount works on: it reads single values and copies of
dicts, and never waits for anything.
"""

from __future__ import annotations

import dataclasses
import os
import time
from enum import Enum
from typing import TYPE_CHECKING, Any

from fdfsfuse import __version__
from fdfsfuse.fuse.stats import BUCKET_SHIFT, OperationStats, Stats

if TYPE_CHECKING:
    from fdfsfuse.fuse.runner import Mount
    from fdfsfuse.vfs.vfs import Vfs
    from fdfsfuse.vfs.volume import Volume

FORMAT = 1


class Report:
    """Makes the reports of one mount. To be made before mounting: it resolves the mount point."""

    def __init__(self, mount: Mount, vfs: Vfs, stats: Stats) -> None:
        self._mount = mount
        self._vfs = vfs
        self._stats = stats
        self._started = time.time()
        self.mountpoint = str(mount.mountpoint)

    def __call__(self) -> dict[str, Any]:
        """The report, for JSON."""
        stats = self._stats
        return {
            "format": FORMAT,
            "version": __version__,
            "mountpoint": self.mountpoint,
            "source": self._mount.source,
            "pid": os.getpid(),
            "started": self._started,
            "now": time.time(),
            "options": self._options(),
            "operations": {
                name: _operation(operation)
                for name, operation in list(stats.operations.items())
                if operation.running or any(operation.buckets)
            },
            "bytes": {"read": stats.bytes_read, "written": stats.bytes_written},
            "waiting": [
                {"operation": name, "what": what, "seconds": took / 1e9}
                for name, what, took in stats.waiting()
            ],
            "recent": [
                {
                    "at": noted.at,
                    "operation": noted.operation,
                    "what": noted.what,
                    "seconds": noted.took_ns / 1e9,
                    "error": noted.error,
                }
                for noted in list(stats.noted)
            ],
            "caches": self._caches(),
            "volumes": {
                os.fsdecode(name): _volume(volume)
                for name, volume in list(self._vfs.volumes.by_name.items())
            },
        }

    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = {
            name: value.value if isinstance(value, Enum) else value
            for name, value in dataclasses.asdict(self._mount.options).items()
        }
        options["kernel"] = sorted(self._mount.libfuse)
        return options

    def _caches(self) -> dict[str, Any]:
        context, stats = self._vfs.context, self._stats
        states = list(context.states.values())
        return {
            "inodes_known_to_the_kernel": len(context.numbers),
            "names": self._names_usage(),
            "pages": {"hits": stats.pages_kept, "misses": stats.opened - stats.pages_kept},
            "open_files": len(states),
            "files_not_stored": sum(state.dirty for state in states),
            "write_buffer_bytes": context.dirty.used,
            "content_bytes": context.clean_used,
            "read_ahead_bytes": context.read_ahead_used,
            "files_ahead_bytes": context.contents.used,
        }

    def _names_usage(self) -> dict[str, int]:
        """Requests for names and attributes, and how many of them a storage was asked for."""
        operations = self._stats.operations
        asked = sum(operations[name].count() for name in _FROM_MEMORY if name in operations)
        sent = sum(
            call["count"]
            for volume in list(self._vfs.volumes.by_name.values())
            for name, call in volume.backend.state()["calls"].items()
            if name in _READING
        )
        return {"hits": max(0, asked - sent), "misses": min(asked, sent)}


_FROM_MEMORY = ("lookup", "getattr", "getxattr", "listxattr", "readlink")
_READING = ("Lookup", "GetAttr", "LookupObject", "ListXattrs")


def _operation(operation: OperationStats) -> dict[str, Any]:
    buckets = list(operation.buckets)
    return {
        "count": sum(buckets),
        "refused": operation.refused,
        "failed": operation.failed,
        "running": len(operation.running),
        "seconds": operation.total_ns / 1e9,
        "max_seconds": operation.max_ns / 1e9,
        # [number of requests, that took less than so many seconds and not less than the one before]
        "histogram": [
            [count, (1 << (index + BUCKET_SHIFT)) / 1e9]
            for index, count in enumerate(buckets)
            if count
        ],
    }


def _volume(volume: Volume) -> dict[str, Any]:
    return {
        "down": volume.down,
        "times_down": volume.times_down,
        "ahead": {
            "answered": volume.own_changes.count,
            "unanswered": len(volume.own_changes),
            "refused": volume.own_changes.refused,
        },
        "waiting": volume.waiting,
        "remembered": volume.memory.usage(),
        **volume.backend.state(),
    }

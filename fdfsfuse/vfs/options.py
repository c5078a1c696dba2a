"""Everything about a mount that can be set, with units."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field
from enum import Enum


class Ids(Enum):
    """What people may do with objects by their id, under ``M00``."""

    READ_ONLY = "ro"
    READ_WRITE = "rw"
    HIDE = "hide"


@dataclass(frozen=True, slots=True)
class VfsOptions:
    """Settings and limits of the tree.

    Attributes:
        uid, gid, umask: owner and permissions of what has none of its own: ``/``, ``M00`` and
            unnamed objects.
        top: what the root of the mount is: '' for the list of volumes, ``VOLUME`` or
            ``VOLUME/DIRECTORY``.
        timeout_s: how long a call waits for a volume before it fails with EIO.
        hard: calls wait for as long as it takes instead.
        lease_s: how long the mount may be out of touch before others' changes stop waiting for it;
            0 for what the volume grants, which is also the most.
        dirsync: every change of names waits until the storage has made it.
        acl: POSIX ACLs are kept, and the kernel checks them.
        cached_entries: most inodes, and most names, of a volume that are remembered.
        attr_timeout_s: how old attributes may be that no storage recalls: those of objects without
            a name, and of directories that exist in the mount alone.
        poll_interval_s: how often the trackers are asked for volumes.
        max_waiting: requests that may wait for one volume that does not answer; further ones fail
            at once, so that it does not take all request slots of the mount.
        open_data_bytes: content up to this size comes along with open().
        ahead_files, ahead_names: most files whose content, and most entries whose attributes, or
            xattrs, are asked for ahead of need, along with another one.
        ahead_bytes: memory for content that came ahead of need; no more than read_ahead_bytes.
        dirty_bytes: memory for content that is not on a storage yet; writers wait beyond it.
        clean_bytes: memory for content of open files kept after it was stored.
        write_back_s: content that nobody flushes is stored after this time.
        chunk_bytes, unsent_bytes, unsent_chunks: size of the writes of a large file, and how much
            of one file may be under way.
        read_chunk_bytes, read_chunks, read_ahead_bytes: size of read-ahead, chunks ahead per
            handle, and memory for it in all.
        held_after_s: the storage is told of files that are open for longer.
        space_age_s: how old the free space may be that statfs() returns.
    """

    uid: int = field(default_factory=os.getuid)
    gid: int = field(default_factory=os.getgid)
    umask: int = 0
    ids: Ids = Ids.READ_ONLY
    top: str = ""
    timeout_s: float = 30.0
    hard: bool = False
    lease_s: float = 0.0
    dirsync: bool = False
    acl: bool = False
    attr_timeout_s: float = 1.0
    cached_entries: int = 65_536
    poll_interval_s: float = 3.0
    max_waiting: int = 100
    open_data_bytes: int = 64 << 10
    ahead_files: int = 32
    ahead_names: int = 64
    ahead_bytes: int = 8 << 20
    dirty_bytes: int = 256 << 20
    clean_bytes: int = 32 << 20
    write_back_s: float = 5.0
    chunk_bytes: int = 2 << 20
    unsent_bytes: int = 8 << 20
    unsent_chunks: int = 16
    read_chunk_bytes: int = 1 << 20
    read_chunks: int = 4
    read_ahead_bytes: int = 64 << 20
    held_after_s: float = 1.0
    space_age_s: float = 2.0

    @property
    def patience_s(self) -> float:
        """How long calls wait: ``timeout_s``, or for ever."""
        return math.inf if self.hard else self.timeout_s

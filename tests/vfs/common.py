"""A tree over volumes in memory, as tests use it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import trio
import trio.testing

from fdfsfuse.vfs.context import Entry
from fdfsfuse.vfs.listing import Listed
from fdfsfuse.vfs.numbers import ROOT
from fdfsfuse.vfs.openfiles import Opened
from fdfsfuse.vfs.options import VfsOptions
from fdfsfuse.vfs.recalls import Kernel
from fdfsfuse.vfs.tree import Owner
from fdfsfuse.vfs.vfs import Vfs
from tests.common.fake_volume import FakeBackend, FakeCluster

OWNER = Owner(1000, 1001)


class Mounted:
    """A `Vfs` with shorthands; paths are from the root of the mount."""

    def __init__(self, vfs: Vfs, cluster: FakeCluster) -> None:
        self.vfs = vfs
        self.cluster = cluster

    @property
    def volume(self) -> FakeBackend:
        """The first volume."""
        return self.cluster.backends[self.cluster.groups[0]]

    async def lookup(self, path: str) -> Entry:
        """Look a path up, part by part, without counting."""
        number = ROOT
        entry = self.vfs.volumes.root_entry()
        for part in path.encode().split(b"/"):
            entry = await self.vfs.tree.lookup(number, part)
            number = entry.number
        return entry

    async def parent(self, path: str) -> tuple[int, bytes]:
        """The number of the directory that holds *path*, and the last part."""
        directory, _, name = path.rpartition("/")
        return (await self.lookup(directory)).number, name.encode()

    async def create(self, path: str, mode: int = 0o644) -> tuple[Opened, Entry]:
        """Create and open a file."""
        parent, name = await self.parent(path)
        opened, entry = await self.vfs.files.create(parent, name, mode, os.O_RDWR, OWNER)
        self.vfs.remember(entry)
        return opened, entry

    async def open(self, path: str, flags: int = os.O_RDONLY) -> int:
        """Open a file; the handle."""
        entry = await self.lookup(path)
        return (await self.vfs.files.open(entry.number, flags)).handle

    async def write_file(self, path: str, data: bytes) -> Entry:
        """Create a file with this content."""
        opened, entry = await self.create(path)
        await self.vfs.files.write(opened.handle, 0, data)
        await self.close(opened.handle)
        return entry

    async def read_file(self, path: str, block: int = 128 << 10) -> bytes:
        """All of a file, in blocks."""
        handle = await self.open(path)
        parts: list[bytes] = []
        while data := bytes(await self.vfs.files.read(handle, sum(map(len, parts)), block)):
            parts.append(data)
        await self.close(handle)
        return b"".join(parts)

    async def close(self, handle: int) -> None:
        """What the kernel does at close()."""
        await self.vfs.files.flush(handle)
        await self.vfs.files.release(handle)

    async def listing(self, path: str = "") -> list[Listed]:
        """A whole listing, with the dots, as the kernel takes it."""
        number = (await self.lookup(path)).number if path else ROOT
        handle = self.vfs.directories.get(self.vfs.open_directory(number))
        found: list[Listed] = []
        while True:
            listed = handle.next()
            if listed is not None:
                handle.taken(listed)
                found.append(listed)
            elif not await handle.fill():
                return found

    async def names(self, path: str = "") -> list[bytes]:
        """The names of a listing without the dots."""
        return [listed.name for listed in await self.listing(path) if listed.counts]


@asynccontextmanager
async def mounted(
    *groups: str, kernel: Kernel | None = None, **options: Any
) -> AsyncIterator[Mounted]:
    """A tree over *groups* (default: ``vol``)."""
    cluster = FakeCluster(*(groups or ("vol",)))
    # A long timeout for attributes: what is asked again is asked because it changed.
    settings = replace(VfsOptions(uid=7, gid=8, attr_timeout_s=60.0), **options)
    vfs = Vfs(settings, cluster, kernel)
    async with trio.open_nursery() as nursery:
        await nursery.start(vfs.run)
        await trio.testing.wait_all_tasks_blocked()
        yield Mounted(vfs, cluster)
        vfs.stop()

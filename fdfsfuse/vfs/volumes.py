"""The root of the mount: one directory per volume, known from the trackers.

Everything here is answered from memory. A volume that was seen once stays until the mount ends,
also while trackers do not name it: a directory that vanishes looks like deleted files.
"""

from __future__ import annotations

import logging
import os
import stat
import zlib

import trio

from fdfsfuse.errors import ConfigError, FdfsError, StatusError
from fdfsfuse.proto import names
from fdfsfuse.vfs import clock
from fdfsfuse.vfs.backend import Cluster
from fdfsfuse.vfs.context import Context, Entry
from fdfsfuse.vfs.numbers import DYNAMIC, INO_MASK, MAX_VOLUMES, ROOT, VOLUME_SHIFT, volume_of
from fdfsfuse.vfs.volume import Volume

log = logging.getLogger(__name__)

_POLL_AT_ONCE_S = 1.0
_CLOSE_S = 2.0
_ROOT_ATTR_S = 1.0


class Volumes:
    """The volumes by name and by number."""

    def __init__(self, context: Context, cluster: Cluster) -> None:
        self._context = context
        self._cluster = cluster
        self._by_number: dict[int, Volume] = {}
        self._wanted = trio.Event()
        self._mounted_ns = clock.now_ns()
        self.by_name: dict[bytes, Volume] = {}

    def of(self, number: int) -> Volume:
        """The volume that an inode number belongs to. Raises KeyError for the root's number."""
        return self._by_number[volume_of(number)]

    def named(self, number: int) -> tuple[Volume, int] | None:
        """The volume and the inode of a number that tells them by itself; most do."""
        volume = self._by_number.get(number >> VOLUME_SHIFT)
        if volume is None or number & DYNAMIC or number == ROOT:
            return None
        return volume, number & INO_MASK

    async def refresh(self) -> None:
        """Ask the trackers. Raises ConnectionProblem when none answers."""
        for group in await self._cluster.volumes():
            if group.encode() not in self.by_name and self._wants(group):
                self._add(group)

    async def run(self) -> None:
        """Ask the trackers from time to time, and when a name is unknown, until cancelled."""
        working = True
        while True:
            with trio.move_on_after(self._context.options.poll_interval_s):
                await self._wanted.wait()
            self._wanted = trio.Event()
            try:
                await self.refresh()
                working = True
            except FdfsError as exc:
                log.log(logging.WARNING if working else logging.DEBUG, "no tracker: %s", exc)
                working = False
            await trio.sleep(_POLL_AT_ONCE_S)

    async def close(self) -> None:
        """End the sessions, waiting no longer than `_CLOSE_S` for that."""
        for volume in self.by_name.values():
            volume.backend.close()
        with trio.move_on_after(_CLOSE_S):
            for volume in self.by_name.values():
                await volume.ended.wait()

    def lookup(self, name: bytes) -> Entry | None:
        """The root of a volume; never waits. An unknown name makes us ask the trackers soon."""
        volume = self.by_name.get(name)
        if volume is None:
            self._wanted.set()
            return None
        return self.volume_entry(volume)

    def _wants(self, group: str) -> bool:
        top = self._context.options.top
        return not top or top.partition("/")[0] == group

    async def open_top(self) -> None:
        """Make the directory that the options name the root of the mount.

        Raises:
            ConfigError: it is not there. ConnectionProblem: the volume does not answer.
        """
        group, _, path = self._context.options.top.partition("/")
        volume = self.by_name.get(group.encode())
        if volume is None:
            known = ", ".join(sorted(await self._cluster.volumes()))
            raise ConfigError(f"there is no volume {group}; there are: {known or 'none'}")
        ino = names.ROOT_INO
        for part in filter(None, path.split("/")):
            try:
                attr: names.Attr = await volume.call(names.Lookup(ino, os.fsencode(part)))
            except StatusError as exc:
                raise ConfigError(f"{group}/{path}: {os.strerror(exc.errno or 0)}") from None
            if not stat.S_ISDIR(attr.mode):
                raise ConfigError(f"{group}/{path}: {part} is not a directory")
            ino = attr.ino
        self._by_number[volume_of(ROOT)] = volume
        self._context.numbers.put_on_top(volume.number, ino)

    def root_of(self, volume: Volume) -> int:
        """The number of a volume's root directory in this mount."""
        return self._context.numbers.of_inode(volume.number, names.ROOT_INO)

    def volume_entry(self, volume: Volume) -> Entry:
        """The entry of a volume's root, from memory; old attributes get a timeout of 0."""
        number = self.root_of(volume)
        timeout_s = self._context.options.attr_timeout_s
        attr = volume.memory.attr(names.ROOT_INO)
        if attr is not None:
            return self._context.entry(volume, attr)._replace(entry_timeout_s=timeout_s)
        return Entry(number, volume.root_attr or self.directory_attr(), 0.0, timeout_s)

    async def volume_getattr(self, volume: Volume) -> Entry:
        """The attributes of a volume's root; the last known ones while it does not answer."""
        entry = self.volume_entry(volume)
        if entry.attr_timeout_s > 0 or volume.down or not volume.backend.connected:
            return entry
        try:
            attr: names.Attr = await volume.call(
                names.GetAttr(names.ROOT_INO), timeout_s=_ROOT_ATTR_S
            )
        except FdfsError:
            return entry
        volume.root_attr = attr
        return self._context.entry(volume, attr)

    def root_entry(self) -> Entry:
        """The root of the mount."""
        timeout_s = self._context.options.attr_timeout_s
        attr = self.directory_attr(links=2 + len(self.by_name))
        return Entry(ROOT, attr, timeout_s, timeout_s)

    def directory_attr(self, links: int = 2) -> names.Attr:
        """Attributes of a directory that no storage describes."""
        options = self._context.options
        now = self._mounted_ns
        mode = stat.S_IFDIR | 0o755 & ~options.umask
        return names.Attr(
            0, mode, links, options.uid, options.gid, 0, 4096, now, now, now, version=0
        )

    def _add(self, group: str) -> None:
        number = zlib.crc32(group.encode()) % MAX_VOLUMES + 1
        while number in self._by_number:
            number = number % MAX_VOLUMES + 1
        volume = Volume(number, self._cluster.backend(group), self._context)
        self._by_number[number] = volume
        self.by_name[volume.name] = volume
        self._context.volumes.append(volume)
        log.info("volume %s", group)
        self._context.spawn(volume.run)

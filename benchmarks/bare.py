"""A file system that keeps everything in memory: what pyfuse3 itself costs.

    python -m benchmarks.bare MOUNTPOINT

No network, no storage, nothing is checked. The kernel keeps names and attributes as long as it
likes. What a mount of ours reaches is to be read as a share of what this reaches in the same run.
"""

from __future__ import annotations

import errno
import os
import stat
import sys
import time
from collections.abc import Sequence

import pyfuse3
import trio
from pyfuse3 import EntryAttributes, FileInfo, FUSEError, RequestContext

_FOREVER_S = 3600.0


class Node:
    """A file, directory or symlink."""

    def __init__(self, ino: int, mode: int) -> None:
        self.attr = EntryAttributes()
        self.attr.st_ino = ino
        self.attr.st_mode = mode
        self.attr.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        self.attr.st_blksize = 1 << 20
        self.attr.entry_timeout = self.attr.attr_timeout = _FOREVER_S
        self.attr.st_atime_ns = self.attr.st_mtime_ns = self.attr.st_ctime_ns = time.time_ns()
        self.data = bytearray()
        self.target = b""
        self.xattrs: dict[bytes, bytes] = {}
        self.children: dict[bytes, Node] = {}


class BareOperations(pyfuse3.Operations):
    """Inodes are kept until the end, file handles are inode numbers."""

    def __init__(self) -> None:
        super().__init__()
        self._nodes = {pyfuse3.ROOT_INODE: Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o755)}
        self._missing = EntryAttributes()
        self._missing.st_ino = 0
        self._missing.entry_timeout = _FOREVER_S

    def _add(self, parent: int, name: bytes, mode: int) -> Node:
        children = self._nodes[parent].children
        if name in children:
            raise FUSEError(errno.EEXIST)
        ino = len(self._nodes) + 1
        node = children[name] = self._nodes[ino] = Node(ino, mode)
        return node

    def _take(self, parent: int, name: bytes) -> Node:
        try:
            return self._nodes[parent].children.pop(name)
        except KeyError:
            raise FUSEError(errno.ENOENT) from None

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        node = self._nodes[parent_inode].children.get(name)
        return self._missing if node is None else node.attr

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return self._nodes[inode].attr

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        node = self._nodes[inode]
        if fields.update_size:
            self._resize(node, attr.st_size)
        if fields.update_mode:
            node.attr.st_mode = attr.st_mode
        if fields.update_mtime:
            node.attr.st_mtime_ns = attr.st_mtime_ns
        return node.attr

    def _resize(self, node: Node, size: int) -> None:
        del node.data[size:]
        node.data.extend(bytes(size - len(node.data)))
        node.attr.st_size = size

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        return self._add(parent_inode, name, stat.S_IFDIR | stat.S_IMODE(mode)).attr

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        node = self._add(parent_inode, name, stat.S_IFLNK | 0o777)
        node.target = target
        return node.attr

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return self._nodes[inode].target

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        self._take(parent_inode, name)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        node = self._nodes[parent_inode].children.get(name)
        if node is not None and node.children:
            raise FUSEError(errno.ENOTEMPTY)
        self._take(parent_inode, name)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        node = self._take(parent_inode_old, name_old)
        self._nodes[parent_inode_new].children[name_new] = node

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        node = self._add(parent_inode, name, mode)
        return FileInfo(fh=node.attr.st_ino, keep_cache=True), node.attr

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        if flags & os.O_TRUNC:
            self._resize(self._nodes[inode], 0)
        return FileInfo(fh=inode, keep_cache=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return bytes(memoryview(self._nodes[fh].data)[off : off + size])

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        node = self._nodes[fh]
        if off > len(node.data):
            self._resize(node, off)
        node.data[off : off + len(buf)] = buf
        node.attr.st_size = len(node.data)
        return len(buf)

    async def flush(self, fh: int) -> None:
        pass

    async def fsync(self, fh: int, datasync: bool) -> None:
        pass

    async def release(self, fh: int) -> None:
        pass

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        pass

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return inode

    async def readdir(self, fh: int, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        entries = list(self._nodes[fh].children.items())
        for number, (name, node) in enumerate(entries[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(token, name, node.attr, number):
                return

    async def releasedir(self, fh: int) -> None:
        pass

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        try:
            return self._nodes[inode].xattrs[name]
        except KeyError:
            raise FUSEError(pyfuse3.ENOATTR) from None

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        self._nodes[inode].xattrs[name] = value

    async def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        result = pyfuse3.StatvfsData()
        result.f_bsize = result.f_frsize = 4096
        result.f_blocks = result.f_bfree = result.f_bavail = 1 << 30
        result.f_namemax = 255
        return result


def main() -> None:
    mountpoint = sys.argv[1]
    pyfuse3.init(BareOperations(), mountpoint, {"fsname=bare"})
    try:
        trio.run(pyfuse3.main, 3, 99)
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()

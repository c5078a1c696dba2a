"""pyfuse3's Operations over a `Vfs`: nothing but translation.

Only FUSEError may leave a handler, and nothing may leave ``forget``: anything else ends the mount.
`Stats.counted` is put around every handler when the object is made, in one place.
"""

from __future__ import annotations

import errno
import functools
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

import pyfuse3
from pyfuse3 import (
    EntryAttributes,
    FileInfo,
    FUSEError,
    ReaddirToken,
    RequestContext,
    SetattrFields,
    StatvfsData,
    readdir_reply,
)

from fdfsfuse.core import acl
from fdfsfuse.core.recent import Recent
from fdfsfuse.fuse.errors import errno_of
from fdfsfuse.fuse.stats import Stats
from fdfsfuse.proto.names import NAME_MAX, TIME_MAX_NS, TIME_MIN_NS
from fdfsfuse.vfs.context import Entry
from fdfsfuse.vfs.numbers import ROOT
from fdfsfuse.vfs.openfiles import Opened
from fdfsfuse.vfs.tree import Changes, Owner, without_set_id
from fdfsfuse.vfs.vfs import Vfs

log = logging.getLogger(__name__)

_BLOCK = 512
_IO_SIZE = 128 << 10
"""st_blksize: programs that buffer by it write large pieces, each of which is a request."""
_STATFS_BLOCK = 4096

_PATHS_MAX = 4096
_EXECUTABLE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH

_Handler: TypeAlias = Callable[..., Awaitable[Any]]

_HANDLERS = (
    "lookup",
    "getattr",
    "access",
    "setattr",
    "readlink",
    "mknod",
    "mkdir",
    "unlink",
    "rmdir",
    "symlink",
    "rename",
    "link",
    "open",
    "create",
    "read",
    "write",
    "flush",
    "release",
    "fsync",
    "opendir",
    "readdir",
    "releasedir",
    "fsyncdir",
    "statfs",
    "setxattr",
    "getxattr",
    "listxattr",
    "removexattr",
)


def attributes(entry: Entry) -> EntryAttributes:
    """An entry in pyfuse3's terms."""
    number, attr, attr_timeout_s, entry_timeout_s = entry
    result = EntryAttributes()
    result.st_ino = number
    result.attr_timeout = attr_timeout_s
    result.entry_timeout = entry_timeout_s
    result.st_mode = attr.mode
    result.st_nlink = attr.nlink
    result.st_uid = attr.uid
    result.st_gid = attr.gid
    result.st_rdev = attr.rdev
    result.st_size = attr.size
    result.st_blksize = _IO_SIZE
    result.st_blocks = (attr.size + _BLOCK - 1) // _BLOCK
    result.st_atime_ns = attr.atime_ns
    result.st_mtime_ns = attr.mtime_ns
    result.st_ctime_ns = attr.ctime_ns
    return result


class Operations(pyfuse3.Operations):
    """The handlers.

    Args:
        root_alone: refuse what is done for others than root, as the kernel checks no permissions.
        trace: log each request.
    """

    # Asked for, the kernel looks up "." and ".." for file handles of NFS: not supported.
    supports_dot_lookup = False

    def __init__(self, vfs: Vfs, *, root_alone: bool = False, trace: bool = False) -> None:
        super().__init__()
        self._vfs = vfs
        self.enable_acl = vfs.context.options.acl
        self._paths: Recent[int, tuple[int, bytes]] = Recent(_PATHS_MAX)
        self.stats = Stats(self._describe)
        for name in _HANDLERS:
            handler = getattr(self, name)
            if root_alone:
                handler = _for_root(handler)
            handler = self.stats.counted(name, handler, self._errno)
            setattr(self, name, self._traced(name, handler) if trace else handler)

    # --- the guard -------------------------------------------------------------------------------

    def _errno(self, name: str, args: tuple[Any, ...], exc: Exception) -> int:
        """What a request fails with; the unforeseen is logged."""
        if isinstance(exc, FUSEError):
            return int(exc.errno)
        code = errno_of(exc)
        if code is None:
            log.exception("%s(%s): unforeseen", name, self._describe(args))
            return errno.EIO
        if code == errno.EIO:
            log.warning("%s(%s): %s", name, self._describe(args), exc)
        return code

    def _traced(self, name: str, handler: _Handler) -> _Handler:
        @functools.wraps(handler)
        async def traced(*args: Any) -> Any:
            try:
                result = await handler(*args)
            except FUSEError as exc:
                code = errno.errorcode.get(exc.errno, str(exc.errno))
                log.debug("%s(%s): %s", name, self._describe(args), code)
                raise
            log.debug("%s(%s)", name, self._describe(args))
            return result

        return traced

    def _describe(self, args: tuple[Any, ...]) -> str:
        """Arguments for the log: names, numbers, and the path of the inode if it is known."""
        shown = []
        for arg in args:
            if isinstance(arg, bytes) and len(arg) > NAME_MAX:
                shown.append(f"<{len(arg)} bytes>")
            elif isinstance(arg, (int, bytes)):
                shown.append(repr(arg))
        path = self._path(args[0]) if args and isinstance(args[0], int) else ""
        return ", ".join(shown) + (f" [{path}]" if path else "")

    def _path(self, number: int) -> str:
        # Also called in the thread that reports: what was there just now may be gone.
        parts: list[str] = []
        while number != ROOT and len(parts) < NAME_MAX:
            found = self._paths.get(number)
            if found is None:
                break
            number, name = found
            parts.append(name.decode(errors="backslashreplace"))
        return "/".join(["" if number == ROOT else "...", *reversed(parts)]) if parts else ""

    def _given(self, parent: int, name: bytes, entry: Entry) -> EntryAttributes:
        """An entry as the answer to a lookup: the kernel knows the inode once more."""
        self._vfs.remember(entry)
        self._paths[entry.number] = (parent, name)
        return attributes(entry)

    # --- names -----------------------------------------------------------------------------------

    async def lookup(self, parent_inode: int, name: bytes, ctx: RequestContext) -> EntryAttributes:
        entry = await self._vfs.tree.find(parent_inode, name)
        if entry.number:
            return self._given(parent_inode, name, entry)
        if not entry.entry_timeout_s:
            raise FUSEError(errno.ENOENT)
        missing = EntryAttributes()
        missing.st_ino = 0
        missing.entry_timeout = entry.entry_timeout_s
        return missing

    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        try:
            self._vfs.forget(inode_list)
        except Exception:
            log.exception("forget: unforeseen")

    async def mknod(
        self, parent_inode: int, name: bytes, mode: int, rdev: int, ctx: RequestContext
    ) -> EntryAttributes:
        owner, umask = _owner(ctx), self._umask(ctx)
        entry = await self._vfs.tree.create(parent_inode, name, mode, owner, rdev=rdev, umask=umask)
        return self._given(parent_inode, name, entry)

    async def mkdir(
        self, parent_inode: int, name: bytes, mode: int, ctx: RequestContext
    ) -> EntryAttributes:
        mode, umask = stat.S_IFDIR | stat.S_IMODE(mode), self._umask(ctx)
        entry = await self._vfs.tree.create(parent_inode, name, mode, _owner(ctx), umask=umask)
        return self._given(parent_inode, name, entry)

    async def symlink(
        self, parent_inode: int, name: bytes, target: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        entry = await self._vfs.tree.create(parent_inode, name, mode, _owner(ctx), target=target)
        return self._given(parent_inode, name, entry)

    async def readlink(self, inode: int, ctx: RequestContext) -> bytes:
        return await self._vfs.tree.readlink(inode)

    async def link(
        self, inode: int, new_parent_inode: int, new_name: bytes, ctx: RequestContext
    ) -> EntryAttributes:
        entry = await self._vfs.tree.link(inode, new_parent_inode, new_name)
        return self._given(new_parent_inode, new_name, entry)

    async def unlink(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._vfs.tree.remove(parent_inode, name, directory=False)

    async def rmdir(self, parent_inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._vfs.tree.remove(parent_inode, name, directory=True)

    async def rename(
        self,
        parent_inode_old: int,
        name_old: bytes,
        parent_inode_new: int,
        name_new: bytes,
        flags: int,
        ctx: RequestContext,
    ) -> None:
        await self._vfs.tree.rename(parent_inode_old, name_old, parent_inode_new, name_new, flags)

    def _umask(self, ctx: RequestContext) -> int:
        """With ACLs the kernel leaves the umask to us; without, it has been taken off."""
        return ctx.umask if self.enable_acl else 0

    # --- attributes ------------------------------------------------------------------------------

    async def getattr(self, inode: int, ctx: RequestContext) -> EntryAttributes:
        return attributes(await self._vfs.tree.getattr(inode))

    async def access(self, inode: int, mode: int, ctx: RequestContext) -> bool:
        """Asked for only where the kernel checks no permissions: by root, see `permissions_matter`.

        Even root may not execute what nobody may.
        """
        if not mode & os.X_OK:
            return True
        found = (await self._vfs.tree.getattr(inode)).attr.mode
        return stat.S_ISDIR(found) or bool(found & _EXECUTABLE)

    async def setattr(
        self,
        inode: int,
        attr: EntryAttributes,
        fields: SetattrFields,
        fh: int | None,
        ctx: RequestContext,
    ) -> EntryAttributes:
        changes = Changes(
            mode=stat.S_IMODE(attr.st_mode) if fields.update_mode else None,
            uid=attr.st_uid if fields.update_uid else None,
            gid=attr.st_gid if fields.update_gid else None,
            atime_ns=_kept_time(attr.st_atime_ns) if fields.update_atime else None,
            mtime_ns=_kept_time(attr.st_mtime_ns) if fields.update_mtime else None,
        )
        size = attr.st_size if fields.update_size else None
        if size is None or ctx.uid:
            changes = await self._with_set_id(inode, changes)
        return attributes(await self._vfs.set_attributes(inode, size, changes, fh))

    async def _with_set_id(self, inode: int, changes: Changes) -> Changes:
        """*changes*, and the set-id bits if these are lost: see `fdfsfuse.fuse.handshake`.

        That is by chown, by truncating unless root does, and by nothing at all: the kernel sends
        that before a write of somebody who may not keep them, and for chown(-1, -1).
        """
        if changes != Changes(uid=changes.uid, gid=changes.gid):
            return changes
        mode = (await self._vfs.tree.getattr(inode)).attr.mode
        cleared = without_set_id(mode)
        if cleared == mode or stat.S_ISDIR(mode):
            return changes
        return changes._replace(mode=stat.S_IMODE(cleared))

    async def statfs(self, ctx: RequestContext) -> StatvfsData:
        space = await self._vfs.tree.space()
        result = StatvfsData()
        result.f_bsize = result.f_frsize = _STATFS_BLOCK
        result.f_blocks = space.total_bytes // _STATFS_BLOCK
        result.f_bfree = space.free_bytes // _STATFS_BLOCK
        result.f_bavail = space.available_bytes // _STATFS_BLOCK
        # Inodes are rows of a database: as many more as there are blocks.
        result.f_ffree = result.f_favail = result.f_bavail
        result.f_files = space.files + result.f_ffree
        result.f_namemax = NAME_MAX
        return result

    async def getxattr(self, inode: int, name: bytes, ctx: RequestContext) -> bytes:
        return await self._vfs.xattrs.get(inode, name)

    async def setxattr(self, inode: int, name: bytes, value: bytes, ctx: RequestContext) -> None:
        await self._vfs.xattrs.set(inode, name, value)
        if name == acl.ACCESS and ctx.uid:
            await self._clear_set_group_id(inode, ctx)

    async def _clear_set_group_id(self, inode: int, ctx: RequestContext) -> None:
        """Who sets the ACL of a file of a foreign group must not leave it with that group's id."""
        attr = (await self._vfs.tree.getattr(inode)).attr
        if not attr.mode & stat.S_ISGID or attr.gid == ctx.gid:
            return
        if attr.gid not in pyfuse3.get_sup_groups(ctx.pid):
            mode = stat.S_IMODE(attr.mode) & ~stat.S_ISGID
            await self._vfs.tree.set_attributes(inode, Changes(mode=mode))

    async def listxattr(self, inode: int, ctx: RequestContext) -> list[bytes]:
        listed = await self._vfs.xattrs.list(inode)
        if ctx.uid:
            # The kernel hides their values, and leaves the names to the file system.
            return [name for name in listed if not name.startswith(b"trusted.")]
        return listed

    async def removexattr(self, inode: int, name: bytes, ctx: RequestContext) -> None:
        await self._vfs.xattrs.remove(inode, name)

    # --- files -----------------------------------------------------------------------------------

    async def open(self, inode: int, flags: int, ctx: RequestContext) -> FileInfo:
        opened = await self._vfs.files.open(inode, flags, privileged=ctx.uid == 0)
        self.stats.opened += 1
        self.stats.pages_kept += opened.keep_cache and not opened.stored
        self.stats.bytes_read += opened.stored
        return _file_info(opened)

    async def create(
        self, parent_inode: int, name: bytes, mode: int, flags: int, ctx: RequestContext
    ) -> tuple[FileInfo, EntryAttributes]:
        opened, entry = await self._vfs.files.create(
            parent_inode, name, mode, flags, _owner(ctx), umask=self._umask(ctx)
        )
        return _file_info(opened), self._given(parent_inode, name, entry)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        # A memoryview is as good: pyfuse3 takes any buffer, and before the next checkpoint.
        data = await self._vfs.files.read(fh, off, size)
        self.stats.bytes_read += len(data)
        return data  # type: ignore[return-value]

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        await self._vfs.files.write(fh, off, buf)
        self.stats.bytes_written += len(buf)
        return len(buf)

    async def flush(self, fh: int) -> None:
        await self._vfs.files.flush(fh)

    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._vfs.files.sync(fh)

    async def release(self, fh: int) -> None:
        await self._vfs.files.release(fh)

    # --- directories -----------------------------------------------------------------------------

    async def opendir(self, inode: int, ctx: RequestContext) -> int:
        return self._vfs.open_directory(inode)

    async def readdir(self, fh: int, start_id: int, token: ReaddirToken) -> None:
        handle = self._vfs.directories.get(fh)
        handle.seek(start_id)
        while True:
            listed = handle.next()
            if listed is None:
                if not await handle.fill():
                    return
                continue
            if not readdir_reply(token, listed.name, attributes(listed.entry), listed.next_id):
                handle.refused(listed)
                return
            handle.taken(listed)

    async def releasedir(self, fh: int) -> None:
        self._vfs.directories.release(fh)

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._vfs.tell_of_directory(fh)


def _kept_time(time_ns: int) -> int:
    """The nearest time that can be kept: file systems do not refuse others."""
    return max(TIME_MIN_NS, min(time_ns, TIME_MAX_NS))


def _for_root(handler: _Handler) -> _Handler:
    """*handler* for root alone.

    The kernel lets nobody in who is not root, but servers as those of NFS stay root while they act
    for a user: that user's are only the ids in the request (``setfsuid(2)``).
    """

    @functools.wraps(handler)
    def for_root(*args: Any) -> Awaitable[Any]:
        ctx = args[-1]
        if isinstance(ctx, RequestContext) and ctx.uid:
            raise FUSEError(errno.EACCES)
        return handler(*args)

    return for_root


def _owner(ctx: RequestContext) -> Owner:
    return Owner(ctx.uid, ctx.gid)


def _file_info(opened: Opened) -> FileInfo:
    return FileInfo(fh=opened.handle, keep_cache=opened.keep_cache)

"""Extended attributes: those that the storage keeps, and hidden ones that describe the content.

The hidden ones can be read by name but are not listed, so that ``cp -a`` and ``rsync -X`` do not
try to set them:

===================== ===================================================================
user.fdfs.file_id     ``group/M00/...`` of the content that was stored last
user.fdfs.source      storage that made the object: its address, or its id in id mode
user.fdfs.replicas    addresses of the volume's storages
user.fdfs.crc32       eight hex digits
user.fdfs.created     when the object was made, ``2026-11-22T15:00:00Z``
===================== ===================================================================
"""

from __future__ import annotations

import errno
import stat
import time

from fdfsfuse.core import acl
from fdfsfuse.core.recent import Recent
from fdfsfuse.errors import ProtocolError, StatusError, TreeError
from fdfsfuse.proto import fileid, names
from fdfsfuse.vfs import clock
from fdfsfuse.vfs.backend import ObjectInfo
from fdfsfuse.vfs.context import Context
from fdfsfuse.vfs.numbers import ROOT, id_directory
from fdfsfuse.vfs.tree import Changes, Tree
from fdfsfuse.vfs.volume import Volume

HIDDEN = b"user.fdfs."
SELF_TEST = b"user.fdfs.selftest"
"""Set on the root and read back once, to see whether libfuse passes names on unharmed."""

_CACHED = 1024
_CAPABILITY = b"security.capability"
_NEVER = frozenset((b"security.selinux", _CAPABILITY))
_NAMESPACES = (b"user.", b"trusted.", b"security.")
_NAME_MAX = 255


def _refusal(name: bytes) -> int:
    """The errno with which Linux refuses a name that no attribute can have; 0 for other names."""
    if name in acl.NAMES:
        return 0
    if name in _NAMESPACES:
        return errno.EINVAL
    return 0 if name.startswith(_NAMESPACES) else errno.EOPNOTSUPP


class Xattrs:
    """Gets, sets and lists extended attributes.

    One request brings all attributes of an inode, and the volume's memory keeps them. Those of
    objects without a name are kept for the attribute timeout.
    """

    def __init__(self, context: Context, tree: Tree) -> None:
        self._context = context
        self._tree = tree
        self._objects: Recent[int, tuple[float, dict[bytes, bytes]]] = Recent(_CACHED)
        self._self_test: bytes | None = None
        self._refused = _NEVER if context.options.acl else _NEVER | acl.NAMES

    async def get(self, number: int, name: bytes) -> bytes:
        """The value. Raises TreeError: ENODATA if there is none."""
        if name == _CAPABILITY:
            # The kernel asks before the first write to each file: an answer costs no call.
            raise TreeError(errno.ENODATA)
        if name in self._refused:
            # After this answer the kernel does not ask again for each file of a listing.
            raise TreeError(errno.EOPNOTSUPP)
        if name.startswith(HIDDEN):
            return await self._get_hidden(number, name)
        value = (await self._all(number)).get(name)
        if value is None:
            raise TreeError(_refusal(name) or errno.ENODATA)
        return value

    async def list(self, number: int) -> list[bytes]:
        """The names."""
        return sorted(name for name in await self._all(number) if name not in self._refused)

    async def set(self, number: int, name: bytes, value: bytes) -> None:
        """Set a value."""
        if number == ROOT and name == SELF_TEST:
            self._self_test = value
            return
        self._check_name(name)
        volume, ino, file_id = self._tree.inode(number)
        if name == acl.ACCESS and await self._set_as_mode(volume, number, ino, value):
            return
        request = names.SetXattr(ino, name, value, 0, clock.now_ns(), file_id)
        try:
            if not await self._change_here(volume, number, request):
                await volume.call(request)
        finally:
            if name == acl.DEFAULT:
                # New files have to inherit it from now on, which only the storage can do.
                volume.memory.revoke([ino])
        self._changed(number)

    async def remove(self, number: int, name: bytes) -> None:
        """Remove a value. Raises ENODATA if there is none."""
        self._check_name(name)
        volume, ino, file_id = self._tree.inode(number)
        known = volume.memory.xattrs(ino)
        if known is not None and name not in known:
            if name in acl.NAMES:
                return
            raise TreeError(errno.ENODATA)
        request = names.RemoveXattr(ino, name, clock.now_ns(), file_id)
        try:
            if not await self._change_here(volume, number, request):
                await volume.call(request)
        except StatusError as exc:
            # Removing an ACL that does not exist succeeds.
            if exc.errno != errno.ENODATA or name not in acl.NAMES:
                raise
        self._changed(number)

    async def _set_as_mode(self, volume: Volume, number: int, ino: int, value: bytes) -> bool:
        """Set an access ACL that says no more than a mode by chmod. Returns whether that was done.

        ``cp -a`` sets such ACLs. It is done for inodes that are known to have no access ACL.
        """
        xattrs = volume.memory.xattrs(ino)
        if xattrs is None or acl.ACCESS in xattrs or not volume.memory.is_secret(ino):
            return False
        try:
            entries = acl.decode(value)
        except ValueError:
            return False
        if not acl.is_minimal(entries):
            return False
        mode = stat.S_IMODE((await self._tree.getattr(number)).attr.mode)
        changes = Changes(mode=mode & ~0o777 | acl.permissions(entries))
        await self._tree.set_attributes(number, changes)
        return True

    async def _change_here(
        self, volume: Volume, number: int, request: names.SetXattr | names.RemoveXattr
    ) -> bool:
        """Make a change without waiting for the storage. Returns whether that was possible."""
        state = self._context.states.get(number)
        if state is not None and await state.change_xattr(request):
            return True
        return bool(request.ino) and await volume.own_changes.change_xattr(request)

    def forget(self, number: int) -> None:
        """The kernel does not know the inode any more."""
        self._objects.pop(number, None)

    def _check_name(self, name: bytes) -> None:
        if name.startswith(HIDDEN):
            raise TreeError(errno.EPERM)
        if name in self._refused:
            raise TreeError(errno.EOPNOTSUPP)
        if len(name) > _NAME_MAX:
            raise TreeError(errno.ERANGE)
        refusal = _refusal(name)
        if refusal:
            raise TreeError(refusal)

    def _changed(self, number: int) -> None:
        # The change time, too; the memory of an inode has seen to that itself.
        self._objects.pop(number, None)
        self._context.objects.drop(number)

    async def _all(self, number: int) -> dict[bytes, bytes]:
        if number == self._context.volumes_at or id_directory(number) is not None:
            return {}
        volume, ino, file_id = self._tree.inode(number)
        if ino:
            known = volume.memory.xattrs(ino)
            if known is None:
                return await self._ask(volume, ino)
            volume.xattrs_ahead.used(volume.memory.parent(ino), ino)
            return known
        found = self._objects.get(number)
        if found is not None and found[0] > time.monotonic():
            return found[1]
        answer: names.Xattrs = await volume.call(names.ListXattrs(0, file_id))
        until = time.monotonic() + self._context.options.attr_timeout_s
        self._objects[number] = (until, answer.xattrs)
        return answer.xattrs

    async def _ask(self, volume: Volume, ino: int) -> dict[bytes, bytes]:
        """Ask for an inode's, and for those of the entries that follow it: ls -l wants them all."""
        parent = volume.memory.parent(ino)
        count, by_name, _ = volume.xattrs_ahead.missed(parent, ino)
        brought: set[int] = set()
        try:
            answer: names.Xattrs = await volume.call(names.ListXattrs(ino, "", count, by_name))
            brought.update(answer.following)
        finally:
            if count:
                volume.xattrs_ahead.came(parent, brought)
        return answer.xattrs

    async def _get_hidden(self, number: int, name: bytes) -> bytes:
        if number == ROOT and name == SELF_TEST and self._self_test is not None:
            value, self._self_test = self._self_test, None
            return value
        if number == self._context.volumes_at or id_directory(number) is not None:
            raise TreeError(errno.ENODATA)
        volume = self._tree.volume(number)
        # Who has the file id can look at the object without asking for its name.
        volume.memory.tell(self._tree.inode(number)[1])
        await volume.wait_for_changes()
        entry = await self._tree.getattr(number)
        file_id = entry.attr.file_id
        if not file_id:
            raise TreeError(errno.ENODATA)
        key = name[len(HIDDEN) :]
        if key == b"file_id":
            return f"{volume.backend.group}/{file_id}".encode()
        if key == b"replicas":
            return ",".join(volume.backend.replicas()).encode()
        if key not in (b"source", b"crc32", b"created"):
            raise TreeError(errno.ENODATA)
        info = await self._info(volume, file_id)
        if key == b"source":
            return info.source.encode()
        if key == b"crc32":
            return f"{info.crc32:08x}".encode()
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(info.created_s)).encode()

    async def _info(self, volume: Volume, file_id: str) -> ObjectInfo:
        """What the file id says; for objects that it does not describe, what the storage says."""
        try:
            known = fileid.decode_name(file_id)
        except ProtocolError:
            return await volume.backend.info(file_id)
        if known.kind is not fileid.FileKind.NORMAL:
            volume.check_up()
            return await volume.backend.info(file_id)
        return ObjectInfo(known.size, known.timestamp, known.crc32, known.source)

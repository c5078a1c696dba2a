"""``M00/HH/HH/FILE``: a volume's objects by their ids.

Listings show unnamed objects only (and directories that hold some). The id path of a named object
can be looked up all the same and is the same inode as its name. Directories need no request: every
two hex digits are one.
"""

from __future__ import annotations

import errno
import re

from fdfsfuse.errors import StatusError, TreeError
from fdfsfuse.proto import names
from fdfsfuse.proto.fileid import is_object_base
from fdfsfuse.proto.names import Attr
from fdfsfuse.vfs.context import Context, Entry
from fdfsfuse.vfs.numbers import IdDirectory, id_directory_number
from fdfsfuse.vfs.options import Ids
from fdfsfuse.vfs.volume import Volume
from fdfsfuse.vfs.volumes import Volumes

_STORE_PATH = re.compile(rb"M([0-9A-F]{2})\Z")
_DIRECTORY = re.compile(rb"[0-9A-F]{2}\Z")


def store_path_of(name: bytes) -> int | None:
    """The store path that a reserved name (``M00`` .. ``MFF``) stands for; None for others."""
    match = _STORE_PATH.match(name)
    return int(match[1], 16) if match else None


class IdTree:
    """Looks things up below ``M00``; see the module."""

    def __init__(self, context: Context, volumes: Volumes) -> None:
        self._context = context
        self._volumes = volumes

    def lookup_store_path(self, volume: Volume, name: bytes) -> Entry:
        """``M00`` in the root of a volume."""
        store_path = store_path_of(name)
        options = self._context.options
        if (
            store_path is None
            or options.ids is Ids.HIDE
            or store_path >= volume.backend.store_path_count
        ):
            raise TreeError(errno.ENOENT)
        directory = IdDirectory(0, store_path)
        return self.directory_entry(id_directory_number(volume.number, directory))

    async def lookup(self, volume: Volume, directory: IdDirectory, name: bytes) -> Entry:
        """A directory or an object below ``M00``."""
        if directory.level < 2:
            if not _DIRECTORY.match(name):
                raise TreeError(errno.ENOENT)
            child = directory.child(int(name, 16))
            return self.directory_entry(id_directory_number(volume.number, child))
        attr = await self._find(volume, directory, name)
        return self.object_entry(volume, attr)

    def object_entry(self, volume: Volume, attr: Attr) -> Entry:
        """The entry of a named or unnamed object."""
        numbers = self._context.numbers
        if attr.ino:
            # Found by its id: the kernel must look that up again, as it is not a name.
            return self._context.entry(volume, attr)._replace(entry_timeout_s=0.0)
        number = numbers.of_object(volume.number, attr.file_id)
        return self._context.object_entry(number, self._context.object_attr(attr))

    def directory_entry(self, number: int) -> Entry:
        """A directory of ids."""
        timeout_s = self._context.options.attr_timeout_s
        return Entry(number, self._volumes.directory_attr(), timeout_s, timeout_s)

    async def unnamed(self, volume: Volume, directory: IdDirectory, name: bytes) -> str:
        """The file id of an unnamed object, to be renamed or removed.

        Raises:
            TreeError: EPERM for directories, EBUSY when the object has a name.
        """
        if directory.level < 2:
            raise TreeError(errno.EPERM)
        attr = await self._find(volume, directory, name)
        if attr.ino:
            raise TreeError(errno.EBUSY)
        return attr.file_id

    async def remove(
        self, volume: Volume, directory: IdDirectory, name: bytes, *, directory_wanted: bool
    ) -> None:
        """Delete an unnamed object, with ``ids=rw`` only."""
        if directory_wanted or directory.level < 2:
            raise TreeError(errno.EPERM)
        file_id = await self.unnamed(volume, directory, name)
        if self._context.options.ids is not Ids.READ_WRITE:
            raise TreeError(errno.EPERM)
        await volume.backend.delete_object(file_id)
        number = self._context.numbers.find_object(volume.number, file_id)
        if number is not None:
            self._context.objects.drop(number)

    async def _find(self, volume: Volume, directory: IdDirectory, name: bytes) -> Attr:
        try:
            base = name.decode("ascii")
        except UnicodeDecodeError:
            raise TreeError(errno.ENOENT) from None
        if not is_object_base(base):
            raise TreeError(errno.ENOENT)
        try:
            attr: Attr = await volume.call(names.LookupObject(f"{directory.path}/{base}"))
        except StatusError as exc:
            if exc.errno == errno.EINVAL:
                raise TreeError(errno.ENOENT) from exc
            raise
        return attr

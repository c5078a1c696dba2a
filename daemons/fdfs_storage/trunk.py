"""Files that a C server put into trunk files: read, described, deleted, and taken from peers.

Only peers make new ones: the trunk server of the group gave them their places.

What is a file's place is in its name (`fdfsfuse.proto.trunk`). The 24 bytes in front of the
content say whether the file is still there: they follow from its name, and any difference means
that there is no such file.
"""

from __future__ import annotations

import errno
import os
import stat
from dataclasses import dataclass

from fdfs_storage.files import pwrite_all, status_of
from fdfsfuse.errors import StatusError
from fdfsfuse.proto.trunk import SLOT_HEADER_SIZE, TrunkSlot

_PIECE = 256 << 10


@dataclass(frozen=True, slots=True)
class SlotPlace:
    """A slot of a trunk file in *directory*. ``file_size``: bytes of a trunk file that is made."""

    directory: str
    slot: TrunkSlot
    file_size: int = 0

    @property
    def start(self) -> int:
        """Where the content begins in the trunk file."""
        return self.slot.offset + SLOT_HEADER_SIZE

    def open(self) -> int:
        """A descriptor of the trunk file, to be closed by the caller. Raises StatusError 2, 5."""
        return self._open(os.O_RDONLY)

    def _open(self, flags: int) -> int:
        try:
            fd = os.open(f"{self.directory}/{self.slot.file_name}", flags | os.O_CLOEXEC)
        except OSError as exc:
            raise StatusError(status_of(exc)) from exc
        try:
            header = os.pread(fd, SLOT_HEADER_SIZE, self.slot.offset)
        except OSError as exc:
            os.close(fd)
            raise StatusError(status_of(exc)) from exc
        if header != self.slot.header:
            os.close(fd)
            raise StatusError(errno.ENOENT)
        return fd

    def exists(self) -> bool:
        """True when the file is there."""
        try:
            os.close(self.open())
        except StatusError:
            return False
        return True

    def stat(self) -> os.stat_result:
        """What `os.stat` would say of a file of its own. Raises StatusError 2."""
        os.close(self.open())
        slot = self.slot
        times = (slot.mtime,) * 3
        return os.stat_result((stat.S_IFREG | 0o644, 0, 0, 1, 0, 0, slot.size, *times))

    def write(self, content: bytes | memoryview) -> None:
        """Put the content in its place, whatever is there. May run in a thread.

        There is no file in the slot until `write_header`, also after a crash. Raises OSError.
        """
        fd = self._open_for_writing()
        try:
            pwrite_all(fd, bytes(SLOT_HEADER_SIZE), self.slot.offset)
            pwrite_all(fd, content, self.start)
            end = max(self.slot.offset + self.slot.slot_size, self.file_size)
            if os.fstat(fd).st_size < end:
                os.ftruncate(fd, end)
        finally:
            os.close(fd)

    def write_header(self) -> None:
        """The file exists from now on. Raises OSError."""
        fd = self._open_for_writing()
        try:
            pwrite_all(fd, self.slot.header, self.slot.offset)
        finally:
            os.close(fd)

    def _open_for_writing(self) -> int:
        path, flags = f"{self.directory}/{self.slot.file_name}", os.O_RDWR | os.O_CREAT
        try:
            return os.open(path, flags | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            os.makedirs(self.directory, exist_ok=True)
            return os.open(path, flags | os.O_CLOEXEC, 0o644)

    def clear(self) -> None:
        """Fill the slot with zeros, which is how such a file is deleted. Raises StatusError 2, 5.

        The header goes first: a crash in between leaves no file either. No storage hands the slot
        out again before a C server rebuilds its table of free slots.
        """
        fd = self._open(os.O_RDWR)
        try:
            done = 0
            while done < self.slot.slot_size:
                size = min(_PIECE, self.slot.slot_size - done)
                pwrite_all(fd, bytes(size), self.slot.offset + done)
                done += size
        finally:
            os.close(fd)

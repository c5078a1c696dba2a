"""Where a download can go. Nothing here knows of trio: all of it may block."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
import zlib
from collections.abc import Callable
from typing import IO, TypeAlias

from isal import isal_zlib

from fdfsfuse.client.plans.reading import is_immutable
from fdfsfuse.client.sources import CHUNK_SIZE
from fdfsfuse.errors import UsageError

Target: TypeAlias = "str | os.PathLike[str] | IO[bytes]"
"""A path, or a binary file object that is written at its position."""


class NewFile:
    """A file that takes the place of *path* when it is complete.

    The content is complete under the name or not there at all: it is written to a temporary file
    beside it, which is renamed at the end. An existing file keeps its permissions.

    Args:
        key: what is downloaded (`part_key`), if a broken download is to be resumed: the temporary
            file is then kept by `discard`, and the next `NewFile` finds it by its key.

    Attributes:
        size: bytes that it has.

    Raises:
        UsageError: *path* exists and is no regular file; somebody else resumes the download.
        OSError: it cannot be made, for example because there is no such directory.
    """

    def __init__(self, path: str | os.PathLike[str], key: str | None = None) -> None:
        self._target = os.path.realpath(path)
        self._keep = key is not None
        self.size = 0
        mode = _mode_of(self._target)
        directory, base = os.path.split(self._target)
        try:
            if key is None:
                self.fd, self._temporary = tempfile.mkstemp(
                    prefix=f".{base[:60]}.", suffix=".part", dir=directory
                )
            else:
                part = f".{base[:60]}.{zlib.crc32(key.encode()):08x}.part"
                self._temporary = os.path.join(directory, part)
                self.fd = _open_part(self._temporary)
                self.size = os.fstat(self.fd).st_size
        except OSError as exc:
            # Whoever reads it knows the target, not the name of the temporary file.
            raise OSError(exc.errno, exc.strerror, self._target) from exc
        os.fchmod(self.fd, stat.S_IMODE(mode))

    def write(self, data: bytes) -> None:
        """Append *data*."""
        view = memoryview(data)
        while view:
            done = os.pwrite(self.fd, view, self.size)
            self.size += done
            view = view[done:]

    def crc32(self) -> int:
        """The CRC-32 of what it has."""
        crc = position = 0
        while chunk := os.pread(self.fd, CHUNK_SIZE, position):
            crc = isal_zlib.crc32(chunk, crc)
            position += len(chunk)
        return crc

    def commit(self) -> None:
        """Put it in its place."""
        try:
            os.rename(self._temporary, self._target)
        finally:
            os.close(self.fd)

    def discard(self, *, keep: bool = True) -> None:
        """Remove it, unless it is *keep* and can be resumed."""
        try:
            if not (keep and self._keep and self.size):
                os.unlink(self._temporary)
        finally:
            os.close(self.fd)


def write_all(target: IO[bytes]) -> Callable[[bytes], None]:
    """``target.write`` that goes on when only a part was written, as a raw file may do."""

    def write(data: bytes) -> None:
        done = target.write(data)
        while isinstance(done, int) and done < len(data):
            data = data[done:]
            done = target.write(data)

    return write


def part_key(file_id: str, offset: int, count: int | None) -> str | None:
    """The key of a part of a file; None when its content may change between two downloads."""
    return f"{file_id} {offset} {count}" if is_immutable(file_id) else None


def _mode_of(path: str) -> int:
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask
    if not stat.S_ISREG(mode):
        raise UsageError(f"{path} exists and is not a regular file")
    return mode


def _open_part(path: str) -> int:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise UsageError(f"somebody else is downloading to {path}") from None
    return fd

"""Small file operations that several modules of the storage share."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

logger = logging.getLogger(__name__)

# Not in the C library of every Linux.
_libc = ctypes.CDLL(None, use_errno=True)
_renameat2 = getattr(_libc, "renameat2", None)
_fallocate = getattr(_libc, "fallocate", None)
if _fallocate is not None:
    _fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
_KEEP_SIZE: Final = 1
_AT_FDCWD: Final = -100
_EXTENTS_MAX: Final = 10_000
_RENAME_EXCHANGE: Final = 2


def write_all(fd: int, data: bytes | bytearray | memoryview) -> None:
    """Write all of *data* at the file's position."""
    written = os.write(fd, data)
    if written != len(data):
        rest = memoryview(data)[written:]
        while rest:
            rest = rest[os.write(fd, rest) :]


def pwrite_all(fd: int, data: bytes | bytearray | memoryview, offset: int) -> None:
    """Write all of *data* at *offset*."""
    written = os.pwrite(fd, data, offset)
    if written != len(data):
        rest = memoryview(data)[written:]
        while rest:
            offset += written
            written = os.pwrite(fd, rest, offset)
            rest = rest[written:]


def extents(fd: int, start: int, end: int) -> list[tuple[int, int]]:
    """(offset, length) of what is not a hole between two offsets of a file; the position changes.

    Where there are very many, all that follows is taken for one.
    """
    found: list[tuple[int, int]] = []
    while start < end:
        try:
            start = os.lseek(fd, start, os.SEEK_DATA)
            behind = os.lseek(fd, start, os.SEEK_HOLE) if len(found) < _EXTENTS_MAX else end
        except OSError as exc:
            if exc.errno != errno.ENXIO:  # nothing but a hole
                raise
            break
        if start < min(behind, end):
            found.append((start, min(behind, end) - start))
        start = behind
    return found


def reserve(fd: int, offset: int, length: int) -> None:
    """Have room on the disk for *length* bytes at *offset*; the file's size stays as it is.

    Not every file system can; those that cannot promise nothing.

    Raises:
        OSError: 28, there is no room.
    """
    if _fallocate is not None and _fallocate(fd, _KEEP_SIZE, offset, length):
        code = ctypes.get_errno()
        if code not in (errno.EOPNOTSUPP, errno.ENOSYS):
            raise OSError(code, os.strerror(code))


def pwrite_pieces(
    fd: int, pieces: Sequence[tuple[int, int]], data: bytes | bytearray | memoryview
) -> None:
    """Write what *data* has of *pieces*, (offset, length), one behind the other."""
    view = memoryview(data)
    for offset, length in pieces:
        pwrite_all(fd, view[:length], offset)
        view = view[length:]


def replace_file(path: Path, content: bytes, *, sync: bool = False) -> None:
    """Replace *path* as a whole: readers, and a crash, see the old content or the new.

    With *sync* the new content also survives the loss of power. Without it, after such a loss
    the file may be empty on file systems that do not order data before names.
    """
    temporary = path.with_name(f".{path.name}.new")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        write_all(fd, content)
        if sync:
            os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    if sync:
        sync_directory(path.parent)


def exchange(path: str, other: str) -> bool:
    """Let two names of a file system swap their files, at once; False where that is not possible.

    ext4 writes out at once what a rename puts in the place of a file: the caller waits for a disk.
    An exchange it just does.

    Raises:
        OSError: another reason; nothing has changed.
    """
    if _renameat2 is None:
        return False
    at, names = _AT_FDCWD, (os.fsencode(path), os.fsencode(other))
    if _renameat2(at, names[0], at, names[1], _RENAME_EXCHANGE) == 0:
        return True
    code = ctypes.get_errno()
    if code in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
        return False
    raise OSError(code, os.strerror(code), path, None, other)


def sync_directory(path: Path | str) -> None:
    """Make the names in a directory survive the loss of power."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def locked_directory(path: Path) -> Iterator[None]:
    """Keep other processes that lock it out of a directory, which is made if it is missing.

    The directory itself is locked, so that nothing stays behind, whatever ends this process.

    Raises:
        BlockingIOError: another process has locked it.
        OSError: it cannot be made or opened.
    """
    path.mkdir(parents=True, exist_ok=True)
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(fd)


def status_of(exc: OSError) -> int:
    """The status that answers a failed file operation (protocol/wire.md section 1)."""
    if exc.errno in (errno.ENOENT, errno.ENOTDIR):
        return errno.ENOENT
    if exc.errno == errno.EEXIST:
        return errno.EEXIST
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return errno.ENOSPC
    if exc.errno == errno.EFBIG:
        return errno.EFBIG  # no status of the reference: its disk could not have it either
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return errno.EACCES
    return errno.EIO


def unlink_quietly(path: str) -> None:
    """Remove a file that may be gone already; if it cannot be removed, the log says so."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as exc:
        logger.warning("%s stays: %s", path, exc)

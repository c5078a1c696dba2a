"""Small file operations that several modules of the storage share."""

from __future__ import annotations

import os
from pathlib import Path


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


def sync_directory(path: Path | str) -> None:
    """Make the names in a directory survive the loss of power."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)

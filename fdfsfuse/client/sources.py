"""What an upload can be made from. Nothing here knows of trio: opening may block."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import AsyncIterable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, TypeAlias, cast

from fdfsfuse.errors import UsageError
from fdfsfuse.proto.fileid import EXTENSION

CHUNK_SIZE = 512 << 10
"""Bytes of a body that are in memory while it is streamed from or to a file."""

Content: TypeAlias = (
    "bytes | bytearray | memoryview | str | os.PathLike[str] | IO[bytes] | Iterable[bytes]"
)
"""Bytes, a path, a binary file object (read from its position on) or an iterable of bytes."""


@dataclass(frozen=True, slots=True)
class FileRange:
    """*length* bytes from *offset* of an open file descriptor, which stays the caller's."""

    fd: int
    offset: int
    length: int


@dataclass(frozen=True, slots=True)
class SeekableFile:
    """What follows *offset* of a file object that is no file of the system; iterated in chunks."""

    file: IO[bytes]
    offset: int

    def __iter__(self) -> Iterator[bytes]:
        self.file.seek(self.offset)
        while chunk := self.file.read(CHUNK_SIZE):
            yield chunk


Source: TypeAlias = (
    bytes
    | bytearray
    | memoryview
    | Sequence[bytes]
    | FileRange
    | Iterable[bytes]
    | AsyncIterable[bytes]
)
"""What a body can be sent from; of a sequence, all items one after the other.

Only the trio client takes asynchronous ones.
"""
Progress: TypeAlias = Callable[[int], object]
"""Called with the number of bytes transferred since the last call."""

_REPLAYABLE = (bytes, bytearray, memoryview, Sequence, FileRange, SeekableFile)


def is_replayable(source: Source) -> bool:
    """Whether *source* can be sent again from its start."""
    return isinstance(source, _REPLAYABLE)


class Opened:
    """A source with its size in bytes; `close` it after use."""

    __slots__ = ("_file", "size", "source")

    def __init__(self, source: Source, size: int, file: BinaryIO | None = None) -> None:
        self.source = source
        self.size = size
        self._file = file

    def close(self) -> None:
        """Close what was opened for it; never what the caller had opened."""
        if self._file is not None:
            self._file.close()


def extension_of(path: str | os.PathLike[str]) -> str:
    """The extension that storages accept for a file of this name, or ''."""
    extension = Path(path).suffix[1:]
    return extension if EXTENSION.match(extension) else ""


def content_extension(content: object) -> str | None:
    """The extension of a path; None when *content* is something else."""
    if isinstance(content, (bytes, bytearray, memoryview)):
        return None  # asked first: whether it is a PathLike takes longer
    return extension_of(content) if isinstance(content, (str, os.PathLike)) else None


def open_source(content: Content, size: int | None = None) -> Opened:
    """Make *content* sendable. What has no known *size* goes through an unnamed temporary file.

    Raises:
        UsageError: a directory, a file opened as text, or something else altogether.
        OSError: a file cannot be read.
    """
    if isinstance(content, (bytes, bytearray, memoryview)):
        return Opened(content, memoryview(content).nbytes)
    if isinstance(content, (str, os.PathLike)):
        return _whole(_open_path(content))
    if isinstance(content, io.TextIOBase):
        raise UsageError("the file is open as text: open it with 'rb'")
    if hasattr(content, "read"):
        return _open_file(cast("IO[bytes]", content))
    if isinstance(content, (list, tuple)):
        return Opened(content, sum(map(len, content)))
    if not isinstance(content, Iterable):
        raise UsageError(f"{type(content).__name__} objects cannot be uploaded")
    if size is not None:
        return Opened(content, size)
    return _whole(_spool(content))


def _whole(file: BinaryIO) -> Opened:
    size = os.fstat(file.fileno()).st_size
    return Opened(FileRange(file.fileno(), 0, size), size, file)


def _open_path(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file with the content of *path*, which may also be a pipe or a device."""
    mode = os.stat(path).st_mode
    if stat.S_ISDIR(mode):
        raise UsageError(f"{os.fspath(path)} is a directory")
    file = Path(path).open("rb")  # noqa: SIM115
    if stat.S_ISREG(mode):
        return file
    # Whoever abandons a thread that is in here must not close the file: that waits for its read.
    with file:
        return _spool(iter(lambda: file.read(CHUNK_SIZE), b""))


def _open_file(file: IO[bytes]) -> Opened:
    if isinstance(file, io.BytesIO):
        # Not a copy; but a view of the buffer itself would keep the caller from closing the file.
        rest = memoryview(file.getvalue())[file.tell() :]
        return Opened(rest, rest.nbytes)
    try:
        position = file.tell()
        fd = _descriptor(file)
        if fd is None:
            size = file.seek(0, os.SEEK_END) - position
            return Opened(SeekableFile(file, position), max(0, size))
    except (OSError, AttributeError):
        return _whole(_spool(iter(lambda: file.read(CHUNK_SIZE), b"")))
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        return _whole(_spool(iter(lambda: file.read(CHUNK_SIZE), b"")))
    file.flush()
    size = max(0, os.fstat(fd).st_size - position)
    return Opened(FileRange(fd, position, size), size)


def _descriptor(file: IO[bytes]) -> int | None:
    """The descriptor of a file of the system that is read as it is.

    Others have one as well, such as a GzipFile that of the compressed file.
    """
    if isinstance(file, tempfile._TemporaryFileWrapper):
        file = file.file
    raw = getattr(file, "raw", file)
    return raw.fileno() if type(raw) is io.FileIO else None


def _spool(chunks: Iterable[bytes]) -> BinaryIO:
    """A temporary file with *chunks*, whose making may block; written through."""
    spooled = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    try:
        for chunk in chunks:
            view = memoryview(chunk)
            while view:
                view = view[spooled.write(view) :]
    except BaseException:
        spooled.close()
        raise
    return spooled

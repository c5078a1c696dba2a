"""What an upload can be made from, and where a download can go."""

from __future__ import annotations

import io
import os
import stat
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple, TypeAlias, TypeVar

import trio

from fdfsfuse.client.bodies import CHUNK_SIZE, FileRange, Source
from fdfsfuse.errors import UsageError
from fdfsfuse.proto.fileid import EXTENSION

Content: TypeAlias = (
    "bytes | bytearray | memoryview | str | os.PathLike[str] | BinaryIO | AsyncIterable[bytes]"
)
"""Bytes, a path, a binary file object (read from its position on) or an async iterable."""


_A = TypeVar("_A")


class Opened(NamedTuple):
    """A source with its size in bytes."""

    source: Source
    size: int


def extension_of(path: str | os.PathLike[str]) -> str:
    """The extension that storages accept for a file of this name, or ''."""
    extension = Path(path).suffix[1:]
    return extension if EXTENSION.match(extension) else ""


@asynccontextmanager
async def open_content(content: Content, size: int | None = None) -> AsyncIterator[Opened]:
    """Make *content* sendable. What has no known *size* goes through an unnamed temporary file.

    Raises:
        UsageError: a path that is a directory.
        OSError: a file cannot be read.
    """
    if isinstance(content, (bytes, bytearray, memoryview)):
        yield Opened(content, memoryview(content).nbytes)
        return
    if isinstance(content, AsyncIterable) and size is not None:
        yield Opened(content, size)
        return
    async with AsyncExitStack() as stack:
        file: BinaryIO
        if isinstance(content, (str, os.PathLike)):
            file = stack.enter_context(await _open_path(content))
        elif isinstance(content, AsyncIterable):
            file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
            async for chunk in content:
                await trio.to_thread.run_sync(file.write, chunk)
            await trio.to_thread.run_sync(file.seek, 0)
        elif (regular := _regular_range(content)) is not None:
            yield Opened(regular, regular.length)
            return
        else:
            file = stack.enter_context(await _run_abandonable(_spool, content))
        whole = FileRange(file.fileno(), 0, os.fstat(file.fileno()).st_size)
        yield Opened(whole, whole.length)


async def _open_path(path: str | os.PathLike[str]) -> BinaryIO:
    """A regular file with the content of *path*, which may also be a pipe or a device."""
    mode = (await trio.to_thread.run_sync(os.stat, path)).st_mode
    if stat.S_ISREG(mode):
        return await trio.to_thread.run_sync(_open, path)
    if stat.S_ISDIR(mode):
        raise UsageError(f"{os.fspath(path)} is a directory")
    return await _run_abandonable(_spool_path, path)


def _open(path: str | os.PathLike[str]) -> BinaryIO:
    return Path(path).open("rb")


def _spool_path(path: str | os.PathLike[str]) -> BinaryIO:
    # Whoever abandons this thread must not close the file: that would wait for the read in it.
    with _open(path) as file:
        return _spool(file)


async def _run_abandonable(function: Callable[[_A], BinaryIO], argument: _A) -> BinaryIO:
    """Run in a thread what may wait for ever (a pipe without a writer); Ctrl-C leaves it there."""
    return await trio.to_thread.run_sync(function, argument, abandon_on_cancel=True)


def _regular_range(file: BinaryIO) -> FileRange | None:
    """The rest of an open regular file; None when it is something else (a pipe, a BytesIO)."""
    try:
        fd, position = file.fileno(), file.tell()
    except (OSError, io.UnsupportedOperation):
        return None
    info = os.fstat(fd)
    if not stat.S_ISREG(info.st_mode):
        return None
    return FileRange(fd, position, max(0, info.st_size - position))


def _spool(file: BinaryIO) -> BinaryIO:
    """A temporary file with the rest of *file*, which may block; written through."""
    spooled = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115
    try:
        while chunk := file.read(CHUNK_SIZE):
            view = memoryview(chunk)
            while view:
                view = view[spooled.write(view) :]
    except BaseException:
        spooled.close()
        raise
    return spooled


@asynccontextmanager
async def replacing(path: str | os.PathLike[str]) -> AsyncIterator[int]:
    """A descriptor of a new file that takes the place of *path* when the block succeeds.

    The content is complete under the name or not there at all: it is written to a temporary file
    beside it, which is renamed at the end. An existing file keeps its permissions.

    Raises:
        UsageError: *path* exists and is no regular file.
    """
    fd, temporary, target = await trio.to_thread.run_sync(_make_beside, path)
    try:
        yield fd
        await trio.to_thread.run_sync(os.rename, temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)  # noqa: ASYNC240
        raise
    finally:
        os.close(fd)


def _make_beside(path: str | os.PathLike[str]) -> tuple[int, str, str]:
    """A temporary file's descriptor and path, and the path that it will replace."""
    target = os.path.realpath(path)
    try:
        mode = os.stat(target).st_mode
        if not stat.S_ISREG(mode):
            raise UsageError(f"{target} exists and is not a regular file")
    except FileNotFoundError:
        umask = os.umask(0)
        os.umask(umask)
        mode = 0o666 & ~umask
    directory, base = os.path.split(target)
    fd, temporary = tempfile.mkstemp(prefix=f".{base[:60]}.", suffix=".part", dir=directory)
    os.fchmod(fd, stat.S_IMODE(mode))
    return fd, temporary, target

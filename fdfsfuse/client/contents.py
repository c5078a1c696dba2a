"""Opening what is uploaded, and where a download goes, in threads: files may block."""

from __future__ import annotations

import os
import tempfile
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeAlias

import trio

from fdfsfuse.client.sources import Content, FileRange, Opened, open_source
from fdfsfuse.client.targets import NewFile
from fdfsfuse.errors import IntegrityError

AnyContent: TypeAlias = "Content | AsyncIterable[bytes]"
"""Bytes, a path, a binary file object (read from its position on), an iterable of bytes, which may
be asynchronous."""


async def open_content(content: AnyContent, size: int | None = None) -> Opened:
    """Make *content* sendable; close it after use.

    Raises:
        UsageError: see `open_source`.
        OSError: a file cannot be read.
    """
    if isinstance(content, (bytes, bytearray, memoryview)):
        return open_source(content)
    if not isinstance(content, AsyncIterable):
        # A pipe without a writer may make it wait for ever; Ctrl-C leaves the thread there.
        return await trio.to_thread.run_sync(open_source, content, size, abandon_on_cancel=True)
    if size is not None:
        return Opened(content, size)
    file = tempfile.TemporaryFile()  # noqa: SIM115
    try:
        async for chunk in content:
            await trio.to_thread.run_sync(file.write, chunk)
        await trio.to_thread.run_sync(file.flush)
    except BaseException:
        file.close()
        raise
    size = os.fstat(file.fileno()).st_size
    return Opened(FileRange(file.fileno(), 0, size), size, file)


@asynccontextmanager
async def new_file(path: str | os.PathLike[str], key: str | None) -> AsyncIterator[NewFile]:
    """A `NewFile` that takes its place when the block succeeds."""
    file = await trio.to_thread.run_sync(NewFile, path, key)
    try:
        yield file
    except BaseException as exc:
        file.discard(keep=not isinstance(exc, IntegrityError))
        raise
    await trio.to_thread.run_sync(file.commit)


def in_thread(write: Callable[[bytes], object]) -> Callable[[bytes], Awaitable[object]]:
    """*write* in a thread."""

    async def deliver(data: bytes) -> None:
        await trio.to_thread.run_sync(write, data)

    return deliver

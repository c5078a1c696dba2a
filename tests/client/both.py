"""Both clients behind one interface, so that they pass the same tests."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

import trio

import fdfsfuse
from fdfsfuse import blocking
from fdfsfuse.client.address import Address

AnyClient: TypeAlias = Any
"""A trio client, or a blocking one whose methods run in threads."""
MakeClient: TypeAlias = Callable[..., AnyClient]


class InThreads:
    """A `blocking.Client` as the trio client looks."""

    def __init__(self, trackers: str | Address | Sequence[str | Address], **options: Any) -> None:
        self.client = blocking.Client(trackers, **options)

    async def __aenter__(self) -> InThreads:
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.client.close()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self.client, name)

        async def call(*args: Any, **options: Any) -> Any:
            args = tuple([await _plain(arg) for arg in args])
            return await trio.to_thread.run_sync(
                lambda: method(*args, **options), abandon_on_cancel=True
            )

        return call

    @asynccontextmanager
    async def open(self, *args: Any, **options: Any) -> AsyncIterator[_Stream]:
        stream = await trio.to_thread.run_sync(lambda: self.client.open(*args, **options))
        with stream:
            yield _Stream(stream)


class _Stream:
    def __init__(self, stream: blocking.DownloadStream) -> None:
        self.chunks = iter(stream)

    async def receive_some(self) -> bytes:
        return await trio.to_thread.run_sync(next, self.chunks, b"")

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while chunk := await self.receive_some():
            yield chunk


async def _plain(argument: Any) -> Any:
    """An asynchronous iterable as a plain one: the blocking client has no other."""
    if isinstance(argument, AsyncIterable):
        return iter([chunk async for chunk in argument])
    return argument


CLIENTS: dict[str, MakeClient] = {"trio": fdfsfuse.Client, "blocking": InThreads}

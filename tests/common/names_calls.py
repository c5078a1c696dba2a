"""Requests that tests make of a storage with a tree, in few words."""

from __future__ import annotations

import stat
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import pytest
import trio

from fdfsfuse.client.names import NamesSession
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import names
from fdfsfuse.proto.header import HEADER_SIZE, pack_header
from tests.common.names_server import HOST, NamesServer
from tests.common.streams import receive

NOW = 1_700_000_000_123_456_789
FILE = stat.S_IFREG | 0o640
DIRECTORY = stat.S_IFDIR | 0o755
ROOT = names.ROOT_INO
BIG = names.SMALL_CONTENT_MAX + 5


async def make(session: NamesSession, name: bytes, mode: int = FILE, parent: int = ROOT) -> int:
    attr: names.Attr = await session.call(names.Create(parent, name, mode, 1, 2, NOW))
    return attr.ino


async def store(session: NamesSession, ino: int, data: bytes) -> names.Attr:
    attr: names.Attr = await session.call(names.StoreContent(ino, data, NOW))
    return attr


async def status_of(call: Awaitable[Any]) -> int:
    with pytest.raises(StatusError) as caught:
        await call
    assert caught.value.errno is not None
    return caught.value.errno


def content(server: NamesServer, attr: names.Attr) -> bytes:
    return Path(server.tree.objects.path(attr.file_id)).read_bytes()


def all_objects(server: NamesServer) -> set[str]:
    """Every object file of the store."""
    data = Path(server.store.data_directory(0))
    return {f"M00/{path.relative_to(data)}" for path in data.glob("??/??/*")}


async def exchange(server: NamesServer, command: int, body: bytes) -> int:
    """One plain exchange; returns the status."""
    stream = await trio.open_tcp_stream(HOST, server.port)
    async with stream:
        await stream.send_all(pack_header(len(body), command) + body)
        answer = await receive(stream, HEADER_SIZE)
        assert len(answer) == HEADER_SIZE, "the connection was closed"
        return answer[9]


async def write_object(
    server: NamesServer, file_id: str, offset: int, data: bytes, *, view: int = 1
) -> int:
    head = names.encode(names.WriteObject(file_id, view, offset, len(data)))
    body = len(head).to_bytes(4, "big") + head + data
    return await exchange(server, names.WRITE_OBJECT, body)


async def truncate_object(server: NamesServer, file_id: str, size: int) -> int:
    head = names.encode(names.TruncateObject(file_id, 1, size))
    return await exchange(server, names.TRUNCATE_OBJECT, head)


async def make_big(server: NamesServer, session: NamesSession, name: bytes) -> names.Attr:
    """A file of BIG bytes as a mount writes it."""
    ino = await make(session, name)
    made = await session.call(names.NewObject(ino))
    assert await write_object(server, made.file_id, 0, b"b" * BIG) == 0
    attr: names.Attr = await session.call(names.NameObject(ino, made.file_id, BIG, NOW))
    return attr


async def plain_upload(server: NamesServer, data: bytes) -> str:
    """An object as a plain client would upload it."""
    location = server.store.creations.make_name(len(data), 0, 1_700_000_000, "txt")
    server.store.creations.write_at(location, data)
    await trio.lowlevel.checkpoint()
    return location.name

"""Command 26: the list that a member with a lost disk asks for (protocol/cluster.md section 7)."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
import trio

from fdfsfuse.proto.binlog import decode_line
from fdfsfuse.proto.header import pack_header
from fdfsfuse.proto.recovery import FETCH_PATH_BINLOG, STREAM_LENGTH, PathBinlogRequest
from tests.daemons.storage_server import GROUP, StorageServer, make_config, run_storage


async def fetch_list(server: StorageServer, path_index: int) -> list[str]:
    """``op name`` of each line; checks the frame around them."""
    async with server.connect() as client:
        body = PathBinlogRequest(GROUP, path_index).encode()
        await client.send(pack_header(len(body), FETCH_PATH_BINLOG) + body)
        answer = b""
        while data := await client.stream.receive_some(1000):
            answer += bytes(data)
    assert answer[:10] == pack_header(STREAM_LENGTH, 100)
    answer = answer[10:]
    text, count = answer[:-8], struct.unpack(">q", answer[-8:])[0]
    assert count == len(text)
    records = [decode_line(line) for line in text.splitlines(keepends=True)]
    assert all(record.timestamp > 0 for record in records)
    return [f"{record.op} {record.name}" for record in records]


async def test_lists_what_is_there_now(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
            kept = await client.upload(b"kept")
            await client.set_metadata(kept, b"a\x021")
            gone = await client.upload(b"gone")
            await client.delete(gone)
            other_path = await client.upload(b"other", path=1)
            appender = await client.upload(b"appender", appender=True)
            await client.append(appender, b"more")
            lost = await client.upload(b"lost")
            Path(server.store.path(server.store.locate(lost))).unlink()
            assert await fetch_list(server, 0) == [f"C {kept}", f"C {kept}-m", f"C {appender}"]
            assert await fetch_list(server, 1) == [f"C {other_path}"]


async def test_many_lines_come_in_pieces(tmp_path: Path) -> None:
    with trio.fail_after(60):
        async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
            names = [await client.upload(b"x") for _ in range(2000)]
            assert await fetch_list(server, 0) == [f"C {name}" for name in names]


@pytest.mark.parametrize(
    "body",
    [
        PathBinlogRequest("group2", 0).encode(),
        PathBinlogRequest(GROUP, 2).encode(),
        PathBinlogRequest(GROUP, 255).encode(),
        PathBinlogRequest(GROUP, 0).encode() + b"x",
        b"",
    ],
)
async def test_bad_requests_are_refused(tmp_path: Path, body: bytes) -> None:
    with trio.fail_after(60):
        async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
            assert await client.call(FETCH_PATH_BINLOG, body) == (22, b"")
            assert await client.closed()

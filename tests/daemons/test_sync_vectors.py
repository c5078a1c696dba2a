"""Replays what C storages sent each other to a storage of ours, and compares the answers."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from fdfs_storage.binlog import BinlogPosition
from fdfsfuse.core.conf_file import ReservedSpace
from fdfsfuse.proto.cluster import Brief
from fdfsfuse.proto.header import HEADER_SIZE
from fdfsfuse.proto.sync import FileHead
from fdfsfuse.proto.tracker import ServerStatus
from tests.common.vectors import CLUSTER, named
from tests.daemons.storage_server import GROUP, Client, StorageServer, make_config, run_storage
from tests.daemons.sync_pair import run_node
from tests.daemons.trunk_file import trunk_name

HELLO = "M00/00/00/fwAAFWsC6S-AbOvlAAAADcRYHyQ154.txt"
LOG = "M00/00/00/fwAAFWsC6X2EaZluAAAAANiug8g022.log"
RENAMED = "M00/00/00/fwAAFWsC6Y-ACkOjAAAACtSE22k022.log"


class Peer:
    """Sends vectors to a storage whose files the test prepares."""

    def __init__(self, server: StorageServer, client: Client) -> None:
        self.server = server
        self.client = client

    def path(self, name: str) -> Path:
        return Path(self.server.store.path(self.server.store.locate(name)))

    def lines(self) -> list[str]:
        """The binlog without timestamps."""
        read = self.server.store.binlog.read(BinlogPosition(0, 0))
        return [record.encode().decode().partition(" ")[2].strip() for record, _ in read]

    async def create(self, name: str, content: bytes) -> int:
        """16; returns the status."""
        head = FileHead(name, len(content), 1_700_000_000, GROUP).encode()
        status, body = await self.client.call(16, head + content)
        assert body == b""
        return status

    async def send(self, name: str, *, status: int | None = None) -> bytes:
        """Send a request; its answer must be the reference's (or have *status*)."""
        vector = named(name, CLUSTER)
        await self.client.send(vector.request)
        got, body = await self.client.receive()
        assert got == (vector.status if status is None else status), name
        return body


@asynccontextmanager
async def peer(tmp_path: Path) -> AsyncIterator[Peer]:
    with trio.fail_after(60):
        async with (
            run_storage(make_config(tmp_path, paths=1)) as server,
            server.connect() as client,
        ):
            yield Peer(server, client)


async def test_files(tmp_path: Path) -> None:
    async with peer(tmp_path) as c:
        await c.send("report_server_id")
        await c.send("active_test")
        await c.send("sync_create")
        created = "M00/00/00/fwAAFWsC6S-AGBPPAAAAFLuzHAg180.bin"
        assert c.path(created).read_bytes() == b"second file contents"
        assert int(c.path(created).stat().st_mtime) == 0x6B02E92F
        assert c.server.receiver.timestamps == {"127.0.0.22": 0x6B02E92F}
        await c.send("sync_create_metadata")
        await c.send("sync_create_storage_id")
        await c.send("sync_create_trunk_file")
        await c.send("sync_create_skip")
        c.path(HELLO).write_bytes(b"hello fastdfs")
        await c.send("sync_create_exists")
        c.path(HELLO).write_bytes(b"hello fastdfX")  # damaged: not worth keeping
        await c.send("sync_create_exists", status=0)
        assert c.path(HELLO).read_bytes() == b"hello fastdfs"
        assert c.lines().count(f"c {HELLO}") == 2
        vector = named("query_file_info_by_source", CLUSTER)
        asked = vector.request_body[16:].decode()
        c.path(asked).write_bytes(bytes(20))
        body = await c.send("query_file_info_by_source")
        assert body[:8] == vector.response_body[:8]


async def test_content_that_does_not_fit_its_name(tmp_path: Path) -> None:
    """A C storage sends what it has, and retries what is refused for ever, before all else."""
    large = random.Random(1).randbytes(300_000)
    in_slot = trunk_name(b"in a slot")
    async with peer(tmp_path) as c:
        for name, content in (
            (HELLO, b"hello"),
            (HELLO, b"hello fastdfX"),
            (HELLO, large),
            (in_slot, b"in a slut"),
        ):
            assert await c.create(name, content) == 0
            assert await c.client.download(name) == content
        other_slot = trunk_name(b"other slot", offset=256)
        assert await c.create(other_slot, b"cut") == errno.EEXIST  # nowhere to put it
        assert await c.create(HELLO, b"hello fastdfs") == 0
        assert await c.create(HELLO, b"hello") == errno.EEXIST  # the better one stays
        assert c.lines().count(f"c {HELLO}") == 5


async def test_a_trunk_file_has_its_full_size(tmp_path: Path) -> None:
    """Sparse, as a C server makes it that may take over the store path."""
    async with peer(tmp_path) as c:
        c.server.store.configure("127.0.0.11", ReservedSpace(1), trunk_file_size=4 << 20)
        await c.send("sync_create_trunk_file")
        info = c.path("M00/00/00/000001").stat()
        assert info.st_size == 4 << 20
        assert info.st_blocks * 512 < 64 << 10


async def test_who_sends_is_told_by_its_address(tmp_path: Path) -> None:
    """C storages send on several connections, and say who they are (9) on the first one only."""
    async with run_node(tmp_path, "1") as node, node.connect() as client:
        head = FileHead(HELLO, 13, 1_700_000_000, GROUP).encode()
        node.members.set(Brief(ServerStatus.ACTIVE, 23000, "1", "127.0.0.9"))
        node.members.set(Brief(ServerStatus.ACTIVE, 23000, "2", "127.0.0.1"))
        assert await client.call(16, head + b"hello fastdfs") == (0, b"")
        assert node.replication.receiver.timestamps == {"2": 1_700_000_000}
    async with run_node(tmp_path, "1") as node, node.connect() as client:
        # Two on one machine cannot be told apart.
        node.members.set(Brief(ServerStatus.ACTIVE, 23001, "2", "127.0.0.1"))
        assert await client.call(16, head + b"hello fastdfs") == (errno.EEXIST, b"")
        assert node.replication.receiver.timestamps == {}


async def test_metadata_and_deletions(tmp_path: Path) -> None:
    async with peer(tmp_path) as c:
        await c.send("sync_update_metadata")
        assert (
            c.path(LOG + "-m").read_bytes()
            == named("sync_update_metadata", CLUSTER).request.partition(b"log-m")[2]
        )
        await c.send("sync_delete")
        assert not c.path(LOG + "-m").exists()
        await c.send("sync_delete_missing")
        assert c.lines() == [f"u {LOG}-m", f"d {LOG}-m"]


async def test_changes_of_appenders(tmp_path: Path) -> None:
    async with peer(tmp_path) as c:
        c.path(LOG).write_bytes(b"first part| ")
        await c.send("sync_append")
        await c.send("sync_modify")
        assert c.path(LOG).read_bytes() == b"APPENDERrt| second part|"
        await c.send("sync_truncate")
        assert c.path(LOG).read_bytes() == b"APPENDERrt"
        await c.send("sync_append", status=2)
        assert c.lines() == [f"a {LOG} 12 12", f"m {LOG} 0 8", f"t {LOG} 24 10"]
        other = named("sync_modify_gap", CLUSTER).request_body[44:88].decode()
        c.path(other).write_bytes(bytes(21))
        await c.send("sync_append_done_already")
        await c.send("sync_append_gap")
        await c.send("sync_modify_gap")
        await c.send("sync_truncate_other_size")
        assert len(c.lines()) == 3


async def test_links_and_renames(tmp_path: Path) -> None:
    async with peer(tmp_path) as c:
        body = named("sync_link", CLUSTER).request_body
        link, target = body[36:82].decode(), body[82:].decode()
        await c.send("sync_link")
        assert not c.path(link).exists()  # but when its target arrives, from another member
        c.path(target).write_bytes(b"picture")
        assert c.path(link).read_bytes() == b"picture"
        await c.send("sync_link")
        assert c.path(link).resolve() == c.path(target).resolve()
        c.path(LOG).write_bytes(b"0123456789")  # not what the new name promises: it is sent whole
        await c.send("sync_rename", status=2)
        assert not c.path(LOG).exists()
        c.path(LOG).write_bytes(b"APPENDER v")
        assert await c.send("sync_rename") == b""  # the reference echoes the request
        assert c.path(RENAMED).read_bytes() == b"APPENDER v"
        assert not c.path(LOG).exists()
        await c.send("sync_rename_dest_exists")
        c.path(RENAMED).unlink()
        await c.send("sync_rename_source_missing")
        assert c.lines() == [
            *[f"l {link} {target}"] * 2,
            f"d {LOG}",
            f"r {RENAMED} {LOG}",
            f"c {RENAMED}",
        ]


async def test_bad_requests_are_refused(tmp_path: Path) -> None:
    names = {v.name for v in CLUSTER if v.name.startswith("sync_")}
    async with run_storage(make_config(tmp_path, paths=1)) as server:
        for name in names:
            request = named(name, CLUSTER).request.replace(b"group1", b"group2")
            async with server.connect() as client:
                await client.send(request)
                assert (await client.receive())[0] == 22, name
                assert await client.closed()
        for command in (9, 16, 17, 18, 19, 25, 35, 37, 40, 150):
            for body in (b"", bytes(20), b"\xff" * 60):
                async with server.connect() as client:
                    await client.send(len(body).to_bytes(8, "big") + bytes((command, 0)) + body)
                    assert (await client.receive())[0] == 22
        assert HEADER_SIZE == 10
        assert server.files() == []

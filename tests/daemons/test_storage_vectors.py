"""Replays what was captured from the reference storage, and compares all bytes that may not vary.

What varies by nature: the base name of a new file (its parts are compared decoded), the mtime in
answers to 22, and sub directories in hash mode. Later requests are sent with our names.
"""

from __future__ import annotations

from pathlib import Path

import trio

from fdfsfuse.proto.fileid import NameInfo, decode_name
from fdfsfuse.proto.storage import StoredFile
from tests.common.vectors import Vector, load_client_vectors
from tests.daemons.storage_server import Client, StorageServer, make_config, run_storage

UPLOADS = (11, 23)
FILE_INFO = 22

ID_MODE = {"upload with storage id in name", "query_file_info IPv6-size"}
"""Captured from a storage with ids and 46-byte addresses."""

NOT_SERVED = {20: "create link", 38: "regenerate appender name"}
AFTER_NOT_SERVED = {
    "download old appender name": "works on the result of 38",
    "download new name": "works on the result of 38",
    "delete": "works on the result of 38",
    "delete again": "works on the result of 38",
    "upload into trunk file": "no trunk files here",
    "download trunk file part": "no trunk files here",
    "query_file_info negative crc": "of a trunk file",
    "upload slave of trunk master": "no trunk files here",
}
DIFFERENT_BODY = {
    # wire.md trap 5: the reference echoes the request, which its own client rejects.
    "append zero bytes": b"",
    "modify zero bytes": b"",
    "truncate same size": b"",
    # wire.md trap 8: the reference leaves a NUL behind text that became shorter.
    "get_metadata stale tail": b"a\x021\x01b\x022",
}
OUT_OF_STEP = {"upload no space"}
"""The body has not been sent as a whole, so the next request cannot be understood."""


class Replay:
    """Sends vectors to a storage, with the names that it gave."""

    def __init__(self, server: StorageServer) -> None:
        self.server = server
        self._names: list[tuple[bytes, bytes]] = []

    def ours(self, data: bytes) -> bytes:
        """*data* with the reference's names replaced by ours of the same length."""
        for theirs, our in self._names:
            data = data.replace(theirs, our)
        return data

    def learn(self, theirs: str, ours: str) -> None:
        """A new file. Slaves share the first 30 characters of their master's base name."""
        old, new = theirs[10:].encode(), ours[10:].encode()
        with_directories = theirs[4:].encode(), ours[4:].encode()
        self._names += [with_directories, (old, new), (old[:30], new[:30])]

    async def run(self, vector: Vector) -> None:
        async with self.server.connect() as client:
            await client.send(self.ours(vector.request))
            if "half-closes" in vector.name:
                await client.stream.send_eof()
            if vector.response:
                await self._compare(vector, *await client.receive())
            await _check_end(vector, client)

    async def _compare(self, vector: Vector, status: int, body: bytes) -> None:
        assert status == vector.status
        theirs = vector.response[10:]
        if vector.command in UPLOADS and not status:
            self._compare_names(StoredFile.decode(theirs), StoredFile.decode(body))
        elif vector.command == FILE_INFO and not status:
            assert body[:8] + body[16:] == theirs[:8] + theirs[16:]
        else:
            assert body == DIFFERENT_BODY.get(vector.name, self.ours(theirs))

    def _compare_names(self, theirs: StoredFile, ours: StoredFile) -> None:
        assert ours.group == theirs.group
        assert len(ours.name) == len(theirs.name)
        assert ours.name[:4] == theirs.name[:4]
        assert ours.name[37:].partition(".")[2] == theirs.name[37:].partition(".")[2]
        assert _fixed(decode_name(ours.name)) == _fixed(decode_name(theirs.name))
        self.learn(theirs.name, ours.name)


def _fixed(info: NameInfo) -> tuple[object, ...]:
    return info.source, info.source_is_id, info.size, info.crc32, info.kind, info.in_trunk


async def _check_end(vector: Vector, client: Client) -> None:
    if vector.closed:
        assert await client.closed()
    elif vector.name in OUT_OF_STEP:
        with trio.move_on_after(0.1) as waited:
            await client.closed()
        assert waited.cancelled_caught
    else:
        assert await client.is_open()


async def test_vectors_of_the_storage(tmp_path: Path) -> None:
    count = 0
    with trio.fail_after(60):
        async with (
            run_storage(make_config(tmp_path / "ip")) as by_ip,
            run_storage(
                make_config(tmp_path / "id", paths=1, subdirs=8, by_hash=True),
                source="100001",
                ip_size=46,
                source_ip=lambda source: "127.0.0.31" if source == "100001" else "",
            ) as by_id,
        ):
            ip_mode, id_mode = Replay(by_ip), Replay(by_id)
            for vector in load_client_vectors("storage"):
                if vector.command in NOT_SERVED or vector.name in AFTER_NOT_SERVED:
                    continue
                replay = id_mode if vector.name in ID_MODE else ip_mode
                try:
                    await replay.run(vector)
                except Exception as exc:
                    raise AssertionError(f"vector {vector.name!r}: {exc!r}") from exc
                count += 1
    assert count >= 90


def test_the_lists_of_exceptions_name_existing_vectors() -> None:
    vectors = load_client_vectors("storage")
    names = {vector.name for vector in vectors}
    assert set(AFTER_NOT_SERVED) | set(DIFFERENT_BODY) | ID_MODE | OUT_OF_STEP <= names
    assert set(NOT_SERVED) <= {vector.command for vector in vectors}

"""Replays what was captured from the reference storage, and compares all bytes that may not vary.

What varies by nature: the base name of a new file (its parts are compared decoded), the mtime in
answers to 22, and sub directories in hash mode. Later requests are sent with our names.
"""

from __future__ import annotations

from pathlib import Path

import trio

from fdfsfuse.proto.fileid import decode_name
from fdfsfuse.proto.storage import StoredFile
from tests.common.vectors import Vector, load_client_vectors
from tests.daemons.storage_server import Client, StorageServer, make_config, run_storage
from tests.daemons.trunk_file import write_slot

NEW_NAMES = (11, 20, 23, 38)
FILE_INFO = 22
CREATE_LINK = 20
REGENERATE = 38
SLAVE_LINK = "create_link as slave"
"""Its name follows from its master's, so nothing of it varies."""

ID_MODE = {"upload with storage id in name", "query_file_info IPv6-size"}
"""Captured from a storage with ids and 46-byte addresses."""

NOT_SENT = {"upload into trunk file": "trunk files are read, never made"}
"""What is knowingly different and not replayed; the file it makes is written by hand."""
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
        if vector.command in NEW_NAMES and not status and vector.name != SLAVE_LINK:
            self._compare_names(vector, StoredFile.decode(theirs), StoredFile.decode(body))
        elif vector.command == FILE_INFO and not status:
            assert body[:8] + body[16:] == theirs[:8] + theirs[16:]
        else:
            assert body == DIFFERENT_BODY.get(vector.name, self.ours(theirs))

    def _compare_names(self, vector: Vector, theirs: StoredFile, ours: StoredFile) -> None:
        assert ours.group == theirs.group
        assert len(ours.name) == len(theirs.name)
        assert ours.name[:4] == theirs.name[:4]
        assert ours.name[37:].partition(".")[2] == theirs.name[37:].partition(".")[2]
        their_info, our_info = decode_name(theirs.name), decode_name(ours.name)
        if vector.command == CREATE_LINK:
            # Random in a link of the reference, that of the content in ours.
            their_info = their_info._replace(crc32=our_info.crc32)
        assert our_info._replace(timestamp=their_info.timestamp) == their_info
        if vector.command == REGENERATE:
            old = self.ours(vector.request_body).decode()
            assert (ours.name[:10], ours.name[-7:]) == (old[:10], old[-7:])
        self.learn(theirs.name, ours.name)


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
                if vector.name in NOT_SENT:
                    name = StoredFile.decode(vector.response_body).name
                    write_slot(tmp_path / "ip" / "path0", name, vector.request_body[15:])
                    continue
                replay = id_mode if vector.name in ID_MODE else ip_mode
                try:
                    await replay.run(vector)
                except Exception as exc:
                    raise AssertionError(f"vector {vector.name!r}: {exc!r}") from exc
                count += 1
    assert count == len(load_client_vectors("storage")) - len(NOT_SENT)


def test_the_lists_of_exceptions_name_existing_vectors() -> None:
    names = {vector.name for vector in load_client_vectors("storage")}
    assert NOT_SENT.keys() | DIFFERENT_BODY.keys() | ID_MODE | OUT_OF_STEP | {SLAVE_LINK} <= names

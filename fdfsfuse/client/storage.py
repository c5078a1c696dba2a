"""Reading from one given storage, for servers that know which one they want."""

from __future__ import annotations

import os
from collections.abc import Callable

import trio

from fdfsfuse.client.address import Address
from fdfsfuse.client.plans.reading import info_at
from fdfsfuse.client.plans.steps import Deliver, Open, Plan, Receive
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.runner import TrioRun, run_plan
from fdfsfuse.client.sources import CHUNK_SIZE
from fdfsfuse.proto.storage import Download, FileInfo, StorageCommand


class StorageClient:
    """The storage at *address*, over connections of *pool*.

    All methods raise StatusError (2: no such file), ConnectionProblem or ProtocolError. Each is
    tried again, once, when a kept connection turns out to be stale.
    """

    def __init__(self, pool: Pool, address: Address) -> None:
        self._pool = pool
        self.address = address

    async def download_to_file(
        self, group: str, name: str, fd: int, *, progress: Callable[[int], None] | None = None
    ) -> int:
        """Write the whole content to *fd*, an empty file; return the number of bytes.

        Zeros become holes, so that a file needs no more room than where it comes from.
        *progress* is called with the length of each piece that has been written. An empty file is
        refused with status 22 (wire.md section 5, trap 6).
        """
        position = 0

        def write(data: bytes) -> None:
            nonlocal position
            if data == bytes(len(data)):
                position += len(data)
                os.ftruncate(fd, position)
                return
            view = memoryview(data)
            while view:
                done = os.pwrite(fd, view, position)
                position += done
                view = view[done:]

        async def deliver(data: bytes) -> None:
            await trio.to_thread.run_sync(write, data)
            if progress is not None:
                progress(len(data))

        await TrioRun(self._pool, name, self._content(group, name)).run(deliver)
        return position

    async def query_info(self, group: str, name: str, *, flags: int = 0) -> FileInfo:
        """Size, time, crc and source of a file; *flags*: NO_CRC, QUIET_WHEN_MISSING."""
        return await run_plan(self._pool, name, info_at(self.address, group, name, flags))

    def _content(self, group: str, name: str) -> Plan[None]:
        head = Download(group, name).encode()
        incoming = yield Open(self.address, StorageCommand.DOWNLOAD, head, repeatable=True)
        try:
            while incoming.remaining:
                yield Deliver((yield Receive(incoming, CHUNK_SIZE)))
        finally:
            incoming.end()

"""`Client`: files by their id, on any FastDFS cluster.

::

    async with fdfsfuse.Client("10.0.0.1") as client:
        file_id = await client.upload("photo.jpg", metadata={"width": "1024"})
        content = await client.download(file_id)

Each operation asks a tracker for the right storage. What cannot be reached is tried elsewhere;
reading goes on with another storage of the group. A change is sent to one storage only, once:
when its connection breaks before the answer, ConnectionBroken says that nobody knows.
`fdfsfuse.blocking.Client` is the same for programs without trio.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from types import TracebackType

import trio

from fdfsfuse.client import directwait
from fdfsfuse.client.address import Address, AddressMap, parse_addresses
from fdfsfuse.client.contents import AnyContent, in_thread, new_file, open_content
from fdfsfuse.client.plans.changing import ChangePlans
from fdfsfuse.client.plans.reading import FileDetails, ReadPlans
from fdfsfuse.client.plans.steps import Plan, T
from fdfsfuse.client.plans.trackers import TrackerPlans
from fdfsfuse.client.pool import Pool
from fdfsfuse.client.runner import TrioRun
from fdfsfuse.client.shelf import CONNECTIONS_MAX, IDLE_MAX, IDLE_MAX_S
from fdfsfuse.client.sockets import CONNECT_TIMEOUT_S, TIMEOUT_S
from fdfsfuse.client.sources import CHUNK_SIZE, Opened, Progress, content_extension
from fdfsfuse.client.targets import Target, part_key, write_all
from fdfsfuse.client.tracker import TrackerClient


class Client:
    """A client of the cluster that *trackers* schedule.

    Every method may raise StatusError (NotFoundError when there is no such file), ConnectionProblem
    when no server could be reached or one broke off, ProtocolError and UsageError. All take

    - ``timeout_s``: how long the operation may take without any progress, if not as long as the
      client's; a transfer may take as long as it wants while bytes move
    - ``deadline_s``: how long it may take altogether; no limit if None

    A method that is cancelled leaves no connection behind that is in the middle of something.

    Args:
        trackers: ``host[:port]``, several as a sequence or separated by commas.
        connections: most connections to one server; operations wait beyond it.
        max_idle, max_idle_s: how many idle connections to a server are kept, and for how long.
        address_map: how storages are reached whose addresses are those of another network (NAT,
            containers): ``{"10.0.0.3": "203.0.113.7"}``, ``{"10.0.0.3:23000": "localhost:13000"}``,
            or a function from one `Address` to the other.
    """

    def __init__(
        self,
        trackers: str | Address | Sequence[str | Address],
        *,
        timeout_s: float = TIMEOUT_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
        connections: int = CONNECTIONS_MAX,
        max_idle: int = IDLE_MAX,
        max_idle_s: float = IDLE_MAX_S,
        address_map: AddressMap | None = None,
    ) -> None:
        plans = TrackerPlans(parse_addresses(trackers), address_map=address_map)
        self._reading = ReadPlans(plans)
        self._changing = ChangePlans(plans, self._reading)
        self._timeout_s = timeout_s
        self.pool = Pool(
            limit=connections,
            max_idle=max_idle,
            max_idle_s=max_idle_s,
            connect_timeout_s=connect_timeout_s,
        )
        self.tracker = TrackerClient(plans, self.pool)

    async def __aenter__(self) -> Client:
        directwait.install()  # else an operation costs a quarter more CPU
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all idle connections; borrowed ones are closed when they are given back."""
        self.pool.close()

    # --- uploading -------------------------------------------------------------------------------

    async def upload(
        self,
        content: AnyContent,
        *,
        extension: str | None = None,
        group: str | None = None,
        appender: bool = False,
        metadata: Mapping[str, str] | None = None,
        size: int | None = None,
        replicas: int = 1,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Store *content* as a new file and return its id.

        Args:
            extension: without the dot, at most 6 of ``[A-Za-z0-9._-]``; that of the path if None.
            appender: make a file that can be changed later.
            metadata: stored with the file; if that fails, the file is deleted again.
            size: bytes of an iterable; without it, it is first written to a temporary file.
            replicas: return when so many servers of the group have the file. By default one does,
                and the others get it soon.

        Raises:
            StatusError: 28 no space, 2 no such group, 22 refused.
            ConnectionProblem: no server could be reached, or it broke off.
            TooFewCopiesError: it is stored, but not on *replicas* servers within half a minute; or
                nobody can tell, as stock FastDFS storages cannot.
        """
        if extension is None:
            extension = content_extension(content) or ""

        def plan(opened: Opened) -> Plan[str]:
            return self._changing.upload(
                opened, extension, group, metadata, appender=appender, replicas=replicas
            )

        return await self._send("upload", content, size, plan, timeout_s, deadline_s, progress)

    async def upload_slave(
        self,
        master_id: str,
        prefix: str,
        content: AnyContent,
        *,
        extension: str | None = None,
        metadata: Mapping[str, str] | None = None,
        size: int | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Store *content* as a slave of the file *master_id* and return its id.

        The slave's id is that of the master with *prefix* behind it (``..._small.jpg``), so that
        whoever knows the master's id can tell it. Deleting the master keeps its slaves.

        Args:
            prefix: 1 to 16 of ``[A-Za-z0-9._-]``. Take at least 6, or 5 with an extension: servers
                take slaves with very short ids for normal files (wire.md section 5, trap 10).
            extension: as in `upload`; that of a path if None, else that of the master.

        Raises:
            StatusError: 2 no such master, 17 it has this slave already.
        """
        if extension is None:
            extension = content_extension(content)

        def plan(opened: Opened) -> Plan[str]:
            return self._changing.upload_slave(master_id, prefix, opened, extension, metadata)

        what = f"slave of {master_id}"
        return await self._send(what, content, size, plan, timeout_s, deadline_s, progress)

    async def regenerate(
        self, file_id: str, *, timeout_s: float | None = None, deadline_s: float | None = None
    ) -> str:
        """Make an appender a normal file; its new id. The old id and the metadata are gone."""
        plan = self._changing.regenerate(file_id)
        return await self._run(f"new id of {file_id}", plan, timeout_s, deadline_s)

    async def link(
        self,
        file_id: str,
        signature: bytes = b"fdfsfuse",
        *,
        extension: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> str:
        """Give a file a further id, without copying its content.

        Args:
            signature: 1 to 63 bytes that servers keep nowhere (1 is the least they take).
            extension: that of the new id; as the file's if None.
        """
        plan = self._changing.link(file_id, signature, extension)
        return await self._run(f"link to {file_id}", plan, timeout_s, deadline_s)

    # --- reading ---------------------------------------------------------------------------------

    async def download(
        self,
        file_id: str,
        offset: int = 0,
        count: int | None = None,
        *,
        verify: bool = False,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> bytes:
        """*count* bytes from *offset* on (None: to the end), fewer at the end of the file.

        Args:
            verify: check size and CRC-32, which the id tells; a storage is asked for those of
                appenders and slaves. Links that a C storage made cannot be verified: their ids
                carry a random CRC-32.

        Raises:
            UsageError: it is more than 256 MiB; use `download_to` or `open`.
            IntegrityError: the content is not what was uploaded.
        """
        plan = self._reading.download(file_id, offset, count, verify=verify)
        return await self._run(f"download of {file_id}", plan, timeout_s, deadline_s, progress)

    async def download_to(
        self,
        file_id: str,
        target: Target,
        offset: int = 0,
        count: int | None = None,
        *,
        resume: bool = False,
        verify: bool = False,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> int:
        """Write *count* bytes from *offset* on (None: to the end) to *target*; return how many.

        A path is replaced when the content is complete. A file object is written at its position.
        When a storage breaks off, another one goes on.

        Args:
            resume: what a download to this path has fetched before it failed is kept beside it
                (``.NAME.*.part``), and the next one goes on from there. Not for appenders and
                slaves, which may have changed meanwhile.
            verify: as in `download`; a file object has what was written then already.
        """
        what = f"download of {file_id}"
        if not isinstance(target, (str, os.PathLike)):
            plan = self._reading.stream(file_id, offset, count, verify=verify)
            deliver = in_thread(write_all(target))
            return await self._run(what, plan, timeout_s, deadline_s, progress, deliver)
        async with new_file(target, part_key(file_id, offset, count) if resume else None) as file:
            crc32 = await trio.to_thread.run_sync(file.crc32) if verify and file.size else 0
            plan = self._reading.stream(
                file_id, offset, count, verify=verify, done=file.size, crc32=crc32
            )
            deliver = in_thread(file.write)
            return await self._run(what, plan, timeout_s, deadline_s, progress, deliver)

    @asynccontextmanager
    async def open(
        self,
        file_id: str,
        offset: int = 0,
        count: int | None = None,
        *,
        verify: bool = False,
        chunk_size: int = CHUNK_SIZE,
        timeout_s: float | None = None,
    ) -> AsyncIterator[DownloadStream]:
        """The content as a stream of chunks of at most *chunk_size* bytes.

        When a storage breaks off, another one goes on. With *verify*, IntegrityError comes after
        the last chunk.
        """
        plan = self._reading.stream(file_id, offset, count, verify=verify, chunk_size=chunk_size)
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        run = TrioRun(self.pool, f"download of {file_id}", plan, timeout_s)
        try:
            yield DownloadStream(run, await run.advance())
        finally:
            run.close()

    async def info(
        self,
        file_id: str,
        *,
        flags: int = 0,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> FileDetails:
        """Describe a file. *flags* are those of command 22: 1 leaves out the CRC-32."""
        plan = self._reading.info(file_id, flags)
        return await self._run(f"info of {file_id}", plan, timeout_s, deadline_s)

    async def exists(
        self, file_id: str, *, timeout_s: float | None = None, deadline_s: float | None = None
    ) -> bool:
        """Whether a storage of the group has the file."""
        plan = self._reading.exists(file_id)
        return await self._run(f"search for {file_id}", plan, timeout_s, deadline_s)

    async def get_metadata(
        self, file_id: str, *, timeout_s: float | None = None, deadline_s: float | None = None
    ) -> dict[str, str]:
        """The metadata of a file; {} when it has none."""
        plan = self._reading.get_metadata(file_id)
        return await self._run(f"metadata of {file_id}", plan, timeout_s, deadline_s)

    # --- changing --------------------------------------------------------------------------------

    async def set_metadata(
        self,
        file_id: str,
        metadata: Mapping[str, str],
        *,
        merge: bool = False,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """Replace the metadata, or with *merge* add to it."""
        plan = self._changing.set_metadata(file_id, metadata, merge=merge)
        await self._run(f"setting metadata of {file_id}", plan, timeout_s, deadline_s)

    async def delete(
        self, file_id: str, *, timeout_s: float | None = None, deadline_s: float | None = None
    ) -> None:
        """Delete a file and its metadata."""
        plan = self._changing.delete(file_id)
        await self._run(f"deletion of {file_id}", plan, timeout_s, deadline_s)

    async def append(
        self,
        file_id: str,
        content: AnyContent,
        *,
        size: int | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Append to an appender. UsageError when the file is none."""

        def plan(opened: Opened) -> Plan[None]:
            return self._changing.append(file_id, opened)

        what = f"append to {file_id}"
        await self._send(what, content, size, plan, timeout_s, deadline_s, progress)

    async def modify(
        self,
        file_id: str,
        offset: int,
        content: AnyContent,
        *,
        size: int | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Overwrite a part of an appender; *offset* is at most its size."""

        def plan(opened: Opened) -> Plan[None]:
            return self._changing.modify(file_id, offset, opened)

        what = f"change of {file_id}"
        await self._send(what, content, size, plan, timeout_s, deadline_s, progress)

    async def truncate(
        self,
        file_id: str,
        size: int,
        *,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """Set the size of an appender."""
        plan = self._changing.truncate(file_id, size)
        await self._run(f"truncation of {file_id}", plan, timeout_s, deadline_s)

    # --- helpers ---------------------------------------------------------------------------------

    async def _run(
        self,
        what: str,
        plan: Plan[T],
        timeout_s: float | None,
        deadline_s: float | None,
        progress: Progress | None = None,
        deliver: Callable[[bytes], Awaitable[object]] | None = None,
    ) -> T:
        timeout_s = self._timeout_s if timeout_s is None else timeout_s
        return await TrioRun(self.pool, what, plan, timeout_s, deadline_s, progress).run(deliver)

    async def _send(
        self,
        what: str,
        content: AnyContent,
        size: int | None,
        plan: Callable[[Opened], Plan[T]],
        timeout_s: float | None,
        deadline_s: float | None,
        progress: Progress | None,
    ) -> T:
        opened = await open_content(content, size)
        try:
            return await self._run(what, plan(opened), timeout_s, deadline_s, progress)
        finally:
            opened.close()


class DownloadStream:
    """The content of a file, chunk by chunk: ``async for chunk in stream``."""

    def __init__(self, run: TrioRun[int], first: bytes | None) -> None:
        self._run = run
        self._first = first

    async def receive_some(self) -> bytes:
        """The next chunk, or b"" at the end."""
        if self._first is not None:
            chunk, self._first = self._first, None
            return chunk
        return await self._run.advance() or b""

    def __aiter__(self) -> DownloadStream:
        return self

    async def __anext__(self) -> bytes:
        chunk = await self.receive_some()
        if not chunk:
            raise StopAsyncIteration
        return chunk

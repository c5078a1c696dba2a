"""`Client`: files by their id, on any FastDFS cluster, for programs without trio.

The methods are those of `fdfsfuse.Client`, and so is what they do; see there for what their
arguments mean and what they raise. A client may be used by any number of threads at once, and by
processes that were forked later: each has connections of its own.
"""

from __future__ import annotations

import math
import os
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType

from fdfsfuse.blocking.pool import Pool
from fdfsfuse.blocking.runner import BlockingRun
from fdfsfuse.blocking.timer import Timer
from fdfsfuse.client.address import Address, AddressMap, parse_addresses
from fdfsfuse.client.plans.changing import ChangePlans
from fdfsfuse.client.plans.reading import FileDetails, ReadPlans
from fdfsfuse.client.plans.steps import Plan, T
from fdfsfuse.client.plans.trackers import TrackerPlans
from fdfsfuse.client.shelf import CONNECTIONS_MAX, IDLE_MAX, IDLE_MAX_S
from fdfsfuse.client.sockets import CONNECT_TIMEOUT_S, TIMEOUT_S
from fdfsfuse.client.sources import (
    CHUNK_SIZE,
    Content,
    Opened,
    Progress,
    content_extension,
    open_source,
)
from fdfsfuse.client.targets import NewFile, Target, part_key, write_all
from fdfsfuse.errors import IntegrityError


class Client:
    """A client of the cluster that *trackers* schedule.

    The arguments are those of `fdfsfuse.Client`.

    Use it as a context manager, or `close` it in the end; a client that is no longer referred to
    is closed as well.
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
        self._pool = Pool(
            limit=connections,
            max_idle=max_idle,
            max_idle_s=max_idle_s,
            connect_timeout_s=connect_timeout_s,
        )
        weakref.finalize(self, self._pool.close)

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close all idle connections; borrowed ones are closed when they are given back."""
        self._pool.close()

    # --- uploading -------------------------------------------------------------------------------

    def upload(
        self,
        content: Content,
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
        """Store *content* as a new file and return its id."""
        if extension is None:
            extension = content_extension(content) or ""

        def plan(opened: Opened) -> Plan[str]:
            return self._changing.upload(
                opened, extension, group, metadata, appender=appender, replicas=replicas
            )

        return self._send("upload", content, size, plan, timeout_s, deadline_s, progress)

    def upload_slave(
        self,
        master_id: str,
        prefix: str,
        content: Content,
        *,
        extension: str | None = None,
        metadata: Mapping[str, str] | None = None,
        size: int | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> str:
        """Store *content* as a slave of the file *master_id* and return its id."""
        if extension is None:
            extension = content_extension(content)

        def plan(opened: Opened) -> Plan[str]:
            return self._changing.upload_slave(master_id, prefix, opened, extension, metadata)

        what = f"slave of {master_id}"
        return self._send(what, content, size, plan, timeout_s, deadline_s, progress)

    def regenerate(
        self, file_id: str, *, timeout_s: float | None = None, deadline_s: float | None = None
    ) -> str:
        """Make an appender a normal file; its new id. The old id and the metadata are gone."""
        plan = self._changing.regenerate(file_id)
        return self._run(f"new id of {file_id}", plan, timeout_s, deadline_s)

    def link(
        self,
        file_id: str,
        signature: bytes = b"fdfsfuse",
        *,
        extension: str | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> str:
        """Give a file a further id, without copying its content."""
        plan = self._changing.link(file_id, signature, extension)
        return self._run(f"link to {file_id}", plan, timeout_s, deadline_s)

    # --- reading ---------------------------------------------------------------------------------

    def download(
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
        """*count* bytes from *offset* on (None: to the end), fewer at the end of the file."""
        plan = self._reading.download(file_id, offset, count, verify=verify)
        return self._run(f"download of {file_id}", plan, timeout_s, deadline_s, progress)

    def download_to(
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
        """Write *count* bytes from *offset* on (None: to the end) to *target*; return how many."""
        what = f"download of {file_id}"
        if not isinstance(target, (str, os.PathLike)):
            plan = self._reading.stream(file_id, offset, count, verify=verify)
            return self._run(what, plan, timeout_s, deadline_s, progress, write_all(target))
        file = NewFile(target, part_key(file_id, offset, count) if resume else None)
        try:
            crc32 = file.crc32() if verify and file.size else 0
            plan = self._reading.stream(
                file_id, offset, count, verify=verify, done=file.size, crc32=crc32
            )
            size = self._run(what, plan, timeout_s, deadline_s, progress, file.write)
        except BaseException as exc:
            file.discard(keep=not isinstance(exc, IntegrityError))
            raise
        file.commit()
        return size

    def open(
        self,
        file_id: str,
        offset: int = 0,
        count: int | None = None,
        *,
        verify: bool = False,
        chunk_size: int = CHUNK_SIZE,
        timeout_s: float | None = None,
    ) -> DownloadStream:
        """The content as a stream; use it as a context manager, or close it in the end."""
        plan = self._reading.stream(file_id, offset, count, verify=verify, chunk_size=chunk_size)
        timer = Timer(self._timeout_s if timeout_s is None else timeout_s, None)
        run = BlockingRun(self._pool, f"download of {file_id}", plan, timer)
        return DownloadStream(self, run, timer)

    def info(
        self,
        file_id: str,
        *,
        flags: int = 0,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> FileDetails:
        """Describe a file. *flags* are those of command 22: 1 leaves out the CRC-32."""
        plan = self._reading.info(file_id, flags)
        return self._run(f"info of {file_id}", plan, timeout_s, deadline_s)

    def exists(
        self, file_id: str, *, timeout_s: float | None = None, deadline_s: float | None = None
    ) -> bool:
        """Whether a storage of the group has the file."""
        plan = self._reading.exists(file_id)
        return self._run(f"search for {file_id}", plan, timeout_s, deadline_s)

    def get_metadata(
        self, file_id: str, *, timeout_s: float | None = None, deadline_s: float | None = None
    ) -> dict[str, str]:
        """The metadata of a file; {} when it has none."""
        plan = self._reading.get_metadata(file_id)
        return self._run(f"metadata of {file_id}", plan, timeout_s, deadline_s)

    # --- changing --------------------------------------------------------------------------------

    def set_metadata(
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
        self._run(f"setting metadata of {file_id}", plan, timeout_s, deadline_s)

    def delete(
        self, file_id: str, *, timeout_s: float | None = None, deadline_s: float | None = None
    ) -> None:
        """Delete a file and its metadata."""
        plan = self._changing.delete(file_id)
        self._run(f"deletion of {file_id}", plan, timeout_s, deadline_s)

    def append(
        self,
        file_id: str,
        content: Content,
        *,
        size: int | None = None,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Append to an appender."""

        def plan(opened: Opened) -> Plan[None]:
            return self._changing.append(file_id, opened)

        what = f"append to {file_id}"
        self._send(what, content, size, plan, timeout_s, deadline_s, progress)

    def modify(
        self,
        file_id: str,
        offset: int,
        content: Content,
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
        self._send(what, content, size, plan, timeout_s, deadline_s, progress)

    def truncate(
        self,
        file_id: str,
        size: int,
        *,
        timeout_s: float | None = None,
        deadline_s: float | None = None,
    ) -> None:
        """Set the size of an appender."""
        plan = self._changing.truncate(file_id, size)
        self._run(f"truncation of {file_id}", plan, timeout_s, deadline_s)

    # --- helpers ---------------------------------------------------------------------------------

    def _run(
        self,
        what: str,
        plan: Plan[T],
        timeout_s: float | None,
        deadline_s: float | None,
        progress: Progress | None = None,
        deliver: Callable[[bytes], object] | None = None,
    ) -> T:
        timer = Timer(self._timeout_s if timeout_s is None else timeout_s, deadline_s)
        return BlockingRun(self._pool, what, plan, timer, progress).run(deliver)

    def _send(
        self,
        what: str,
        content: Content,
        size: int | None,
        plan: Callable[[Opened], Plan[T]],
        timeout_s: float | None,
        deadline_s: float | None,
        progress: Progress | None,
    ) -> T:
        opened = open_source(content, size)
        try:
            return self._run(what, plan(opened), timeout_s, deadline_s, progress)
        finally:
            opened.close()


class DownloadStream:
    """The content of a file, from front to end: iterate over its chunks, or `read`.

    It has what web frameworks ask of a file that they send (Django's ``FileResponse``, Flask's
    ``send_file``).
    """

    def __init__(self, client: Client, run: BlockingRun[int], timer: Timer) -> None:
        self._client = client  # which must not be closed meanwhile
        self._run = run
        self._timer = timer
        self._rest = b""
        try:
            self._rest = self._next()  # so that opening says it when there is no such file
        except BaseException:
            self.close()
            raise

    def read(self, size: int = -1) -> bytes:
        """*size* bytes, fewer at the end only; all that is left without a size."""
        wanted = math.inf if size is None or size < 0 else size
        parts = []
        while wanted > 0 and (chunk := self._take()):
            if len(chunk) > wanted:
                chunk, self._rest = chunk[: int(wanted)], chunk[int(wanted) :]
            parts.append(chunk)
            wanted -= len(chunk)
        return b"".join(parts)

    def __iter__(self) -> Iterator[bytes]:
        while chunk := self._take():
            yield chunk

    def close(self) -> None:
        """End the download; may be called again."""
        self._rest = b""
        self._run.close()

    def __enter__(self) -> DownloadStream:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _take(self) -> bytes:
        if self._rest:
            chunk, self._rest = self._rest, b""
            return chunk
        return self._next()

    def _next(self) -> bytes:
        self._timer.touch()  # how long the caller took does not count
        return self._run.advance() or b""

"""Changes of content that take steps before they can be recorded: syncing, copying, truncating.

Each runs as a task of its own. Its last step is an ordinary change in the engine's queue, which
looks again whether the state is still what the steps before were made for; if not, the operation
starts over. An object made on the way is pending (session 0) until then, so a crash leaks nothing.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import Any, Final

import trio

from fdfs_storage.files import pwrite_all
from fdfs_storage.locks import Locks
from fdfs_storage.names import content, reads
from fdfs_storage.names.checks import fail
from fdfs_storage.names.engine import Engine
from fdfs_storage.names.objects import Objects
from fdfs_storage.names.prepare import Preparer
from fdfs_storage.names.work import Work
from fdfsfuse.errors import StatusError
from fdfsfuse.proto import names, names_record
from fdfsfuse.proto.names import Attr
from fdfsfuse.proto.names_record import Op

_TRIES: Final = 10
_COPY_CHUNK: Final = 1 << 30
_DISK_PROBLEMS: Final = {
    errno.ENOSPC: errno.ENOSPC,
    errno.EDQUOT: errno.ENOSPC,
    errno.EFBIG: errno.EFBIG,
}
"""Errors of the disk, and what mounts are answered; EIO for all others."""


class Operations:
    """The operations with steps. Their tasks live as long as the engine, not as a connection.

    Attributes:
        locks: by inode, so that one operation at a time changes it.
    """

    def __init__(
        self, engine: Engine, preparer: Preparer, objects: Objects, reader: reads.Reads
    ) -> None:
        self._engine = engine
        self._prepare = preparer
        self._objects = objects
        self._reads = reader
        self.locks: Locks[int] = Locks()

    async def perform(self, work: Work, request: Any) -> None:
        """Carry out *request* and call ``work.reply``; never raises StatusError."""
        try:
            if work.repeatable:
                stored = self._reads.result(work.session, work.id)
                if stored is not None:
                    if not self._engine.on_repeat(work.session, work.id, work.reply):
                        work.reply(0, stored)
                    return
            if isinstance(request, names.NameObject):
                status, answer = await self._name_object(work, request)
            elif isinstance(request, names.CommitWrite):
                status, answer = await self._commit_write(work, request)
            else:
                async with self.locks.hold(request.ino):
                    status, answer = await self._until_settled(work, request)
        except StatusError as exc:
            status, answer = exc.errno or errno.EIO, b""
        except OSError as exc:
            status, answer = _DISK_PROBLEMS.get(exc.errno or 0, errno.EIO), b""
        work.reply(status, answer)

    async def _decide(self, work: Work, make: Op | Callable[[], Op]) -> tuple[int, bytes]:
        """Have the engine make the change *make* as the last step of *work*: (status, answer)."""
        done = trio.Event()
        outcome: list[tuple[int, bytes]] = []

        def reply(status: int, answer: bytes) -> None:
            outcome.append((status, answer))
            done.set()

        self._engine.submit(
            Work(
                make,
                reply,
                session=work.session,
                id=work.id,
                done_below=work.done_below,
                # The request may have come again on another connection, and be done already.
                repeatable=work.id != 0,
            )
        )
        await done.wait()
        return outcome[0]

    def _file(self, ino: int) -> Attr:
        attr = self._reads.find_attr(ino)
        if attr is None:
            raise fail(errno.ESTALE)
        content.check_file(attr)
        return attr

    async def _sync(self, file_id: str) -> None:
        """Make the content durable: on the disk here, and with all that are in sync."""
        await self._objects.store.sync_file(self._objects.locate(file_id))
        await self._engine.gate.wait()

    # --- publishing -------------------------------------------------------------------------

    async def _name_object(self, work: Work, request: names.NameObject) -> tuple[int, bytes]:
        self._file(request.ino)
        try:
            size = self._objects.stat(request.file_id).st_size
            await self._sync(request.file_id)
        except StatusError as exc:
            raise fail(errno.ESTALE) if exc.errno == errno.ENOENT else exc from None
        if size != request.size:
            raise fail(errno.EINVAL, "size")
        return await self._decide(
            work,
            lambda: self._prepare.name_pending(
                work.session,
                request.ino,
                request.file_id,
                size,
                request.mtime_ns,
                based_on=request.based_on,
            ),
        )

    async def _commit_write(self, work: Work, request: names.CommitWrite) -> tuple[int, bytes]:
        attr = self._file(request.ino)
        if attr.file_id != request.file_id or not attr.in_place:
            raise fail(errno.ESTALE)
        await self._sync(request.file_id)
        return await self._decide(
            work,
            lambda: self._prepare.resize(request.ino, request.file_id, request.mtime_ns),
        )

    # --- making writable, truncating ----------------------------------------------------------

    async def _until_settled(
        self, work: Work, request: names.MakeWritable | names.Truncate
    ) -> tuple[int, bytes]:
        status, answer = errno.EIO, b""
        for _ in range(_TRIES):
            attr = self._file(request.ino)
            if isinstance(request, names.MakeWritable):
                status, answer = await self._make_writable(work, attr)
            else:
                status, answer = await self._truncate(work, attr, request)
            if status != errno.ESTALE:
                break
        return status, answer

    async def _make_writable(self, work: Work, attr: Attr) -> tuple[int, bytes]:
        if attr.in_place:
            return 0, names.encode(attr)
        return await self._copy(work, attr, attr.size, attr.mtime_ns)

    async def _truncate(self, work: Work, attr: Attr, request: names.Truncate) -> tuple[int, bytes]:
        size, mtime_ns = request.size, request.mtime_ns
        if size == attr.size and not attr.in_place:
            ctime_ns = max(attr.ctime_ns, mtime_ns)
            return await self._decide(work, names.SetAttr(attr.ino, ctime_ns, mtime_ns=mtime_ns))
        if size == 0:
            return await self._decide(
                work, lambda: self._prepare.store_content(attr.ino, b"", mtime_ns)
            )
        if attr.in_place:
            if self._engine.has_ended(work.session):
                raise fail(names.SESSION_ENDED)
            # A crash before the record leaves another size in the file than in the inode, which
            # the start makes good (see `Housekeeping.reconcile`).
            self._objects.truncate(attr.file_id, size)
            await self._sync(attr.file_id)
            return await self._decide(
                work, lambda: self._prepare.resize(attr.ino, attr.file_id, mtime_ns)
            )
        if size > names.SMALL_CONTENT_MAX:
            return await self._copy(work, attr, size, mtime_ns)
        data = b""
        if attr.file_id:
            path, kept = self._objects.path(attr.file_id), min(size, attr.size)
            found = await trio.to_thread.run_sync(reads.read_content, path, kept)
            if found is None:
                raise fail(errno.EIO, "content is missing")
            data = found
        data = data.ljust(size, b"\0")
        return await self._decide(
            work,
            lambda: self._prepare.store_content(attr.ino, data, mtime_ns, replaces=attr.file_id),
        )

    async def _copy(self, work: Work, attr: Attr, size: int, mtime_ns: int) -> tuple[int, bytes]:
        """An appender with the first *size* bytes, zeros behind the old end, as new content."""
        made = ""

        def make() -> Op:
            nonlocal made
            op = self._prepare.new_pending(attr.ino)
            made = op.file_id
            return op

        await self._engine.change(make)
        status, answer = errno.EIO, b""
        try:
            count = min(size, attr.size)
            if count:
                source, target = self._objects.path(attr.file_id), self._objects.path(made)
                await trio.to_thread.run_sync(_copy_file, source, target, count)
                self._objects.record_write(made, 0, count, 0)
            if size > count:
                # Grown only once the other storages have the object: before that it would be sent
                # whole, and the zeros would take room on their disks.
                await self._engine.gate.wait()
                self._objects.truncate(made, size)
            await self._sync(made)
            status, answer = await self._decide(
                work,
                lambda: self._prepare.name_pending(
                    0,
                    attr.ino,
                    made,
                    size,
                    mtime_ns,
                    replaces=attr.file_id,
                    same=size == attr.size,
                ),
            )
        finally:
            if status:
                # Not waited for: when the engine stops too, the next start drops it.
                self._engine.submit(Work(names_record.DropPending(made), lambda *_: None))
        return status, answer


def _copy_file(source: str, target: str, count: int) -> None:
    """Put the first *count* bytes of *source* into the empty *target*.

    Runs in a thread. Raises OSError; EIO when *source* is shorter.
    """
    target_fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
    try:
        source_fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
        try:
            done = 0
            while done < count:
                done += _copy_piece(source_fd, target_fd, done, count - done)
        finally:
            os.close(source_fd)
    finally:
        os.close(target_fd)


def _copy_piece(source_fd: int, target_fd: int, offset: int, count: int) -> int:
    """Copy up to *count* bytes at *offset*, in the kernel where it can; returns how many."""
    try:
        copied = os.copy_file_range(source_fd, target_fd, min(count, _COPY_CHUNK), offset, offset)
    except OSError as exc:
        if exc.errno not in (errno.EXDEV, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        data = os.pread(source_fd, min(count, 1 << 20), offset)
        pwrite_all(target_fd, data, offset)
        copied = len(data)
    if not copied:
        raise OSError(errno.EIO, "the object is shorter than its inode says")
    return copied

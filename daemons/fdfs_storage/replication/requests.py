"""Turns binlog records into requests for a peer, with the content that files have now.

Holes of large files are left out for peers that can do without, unless a file's name tells its
CRC-32: truncating may have made it larger than any disk.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from fdfs_storage.files import extents
from fdfs_storage.transfer import INLINE_MAX, content_crc32
from fdfsfuse.core.replicas import Nature, subject_of
from fdfsfuse.core.sync_plan import Own, Send, plan
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.binlog import BinlogRecord
from fdfsfuse.proto.header import GROUP_NAME_SIZE, pack_header, pack_text
from fdfsfuse.proto.sync import (
    EXTENT_HEAD_SIZE,
    SPARSE,
    DeleteFile,
    FileHead,
    RangeHead,
    SyncCommand,
    TwoNames,
    pack_extent,
    pack_file_request,
)
from fdfsfuse.proto.trunk import is_trunk_name

if TYPE_CHECKING:
    from fdfs_storage.recent import Content
    from fdfs_storage.store import Store
    from fdfsfuse.proto.fileid import Location

# Without O_NONBLOCK opening a fifo that somebody put there would wait for a writer.
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK

_MISSING = frozenset((errno.ENOENT, errno.ENOTDIR, errno.ELOOP))
_READ_FIRST = 16 << 10
"""Files that are smaller are read without asking for their size."""
_WHOLE = {ops.CREATE: Send.CREATE, ops.UPDATE: Send.UPDATE}
_WHOLE_COMMAND = {Send.CREATE: SyncCommand.CREATE, Send.UPDATE: SyncCommand.UPDATE}


class Request:
    """A request: ``data``, ``content`` and, if ``fd`` is not -1, ``pieces`` of that file.

    Close it in any case. ``pieces``: what goes before each, its offset and its length. ``size``:
    bytes that the peer gets by it, with holes. ``entry`` is the sender's note of what it is for.
    """

    __slots__ = ("content", "data", "entry", "fd", "pieces", "send", "size")

    def __init__(
        self,
        send: Send,
        data: bytes,
        content: Content = b"",
        fd: int = -1,
        pieces: Sequence[tuple[bytes, int, int]] = (),
        count: int = 0,
    ) -> None:
        self.send = send
        self.data = data
        self.content = content
        self.fd = fd
        self.pieces = pieces
        self.size = len(data) + len(content) + count
        self.entry: object = None

    def close(self) -> None:
        """Close the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


class _File:
    """An open file of ours; in a trunk file it begins at ``start``."""

    __slots__ = ("fd", "size", "start")

    def __init__(self, fd: int, size: int, start: int = 0) -> None:
        self.fd = fd
        self.size = size
        self.start = start


class Requests:
    """Makes requests. Its methods read files, and may be called in a thread.

    Args:
        sparse: the peer takes files without their holes.
    """

    def __init__(self, store: Store, group: str, *, sparse: bool = False) -> None:
        self._sparse = sparse
        self._store = store
        self._group = group
        self._group_field = pack_text(group, GROUP_NAME_SIZE)
        self._keeps = False
        self._kept: _File | None = None
        self._kept_name = ""

    @contextmanager
    def keeping_open(self) -> Iterator[None]:
        """Parts of one file often come in a row: it stays open while the block runs.

        The block must not wait, nor run in a thread: files must not change meanwhile.
        """
        self._keeps = True
        try:
            yield
        finally:
            self._keeps = False
            self._let_go()

    def make(self, record: BinlogRecord, *, again: bool = False) -> Request | None:
        """The request for *record*, None when there is nothing to send.

        *again*: see `plan`. Raises OSError: the file cannot be read.
        """
        kind = record.op.upper()
        if kind in _WHOLE:
            content = self._store.changes.content(record.name)
            if content is not None:
                send = _WHOLE[kind]
                return Request(send, self._head(send, record, len(content)), content)
        try:
            location = self._store.locate(record.name)
        except ProtocolError:
            return None
        if kind in _WHOLE and not is_trunk_name(location):
            return self._new_file(_WHOLE[kind], record, location)
        if kind in (ops.LINK, ops.DELETE, ops.RENAME):
            return self._without_content(record, location)
        part = kind in (ops.APPEND, ops.MODIFY)
        file = self._open_kept(location) if part and self._keeps else self._open(location)
        if file is None:
            return None
        send = plan(record, Own(file.size), again=again)
        return self._with_content(send, record, file)

    def _new_file(self, send: Send, record: BinlogRecord, location: Location) -> Request | None:
        """What nearly all records are: in few steps if the file is small."""
        fd = self._open_path(location)
        if fd < 0:
            return None
        keep = False
        try:
            content = os.read(fd, _READ_FIRST)
            # Nothing is also what a fifo has.
            grows = record.name in self._store.intents.settled
            if not content or len(content) == _READ_FIRST or grows:
                info = os.fstat(fd)
                keep = stat.S_ISREG(info.st_mode)
                file = _File(fd, info.st_size)
                return self._with_content(send, record, file) if keep else None
        except IsADirectoryError:
            return None
        finally:
            if not keep:
                os.close(fd)
        return Request(send, self._head(send, record, len(content)), content)

    def whole(self, record: BinlogRecord, send: Send) -> Request | None:
        """The file of *record* as CREATE or UPDATE; None when it does not exist (any more)."""
        file = self._open_of(record)
        return None if file is None else self._with_content(send, record, file)

    def checksum(self, record: BinlogRecord) -> tuple[int, int] | None:
        """Size and CRC-32 of the file of *record*; None when it does not exist (any more)."""
        file = self._open_of(record)
        if file is None:
            return None
        try:
            return content_crc32(file.fd, file.start, file.size)
        finally:
            os.close(file.fd)

    def own_size(self, record: BinlogRecord) -> int | None:
        """Bytes that the file of *record* has now; None when it does not exist."""
        try:
            return self._store.stat(self._store.locate(record.name)).st_size
        except (ProtocolError, StatusError):
            return None

    def _open_of(self, record: BinlogRecord) -> _File | None:
        try:
            return self._open(self._store.locate(record.name))
        except ProtocolError:
            return None

    def _open(self, location: Location) -> _File | None:
        slot = self._store.slot(location)
        if slot is not None:
            try:
                return _File(slot.open(), slot.slot.size, slot.start)
            except StatusError as exc:
                if exc.errno == errno.ENOENT:
                    return None
                raise OSError(exc.errno, f"{location.name} in its trunk file") from exc
        fd = self._open_path(location)
        if fd < 0:
            return None
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            os.close(fd)
            return None
        return _File(fd, info.st_size)

    def _open_kept(self, location: Location) -> _File | None:
        if self._kept is None or self._kept_name != location.name:
            self._let_go()
            self._kept, self._kept_name = self._open(location), location.name
        return self._kept

    def _let_go(self) -> None:
        if self._kept is not None:
            os.close(self._kept.fd)
            self._kept = None

    def _open_path(self, location: Location) -> int:
        """A descriptor, -1 when there is nothing or a link. Whether it is a file is yet to see."""
        try:
            return os.open(self._store.path(location), _FLAGS)
        except OSError as exc:
            if exc.errno in _MISSING:
                return -1
            raise

    def _without_content(self, record: BinlogRecord, location: Location) -> Request | None:
        own: Own | None = None
        try:
            info = os.lstat(self._store.path(location))
        except OSError:
            pass
        else:
            own = Own(info.st_size, stat.S_ISLNK(info.st_mode))
        reusable = subject_of(record.name).nature is Nature.REPLACED
        send = plan(record, own, reusable=reusable)
        if send is Send.UPDATE:
            return self.whole(record, send)
        if send is Send.SKIP:
            return None
        if send is Send.DELETE:
            name = record.other_name if record.op.upper() == ops.RENAME else record.name
            body = DeleteFile(name, record.timestamp, self._group).encode()
            command = SyncCommand.DELETE
        else:
            body = TwoNames(record.name, record.other_name, record.timestamp, self._group).encode()
            command = SyncCommand.LINK if send is Send.LINK else SyncCommand.RENAME
        return Request(send, pack_header(len(body), command) + body)

    def _with_content(self, send: Send, record: BinlogRecord, file: _File) -> Request | None:
        """The request of a file that is open; small content is read, of large the file is kept."""
        keep = False
        try:
            if send is Send.SKIP:
                return None
            if send is Send.TRUNCATE:
                head = RangeHead(record.name, *record.numbers, record.timestamp, self._group)
                data = head.encode()
                return Request(send, pack_header(len(data), SyncCommand.TRUNCATE) + data)
            part = send in (Send.APPEND, Send.MODIFY)
            offset, count = record.numbers if part else (0, file.size)
            count = min(count, file.size - offset)
            if not part:
                # What is being appended gets a record of its own, or is taken back.
                count = min(count, self._store.intents.settled.get(record.name, count))
            if count > INLINE_MAX:
                request = None
                if not part and not file.start and self._sparse:
                    request = self._without_holes(send, record, file, count)
                if request is None:
                    data = self._head(send, record, count)
                    piece = (b"", file.start + offset, count)
                    request = Request(send, data, b"", file.fd, [piece], count)
                keep = request.fd >= 0
                if file is self._kept:
                    self._kept = None  # it is the request's
                return request
            content = os.pread(file.fd, count, file.start + offset) if count else b""
            if part and len(content) != count:
                return None  # it has become shorter just now
            return Request(send, self._head(send, record, len(content)), content)
        finally:
            if not keep and file is not self._kept:
                os.close(file.fd)

    def _without_holes(
        self, send: Send, record: BinlogRecord, file: _File, size: int
    ) -> Request | None:
        """The request of a large file; None if it has no holes that may be left out."""
        if subject_of(record.name).nature is Nature.FIXED:
            return None
        found = extents(file.fd, 0, size)
        if found == [(0, size)]:
            return None
        head = FileHead(record.name, size, record.timestamp, self._group).encode()
        length = sum(EXTENT_HEAD_SIZE + count for _, count in found)
        header = pack_header(len(head) + length, _WHOLE_COMMAND[send], SPARSE)
        pieces = [(pack_extent(offset, count), offset, count) for offset, count in found]
        return Request(send, header + head, b"", file.fd if pieces else -1, pieces, size)

    def _head(self, send: Send, record: BinlogRecord, count: int) -> bytes:
        """Header and head in front of *count* bytes."""
        if send in (Send.APPEND, Send.MODIFY):
            offset = record.numbers[0]
            head = RangeHead(record.name, offset, count, record.timestamp, self._group).encode()
            command = SyncCommand.APPEND if send is Send.APPEND else SyncCommand.MODIFY
            return pack_header(len(head) + count, command) + head
        return pack_file_request(
            _WHOLE_COMMAND[send], record.name, count, record.timestamp, self._group_field
        )

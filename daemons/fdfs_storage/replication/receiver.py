"""Requests of other storages that bring their changes (protocol/cluster.md section 5).

Requests that are small and need not wait are functions from body to response (``at_once``): these
are nearly all. Each handler (``handlers``) reads its request from the connection and returns the
whole response. ProtocolError stands for status 22, StatusError for its status; the service reads
what is left of a body then.
What is to be done is decided by `fdfsfuse.core.replicas`. Content passes through our memory, where
the kernel could splice it into the file: its CRC-32 has to be taken before it is named.
"""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING

import trio

from fdfs_storage.replication.parts import Parts
from fdfs_storage.replication.replicas import DAMAGED, Replicas
from fdfs_storage.replication.senders import Senders, receive_small
from fdfs_storage.transfer import INLINE_MAX, Received, crc32, receive_content
from fdfsfuse.core.replicas import (
    Nature,
    Subject,
    Verdict,
    judge_whole,
    subject_of,
)
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto import structs, sync
from fdfsfuse.proto.header import FILE_NAME_MAX, Header, pack_response
from fdfsfuse.proto.sync import (
    EXTENT_HEAD_SIZE,
    FILE_HEAD_SIZE,
    RANGE_HEAD_SIZE,
    DeleteFile,
    FileHead,
    SyncCommand,
    TwoNames,
    name_length,
    unpack_extent,
)

if TYPE_CHECKING:
    from fdfs_storage.serving.service import SyncAnswer, SyncHandler
    from fdfs_storage.store import Store
    from fdfs_storage.trunk import SlotPlace
    from fdfsfuse.proto.fileid import Location
    from fdfsfuse.server.connection import FramedConnection

logger = logging.getLogger(__name__)

_RECV_SIZE = 64 << 10
"""Storages of our own kind send many requests at a time."""
_OK = pack_response()
_KEPT = pack_response(status=errno.EEXIST)
_SMALL_MAX = INLINE_MAX + RANGE_HEAD_SIZE + FILE_NAME_MAX
_SLOT_MAX = 64 << 20
"""Largest file inside a trunk file: it is received as a whole. FastDFS's own limit is lower."""
_TWO_NAMES_MAX = 36 + 2 * FILE_NAME_MAX


class Receiver:
    """The handlers, over one store.

    Args:
        boot_id: names the time since this machine was started.
        member_at: see `Senders`.
    """

    def __init__(
        self,
        store: Store,
        replicas: Replicas,
        group: str,
        *,
        boot_id: str,
        member_at: Callable[[str], str],
    ) -> None:
        self._store = store
        self._replicas = replicas
        self._senders = Senders(group, member_at)
        parts = Parts(store, replicas, self._senders)
        self._boot_id = boot_id
        self.handlers: dict[int, SyncHandler] = {
            SyncCommand.REPORT_SERVER_ID: self.report_server_id,
            SyncCommand.HELLO: self.hello,
            SyncCommand.CREATE: self.create,
            SyncCommand.UPDATE: self.update,
            SyncCommand.DELETE: self.delete,
            SyncCommand.LINK: self.link,
            SyncCommand.RENAME: self.rename,
            SyncCommand.APPEND: parts.append,
            SyncCommand.MODIFY: parts.modify,
            SyncCommand.TRUNCATE: parts.truncate,
        }
        self.at_once: dict[int, SyncAnswer] = {
            SyncCommand.CREATE: partial(self._small_file, "c"),
            SyncCommand.UPDATE: partial(self._small_file, "u"),
            SyncCommand.DELETE: self._delete,
            SyncCommand.LINK: self._link,
            SyncCommand.APPEND: partial(parts.small, "a"),
            SyncCommand.MODIFY: partial(parts.small, "m"),
            SyncCommand.TRUNCATE: parts.truncate_small,
        }

    @property
    def timestamps(self) -> Mapping[str, int]:
        """Storage id -> timestamp of the newest record received from it."""
        return self._senders.timestamps

    # --- who sends ----------------------------------------------------------------------------

    async def report_server_id(self, connection: FramedConnection, header: Header) -> bytes:
        """9: the id of the sender, to which the timestamps of its records belong."""
        body = await receive_small(connection, header.length, 16)
        connection.storage_id = sync.decode_server_id(body)
        return _OK

    async def hello(self, connection: FramedConnection, header: Header) -> bytes:
        """150: a 9 of our own kind of storage."""
        body = await receive_small(connection, header.length, sync.HELLO_MAX)
        hello = structs.decode(sync.Hello, body)
        self._senders.check_group(hello.group)
        if not 0 < len(hello.storage_id) <= 15:
            raise ProtocolError(f"{hello.storage_id!r} is no storage id")
        connection.storage_id = hello.storage_id
        connection.is_own_kind = True
        connection.recv_size = _RECV_SIZE
        return pack_response(
            structs.encode(sync.HelloAnswer(sync.VERSION, self._boot_id)),
        )

    # --- whole files --------------------------------------------------------------------------

    async def create(self, connection: FramedConnection, header: Header) -> bytes:
        """16: a file that may be here already."""
        return await self._whole_file(connection, header, "c")

    async def update(self, connection: FramedConnection, header: Header) -> bytes:
        """18: a file whose content is to be replaced."""
        return await self._whole_file(connection, header, "u")

    def _small_file(
        self, op: str, connection: FramedConnection, flags: int, body: bytes
    ) -> bytes | None:
        """16 and 18 whose content has arrived; None when they have to wait for something."""
        if flags == sync.SPARSE:
            return None
        end = FILE_HEAD_SIZE + name_length(body[:FILE_HEAD_SIZE], FILE_HEAD_SIZE)
        content = memoryview(body)[end:]
        head = FileHead.decode(body[:end], len(content))
        self._senders.check_group(head.group)
        location = self._replicas.locate(head.name)
        if flags == sync.SKIP_CONTENT and op == "c":
            if content:
                raise ProtocolError("content that was to be left out")
            self._replicas.note(location, head.timestamp, op)
            self._senders.heard(connection, head.timestamp)
            return _KEPT
        if len(content) != head.size:
            raise ProtocolError(f"a file of {head.size} bytes comes with {len(content)}")
        free = self._store.locks.is_free(location)
        if len(content) > INLINE_MAX or not free or self._store.slot(location) is not None:
            return None
        self._store.counters.total_sync_in_bytes += head.size
        return self._done(
            connection, head, self._store_small(connection, location, head, content, op)
        )

    def _done(self, connection: FramedConnection, head: FileHead, kept: bool) -> bytes:
        self._store.counters.success_sync_in_bytes += head.size
        self._senders.heard(connection, head.timestamp)
        return _KEPT if kept else _OK

    async def _whole_file(self, connection: FramedConnection, header: Header, op: str) -> bytes:
        length, content = header.length, None
        if header.status == sync.SPARSE:
            return await self._sparse_file(connection, length, op)
        if length <= _SMALL_MAX:
            body = await connection.recv_exactly(length)
            response = self._small_file(op, connection, header.status, body)
            if response is not None:
                return response
            end = FILE_HEAD_SIZE + name_length(body[:FILE_HEAD_SIZE], FILE_HEAD_SIZE)
            content = memoryview(body)[end:]
            head = FileHead.decode(body[:end], len(content))
        else:
            fixed = await connection.recv_exactly(FILE_HEAD_SIZE)
            name = await connection.recv_exactly(name_length(fixed, FILE_HEAD_SIZE))
            head = FileHead.decode(fixed + name, length - len(fixed) - len(name))
            self._senders.check_group(head.group)
            if header.status == sync.SKIP_CONTENT and op == "c":
                raise ProtocolError("content that was to be left out")
        location = self._replicas.locate(head.name)
        self._store.counters.total_sync_in_bytes += head.size
        slot = self._store.slot(location)
        if slot is not None:
            kept = await self._store_in_slot(connection, location, slot, head, content, op)
        else:
            async with self._store.locks.hold(location):
                if content is not None:
                    kept = self._store_small(connection, location, head, content, op)
                else:
                    kept = await self._store_large(connection, location, head, op)
        return self._done(connection, head, kept)

    async def _sparse_file(self, connection: FramedConnection, length: int, op: str) -> bytes:
        """16 and 18 of a file that comes without its holes."""
        fixed = await connection.recv_exactly(min(length, FILE_HEAD_SIZE))
        size = name_length(fixed, FILE_HEAD_SIZE)
        rest = length - FILE_HEAD_SIZE - size
        if rest < 0:
            raise ProtocolError("the request ends inside of its file name")
        head = FileHead.decode(fixed + await connection.recv_exactly(size), 0)
        self._senders.check_group(head.group)
        location = self._replicas.locate(head.name)
        if subject_of(head.name).nature is Nature.FIXED or self._store.slot(location) is not None:
            raise ProtocolError(f"{head.name} cannot come without holes")
        self._store.counters.total_sync_in_bytes += head.size
        async with self._store.locks.hold(location):
            kept = await self._store_large(connection, location, head, op, extents=rest)
        return self._done(connection, head, kept)

    async def _store_in_slot(
        self,
        connection: FramedConnection,
        location: Location,
        slot: SlotPlace,
        head: FileHead,
        content: memoryview | None,
        op: str,
    ) -> bool:
        """Deal with a file inside a trunk file; True when it was dropped."""
        replicas = self._replicas
        if head.size > _SLOT_MAX:
            raise StatusError(DAMAGED, f"{head.name} comes with {head.size} bytes")
        received = content
        if received is None:
            received = memoryview(await connection.recv_exactly(head.size))
        if slot.exists() or replicas.last_deletion(location) is not None:
            replicas.note(location, head.timestamp, op)
            return True
        self._check_content(connection, subject_of(head.name), head, crc32(received))
        if head.size != slot.slot.size:  # not what the slot's header would say
            replicas.note(location, head.timestamp, op)
            return True
        await trio.to_thread.run_sync(replicas.fill_slot, slot, received)
        replicas.take_slot(location, slot, head.timestamp, op)
        return False

    def _judge(
        self,
        connection: FramedConnection,
        location: Location,
        subject: Subject,
        head: FileHead,
        op: str,
    ) -> Verdict:
        replicas = self._replicas
        deletion = replicas.last_deletion(location)
        verdict = judge_whole(
            subject,
            head.size,
            head.timestamp,
            replicas.find(location),
            None if deletion is None else deletion.at,
            deleted_elsewhere=replicas.deleted_elsewhere(location, self._senders.of(connection)),
            update=op == "u",
            orphaned=replicas.is_orphaned(location, head.timestamp),
        )
        if verdict is Verdict.REFUSE:
            if connection.is_own_kind:
                raise StatusError(DAMAGED, f"{head.name} comes with {head.size} bytes")
            return Verdict.STORE  # see _check_content
        return verdict

    def _check_content(
        self, connection: FramedConnection, subject: Subject, head: FileHead, crc: int
    ) -> None:
        """Refuse content that does not fit the name of a normal file. Raises StatusError DAMAGED.

        A storage of our own kind looks at its file then, and goes on. A stock one would send it
        again for ever, and nothing that follows: what it has is stored.
        """
        if subject.nature is not Nature.FIXED or (head.size, crc) == (subject.size, subject.crc32):
            return
        if connection.is_own_kind:
            raise StatusError(DAMAGED, f"{head.name} comes with {head.size} bytes")
        logger.warning("%s does not fit its name as %s sends it", head.name, connection.peer_ip)

    def _store_small(
        self,
        connection: FramedConnection,
        location: Location,
        head: FileHead,
        content: memoryview,
        op: str,
    ) -> bool:
        """Deal with a file in memory; True when it was dropped."""
        replicas, subject = self._replicas, subject_of(head.name)
        again = connection.is_own_kind
        if (
            subject.nature is Nature.FIXED
            and (head.size, crc32(content)) == (subject.size, subject.crc32)
            and replicas.last_deletion(location) is None
        ):
            # What nearly all are. To look first for what has the name would take half as long.
            return not replicas.make_small(
                location, content, subject, head.timestamp, op, again=again
            )
        verdict = self._judge(connection, location, subject, head, op)
        if verdict is Verdict.COMPARE:
            if subject.nature is Nature.FIXED:
                same = replicas.fits_name(location, subject)
            else:
                same = replicas.is_same(location, content)
            verdict = Verdict.KEEP if same else Verdict.STORE
        if verdict is Verdict.KEEP:
            replicas.note(location, head.timestamp, op)
            return True
        if subject.nature is Nature.FIXED:
            self._check_content(connection, subject, head, crc32(content))
        replicas.put_small(location, content, head.timestamp, op, again=again)
        return False

    async def _store_large(
        self,
        connection: FramedConnection,
        location: Location,
        head: FileHead,
        op: str,
        *,
        extents: int | None = None,
    ) -> bool:
        """Deal with a file whose content follows on the connection; True when it was dropped.

        *extents*: so many bytes of extents follow instead.
        """
        replicas, subject = self._replicas, subject_of(head.name)
        if await self._is_needless(connection, location, subject, head, op):
            await connection.discard(head.size if extents is None else extents)
            replicas.note(location, head.timestamp, op)
            return True
        received = Received()
        new = replicas.open_new(location)
        try:
            if extents is None:
                await receive_content(connection, new.fd, 0, head.size, received)
            else:
                await _receive_extents(connection, new.fd, head.size, extents)
            self._check_content(connection, subject, head, received.crc32)
            # It may have been deleted while its content was on the way.
            if self._judge(connection, location, subject, head, op) is Verdict.KEEP:
                replicas.note(location, head.timestamp, op)
                return True
            replicas.put(location, new, head.timestamp, op, again=connection.is_own_kind)
        finally:
            new.close()
        return False

    async def _is_needless(
        self,
        connection: FramedConnection,
        location: Location,
        subject: Subject,
        head: FileHead,
        op: str,
    ) -> bool:
        verdict = self._judge(connection, location, subject, head, op)
        if verdict is not Verdict.COMPARE or subject.nature is not Nature.FIXED:
            return verdict is Verdict.KEEP
        return await trio.to_thread.run_sync(self._replicas.fits_name, location, subject)

    # --- names --------------------------------------------------------------------------------

    async def delete(self, connection: FramedConnection, header: Header) -> bytes:
        """17."""
        body = await receive_small(connection, header.length, _TWO_NAMES_MAX)
        return self._delete(connection, header.status, body)

    def _delete(self, connection: FramedConnection, flags: int, body: bytes) -> bytes:
        request = DeleteFile.decode(body)
        self._senders.check_group(request.group)
        location = self._replicas.locate(request.name)
        self._senders.heard(connection, request.timestamp)
        sender, own_kind = self._senders.of(connection), connection.is_own_kind
        self._replicas.delete(location, request.timestamp, sender, later_stays=own_kind)
        return _OK

    async def link(self, connection: FramedConnection, header: Header) -> bytes:
        """19: a symbolic link."""
        body = await receive_small(connection, header.length, _TWO_NAMES_MAX)
        return self._link(connection, header.status, body)

    def _link(self, connection: FramedConnection, flags: int, body: bytes) -> bytes:
        request = TwoNames.decode(body)
        self._senders.check_group(request.group)
        location, target = self._locate_both(request)
        self._replicas.link(location, target, request.timestamp, self._senders.of(connection))
        self._senders.heard(connection, request.timestamp)
        return _OK

    async def rename(self, connection: FramedConnection, header: Header) -> bytes:
        """40: an appender became a normal file. The answer has no body, unlike the reference's."""
        request = TwoNames.decode(await receive_small(connection, header.length, _TWO_NAMES_MAX))
        self._senders.check_group(request.group)
        new, old = self._locate_both(request)
        self._senders.heard(connection, request.timestamp)
        async with self._store.locks.hold(old):
            fits = await self._fits(old, subject_of(new.name))
            sender = self._senders.of(connection)
            self._replicas.rename(new, old, request.timestamp, sender, fits=fits)
        return _OK

    async def _fits(self, location: Location, subject: Subject) -> bool:
        """True when the file exists, with the content that a name promises."""
        found = self._replicas.find(location)
        if found is None or subject.nature is not Nature.FIXED:
            return found is not None
        if found.size != subject.size:
            return False
        if found.size <= INLINE_MAX:
            return self._replicas.fits_name(location, subject)
        return await trio.to_thread.run_sync(self._replicas.fits_name, location, subject)

    def _locate_both(self, request: TwoNames) -> tuple[Location, Location]:
        return self._replicas.locate(request.name), self._replicas.locate(request.other)


async def _receive_extents(connection: FramedConnection, fd: int, size: int, length: int) -> None:
    """Receive *length* bytes of extents into a new file, which has *size* bytes then.

    Raises:
        ConnectionBroken: the sender went away.
        OSError: the disk failed. The rest of the body has not been read.
        ProtocolError: these are no extents of such a file.
    """
    os.ftruncate(fd, size)
    end = 0
    while length:
        extent = await connection.recv_exactly(min(length, EXTENT_HEAD_SIZE))
        length -= len(extent)
        offset, count = unpack_extent(extent, end, size, length)
        await receive_content(connection, fd, offset, count, Received())
        length -= count
        end = offset + count

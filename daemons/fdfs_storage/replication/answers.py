"""Answers about replication: its status (142), and waiting until a file has copies (160)."""

from __future__ import annotations

import errno
import time
from typing import TYPE_CHECKING, Final

import trio

from fdfs_storage.binlog_reader import count_bytes
from fdfsfuse.core.backlog import Backlog, content_bytes
from fdfsfuse.errors import ProtocolError, StatusError
from fdfsfuse.proto import copies, structs
from fdfsfuse.proto.cluster_status import (
    REPLICATION_STATUS,
    VERSION,
    PeerReplication,
    ReplicationStatus,
)
from fdfsfuse.proto.fileid import decode_name
from fdfsfuse.proto.header import Header, pack_response
from fdfsfuse.proto.tracker import ServerStatus

if TYPE_CHECKING:
    from fdfs_storage.binlog import BinlogPosition
    from fdfs_storage.replication.pusher import Pusher
    from fdfs_storage.replication.service import Replication
    from fdfs_storage.serving.service import SyncHandler
    from fdfs_storage.store import Store
    from fdfsfuse.server.connection import FramedConnection

_SAMPLE: Final = 500
"""Records that are looked at; what is behind them is taken to be alike."""


class Answers:
    """Handlers for commands about replication.

    Args:
        own_id: this storage.
        source: this storage as it is written into file names.
    """

    def __init__(
        self, replication: Replication, store: Store, group: str, own_id: str, source: str
    ) -> None:
        self._replication = replication
        self._store = store
        self._group = group
        self._own_id = own_id
        self._source = source
        self.handlers: dict[int, SyncHandler] = {
            REPLICATION_STATUS: self.status,
            copies.WAIT_FOR_COPIES: self.wait_for_copies,
        }

    async def wait_for_copies(self, connection: FramedConnection, header: Header) -> bytes:
        """160. Raises StatusError 2, 66."""
        if header.length > copies.REQUEST_MAX:
            raise ProtocolError(f"a request of {header.length} bytes")
        request = copies.decode_request(await connection.recv_exactly(header.length))
        if request.group != self._group:
            raise ProtocolError(f"group {request.group!r} is not ours")
        location = self._store.locate(request.name)
        self._store.stat(location)
        if decode_name(location.name).source != self._source:
            raise StatusError(errno.EREMOTE, "uploaded to another storage")
        position = self._store.binlog.position
        with trio.move_on_after(request.timeout_s):
            await self._replication.wait_for_copies(position, request.count, request.name)
        count = self._replication.count(position, request.name)
        return pack_response(structs.encode(copies.Copies(count)))

    async def status(self, connection: FramedConnection, header: Header) -> bytes:
        """142: how far each peer has come."""
        if header.length:
            raise ProtocolError("a request for the status has no body")
        peers = [
            await self._peer(pusher) for _, pusher in sorted(self._replication.pushers.items())
        ]
        return pack_response(structs.encode(ReplicationStatus(VERSION, self._own_id, peers)))

    async def _peer(self, pusher: Pusher) -> PeerReplication:
        backlog = Backlog()
        end = self._store.binlog.position
        if pusher.acked < end:
            backlog = await trio.to_thread.run_sync(self._backlog, pusher.acked, end)
        peer_id = pusher.peer.storage_id
        state, reason = self._state(pusher, backlog)
        connected = pusher.link is not None
        return PeerReplication(
            peer_id,
            state,
            peer_id in self._replication.in_sync.members,
            reason,
            backlog.records,
            backlog.content_bytes,
            backlog.delay_s(time.time()),
            backlog.estimate_s(pusher.rate if connected else 0.0),
            len(pusher.unreadable.records) if pusher.unreadable is not None else 0,
        )

    def _backlog(self, start: BinlogPosition, end: BinlogPosition) -> Backlog:
        """What is between two positions. Runs in a thread."""
        records = size = oldest = 0
        reached = start
        for record, behind in self._store.binlog.read(start):
            if behind > end or records == _SAMPLE:
                break
            oldest = oldest or record.timestamp
            reached = behind
            records += 1
            size += content_bytes(record)
        sample = Backlog(records, size, oldest)
        if records < _SAMPLE:
            return sample
        directory = self._store.binlog.directory
        seen = count_bytes(directory, start, reached)
        return sample.scaled(max(1.0, count_bytes(directory, start, end) / max(seen, 1)))

    def _state(self, pusher: Pusher, backlog: Backlog) -> tuple[str, str]:
        """(one word, why it is not in sync or what it waits for)."""
        in_sync = self._replication.in_sync
        peer = pusher.peer
        if pusher.link is None:
            if pusher.problem:
                return "failing", pusher.problem
            return "waiting", f"the trackers say that it is {ServerStatus(peer.status).name}"
        mark = pusher.mark
        if mark is not None and mark.copies_old:
            return "copying", "it is new, and gets everything that the group has"
        if backlog.records:
            return "sending", "" if peer.storage_id in in_sync.members else "it is catching up"
        if not pusher.is_own_kind:
            return "idle", "a stock storage: it is sent everything, and never waited for"
        if peer.storage_id not in in_sync.members and in_sync.keeps:
            return "idle", in_sync.put_out.get(peer.storage_id, "it is about to be in sync")
        return "idle", ""

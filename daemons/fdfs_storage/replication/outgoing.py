"""What is on its way to a peer: records, the requests made of them, and the row of their bytes."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from fdfs_storage.replication.requests import Request

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from fdfs_storage.binlog import BinlogPosition
    from fdfs_storage.recent import Content
    from fdfs_storage.replication.peer_link import PeerLink
    from fdfsfuse.core.sync_plan import Send
    from fdfsfuse.proto.binlog import BinlogRecord

_SEND_BYTES: Final = 128 << 10
_COVERED_MAX: Final = 10_000
PARTS: Final = frozenset("AMT")
"""Operations on a part of a file."""


class Entry:
    """A record that is not known to be dealt with.

    ``theirs``: size and CRC-32 of the peer's file, to be compared with ours. ``late``: its file
    could not be read before; it has no place in the order.
    """

    __slots__ = ("again", "behind", "finished", "late", "record", "theirs")

    def __init__(
        self, record: BinlogRecord, behind: BinlogPosition, again: bool, *, late: bool = False
    ) -> None:
        self.record = record
        self.behind = behind
        self.again = again
        self.late = late
        self.finished = False
        self.theirs: tuple[int, int] | None = None


class Unfinished:
    """The records that a peer is not known to have dealt with, in the order of the binlog.

    Attributes:
        acked: the peer has dealt with all records before this position.
    """

    __slots__ = ("_advanced", "_entries", "acked")

    def __init__(self, start: BinlogPosition, advanced: Callable[[int], None]) -> None:
        """*advanced* is called with the number of records when ``acked`` has moved."""
        self.acked = start
        self._advanced = advanced
        self._entries: deque[Entry] = deque()

    def __bool__(self) -> bool:
        return bool(self._entries)

    def add(self, entry: Entry) -> None:
        """Add the record that is next in the binlog."""
        self._entries.append(entry)

    def skip_to(self, behind: BinlogPosition) -> None:
        """Records up to *behind* need nothing."""
        if self._entries:
            self._entries[-1].behind = behind
        else:
            self.acked = behind
            self._advanced(0)

    def advance(self) -> None:
        """Drop those at the beginning that are finished."""
        entries = self._entries
        done = 0
        while entries and entries[0].finished:
            self.acked = entries.popleft().behind
            done += 1
        if done:
            self._advanced(done)


class Covered:
    """Files that went over whole, with all that was logged of them before a position."""

    __slots__ = ("_until",)

    def __init__(self) -> None:
        self._until: dict[str, BinlogPosition] = {}

    def add(self, name: str, until: BinlogPosition) -> None:
        """The file went over as it was when the binlog ended at *until*."""
        if len(self._until) >= _COVERED_MAX:
            self._until.clear()
        self._until[name] = until

    def includes(self, record: BinlogRecord, behind: BinlogPosition) -> bool:
        """True when the peer got the change, which ends at *behind*, with its whole file."""
        until = self._until.get(record.name)
        return until is not None and behind <= until and record.op.upper() in PARTS


class Asked:
    """A request under way. ``entry`` is None for a keep-alive, ``send`` for a question (22).

    ``covers``: its content has what was logged before this position.
    """

    __slots__ = ("covers", "entry", "send", "size")

    def __init__(
        self, entry: Entry | None, send: Send | None, size: int, covers: BinlogPosition
    ) -> None:
        self.entry = entry
        self.send = send
        self.size = size
        self.covers = covers


class Row:
    """Requests that are to be sent over one link, in their order. Close it in any case."""

    def __init__(self, link: PeerLink) -> None:
        self._link = link
        self._pieces: deque[bytes | memoryview | Request] = deque()

    def __bool__(self) -> bool:
        return bool(self._pieces)

    @property
    def first(self) -> Request | None:
        """The request whose file is being sent, None while it is something else."""
        piece = self._pieces[0] if self._pieces else None
        return piece if isinstance(piece, Request) else None

    def add(self, requests: Iterable[Request]) -> None:
        """Put *requests* at the end; the row closes them."""
        out: list[Content] = []
        size = 0
        for request in requests:
            out += (request.data, request.content)
            size += len(request.data) + len(request.content)
            if request.fd >= 0 or size >= _SEND_BYTES:
                self._pieces.append(b"".join(out))
                out, size = [], 0
                if request.fd >= 0:
                    self._pieces.append(request)
        if out:
            self._pieces.append(b"".join(out))

    def send_nowait(self) -> None:
        """Send up to where it would have to wait, or to a file. Raises ConnectionBroken."""
        pieces = self._pieces
        while pieces:
            piece = pieces[0]
            if isinstance(piece, Request):
                return
            sent = self._link.send_nowait(piece)
            if sent < len(piece):
                pieces[0] = memoryview(piece)[sent:]
                return
            pieces.popleft()

    async def send(self) -> None:
        """Send everything. Raises as `PeerLink.send_file`; ``first`` says which file it was."""
        pieces, link = self._pieces, self._link
        while pieces:
            piece = pieces[0]
            if isinstance(piece, Request):
                before = 0
                for head, offset, count in piece.pieces:
                    await link.send(head, more=True)
                    await link.send_file(piece.fd, offset, count, before=before)
                    before += count
                piece.close()
                pieces.popleft()
            else:
                pieces.popleft()
                await link.send(piece, more=bool(pieces))

    def close(self) -> None:
        """Close the files that were not sent."""
        for piece in self._pieces:
            if isinstance(piece, Request):
                piece.close()
        self._pieces.clear()

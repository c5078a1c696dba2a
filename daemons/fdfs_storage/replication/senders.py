"""Who brings changes to this storage, and up to when what they changed is here."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from fdfsfuse.errors import ProtocolError

if TYPE_CHECKING:
    from fdfsfuse.server.connection import FramedConnection


class Senders:
    """The members of the group as senders of changes.

    Args:
        member_at: the id of the member with an ip, '' for none: for connections without a 9.

    Attributes:
        timestamps: storage id -> timestamp of the newest record received from it.
    """

    def __init__(self, group: str, member_at: Callable[[str], str]) -> None:
        self.timestamps: dict[str, int] = {}
        self._group = group
        self._member_at = member_at

    def check_group(self, group: str) -> None:
        """Raise ProtocolError unless a request is for the group of this storage."""
        if group != self._group:
            raise ProtocolError(f"group {group!r} is not ours")

    def of(self, connection: FramedConnection) -> str:
        """The id of the member that sends; '' when it is not known."""
        if not connection.storage_id:
            connection.storage_id = self._member_at(connection.peer_ip)
        return connection.storage_id

    def heard(self, connection: FramedConnection, timestamp: int) -> None:
        """A record was dealt with: the sender's changes are here up to its time."""
        source = self.of(connection)
        if source and timestamp > self.timestamps.get(source, 0):
            self.timestamps[source] = timestamp


async def receive_small(connection: FramedConnection, length: int, limit: int) -> bytes:
    """A body that is small by nature. Raises ProtocolError when it is longer than *limit*."""
    if length > limit:
        raise ProtocolError(f"a body of {length} bytes, where {limit} are allowed")
    return await connection.recv_exactly(length)

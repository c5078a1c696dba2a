"""Files that could not be brought to a peer: this storage cannot read them, or its file system has
no files as large.

One bad sector must not keep everything behind it from being replicated, and what is left out must
not be forgotten: each such file is listed beside the peer's mark, one line as in the binlog. The
list is written before the mark goes on, so a crash may repeat a line but never lose one. The files
are tried again, whole, when the peer has everything else.
"""

from __future__ import annotations

import logging
from collections.abc import Collection
from typing import Final

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.binlog import BinlogRecord, decode_line

logger = logging.getLogger(__name__)

AGAIN_S: Final = 600.0
"""How long until what could not be read is tried again."""


class Unreadable:
    """The list for one peer.

    Attributes:
        changed: whether it is to be written.
    """

    def __init__(self, peer_id: str, text: bytes = b"") -> None:
        self._peer_id = peer_id
        self._records: dict[str, BinlogRecord] = {}
        self.changed = False
        for line in text.splitlines():
            try:
                record = decode_line(line)
            except ProtocolError as exc:
                logger.warning("the files not brought to %s: %s", peer_id, exc)
            else:
                self._records[record.name] = record

    def __contains__(self, name: str) -> bool:
        return name in self._records

    @property
    def records(self) -> Collection[BinlogRecord]:
        """One record of each file."""
        return self._records.values()

    def encode(self) -> bytes:
        """The list, as the file has it."""
        return b"".join(record.encode() for record in self.records)

    def add(self, record: BinlogRecord, problem: OSError) -> None:
        """The peer does not get the file of *record*."""
        if record.name not in self._records:
            self._records[record.name] = record
            self.changed = True
            logger.error(
                "%s cannot be brought to %s: %s; it is tried again later",
                record.name,
                self._peer_id,
                problem,
            )

    def remove(self, name: str) -> None:
        """The peer has the file now, or it does not exist any more."""
        if self._records.pop(name, None) is not None:
            self.changed = True
            logger.warning("%s is dealt with: it could be brought now, or is gone", name)

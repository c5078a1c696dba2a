"""How much of its changes a storage has not brought to a peer yet, and how long that may take."""

from __future__ import annotations

from dataclasses import dataclass

from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto import binlog as ops
from fdfsfuse.proto.binlog import BinlogRecord
from fdfsfuse.proto.fileid import decode_name


@dataclass(frozen=True, slots=True)
class Backlog:
    """``records`` and the bytes of their contents; ``oldest`` is the timestamp of the first record
    (Unix seconds), 0 when there is none."""

    records: int = 0
    content_bytes: int = 0
    oldest: int = 0

    def scaled(self, factor: float) -> Backlog:
        """What *factor* times as much of the binlog would be."""
        return Backlog(
            round(self.records * factor), round(self.content_bytes * factor), self.oldest
        )

    def delay_s(self, now: float) -> float:
        """Age of the oldest change at Unix time *now*."""
        return max(0.0, now - self.oldest) if self.records else 0.0

    def estimate_s(self, rate: float) -> float | None:
        """Seconds until it is done at *rate* records per second; None when nothing gets on."""
        if not self.records:
            return 0.0
        return self.records / rate if rate > 0 else None


def content_bytes(record: BinlogRecord) -> int:
    """Bytes that a record brings to a peer, as far as it tells: appenders start empty."""
    kind = record.op.upper()
    if kind in (ops.APPEND, ops.MODIFY):
        return record.numbers[1]
    if kind != ops.CREATE:
        return 0
    try:
        return decode_name(record.name).size
    except ProtocolError:
        return 0

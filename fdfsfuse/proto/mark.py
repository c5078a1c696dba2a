"""Mark files: how far a storage has brought its binlog to one peer (protocol/disk.md section 6)."""

from __future__ import annotations

from dataclasses import dataclass

from fdfsfuse.errors import ProtocolError

MARK_SUFFIX = ".mark"


@dataclass(frozen=True, slots=True)
class Mark:
    """``binlog_index`` and ``binlog_offset`` are where the next record to read begins.

    ``need_sync_old``: we are the source of the peer's initial copy, ``sync_old_done``: it is
    complete, ``until``: records by others count for it up to this time (Unix seconds).
    ``scanned`` and ``sent`` count records.
    """

    index: int = 0
    offset: int = 0
    need_sync_old: bool = False
    sync_old_done: bool = False
    until: int = 0
    scanned: int = 0
    sent: int = 0

    @property
    def copies_old(self) -> bool:
        """True while the initial copy is being made."""
        return self.need_sync_old and not self.sync_old_done

    def encode(self) -> bytes:
        """The file's content."""
        return (
            f"binlog_index={self.index}\n"
            f"binlog_offset={self.offset}\n"
            f"need_sync_old={self.need_sync_old:d}\n"
            f"sync_old_done={self.sync_old_done:d}\n"
            f"until_timestamp={self.until}\n"
            f"scan_row_count={self.scanned}\n"
            f"sync_row_count={self.sent}\n"
        ).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> Mark:
        """All seven keys are required. Raises ProtocolError."""
        values: dict[str, int] = {}
        try:
            for line in data.decode("ascii").splitlines():
                key, separator, value = line.partition("=")
                if separator and not line.lstrip().startswith(("#", "[")):
                    values[key.strip()] = int(value)
            return cls(
                values["binlog_index"],
                values["binlog_offset"],
                values["need_sync_old"] != 0,
                values["sync_old_done"] != 0,
                values["until_timestamp"],
                values["scan_row_count"],
                values["sync_row_count"],
            )
        except (ValueError, KeyError) as exc:
            raise ProtocolError(f"no mark file: {exc!r}") from exc


def mark_name(peer_id: str, own_port: int, *, by_id: bool) -> str:
    """File name of the mark of a peer; *by_id*: the cluster uses storage ids."""
    return f"{peer_id}{MARK_SUFFIX}" if by_id else f"{peer_id}_{own_port}{MARK_SUFFIX}"

"""Recovery of a lost disk: command 26, and the files that keep its progress.

Source: protocol/cluster.md section 7, protocol/disk.md section 8. The files are in
``STORE_PATH/data`` while a recovery runs; a C server may begin it and we end it, or the other way
round.

======================== =========================================================================
file                     content
======================== =========================================================================
.recovery.flag           `RecoveryFlag`
.binlog.recovery.N       the list that 26 answers: binlog lines with the ops C, c, L, l
.recovery.mark.N         ``binlog_offset=<bytes of that list that are done>``
======================== =========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

from fdfsfuse.proto.header import GROUP_NAME_SIZE, expect_size, pack_text, unpack_group
from fdfsfuse.proto.tracker import ServerStatus

FETCH_PATH_BINLOG = 26
STREAM_LENGTH = 1 << 58
"""The length in the header of the answer: it ends with 8 bytes that tell how much text there was,
and the end of the connection."""
COUNT_SIZE = 8
REQUEST_SIZE = GROUP_NAME_SIZE + 1

FLAG_NAME = ".recovery.flag"
LIST_PREFIX = ".binlog.recovery."
MARK_PREFIX = ".recovery.mark."


@dataclass(frozen=True, slots=True)
class PathBinlogRequest:
    """Request of 26: group 16, store path index 1."""

    group: str
    path_index: int

    def encode(self) -> bytes:
        """17 bytes."""
        return pack_text(self.group, GROUP_NAME_SIZE) + bytes((self.path_index,))

    @classmethod
    def decode(cls, body: bytes) -> PathBinlogRequest:
        """Raises ProtocolError."""
        expect_size("a request for a list of files", body, REQUEST_SIZE)
        return cls(unpack_group(body[:GROUP_NAME_SIZE]), body[GROUP_NAME_SIZE])


@dataclass(frozen=True, slots=True)
class RecoveryFlag:
    """``saved_status`` is the storage's status before, NONE (99) until it is known. ``list_done``
    tells that the list is complete. ``parts`` is the number of lists that it was split into.
    """

    saved_status: ServerStatus = ServerStatus.NONE
    list_done: bool = False
    parts: int = 1

    def encode(self) -> bytes:
        """The text of the file."""
        return (
            f"saved_storage_status={self.saved_status.value}\n"
            f"fetch_binlog_done={int(self.list_done)}\n"
            f"recovery_threads={self.parts}\n"
        ).encode("ascii")

    @classmethod
    def decode(cls, text: bytes) -> RecoveryFlag:
        """What cannot be read is as at the beginning: that part is done again."""
        values = _values(text)
        try:
            status = ServerStatus(values.get("saved_storage_status", ServerStatus.NONE))
        except ValueError:
            status = ServerStatus.NONE
        done = values.get("fetch_binlog_done") == 1
        return cls(status, done, max(1, values.get("recovery_threads", 1)))


def encode_mark(offset: int) -> bytes:
    """The text of a mark file."""
    return f"binlog_offset={offset}\n".encode("ascii")


def decode_mark(text: bytes) -> int:
    """The offset; 0 when it cannot be read."""
    return max(0, _values(text).get("binlog_offset", 0))


def _values(text: bytes) -> dict[str, int]:
    values: dict[str, int] = {}
    for line in text.decode("ascii", "replace").splitlines():
        key, _, value = line.partition("=")
        if value.strip().isdigit():
            values[key.strip()] = int(value)
    return values

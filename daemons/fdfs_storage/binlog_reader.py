"""Reads a binlog from some position on, again and again as it grows; see `fdfs_storage.binlog`."""

from __future__ import annotations

import gzip
import logging
import os
from pathlib import Path
from typing import BinaryIO

from fdfs_storage.binlog import Binlog, BinlogPosition, binlog_path
from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.binlog import BinlogRecord, decode_line

logger = logging.getLogger(__name__)

_BLOCK = 64 << 10
_FED_MAX = 4096


class BinlogReader:
    """One reader. Closed by whoever made it.

    Attributes:
        position: of the next record.
    """

    def __init__(self, binlog: Binlog, position: BinlogPosition) -> None:
        self.position = position
        self._binlog = binlog
        self._file: BinaryIO | None = None
        self._lines: list[bytes] = []
        self._next = 0
        self._end = position  # behind the last of the lines

    def feed(self, lines: bytes, start: BinlogPosition) -> None:
        """Take *lines*, which were just appended at *start*, so that they are not read from the
        file. They are not taken when what is before them has to be read first, or many wait."""
        if start == self._end and len(self._lines) - self._next < _FED_MAX:
            if self._next == len(self._lines):
                self._lines.clear()
                self._next = 0
            self._lines += lines.splitlines(keepends=True)
            self._end = BinlogPosition(start.number, start.offset + len(lines))

    def skip_to(self, position: BinlogPosition) -> None:
        """Go on at *position*, the end of the binlog; nothing was fed and not read."""
        self.position = self._end = position

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def read(self, limit: int) -> list[tuple[BinlogRecord | None, BinlogPosition]]:
        """Up to *limit* records, each with the position behind it; empty at the end.

        Lines that are no records are None: C servers write some (protocol/cluster.md 5.6).
        """
        records: list[tuple[BinlogRecord | None, BinlogPosition]] = []
        while len(records) < limit:
            if self._next == len(self._lines) and not self._fill():
                break
            line = self._lines[self._next]
            self._next += 1
            number, offset = self.position
            self.position = BinlogPosition(number, offset + len(line))
            try:
                record: BinlogRecord | None = decode_line(line)
            except ProtocolError as exc:
                logger.warning("binlog.%03d offset %d skipped: %s", number, offset, exc)
                record = None
            records.append((record, self.position))
        return records

    def _fill(self) -> bool:
        """Read whole lines; False at the end of the binlog."""
        while self.position < self._binlog.position:
            number, offset = self.position
            data = self._read_block(number, offset)
            end = data.rfind(b"\n") + 1
            if end:
                self._lines = data[:end].splitlines(keepends=True)
                self._next = 0
                self._end = BinlogPosition(number, offset + end)
                return True
            if number >= self._binlog.position.number:
                return False
            self.close()
            self.position = self._end = BinlogPosition(number + 1, 0)
        return False

    def _read_block(self, number: int, offset: int) -> bytes:
        if self._file is None:
            try:
                self._file = open_binlog(self._binlog.directory, number)
            except FileNotFoundError:
                path = binlog_path(self._binlog.directory, number)
                logger.warning("%s is missing: its records are skipped", path)
                return b""
            self._file.seek(offset)
        elif self._file.tell() != offset:
            self._file.seek(offset)
        return self._file.read(_BLOCK)


def open_binlog(directory: Path, number: int) -> BinaryIO:
    """A binlog file, also one that a C server has compressed. Raises OSError."""
    path = binlog_path(directory, number)
    packed = path.with_name(path.name + ".gz")
    if not path.exists() and packed.exists():
        return gzip.open(packed)  # type: ignore[return-value]
    return path.open("rb", buffering=0)


def usable_position(binlog: Binlog, position: BinlogPosition) -> BinlogPosition:
    """*position*, or the nearest one before it at which a line begins.

    A position behind the end comes from a binlog that has lost its tail (a machine that lost its
    power): everything that is left had been sent, so it is the end. Reads; call it in a thread.
    """
    end = binlog.position
    if position > end:
        logger.warning(
            "a mark at %s is behind the end of the binlog, which was cut off: going on at %s",
            position,
            end,
        )
        return end
    number, offset = position
    if number < 0 or offset <= 0:
        return BinlogPosition(max(number, 0), 0)
    start = max(0, offset - 4096)
    try:
        with open_binlog(binlog.directory, number) as file:
            file.seek(start)
            before = file.read(offset - start)
    except OSError:
        return position
    usable = start + before.rfind(b"\n") + 1
    if usable != offset:
        logger.warning("a mark at %s is inside of a line: going on at its start", position)
    return BinlogPosition(number, usable)


def find_time(binlog: Binlog, timestamp: int) -> BinlogPosition:
    """Where the first record with *timestamp* or a later one begins. Reads; call it in a thread."""
    before = BinlogPosition(0, 0)
    for record, behind in binlog.read(before):
        if record.timestamp >= timestamp:
            return before
        before = behind
    return before


def count_bytes(directory: Path, start: BinlogPosition, end: BinlogPosition) -> int:
    """Bytes of binlog between two positions."""
    total = 0
    for number in range(start.number, end.number):
        try:
            total += os.stat(binlog_path(directory, number)).st_size
        except OSError:
            continue
    return max(0, total + end.offset - start.offset)

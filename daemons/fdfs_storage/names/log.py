"""The files of the names log: ``log.<first index>`` in the names directory.

The first index is written with 20 digits, so that names sort as numbers do. A segment holds
records (`fdfsfuse.proto.names_record`) without gaps and ends where the next one starts. Records
are appended to the last segment only, one write and one fdatasync for a whole batch.

The last segment is kept longer than its records, with zeros: a write that makes a file longer
cannot be synced without a commit of the file system's journal, and that waits for everything else
that was written, such as the objects of the changes before.

What is found when a log is opened after a crash: the last segment may end in a torn record, which
is cut off (nobody was answered before the sync that would have completed it). Anything else that
is wrong, e.g. a segment that is missing in between, is damage and refused.
"""

from __future__ import annotations

import logging
import os
import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from pathlib import Path

from fdfs_storage.background_sync import BackgroundSync
from fdfs_storage.files import pwrite_all, sync_directory
from fdfsfuse.core.names_log import Position
from fdfsfuse.errors import FdfsError
from fdfsfuse.proto.names_record import Reader, Record, pack_header

logger = logging.getLogger(__name__)

SEGMENT_SIZE = 64 << 20
"""A segment that has reached this many bytes is followed by a new one."""
_AHEAD = 1 << 20
"""Zeros written ahead of the records at a time; a batch of that size is simply appended."""
_NAME = re.compile(r"log\.([0-9]{20})\Z")
_IOV_MAX = 1024


class LogDamaged(FdfsError):
    """The log cannot be continued without losing something that was acknowledged."""


def segment_name(first: int) -> str:
    """File name of the segment whose first record is *first*."""
    return f"log.{first:020d}"


class Log:
    """The log of one storage. One user at a time; `append` may run in a worker thread.

    Attributes:
        last: position of the last record, or what the state has applied when the log is empty.
        size: bytes in the last segment.
        segments: first indexes of the segments, oldest first.
    """

    def __init__(self, directory: Path, segment_size: int = SEGMENT_SIZE) -> None:
        self._directory = directory
        self._segment_size = segment_size
        self._fd = -1
        self.size = 0
        self._end = 0  # of the file, zeros included
        self._background = BackgroundSync()
        self.segments: list[int] = []
        self.last = Position(0, 0)

    # --- opening ----------------------------------------------------------------------------

    def open(self, applied: Position) -> Iterator[Record]:
        """Read the log, cut a torn tail, get ready to append; yields the records behind *applied*.

        Must be read to its end before anything is appended.

        Raises:
            LogDamaged: records behind *applied* are missing or damaged, others follow them.
        """
        found = (_NAME.match(name) for name in os.listdir(self._directory))
        segments = sorted(int(match[1]) for match in found if match)
        # Segments that the state has outlived entirely need not even be readable.
        while len(segments) > 1 and segments[1] <= applied.index + 1:
            self.segments.append(segments.pop(0))
        if segments and segments[0] > applied.index + 1:
            raise LogDamaged(
                f"{self._directory}: records {applied.index + 1} to {segments[0] - 1} are missing"
            )
        self.last = applied
        for number, first in enumerate(segments):
            yield from self._read(first, applied, is_last=number == len(segments) - 1)
        if self._fd < 0:
            self._start_segment()

    def _read(self, first: int, applied: Position, *, is_last: bool) -> Iterator[Record]:
        path = self._directory / segment_name(first)
        reader = Reader(path.read_bytes())
        expected = first
        for record in reader:
            if record.index != expected:
                raise LogDamaged(f"{path}: record {record.index} where {expected} belongs")
            expected += 1
            if record.index > applied.index:
                if record.view < self.last.view:
                    raise LogDamaged(f"{path}: record {record.index} is of an older view")
                self.last = Position(record.view, record.index)
                yield record
        self.segments.append(first)
        if not is_last:
            following = self._first_after(first)
            if reader.tail.lost or expected != following:
                problem = reader.tail.problem or "records are missing"
                raise LogDamaged(
                    f"{path}: {problem}: {reader.tail.lost} bytes"
                    f" behind record {expected - 1} cannot be read, and newer segments follow"
                )
            return
        if reader.tail.lost:
            logger.warning(
                "%s: %s: %d bytes behind record %d cut off",
                path,
                reader.tail.problem,
                reader.tail.lost,
                expected - 1,
            )
        if expected - 1 < applied.index:
            # The state knows more than is left of the log; go on behind it in a new segment.
            logger.warning(
                "%s ends before record %d, which the database has: nothing is lost",
                path,
                applied.index,
            )
            return
        self._fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
        self.size = reader.tail.offset
        if reader.tail.lost:
            os.ftruncate(self._fd, self.size)
        self._end = os.fstat(self._fd).st_size
        os.fsync(self._fd)

    def _first_after(self, first: int) -> int:
        names = (_NAME.match(name) for name in os.listdir(self._directory))
        return min(index for index in (int(m[1]) for m in names if m) if index > first)

    def _start_segment(self) -> None:
        """Make the segment of the next record the one that is appended to."""
        self._close_segment()
        first = self.last.index + 1
        path = self._directory / segment_name(first)
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o640)
        # Without its name a synced segment would be lost with the power.
        sync_directory(self._directory)
        if first not in self.segments:
            self.segments.append(first)
        self.size = self._end = 0

    def _close_segment(self) -> None:
        if self._fd >= 0:
            os.ftruncate(self._fd, self.size)
            os.close(self._fd)
            self._fd = -1

    # --- appending --------------------------------------------------------------------------

    def append(self, records: Sequence[Record]) -> None:
        """`write` and `sync` records. Blocks; OSError: see `cut`."""
        self.write(records)
        self.sync()

    def write(self, records: Sequence[Record]) -> None:
        """Write *records* behind the last one; they count when they are synced. OSError: `cut`."""
        if self.size >= self._segment_size:
            self._start_segment()
        parts: list[bytes] = []
        for record in records:
            parts.append(pack_header(record.view, record.index, record.payload))
            parts.append(record.payload)
        self._lengthen(sum(map(len, parts)))
        for start in range(0, len(parts), _IOV_MAX):
            self._write(parts[start : start + _IOV_MAX])
        self.last = Position(records[-1].view, records[-1].index)

    def start_sync(self) -> None:
        """Let the disk begin with what `sync` waits for, and go on meanwhile."""
        self._background.start(self._fd)

    def sync(self) -> None:
        """Make what was written survive the loss of power. Blocks; OSError: see `cut`."""
        self._background.wait(self._fd)

    def _lengthen(self, count: int) -> None:
        """Have zeros where *count* bytes will be written, if these are few."""
        if self.size + count > self._end and count < _AHEAD:
            pwrite_all(self._fd, bytes(_AHEAD), self._end)
            self._end += _AHEAD

    def _write(self, parts: list[bytes]) -> None:
        total = sum(map(len, parts))
        written = os.pwritev(self._fd, parts, self.size)
        if written < total:
            rest = memoryview(b"".join(parts))[written:]
            pwrite_all(self._fd, rest, self.size + written)
        self.size += total
        self._end = max(self._end, self.size)

    def mark(self) -> tuple[Position, int]:
        """Where the log ends now, for `cut`."""
        return self.last, self.size

    def cut(self, mark: tuple[Position, int]) -> None:
        """Cut off what was appended, or written in part, since *mark*, durably.

        When this fails too, nobody knows what a restart will find: the caller must stop.
        """
        last, size = mark
        self._background.finish()
        if self.segments[-1] > last.index + 1:
            raise LogDamaged("the log cannot be cut across segments")
        if self.segments[-1] == last.index + 1:
            size = 0
        os.ftruncate(self._fd, size)
        os.fsync(self._fd)
        self.last, self.size, self._end = last, size, size

    def retained(self, last: int, *, after: int = 0) -> Iterator[Record]:
        """The records that are still there, oldest first, from behind *after* up to *last*."""
        for first in self.segments[bisect_right(self.segments, after + 1) - 1 :]:
            path = self._directory / segment_name(first)
            for record in Reader(path.read_bytes()):
                if record.index > last:
                    return
                if record.index > after:
                    yield record

    # --- trimming ---------------------------------------------------------------------------

    def trimmable(self, applied: int) -> list[int]:
        """Segments that hold nothing behind record *applied*; never the one appended to."""
        return [
            first
            for first, following in zip(self.segments, self.segments[1:], strict=False)
            if following <= applied + 1
        ]

    def trim(self, segments: Sequence[int]) -> None:
        """Remove *segments*, oldest first, so that a crash leaves no hole."""
        for first in sorted(segments):
            os.unlink(self._directory / segment_name(first))
            self.segments.remove(first)
        sync_directory(self._directory)

    def close(self) -> None:
        """Close the file; everything appended is synced already."""
        self._background.close()
        self._close_segment()

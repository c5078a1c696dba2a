"""The storage's binlog on disk: ``base_path/data/sync/binlog.NNN`` and ``binlog_index.dat``.

Format: protocol/disk.md section 5; lines: `fdfsfuse.proto.binlog`. A line is in the file (not in
a buffer of ours) when `Binlog.append` returns, so kill -9 loses none. On start a torn last line,
which a crash of the machine may leave, is cut off.
"""

from __future__ import annotations

import errno
import gzip
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from fdfs_storage.files import replace_file
from fdfsfuse.errors import ProtocolError
from fdfsfuse.proto.binlog import FILE_SIZE_MAX, BinlogRecord, decode_line

logger = logging.getLogger(__name__)

_BLOCK = 64 << 10
_new = tuple.__new__


class BinlogPosition(NamedTuple):
    """A place in the binlog: number of the file and byte offset of a line's start."""

    number: int
    offset: int


class Binlog:
    """The writer. Used by the loop thread only.

    Attributes:
        directory: where its files are.
        position: where the next line will be written.
        on_append: called after each append with the lines and where they begin, and with none
            when a new file was begun; must be quick and not raise.
    """

    def __init__(self, directory: Path, index: int, compress_index: int) -> None:
        self.directory = directory
        self.position = BinlogPosition(index, 0)
        self._compress_index = compress_index
        self._fd = -1
        self._previous_fd = -1
        self.on_append: Callable[[bytes, BinlogPosition], None] = _nothing
        self._open(index)

    @classmethod
    def open(cls, base_path: Path) -> Binlog:
        """Continue the binlog below *base_path*, or begin one.

        Raises:
            OSError: the files cannot be read or written.
        """
        directory = base_path / "data" / "sync"
        directory.mkdir(parents=True, exist_ok=True)
        _end_compression(directory)
        index, compress_index = _read_index(directory)
        binlog = cls(directory, index, compress_index)
        binlog._cut_torn_line()
        binlog._write_index()
        return binlog

    def append(self, lines: bytes) -> None:
        """Write whole *lines* through to the file.

        Raises:
            OSError: they could not be written; then nothing of them stays.
        """
        start = self.position
        offset = start.offset
        written = os.write(self._fd, lines)
        if written != len(lines):
            os.ftruncate(self._fd, offset)
            raise OSError(errno.ENOSPC, "no space for the binlog")
        offset += written
        self.position = _new(BinlogPosition, (start.number, offset))
        on_append = self.on_append
        on_append(lines, start)
        if offset >= FILE_SIZE_MAX:
            self._rotate()

    def sync(self) -> None:
        """Make all that was appended survive the loss of power. May be called in a thread."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the files."""
        for fd in (self._fd, self._previous_fd):
            if fd >= 0:
                os.close(fd)
        self._fd = self._previous_fd = -1

    def _open(self, number: int) -> None:
        path = binlog_path(self.directory, number)
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        self._fd = os.open(path, flags, 0o644)
        self.position = BinlogPosition(number, os.fstat(self._fd).st_size)

    def _rotate(self) -> None:
        old = self._fd
        try:
            self._open(self.position.number + 1)
        except OSError:
            # Going on in the old file is right too; the next append tries again.
            logger.exception("cannot begin the next binlog file")
            return
        # A thread may be about to sync the old file, so it stays open until the next rotation.
        os.fdatasync(old)
        if self._previous_fd >= 0:
            os.close(self._previous_fd)
        self._previous_fd = old
        self._write_index()
        self.on_append(b"", self.position)

    def _write_index(self) -> None:
        text = f"current_write={self.position.number}\ncurrent_compress={self._compress_index}\n"
        replace_file(self.directory / "binlog_index.dat", text.encode())

    def _cut_torn_line(self) -> None:
        number, size = self.position
        end = size
        while end:
            start = max(0, end - _BLOCK)
            newline = os.pread(self._fd, end - start, start).rfind(b"\n")
            if newline >= 0:
                end = start + newline + 1
                break
            end = start
        if end != size:
            path = binlog_path(self.directory, number)
            logger.warning("cut %d bytes of a torn line off %s", size - end, path)
            os.ftruncate(self._fd, end)
            self.position = BinlogPosition(number, end)

    def tail_lines(self, size: int) -> list[bytes]:
        """The whole lines in the last *size* bytes of the current file and the one before it.

        A line of which a start has to take care may be the last one of a file.
        """
        number, end = self.position
        lines = _last_lines(self._fd, end, size)
        if end < size and number:
            try:
                with binlog_path(self.directory, number - 1).open("rb") as before:
                    fd = before.fileno()
                    lines = _last_lines(fd, os.fstat(fd).st_size, size - end) + lines
            except FileNotFoundError:
                pass  # removed, or compressed by a C server
        return lines

    def tail(self, size: int = _BLOCK) -> list[BinlogRecord]:
        """The records of `tail_lines`; malformed lines are skipped."""
        records = []
        for line in self.tail_lines(size):
            try:
                records.append(decode_line(line))
            except ProtocolError:
                continue
        return records

    def read(self, position: BinlogPosition) -> Iterator[tuple[BinlogRecord, BinlogPosition]]:
        """Records from *position* (a line's start) to the end as it is now.

        Yields each record with the position behind it. Malformed lines are skipped with a
        warning. Files that a C server compressed are read too.
        """
        for index in range(position.number, self.position.number + 1):
            offset = position.offset if index == position.number else 0
            for line, behind in _lines(self.directory, index, offset):
                try:
                    record = decode_line(line)
                except ProtocolError as exc:
                    logger.warning("binlog.%03d offset %d skipped: %s", index, offset, exc)
                    continue
                yield record, BinlogPosition(index, behind)


def _nothing(lines: bytes, start: BinlogPosition) -> None:
    """Nobody waits for appends."""


def binlog_path(directory: Path, index: int) -> Path:
    """Path of the binlog file with number *index*: ``binlog.000``."""
    return directory / f"binlog.{index:03d}"


def _last_lines(fd: int, end: int, size: int) -> list[bytes]:
    """The whole lines in the last *size* bytes before *end*."""
    start = max(0, end - size)
    data = os.pread(fd, end - start, start)
    if start:
        data = data[data.find(b"\n") + 1 :]
    return data.splitlines(keepends=True)


def _numbers(directory: Path) -> list[int]:
    """Numbers of the files that are there, not compressed."""
    names = [path.suffix[1:] for path in directory.glob("binlog.*")]
    return [int(name) for name in names if name.isdigit()]


def _end_compression(directory: Path) -> None:
    """Undo what a C server that crashed was doing: of a file and its ``.gz`` one is not whole."""
    for flag in directory.glob(".binlog.*.flag"):
        plain = directory / flag.name[1 : -len(".flag")]
        packed = plain.with_name(plain.name + ".gz")
        if plain.exists() and packed.exists():
            unpacking = flag.read_bytes().strip() == b"unzip"
            (plain if unpacking else packed).unlink()
        flag.unlink()


def _lines(directory: Path, index: int, offset: int) -> Iterator[tuple[bytes, int]]:
    """Whole lines of one file from *offset*, each with the offset behind it."""
    path = binlog_path(directory, index)
    packed = path.with_name(path.name + ".gz")
    with gzip.open(packed) if not path.exists() and packed.exists() else path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield line, offset


def _read_index(directory: Path) -> tuple[int, int]:
    """(current_write, current_compress); 0, 0 when there is no binlog yet.

    Without the index, that of FastDFS before V6 counts, or the newest file.
    """
    try:
        text = (directory / "binlog_index.dat").read_text("ascii", "replace")
    except FileNotFoundError:
        try:
            number = (directory / "binlog.index").read_text("ascii", "replace").strip()
        except FileNotFoundError:
            return max(_numbers(directory), default=0), 0
        text = f"current_write={number}"
    values = dict(line.replace(" ", "").partition("=")[::2] for line in text.splitlines())
    numbers = [values.get(key, "0") for key in ("current_write", "current_compress")]
    if not all(number.isdigit() for number in numbers):
        raise OSError(errno.EINVAL, f"{directory}/binlog_index.dat is damaged: {text!r}")
    return int(numbers[0]), int(numbers[1])

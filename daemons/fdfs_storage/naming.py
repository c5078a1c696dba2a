"""Where new files go and what they are called (protocol/file-id.md, wire.md section 4)."""

from __future__ import annotations

import errno
import random
from collections.abc import Sequence

from fdfs_storage import directories
from fdfs_storage.counters import Counters
from fdfs_storage.space import Space
from fdfsfuse.errors import StatusError
from fdfsfuse.proto.fileid import (
    RANDOM_MASK,
    Location,
    encode_base,
    encode_source,
    make_suffix,
    sub_directory,
)

NAME_TRIES = 10
_SUFFIX_BITS = 25
_new = tuple.__new__


class Naming:
    """Chooses store path, sub directory and name of new files.

    Args:
        counters: hold the place of the round robin over sub directories.
        writable: for each store path, whether it takes new files.
        by_hash: sub directories by a hash of the name instead of in turns.
        rotate_count: files in one sub directory before it is the next one's turn.
    """

    def __init__(
        self,
        counters: Counters,
        space: Space,
        writable: Sequence[bool],
        *,
        subdir_count: int,
        by_hash: bool,
        rotate_count: int,
        rng: random.Random | None,
    ) -> None:
        self._counters = counters
        self._space = space
        self._writable = list(writable)
        self._subdir_count = subdir_count
        self._by_hash = by_hash
        self._rotate_count = rotate_count
        self._draw = (rng or random.Random()).getrandbits
        # Of the random bits of names, only the first are drawn, and then counted up: so a name is
        # never given twice, even if its first object is deleted at once. From 4 GiB up names have
        # no such bits: whoever makes them looks whether there is an object of that name.
        self._number = self._draw(32)
        self._source = b""
        self._next_path = 0
        indexes = list(range(len(writable)))
        self._orders = [indexes[start:] + indexes[:start] for start in indexes]
        self._prefer_most_free = False
        counters.dist_path_index_high %= subdir_count
        counters.dist_path_index_low %= subdir_count
        self._enter_directory()

    def configure(self, source: str, *, prefer_most_free: bool) -> None:
        """Set what goes into names as their source, and how a store path is chosen."""
        self._source = encode_source(source)
        self._prefer_most_free = prefer_most_free

    def choose_path(self, wanted: int | None, size: int) -> int:
        """The store path for an upload of *size* bytes. Raises StatusError 28."""
        space = self._space
        if wanted is not None and self._writable[wanted]:
            if not space.fits(wanted, size):
                raise StatusError(errno.ENOSPC)
            return wanted
        count = len(self._writable)
        if self._prefer_most_free:
            order = sorted(range(count), key=lambda index: -space.paths()[index].free_mb)
        else:
            start = self._next_path
            self._next_path = (start + 1) % count
            order = self._orders[start]
        for index in order:
            if self._writable[index] and space.fits(index, size):
                return index
        raise StatusError(errno.ENOSPC)

    def next_directory(self) -> str:
        """The `Location.directory` of one more file, in turns; file-id.md section 6, mode 0."""
        directory = self._directory
        counters = self._counters
        counters.dist_write_file_count += 1
        if counters.dist_write_file_count >= self._rotate_count:
            counters.dist_write_file_count = 0
            counters.dist_path_index_low += 1
            if counters.dist_path_index_low >= self._subdir_count:
                counters.dist_path_index_low = 0
                counters.dist_path_index_high += 1
                counters.dist_path_index_high %= self._subdir_count
            self._enter_directory()
        return directory

    def _enter_directory(self) -> None:
        counters = self._counters
        self._directory = sub_directory(counters.dist_path_index_high, counters.dist_path_index_low)

    def new_location(
        self,
        index: int,
        directory: str,
        size: int,
        crc32: int,
        mtime: int,
        extension: str,
        appender: bool,
    ) -> Location:
        """A name that was not given before; *directory* counts in mode 0 only."""
        self._number = number = (self._number + 1) & RANDOM_MASK
        draw = self._draw
        suffix = make_suffix(extension, draw(_SUFFIX_BITS))
        base = encode_base(self._source, mtime, size, crc32, suffix, number, appender)
        if self._by_hash:
            directory = directories.next_directory_by_hash(base[:27], self._subdir_count)
        return _new(Location, (index, f"{directory}/{base}"))

    def normal_location(self, old: Location, size: int, crc32: int, mtime: int) -> Location:
        """A normal name in the directory, and with the last 7 characters, of the appender *old*."""
        self._number = number = (self._number + 1) & RANDOM_MASK
        base = encode_base(self._source, mtime, size, crc32, old.base[-7:], number)
        return Location(old.path_index, f"{old.directory}/{base}")

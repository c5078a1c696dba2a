"""Inode numbers of the mount, and which of them the kernel knows.

::

    1                                    the root of the mount
    volume << 48 | ino                   inode `ino` of a volume's tree; 1 is the volume's root
    volume << 48 | 1 << 47 | counter     an unnamed object, for as long as the kernel knows it
    volume << 48 | 3 << 46 | path        a directory of M00; path = level, store path, high, low

When the mount shows one directory of one volume, that directory is an alias as well: number 1.

An unnamed object that gets a name keeps its number (an *alias* of its inode number) until the
kernel forgets it, so that handles and cached entries stay right.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

ROOT = 1
VOLUME_SHIFT = 48
INO_MASK = (1 << VOLUME_SHIFT) - 1
DYNAMIC = 1 << 47
_DIRECTORY = 1 << 46
MAX_VOLUMES = (1 << 15) - 1


class IdDirectory(NamedTuple):
    """A directory of the id tree: ``level`` 0 is ``M00``, 1 ``M00/HH``, 2 ``M00/HH/HH``."""

    level: int
    store_path: int
    high: int = 0
    low: int = 0

    @property
    def path(self) -> str:
        """As in ListObjects: ``M00/0C``."""
        parts = (f"M{self.store_path:02X}", f"{self.high:02X}", f"{self.low:02X}")
        return "/".join(parts[: self.level + 1])

    def child(self, number: int) -> IdDirectory:
        """The directory below that is called *number*; only for levels 0 and 1."""
        if self.level == 0:
            return IdDirectory(1, self.store_path, number)
        return IdDirectory(2, self.store_path, self.high, number)


def volume_of(number: int) -> int:
    """The volume's number; 0 for the root of the mount."""
    return number >> VOLUME_SHIFT


def id_directory_number(volume: int, directory: IdDirectory) -> int:
    """The number of a directory of the id tree."""
    level, store_path, high, low = directory
    packed = level << 24 | store_path << 16 | high << 8 | low
    return volume << VOLUME_SHIFT | DYNAMIC | _DIRECTORY | packed


def id_directory(number: int) -> IdDirectory | None:
    """The inverse of `id_directory_number`; None for other numbers."""
    ino = number & INO_MASK
    if not (ino & DYNAMIC and ino & _DIRECTORY):
        return None
    return IdDirectory(ino >> 24 & 3, ino >> 16 & 255, ino >> 8 & 255, ino & 255)


class Numbers:
    """Lookup counts, and the numbers of unnamed objects.

    Bounded by what the kernel knows: every entry goes when the kernel forgets its number.
    """

    def __init__(self) -> None:
        self._lookups: dict[int, int] = {}
        self._next = 0
        self._by_file_id: dict[tuple[int, str], int] = {}
        self._file_ids: dict[int, str] = {}
        self._aliases: dict[int, int] = {}
        self._inos: dict[int, int] = {}
        self._top_ino = 0

    def __len__(self) -> int:
        return len(self._lookups)

    def of_inode(self, volume: int, ino: int) -> int:
        """The number of inode *ino* of a volume's tree."""
        number = volume << VOLUME_SHIFT | ino
        return self._aliases.get(number, number) if self._aliases else number

    def of_object(self, volume: int, file_id: str) -> int:
        """The number of an unnamed object."""
        key = (volume, file_id)
        number = self._by_file_id.get(key)
        if number is None:
            self._next += 1
            number = volume << VOLUME_SHIFT | DYNAMIC | self._next
            self._by_file_id[key] = number
            self._file_ids[number] = file_id
        return number

    def find_object(self, volume: int, file_id: str) -> int | None:
        """The number of an unnamed object, if it has one."""
        return self._by_file_id.get((volume, file_id))

    def inode_and_object(self, number: int) -> tuple[int, str]:
        """(ino, '') of an inode; (0, file id) of an unnamed object.

        Raises:
            KeyError: a number of an object that nobody knows any more.
        """
        ino = number & INO_MASK
        if not ino & DYNAMIC:
            return (ino, "") if number != ROOT else (self._top_ino, "")
        ino = self._inos.get(number, 0)
        return (ino, "") if ino else (0, self._file_ids[number])

    def put_on_top(self, volume: int, ino: int) -> None:
        """The root of the mount is the directory *ino* of a volume."""
        self._aliases[volume << VOLUME_SHIFT | ino] = ROOT
        self._top_ino = ino

    def adopted(self, volume: int, file_id: str, ino: int) -> None:
        """The object has a name and an inode now; its number stays."""
        number = self._by_file_id.pop((volume, file_id), 0)
        if number:
            self._aliases[volume << VOLUME_SHIFT | ino] = number
            self._inos[number] = ino

    def remember(self, number: int) -> None:
        """The number was given to the kernel in an entry."""
        lookups = self._lookups
        lookups[number] = lookups.get(number, 0) + 1

    def of_volume(self, volume: int) -> list[int]:
        """All numbers of a volume that the kernel may know."""
        numbers = [number for number in self._lookups if volume_of(number) == volume]
        return [ROOT, *numbers] if self._top_ino else numbers

    def known(self, number: int) -> bool:
        """Whether the kernel may know the number."""
        return number in self._lookups or number == ROOT

    def forget(self, counts: Iterable[tuple[int, int]]) -> list[int]:
        """Take lookups back. Returns the numbers that the kernel does not know any more."""
        gone = []
        for number, count in counts:
            left = self._lookups.get(number, 0) - count
            if left > 0:
                self._lookups[number] = left
            else:
                self._lookups.pop(number, None)
                gone.append(number)
        return gone

    def drop(self, number: int) -> None:
        """Release the number of an object that neither the kernel nor an open file needs."""
        file_id = self._file_ids.pop(number, None)
        if file_id is None:
            return
        ino = self._inos.pop(number, 0)
        if ino:
            self._aliases.pop(number & ~INO_MASK | ino, None)
        else:
            self._by_file_id.pop((volume_of(number), file_id), None)

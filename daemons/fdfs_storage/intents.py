"""Changes of objects whose bytes are being received: noted before the first, until they are logged.

A record of the binlog tells replicas what to fetch, so it follows the bytes. When the process dies
in between, the object is changed here, and nobody would ever tell the others: `unfinished` sees
from these notes what to log, or to take back.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from fdfs_storage.files import pwrite_all

NAME: Final = "changing.dat"
_SLOT: Final = 256


class Intent(NamedTuple):
    """``length`` bytes at ``offset`` of an object of ``old_size`` bytes; ``append``: at its end."""

    name: str
    offset: int
    length: int
    old_size: int
    append: bool

    def encode(self) -> bytes:
        """The content of a slot."""
        text = f"{self.name} {self.offset} {self.length} {self.old_size} {int(self.append)}\n"
        return text.encode("ascii").ljust(_SLOT, b"\0")


class Intents:
    """The file of the notes, ``changing.dat`` below *directory*: slots that are used again.

    It is not synced: it is for a process that dies, not for a machine.

    Attributes:
        settled: name -> bytes of objects that are being appended to, without what is not logged
            yet, and may be taken back.
    """

    def __init__(self, directory: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        self._fd = os.open(directory / NAME, flags, 0o644)
        self.settled: dict[str, int] = {}
        self._free: list[int] = []
        self._slots = 0

    def take_left(self) -> list[Intent]:
        """What the process before has left. `clear` it when it is dealt with."""
        found = []
        for line in os.pread(self._fd, os.fstat(self._fd).st_size, 0).split(b"\0"):
            fields = line.decode("ascii", "replace").split()
            if len(fields) == 5 and all(field.isdigit() for field in fields[1:]):
                offset, length, old_size, append = map(int, fields[1:])
                found.append(Intent(fields[0], offset, length, old_size, bool(append)))
        return found

    def clear(self) -> None:
        """Nothing is left."""
        os.ftruncate(self._fd, 0)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    @contextmanager
    def noted(self, intent: Intent) -> Iterator[None]:
        """Keep a note while the block runs, which logs the change or takes it back.

        Raises:
            OSError: the note could not be written.
        """
        if self._free:
            slot = self._free.pop()
        else:
            slot, self._slots = self._slots, self._slots + 1
        try:
            pwrite_all(self._fd, intent.encode(), slot * _SLOT)
            if intent.append:
                self.settled[intent.name] = intent.old_size
            yield
        finally:
            if intent.append:
                self.settled.pop(intent.name, None)
            self._free.append(slot)
            pwrite_all(self._fd, bytes(_SLOT), slot * _SLOT)

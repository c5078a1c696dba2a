"""Changes of one file that others change as well: ``shared_file.py PATH MINE ALL COUNT``.

Run as a program, ALL at a time. Each has every ALL-th piece of the file, beginning with number
MINE, and ends with a traceback when one of these is not what it has written last.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import sys

PAGE = 4096
PIECE = 777
IN_PAGE = PAGE // PIECE
"""Each page is written to by several, but no piece lies in two: see `_stay_on_the_processor`."""


def _stay_on_the_processor() -> None:
    """Be not preempted by others in the middle of a write().

    Between the moment when the kernel puts the bytes into the page and that when the mount gets
    them, another process may ask for attributes: as the mtime is new, the kernel drops the page,
    and a read overtakes the write. That is the kernel's, and takes longer when the kernel waits
    for a second page.
    """
    with contextlib.suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))


def place(number: int) -> int:
    """The offset of a piece."""
    page, piece = divmod(number, IN_PAGE)
    return page * PAGE + piece * PIECE


def main(path: str, mine: int, processes: int, count: int) -> None:
    _stay_on_the_processor()
    draw = random.Random(mine)
    fd = os.open(path, os.O_RDWR)
    size = os.fstat(fd).st_size
    pieces = {number: bytes(PIECE) for number in range(mine, size // PAGE * IN_PAGE, processes)}
    for step in range(count):
        number = draw.choice(list(pieces))
        start, data = place(number), bytes([draw.randrange(256)]) * PIECE
        kind = draw.choice(("write", "write", "map", "read"))
        if kind == "write":
            os.pwrite(fd, data, start)
        elif kind == "map":
            with mmap.mmap(fd, size) as mapped:
                mapped[start : start + PIECE] = data
        if kind != "read":
            pieces[number] = data
        assert os.pread(fd, PIECE, start) == pieces[number], (step, kind, number)
    os.close(fd)
    with open(path, "rb") as file:
        content = file.read()
    for number, data in pieces.items():
        assert content[place(number) :][:PIECE] == data, number


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

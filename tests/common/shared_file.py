"""Changes of one file that others change as well: ``shared_file.py PATH MINE ALL COUNT``.

Run as a program, ALL at a time. Each has every ALL-th piece of the file, beginning with number
MINE, and ends with a traceback when one of these is not what it has written last.
"""

from __future__ import annotations

import mmap
import os
import random
import sys

PIECE = 777
"""Pages and pieces share no borders: each page is written to by several."""


def main(path: str, mine: int, processes: int, count: int) -> None:
    draw = random.Random(mine)
    fd = os.open(path, os.O_RDWR)
    size = os.fstat(fd).st_size
    pieces = {number: bytes(PIECE) for number in range(mine, size // PIECE, processes)}
    for step in range(count):
        number = draw.choice(list(pieces))
        start, data = number * PIECE, bytes([draw.randrange(256)]) * PIECE
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
        assert content[number * PIECE :][:PIECE] == data, number


if __name__ == "__main__":
    main(sys.argv[1], *map(int, sys.argv[2:]))

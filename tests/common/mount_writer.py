"""Writes files below a directory of a mount and prints what was acknowledged; run as a program.

It is a process of its own because whoever starts a program while it has files of a mount open
makes the child close them, which waits for the storage: the test could then not start it.

Lines: ``w NAME SIZE CRC`` after a close() that followed fsync(), ``m OLD NEW`` after a rename,
``d NAME`` after an unlink.
"""

from __future__ import annotations

import os
import random
import sys
import zlib
from pathlib import Path


def main(directory: Path, seed: int) -> None:
    draw = random.Random(seed)
    directory.mkdir()
    count = 0
    while os.getppid() != 1:
        name = f"file{count % 50}"
        data = draw.randbytes(draw.choice((10, 4096, 50_000))) * draw.choice((1, 1, 40))
        with (directory / name).open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        print("w", name, len(data), zlib.crc32(data), flush=True)
        if count % 7 == 3:
            new = f"renamed{count % 20}"
            (directory / name).rename(directory / new)
            print("m", name, new, flush=True)
        if count % 11 == 5:
            (directory / new).unlink(missing_ok=True)
            print("d", new, flush=True)
        count += 1


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))

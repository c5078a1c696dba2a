"""Random changes in a directory where others do the same: ``stress.py DIRECTORY SEED COUNT``.

Run as a program, several at a time. Ends with 1 and a traceback when a call fails with an errno
that the changes of the others do not explain. Files consist of blocks of 4096 equal bytes.
"""

from __future__ import annotations

import errno
import os
import random
import sys

NAMES = ("a", "b", "c", "d", "e")
EXPECTED = frozenset(
    (
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENOTEMPTY,
        errno.EINVAL,
        errno.ELOOP,
        errno.EPERM,
        errno.ENODATA,
        errno.EMLINK,
        errno.ESTALE,
    )
)
BLOCK = 4096


def path(draw: random.Random) -> str:
    return "/".join(draw.choice(NAMES) for _ in range(draw.choice((1, 2, 2, 3))))


def write(draw: random.Random) -> None:
    fd = os.open(path(draw), os.O_RDWR | os.O_CREAT | draw.choice((0, 0, os.O_TRUNC)), 0o644)
    try:
        for _ in range(draw.randrange(1, 4)):
            block = bytes([draw.randrange(256)]) * BLOCK
            os.pwrite(fd, block, BLOCK * draw.choice((0, 1, 2, 5, 300)))
        if draw.random() < 0.2:
            os.fsync(fd)
        if draw.random() < 0.2:
            os.ftruncate(fd, BLOCK * draw.randrange(4))
    finally:
        os.close(fd)


def read(draw: random.Random) -> None:
    fd = os.open(path(draw), os.O_RDONLY)
    try:
        while os.read(fd, 1 << 20):
            pass
    finally:
        os.close(fd)


def listing(draw: random.Random) -> None:
    for entry in os.scandir(draw.choice((".", path(draw)))):
        try:
            entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue


OPERATIONS = (
    write,
    write,
    write,
    read,
    read,
    listing,
    lambda draw: os.mkdir(path(draw)),
    lambda draw: os.mkdir(path(draw)),
    lambda draw: os.rmdir(path(draw)),
    lambda draw: os.unlink(path(draw)),
    lambda draw: os.rename(path(draw), path(draw)),
    lambda draw: os.rename(path(draw), path(draw)),
    lambda draw: os.link(path(draw), path(draw), follow_symlinks=False),
    lambda draw: os.symlink(path(draw), path(draw)),
    lambda draw: os.truncate(path(draw), BLOCK * draw.randrange(300)),
    lambda draw: os.chmod(path(draw), draw.choice((0o744, 0o755))),
    lambda draw: os.utime(path(draw), ns=(draw.randrange(10**18), draw.randrange(10**18))),
    lambda draw: os.setxattr(path(draw), "user.x", draw.randbytes(20)),
    lambda draw: os.stat(path(draw)),
)


def main() -> None:
    directory, seed, count = sys.argv[1:]
    os.chdir(directory)
    draw = random.Random(int(seed))
    for _ in range(int(count)):
        try:
            draw.choice(OPERATIONS)(draw)
        except OSError as exc:
            if exc.errno not in EXPECTED:
                raise


if __name__ == "__main__":
    main()

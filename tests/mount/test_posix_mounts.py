"""What two mounts do to one file: appending, and creating what must not be there."""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.common.cluster import Cluster
from tests.common.mount import Mount


@pytest.fixture(scope="module")
def second(
    cluster: Cluster, mounted: Mount, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    with cluster.mount(tmp_path_factory.mktemp("mnt") / "second") as mount:
        yield mount


@pytest.mark.parametrize("start", [0, 1, 4096, 1_500_000])
@pytest.mark.parametrize(("keep_open", "look"), [(True, True), (True, False), (False, False)])
def test_appending(
    start: int, keep_open: bool, look: bool, volume: Path, mounted: Mount, second: Mount
) -> None:
    """Each appends behind what the other one has closed or synced, and reads all of it."""
    path = volume / "log"
    path.write_bytes(b"0" * start)
    both = (path, second.path / path.relative_to(mounted.path))
    wanted = b""
    fds = [os.open(name, os.O_WRONLY | os.O_APPEND) for name in both] if keep_open else []
    try:
        for number in range(10):
            for side, name in enumerate(both):
                fd = fds[side] if keep_open else os.open(name, os.O_WRONLY | os.O_APPEND)
                line = b"%d.%d;" % (number, side)
                os.write(fd, line)
                wanted += line
                if keep_open:
                    os.fsync(fd)
                else:
                    os.close(fd)
                if look:
                    _check(both[1 - side], start, wanted)
        for name in both:
            _check(name, start, wanted)
    finally:
        for fd in fds:
            os.close(fd)


def _check(path: Path, start: int, wanted: bytes) -> None:
    assert path.stat().st_size == start + len(wanted)
    with open(path, "rb", buffering=0) as file:
        file.seek(start)
        assert file.read() == wanted


def test_mapping_and_appending_through_one_descriptor(volume: Path, mounted: Mount) -> None:
    """Pages of a mapping stay where they are, though their handle is for appending."""
    path = volume / "file"
    path.write_bytes(b"x" * 20_000)
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        with mmap.mmap(fd, 20_000) as area:
            os.write(fd, b"end")
            area[4096:4100] = b"page"
            area.flush()
            os.write(fd, b"END")
    finally:
        os.close(fd)
    mounted.clear_caches()
    assert path.read_bytes() == b"x" * 4096 + b"page" + b"x" * 15_900 + b"endEND"


def test_exclusive_creation(volume: Path, mounted: Mount, second: Mount) -> None:
    """Of two that create the same name one gets EEXIST, also when both had looked before."""
    other = second.path / volume.relative_to(mounted.path)
    for number in range(20):
        name = f"lock{number}"
        here, there = (volume, other) if number % 2 else (other, volume)
        assert not (here / name).exists()
        assert not (there / name).exists()
        os.close(os.open(here / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        with pytest.raises(FileExistsError):
            os.open(there / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
        for call in (os.mkdir, os.mkfifo):
            with pytest.raises(FileExistsError):
                call(there / name)
        with pytest.raises(FileExistsError):
            os.link(here / name, here / f"lock{number - 1}" if number else here / name)
        os.close(os.open(there / name, os.O_CREAT | os.O_WRONLY))


def test_removed_elsewhere(volume: Path, mounted: Mount, second: Mount) -> None:
    """What another mount takes away is gone at once; what is open stays."""
    other = second.path / volume.relative_to(mounted.path)
    (volume / "file").write_bytes(b"content" * 1000)
    (volume / "dir").mkdir()
    with open(volume / "file", "rb", buffering=0) as file:
        assert file.read(7) == b"content"
        (other / "file").unlink()
        assert not (volume / "file").exists()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert len(file.read()) == 6993
    (other / "dir").rmdir()
    with pytest.raises(OSError, match=r"\[Errno") as caught:
        (volume / "dir" / "x").touch()
    assert caught.value.errno == errno.ENOENT

"""Content in every way that programs reach it: a file against a model of its bytes.

`test_one_file_at_random` is what fsx does: reads, writes, truncates, mappings and re-opens of one
file, checked against a bytearray. `test_many_processes` is fsstress: processes that work in one
directory at the same time.
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.common.mount import Mount
from tests.common.sizes import can_have
from tests.common.twin import Twin, look_around

MIB = 1 << 20


class OneFile:
    """A file, and what must be in it. *limit*: how long it may get."""

    def __init__(self, path: Path, seed: int, limit: int) -> None:
        self.path = path
        self.draw = random.Random(seed)
        self.limit = limit
        self.model = bytearray()
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self.history: list[str] = []
        self.operations: list[tuple[int, Callable[[], None]]] = [
            (10, self.read),
            (10, self.write),
            (3, self.append),
            (4, self.truncate),
            (5, self.read_mapped),
            (4, self.write_mapped),
            (3, self.reopen),
            (2, self.sync),
            (1, self.read_elsewhere),
            (1, self.write_elsewhere),
            (1, self.private_mapping),
        ]

    def run(self, count: int) -> None:
        operations = [operation for _, operation in self.operations]
        weights = [weight for weight, _ in self.operations]
        try:
            for operation in self.draw.choices(operations, weights, k=count):
                operation()
                size = os.fstat(self.fd).st_size
                self.agree("size", size, len(self.model))
            self.check(self.path.read_bytes(), 0, len(self.model))
        finally:
            os.close(self.fd)

    def agree(self, what: str, found: object, wanted: object) -> None:
        if found != wanted:
            last = "\n".join(self.history[-30:])
            raise AssertionError(f"{what} is {found!r} instead of {wanted!r} after\n{last}")

    def check(self, found: bytes, offset: int, end: int) -> None:
        wanted = bytes(self.model[offset:end])
        if found != wanted:
            self.agree("length", len(found), len(wanted))
            pairs = zip(found, wanted, strict=True)
            place = next(i for i, (a, b) in enumerate(pairs) if a != b)
            self.agree(f"byte {offset + place}", found[place], wanted[place])

    def area(self) -> tuple[int, int]:
        """(offset, length): small and large, at page borders and not, also behind the end."""
        length = self.draw.choice((1, 17, 4096, 10_000, 70_000, self.draw.randrange(1, 300_000)))
        offset = self.draw.randrange(min(len(self.model) + 5000, self.limit - length))
        return (offset & ~4095 if self.draw.random() < 0.3 else offset), length

    def data(self, length: int) -> bytes:
        return self.draw.randbytes(min(length, 5000)) * (length // 5000 + 1)

    def put(self, offset: int, data: bytes) -> None:
        if offset > len(self.model):
            self.model.extend(bytes(offset - len(self.model)))
        self.model[offset : offset + len(data)] = data

    def read(self) -> None:
        offset, length = self.area()
        self.history.append(f"read {offset} {length}")
        self.check(os.pread(self.fd, length, offset), offset, offset + length)

    def write(self) -> None:
        offset, length = self.area()
        self.history.append(f"write {offset} {length}")
        data = self.data(length)[:length]
        assert os.pwrite(self.fd, data, offset) == length
        self.put(offset, data)

    def append(self) -> None:
        data = self.draw.randbytes(self.draw.randrange(1, 5000))
        if len(self.model) + len(data) > self.limit:
            return
        self.history.append(f"append {len(data)}")
        fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        try:
            os.write(fd, data)
        finally:
            os.close(fd)
        self.put(len(self.model), data)

    def truncate(self) -> None:
        size = self.draw.choice(
            (0, self.draw.randrange(self.limit), len(self.model) // 2, len(self.model) + 1)
        )
        size = min(size, self.limit)
        self.history.append(f"truncate {size}")
        if self.draw.random() < 0.5:
            os.ftruncate(self.fd, size)
        else:
            os.truncate(self.path, size)
        self.model[size:] = bytes(max(0, size - len(self.model)))

    def mapped(self, access: int) -> tuple[mmap.mmap, int, int] | None:
        """A mapping of some pages: (mapping, offset of its first byte, its length)."""
        if not self.model:
            return None
        offset = self.draw.randrange(len(self.model)) & ~(mmap.ALLOCATIONGRANULARITY - 1)
        length = self.draw.randrange(1, min(len(self.model) - offset, 200_000) + 1)
        return mmap.mmap(self.fd, length, access=access, offset=offset), offset, length

    def read_mapped(self) -> None:
        if (mapping := self.mapped(mmap.ACCESS_READ)) is not None:
            area, offset, length = mapping
            self.history.append(f"mapped read {offset} {length}")
            with area:
                self.check(area[:length], offset, offset + length)

    def write_mapped(self) -> None:
        if (mapping := self.mapped(mmap.ACCESS_WRITE)) is not None:
            area, offset, length = mapping
            start = self.draw.randrange(length)
            data = self.draw.randbytes(self.draw.randrange(1, min(length - start, 20_000) + 1))
            flush = self.draw.random() < 0.5
            self.history.append(f"mapped write {offset + start} {len(data)} {flush}")
            with area:
                area[start : start + len(data)] = data
                if flush:
                    area.flush()
            self.put(offset + start, data)

    def private_mapping(self) -> None:
        """What is written to it is seen by nobody."""
        if (mapping := self.mapped(mmap.ACCESS_COPY)) is not None:
            area, offset, length = mapping
            self.history.append(f"private {offset} {length}")
            with area:
                area[:length] = bytes(length)
            self.check(os.pread(self.fd, length, offset), offset, offset + length)

    def reopen(self) -> None:
        self.history.append("reopen")
        os.close(self.fd)
        self.fd = os.open(self.path, os.O_RDWR)

    def sync(self) -> None:
        self.history.append("sync")
        os.fsync(self.fd)

    def read_elsewhere(self) -> None:
        self.history.append("read through another descriptor")
        self.check(self.path.read_bytes(), 0, len(self.model))

    def write_elsewhere(self) -> None:
        offset, length = self.area()
        self.history.append(f"write {offset} {length} through another descriptor")
        data = self.data(length)[:length]
        with open(self.path, "r+b", buffering=0) as file:
            file.seek(offset)
            assert file.write(data) == length
        self.put(offset, data)


@pytest.mark.parametrize(("seed", "limit"), [(1, 400_000), (2, 1_300_000), (3, 6 * MIB)])
def test_one_file_at_random(
    seed: int, limit: int, volume: Path, mounted: Mount, long_run: bool
) -> None:
    file = OneFile(volume / "file.bin", seed, limit)
    file.run(10_000 if long_run else 500)
    mounted.clear_caches()
    file.check(file.path.read_bytes(), 0, len(file.model))


def test_new_files_at_random(volume: Path, mounted: Mount, long_run: bool) -> None:
    chance = random.SystemRandom()
    for seed in [chance.randrange(10**6) for _ in range(20)] if long_run else [4]:
        file = OneFile(volume / str(seed), seed, 3 * MIB)
        try:
            file.run(300)
        except AssertionError as exc:
            raise AssertionError(f"seed {seed}: {exc}") from None
        mounted.clear_caches()
        file.check(file.path.read_bytes(), 0, len(file.model))


# --- sizes and offsets --------------------------------------------------------------------------


@pytest.mark.parametrize("offset", [(1 << 32) - 3, (1 << 32) + 5, (1 << 40) + 1])
def test_far_offsets(offset: int, volume: Path, mounted: Mount) -> None:
    path = volume / "far"
    with open(path, "w+b", buffering=0) as file:
        file.write(b"start")
        os.pwrite(file.fileno(), b"far away", offset)
        assert os.pread(file.fileno(), 20, offset - 5) == bytes(5) + b"far away"
        assert os.fstat(file.fileno()).st_size == offset + 8
        os.ftruncate(file.fileno(), offset + 4)
    mounted.clear_caches()
    with open(path, "rb", buffering=0) as file:
        assert file.read(7) == b"start" + bytes(2)
        assert os.pread(file.fileno(), 20, offset - 1) == b"\0far "
        assert os.lseek(file.fileno(), 0, os.SEEK_END) == offset + 4
    path.unlink()


def test_sizes_that_cannot_be(volume: Path, local: Path, tmp_path: Path) -> None:
    twin = Twin(local, volume)
    twin.scene(lambda: Path("f").touch())
    for size in (-1, -(1 << 62)):
        twin.same(f"truncate {size}", os.truncate, "f", size)
    twin.check()
    # The storage keeps its files beside this directory.
    too_large = (1 << 63) - 1 if can_have(tmp_path, 1 << 50) else 1 << 50
    for size in {(1 << 63) - 1, too_large}:
        with pytest.raises(OSError, match="File too large"):
            os.truncate(volume / "scene1" / "f", size)
    with open(volume / "scene1" / "f", "wb", buffering=0) as file:
        with pytest.raises(OSError, match=r"\[Errno"):
            os.pwrite(file.fileno(), b"x", (1 << 63) - 1)
        for before in (b"", b"data"):
            os.pwrite(file.fileno(), before, 0)
            with pytest.raises(OSError, match="File too large"):
                os.pwrite(file.fileno(), b"x", too_large - 1)
            assert os.fstat(file.fileno()).st_size == len(before)
    assert (volume / "scene1" / "f").read_bytes() == b"data"


def test_holes(volume: Path, local: Path, mounted: Mount) -> None:
    """Truncated up, written behind the end, and cut in the middle of what is written again."""
    twin = Twin(local, volume)
    twin.scene(lambda: None)

    def work() -> list[int]:
        sizes = []
        with open("f", "w+b", buffering=0) as file:
            for step in range(30):
                os.pwrite(file.fileno(), b"data" * 300, step * 100_003)
                os.ftruncate(file.fileno(), step * 100_003 + (500 if step % 2 else 70_000))
                sizes.append(os.fstat(file.fileno()).st_size)
        return sizes

    twin.same("holes", work)
    mounted.clear_caches()
    twin.same("content", lambda: Path("f").read_bytes().hex()[:: 401 * 2])
    twin.check()


# --- open files ---------------------------------------------------------------------------------


def append_with_two() -> bytes:
    fds = [os.open("a", os.O_WRONLY | os.O_CREAT | os.O_APPEND) for _ in range(2)]
    for number in range(20):
        os.write(fds[number % 2], b"%02d." % number)
    os.lseek(fds[0], 0, os.SEEK_SET)
    os.write(fds[0], b"end")
    for fd in fds:
        os.close(fd)
    return Path("a").read_bytes()


def unlinked() -> tuple[object, ...]:
    fd = os.open("u", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"one")
    os.unlink("u")
    os.write(fd, b"two" * 500_000)
    os.fchmod(fd, 0o600)
    os.utime(fd, ns=(1, 2))
    os.ftruncate(fd, 1_000_000)
    status = os.fstat(fd)
    found = os.pread(fd, 5, 0), status.st_nlink, status.st_size, stat.filemode(status.st_mode)
    os.close(fd)
    return (*found, os.path.exists("u"))


def replaced() -> tuple[object, ...]:
    Path("old").write_bytes(b"old")
    Path("new").write_bytes(b"new")
    fd = os.open("old", os.O_RDWR)
    os.rename("new", "old")
    os.write(fd, b"OLD")
    found = os.pread(fd, 9, 0), os.fstat(fd).st_nlink, Path("old").read_bytes()
    os.close(fd)
    return found


def truncated_by_open() -> tuple[bytes, int]:
    fd = os.open("t", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"content")
    os.close(os.open("t", os.O_WRONLY | os.O_TRUNC))
    found = os.pread(fd, 9, 0), os.fstat(fd).st_size
    os.write(fd, b"x")
    os.close(fd)
    return (Path("t").read_bytes(), found[1])


def read_only() -> None:
    Path("r").write_bytes(b"x")
    fd = os.open("r", os.O_RDONLY)
    try:
        os.write(fd, b"y")
    finally:
        os.close(fd)


def without_permission_later() -> bytes:
    fd = os.open("p", os.O_RDWR | os.O_CREAT, 0o200)
    os.write(fd, b"written")
    os.fchmod(fd, 0)
    os.write(fd, b" on")
    found = os.pread(fd, 20, 0)
    os.close(fd)
    return found


def fallocated() -> int:
    fd = os.open("l", os.O_RDWR | os.O_CREAT)
    os.write(fd, b"kept")
    os.posix_fallocate(fd, 2, 20_000)
    os.close(fd)
    assert Path("l").read_bytes() == b"kept".ljust(20_002, b"\0")
    return os.stat("l").st_size


def fifo() -> bytes:
    os.mkfifo("fifo")
    fd = os.open("fifo", os.O_RDWR)
    os.write(fd, b"through")
    found = os.read(fd, 20)
    os.close(fd)
    return found


def removed_directory() -> list[str]:
    os.mkdir("gone")
    fd = os.open("gone", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir("gone")
    try:
        return os.listdir(fd)
    finally:
        os.close(fd)


def made_in_removed() -> None:
    os.mkdir("gone2")
    fd = os.open("gone2", os.O_RDONLY | os.O_DIRECTORY)
    os.rmdir("gone2")
    try:
        os.close(os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
    finally:
        os.close(fd)


def synced_directory() -> None:
    fd = os.open(".", os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
        os.fdatasync(fd)
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "action",
    [
        append_with_two,
        unlinked,
        replaced,
        truncated_by_open,
        read_only,
        without_permission_later,
        fallocated,
        fifo,
        removed_directory,
        made_in_removed,
        synced_directory,
    ],
)
def test_what_open_files_do(local: Path, volume: Path, action: Callable[[], object]) -> None:
    twin = Twin(local, volume)
    twin.scene(lambda: None)
    twin.same(action.__name__, action)
    twin.same("after it", look_around)
    twin.check()


def test_running_programs_are_not_written_to(volume: Path) -> None:
    path = volume / "sleep"
    shutil.copy("/bin/sleep", path)
    with subprocess.Popen([str(path), "600"]) as process:
        try:
            with pytest.raises(OSError, match=r"\[Errno") as caught:
                os.open(path, os.O_WRONLY)
            assert caught.value.errno == errno.ETXTBSY
        finally:
            process.kill()
    fd = os.open(path, os.O_WRONLY)
    try:
        with pytest.raises(OSError, match=r"\[Errno") as caught:
            subprocess.run([str(path), "0"], check=False)
        assert caught.value.errno == errno.ETXTBSY
    finally:
        os.close(fd)


# --- directories while they change --------------------------------------------------------------


def test_listing_while_entries_come_and_go(volume: Path) -> None:
    """Every entry that stays is seen once, none that was gone before, none twice."""
    directory = volume / "d"
    directory.mkdir()
    staying = {f"stay{number}" for number in range(400)}
    for number in range(400):
        (directory / f"stay{number}").touch()
        if number % 7 == 0:
            (directory / f"go{number}").touch()
    seen: list[str] = []
    with os.scandir(directory) as entries:
        for count, entry in enumerate(entries):
            seen.append(entry.name)
            if count % 10 == 0:
                (directory / f"come{count}").touch()
                for gone in list(directory.glob(f"go{count // 10 * 7}")):
                    gone.unlink()
                if count % 100 == 0:
                    os.rename(directory / f"come{count}", directory / f"renamed{count}")
    assert len(seen) == len(set(seen))
    assert staying <= set(seen)
    assert len(os.listdir(directory)) == len(set(os.listdir(directory)))


def test_rewinding_a_listing(volume: Path) -> None:
    for number in range(60):
        (volume / f"f{number}").touch()
    fd = os.open(volume, os.O_RDONLY | os.O_DIRECTORY)
    try:
        first = os.listdir(fd)
        (volume / "new").touch()
        (volume / "f7").unlink()
        os.lseek(fd, 0, os.SEEK_SET)
        second = os.listdir(fd)
    finally:
        os.close(fd)
    assert {*first, "new"} - {"f7"} == set(second)


# --- many processes -----------------------------------------------------------------------------

STRESS = Path(__file__).parent.parent / "common" / "stress.py"
SHARED_FILE = STRESS.with_name("shared_file.py")


@pytest.fixture
def stressed(volume: Path) -> Iterator[Path]:
    path = volume / "stress"
    path.mkdir()
    yield path
    shutil.rmtree(path)


def test_many_processes(stressed: Path, mounted: Mount, long_run: bool) -> None:
    """They meet each other's changes in the middle of their own; nothing but known errnos comes,
    and in the end every file is whole."""
    count = "5000" if long_run else "150"
    processes = [
        subprocess.Popen([sys.executable, str(STRESS), str(stressed), str(seed), count])
        for seed in range(4)
    ]
    codes = [process.wait(300) for process in processes]
    assert codes == [0] * 4
    before = _contents(stressed)
    mounted.remount()
    assert _contents(stressed) == before


def test_processes_that_share_a_file(volume: Path) -> None:
    """Each page is written to by several, through the kernel's pages and past them."""
    path = volume / "shared"
    path.write_bytes(bytes(20_000))
    processes = [
        subprocess.Popen([sys.executable, str(SHARED_FILE), str(path), str(mine), "4", "100"])
        for mine in range(4)
    ]
    assert [process.wait(300) for process in processes] == [0] * 4
    path.unlink()


def _contents(root: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for base, _, files in os.walk(root):
        for name in files:
            path = os.path.join(base, name)
            status = os.lstat(path)
            if stat.S_ISREG(status.st_mode):
                data = Path(path).read_bytes()
                assert len(data) == status.st_size
                # A block is written by one process in one write: never a mixture of two.
                for start in range(0, len(data), 4096):
                    block = data[start : start + 4096]
                    assert block.count(block[:1]) == len(block), (path, start)
                found[path] = data
            else:
                found[path] = os.readlink(path)
    return found

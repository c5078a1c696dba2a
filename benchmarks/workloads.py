"""What `benchmarks.mount` measures: groups of file operations in any directory, timed.

The loops do nothing but system calls.
"""

from __future__ import annotations

import io
import os
import random
import shutil
import socket
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

SMALL = 4096
BLOCK = 1 << 20
FILES_PER_DIRECTORY = 500
WRITERS = 8


@dataclass
class Row:
    """One line of the table: what was reached in each round."""

    name: str
    unit: str
    values: list[float] = field(default_factory=list)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)
    """Process name -> CPU microseconds per operation (per MiB for MiB/s), per round."""

    @property
    def median(self) -> float:
        return statistics.median(self.values)


@dataclass
class Bench:
    """One run: where, how much, how to make things cold, and the results so far.

    ``processes`` gives the process ids to account for; it is asked each time, because a remount
    changes them.
    """

    directory: Path
    files: int
    size_mib: int
    cold: Callable[[Path], None]
    processes: Callable[[], dict[str, int]]
    show: Callable[[str], None]
    rows: dict[str, Row] = field(default_factory=dict)
    seed: int = 0

    @contextmanager
    def measure(self, name: str, operations: float, unit: str = "/s") -> Iterator[None]:
        """Time the body, which does *operations* operations (or that many MiB)."""
        self.show(name)
        row = self.rows.setdefault(name, Row(name, unit))
        processes = self.processes()
        before = {key: cpu_s(pid) for key, pid in processes.items()}
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        row.values.append(operations / seconds)
        for key, pid in processes.items():
            used = (cpu_s(pid) - before[key]) * 1e6 / operations
            row.cpu_us.setdefault(key, []).append(used)


def cpu_s(pid: int) -> float:
    """CPU seconds that a process has used, exact, threads that have ended included."""
    try:
        return time.clock_gettime(~pid << 3 | 2)  # what clock_getcpuclockid(3) computes
    except OSError:
        return 0.0


def make_paths(directory: Path, count: int) -> list[str]:
    """Names of *count* files in new subdirectories of FILES_PER_DIRECTORY each."""
    paths = []
    for number in range(count):
        part, rest = divmod(number, FILES_PER_DIRECTORY)
        if rest == 0:
            (directory / f"d{part:04}").mkdir(parents=True)
        paths.append(f"{directory}/d{part:04}/file{number:07}.bin")
    return paths


def create_files(paths: Sequence[str], data: bytes) -> None:
    for path in paths:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        os.write(fd, data)
        os.close(fd)


def overwrite_files(paths: Sequence[str], data: bytes) -> None:
    for path in paths:
        fd = os.open(path, os.O_WRONLY | os.O_TRUNC)
        os.write(fd, data)
        os.close(fd)


def read_files(paths: Sequence[str]) -> None:
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        if len(os.read(fd, SMALL * 2)) != SMALL:
            raise AssertionError(f"{path} has not {SMALL} bytes")
        os.close(fd)


def list_tree(directory: Path) -> int:
    """What ``ls -lR`` does: list every directory and stat what is in it."""
    count = 0
    pending = [str(directory)]
    while pending:
        with os.scandir(pending.pop()) as entries:
            for entry in entries:
                os.lstat(entry.path)
                count += 1
                if entry.is_dir(follow_symlinks=False):
                    pending.append(entry.path)
    return count


def in_processes(
    work: Callable[[Sequence[str]], None], paths: Sequence[str], count: int = WRITERS
) -> None:
    """Run *work* on *count* shares of *paths* in processes side by side.

    Processes, because threads would measure Python's lock.
    """
    children = []
    for number in range(count):
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                work(paths[number::count])
                status = 0
            finally:
                os._exit(status)
        children.append(pid)
    failed = [os.waitpid(pid, 0)[1] for pid in children]
    if any(failed):
        raise AssertionError("a worker failed")


def group_small(bench: Bench, directory: Path) -> None:
    """4 KiB files from one process."""
    count = bench.files
    data = random.Random(bench.seed).randbytes(SMALL)
    paths = make_paths(directory / "small", count)
    with bench.measure("create 4 KiB", count):
        create_files(paths, data)
    with bench.measure("overwrite 4 KiB", count):
        overwrite_files(paths, data)
    bench.cold(directory)
    with bench.measure("read 4 KiB cold", count):
        read_files(paths)
    with bench.measure("read 4 KiB again", count):
        read_files(paths)
    bench.cold(directory)
    with bench.measure("stat cold", count):
        for path in paths:
            os.stat(path)
    with bench.measure("stat again", count):
        for path in paths:
            os.stat(path)
    bench.cold(directory)
    with bench.measure("ls -lR cold", count):
        list_tree(directory)
    with bench.measure("ls -lR again", count):
        list_tree(directory)
    with bench.measure("rename", count):
        for path in paths:
            os.rename(path, path + ".x")
    with bench.measure("unlink", count):
        for path in paths:
            os.unlink(path + ".x")


def group_parallel(bench: Bench, directory: Path) -> None:
    """4 KiB files from eight processes."""
    count = bench.files
    data = random.Random(bench.seed).randbytes(SMALL)
    paths = make_paths(directory / "parallel", count)
    with bench.measure(f"create 4 KiB, {WRITERS} writers", count):
        in_processes(lambda share: create_files(share, data), paths)
    bench.cold(directory)
    with bench.measure(f"read 4 KiB cold, {WRITERS} readers", count):
        in_processes(read_files, paths)

    def remove(share: Sequence[str]) -> None:
        for path in share:
            os.unlink(path)

    with bench.measure(f"unlink, {WRITERS} at once", count):
        in_processes(remove, paths)


def group_dirs(bench: Bench, directory: Path) -> None:
    """Directories, links and xattrs."""
    count = max(1, bench.files // 2)
    base = directory / "dirs"
    base.mkdir()
    paths = [f"{base}/dir{number:06}" for number in range(count)]
    with bench.measure("mkdir", count):
        for path in paths:
            os.mkdir(path)
    with bench.measure("rmdir", count):
        for path in paths:
            os.rmdir(path)
    with bench.measure("symlink", count):
        for path in paths:
            os.symlink("target", path)
    file = f"{base}/file"
    create_files([file], b"x" * SMALL)
    try:
        with bench.measure("setxattr", count):
            for number in range(count):
                os.setxattr(file, "user.width", b"%d" % number)
        with bench.measure("getxattr", count):
            for _ in range(count):
                os.getxattr(file, "user.width")
    except OSError:  # a file system without user xattrs
        for name in ("setxattr", "getxattr"):
            if not bench.rows.get(name, Row(name, "")).values:
                bench.rows.pop(name, None)


def group_seq(bench: Bench, directory: Path) -> None:
    """One large file, in blocks of 1 MiB."""
    path = f"{directory}/large"
    data = random.Random(bench.seed).randbytes(BLOCK)
    with bench.measure("write", bench.size_mib, "MiB/s"):
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        for _ in range(bench.size_mib):
            os.write(fd, data)
        os.fsync(fd)
        os.close(fd)
    bench.cold(directory)
    buffer = bytearray(BLOCK)
    with bench.measure("read cold", bench.size_mib, "MiB/s"):
        fd = os.open(path, os.O_RDONLY)
        total = 0
        while got := os.readv(fd, [buffer]):
            total += got
        os.close(fd)
    if total != bench.size_mib * BLOCK:
        raise AssertionError(f"read {total} bytes of {bench.size_mib * BLOCK}")
    os.unlink(path)


def group_random(bench: Bench, directory: Path) -> None:
    """4 KiB at random offsets of a file, and short appends without buffering."""
    path = f"{directory}/random"
    data = random.Random(bench.seed).randbytes(BLOCK)
    size_mib = min(bench.size_mib, 128)
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
    for _ in range(size_mib):
        os.write(fd, data)
    os.close(fd)
    count = bench.files
    draw = random.Random(bench.seed)
    offsets = [draw.randrange(size_mib * BLOCK // SMALL) * SMALL for _ in range(count)]
    bench.cold(directory)
    fd = os.open(path, os.O_RDWR)
    with bench.measure("random read 4 KiB cold", count):
        for offset in offsets:
            os.pread(fd, SMALL, offset)
    block = data[:SMALL]
    with bench.measure("random write 4 KiB, fsync at end", count):
        for offset in offsets:
            os.pwrite(fd, block, offset)
        os.fsync(fd)
    os.close(fd)
    os.unlink(path)
    fd = os.open(f"{directory}/log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    line = b"x" * 99 + b"\n"
    with bench.measure("append 100 bytes", count):
        for _ in range(count):
            os.write(fd, line)
        os.close(fd)
    if os.stat(f"{directory}/log").st_size != 100 * count:
        raise AssertionError("an append was lost")


def make_tar(files: int, seed: int) -> bytes:
    """A tar of a source tree: directories of 20 files of 0 to 30 KB."""
    draw = random.Random(seed)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for number in range(files):
            info = tarfile.TarInfo(f"tree/part{number // 200}/dir{number // 20}/file{number}.c")
            info.size = min(30_000, int(draw.expovariate(1 / 5000)))
            info.mtime = 1_700_000_000
            tar.addfile(info, io.BytesIO(draw.randbytes(info.size)))
    return buffer.getvalue()


def group_tree(bench: Bench, directory: Path) -> None:
    """The usual tools on a tree of small files."""
    count = max(20, bench.files // 2)
    archive = make_tar(count, bench.seed)
    with bench.measure("untar, files", count):
        subprocess.run(["tar", "xf", "-", "-C", directory], input=archive, check=True)
    bench.cold(directory)
    with bench.measure("cp -r, files", count):
        subprocess.run(["cp", "-r", directory / "tree", directory / "copy"], check=True)
    with bench.measure("rm -rf, files", 2 * count):
        subprocess.run(["rm", "-rf", directory / "tree", directory / "copy"], check=True)


def group_machine(bench: Bench, _directory: Path) -> None:
    """What the machine itself does just now, to judge the other figures by."""
    with bench.measure("(machine) additions in Python", 1.0, "M/s"):
        total = 0
        for number in range(1_000_000):
            total += number
    count = 5000
    ours, theirs = socket.socketpair()
    with ours, theirs:
        pid = os.fork()
        if pid == 0:
            ours.close()
            while data := theirs.recv(100):
                theirs.send(data)
            os._exit(0)
        theirs.close()
        with bench.measure("(machine) round trips over a socket", count):
            for _ in range(count):
                ours.send(b"x" * 50)
                ours.recv(100)
    os.waitpid(pid, 0)
    with tempfile.TemporaryFile() as file, bench.measure("(machine) fdatasync of 100 bytes", 100):
        for _ in range(100):
            os.write(file.fileno(), b"x" * 100)
            os.fdatasync(file.fileno())


GROUPS: dict[str, Callable[[Bench, Path], None]] = {
    "machine": group_machine,
    "small": group_small,
    "parallel": group_parallel,
    "dirs": group_dirs,
    "seq": group_seq,
    "random": group_random,
    "tree": group_tree,
}


def run_rounds(bench: Bench, rounds: int, groups: Sequence[str]) -> None:
    """Run the groups *rounds* times; each group has a directory of its own, removed after it."""
    for number in range(rounds):
        for name in groups:
            directory = bench.directory / f"bench-{os.getpid()}-{number}-{name}"
            directory.mkdir()
            GROUPS[name](bench, directory)
            bench.show("cleaning up")
            shutil.rmtree(directory)

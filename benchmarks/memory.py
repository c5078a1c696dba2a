"""How much memory a large file costs: resident memory of the mount and the storage.

Writes a large file through a mount of its own cluster, reads it back after a remount, and
reports how far the resident memory of both processes moved while that went on::

    python -m benchmarks.memory                 4 GiB
    python -m benchmarks.memory --size 1024     in MiB
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tests.common.cluster import Cluster
from tests.common.mount import Mount
from tests.common.processes import Process

BLOCK = 1 << 20


@dataclass(frozen=True)
class Movement:
    """Resident memory of one process during one phase, in MiB, and the phase's speed."""

    phase: str
    process: str
    before_mib: float
    peak_mib: float
    after_mib: float
    mib_per_s: float

    @property
    def moved_mib(self) -> float:
        return self.peak_mib - self.before_mib


def watch(
    phase: str, processes: Sequence[Process], size_mib: int, work: Callable[[], None]
) -> list[Movement]:
    """Run *work* and say how the memory of *processes* moved (the kernel keeps the peaks)."""
    before = []
    for process in processes:
        process.reset_peak_rss()
        before.append(process.rss_kib() / 1024)
    start = time.perf_counter()
    work()
    speed = size_mib / (time.perf_counter() - start)
    return [
        Movement(
            phase,
            process.name,
            round(was, 1),
            round(process.peak_rss_kib() / 1024, 1),
            round(process.rss_kib() / 1024, 1),
            round(speed, 1),
        )
        for process, was in zip(processes, before, strict=True)
    ]


def block(number: int) -> bytes:
    """The content of block *number*: different for each, cheap to make."""
    return number.to_bytes(8, "big") * (BLOCK // 8)


def write_file(path: Path, size_mib: int) -> int:
    """Write the file and return its crc32."""
    crc = 0
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for number in range(size_mib):
            data = block(number)
            crc = zlib.crc32(data, crc)
            os.write(fd, data)
        os.fsync(fd)
    finally:
        os.close(fd)
    return crc


def read_file(path: Path) -> int:
    """Read the whole file and return its crc32."""
    crc = 0
    with path.open("rb", buffering=0) as file:
        while data := file.read(BLOCK):
            crc = zlib.crc32(data, crc)
    return crc


def measure(mount: Mount, storage: Process, size_mib: int) -> list[Movement]:
    """Write and read a file of *size_mib* on the mount; checks the content."""
    path = mount.path / "group1" / "large.bin"
    crcs: list[int] = []
    processes = [mount, storage]
    rows = watch("write", processes, size_mib, lambda: crcs.append(write_file(path, size_mib)))
    mount.remount()
    os.stat(path)
    rows += watch("read", processes, size_mib, lambda: crcs.append(read_file(path)))
    if crcs[0] != crcs[1]:
        raise AssertionError(f"wrote crc {crcs[0]:08x} and read {crcs[1]:08x}")
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.memory",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--size", type=int, default=4096, metavar="MIB")
    parser.add_argument("--data", type=Path, help="where the cluster keeps its data")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=options.data) as name:
        base = Path(name)
        with Cluster(base / "cluster") as cluster, cluster.mount(base / "mnt") as mount:
            rows = measure(mount, cluster.storage(), options.size)
    if options.json:
        print(json.dumps([{**asdict(row), "moved_mib": row.moved_mib} for row in rows], indent=2))
        return
    table = Table(title=f"{options.size} MiB through the mount", title_justify="left")
    for heading in ("phase", "process", "before", "peak", "after", "moved MiB", "MiB/s"):
        table.add_column(heading, justify="left" if heading in ("phase", "process") else "right")
    for row in rows:
        numbers = (row.before_mib, row.peak_mib, row.after_mib, row.moved_mib, row.mib_per_s)
        table.add_row(row.phase, row.process, *(f"{number:,.0f}" for number in numbers))
    Console().print(table)


if __name__ == "__main__":
    main()

"""A directory of 100,000 files: one pass, bounded memory, no request per file."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from fdfsfuse.proto import names
from tests.common.cluster import Cluster
from tests.common.mount import Mount
from tests.common.session import BlockingSession
from tests.common.tcp_stats import bytes_sent_to
from tests.common.trees import run
from tests.common.waiting import wait_until

COUNT = 100_000
GROWTH_MAX_KIB = 128 << 10
"""What a mount may need for the inodes that the kernel keeps, and for answers under way."""


def name_of(number: int) -> bytes:
    return b"file number %06d.jpg" % number


@pytest.fixture(scope="module")
def large(fuse: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Path]]:
    """A mount and its directory of COUNT files, made through a names session."""
    base = tmp_path_factory.mktemp("large")
    with Cluster(base / "cluster") as cluster:
        storage = cluster.storage()
        with BlockingSession((storage.address, storage.port)) as session:
            directory = session.mkdir(names.ROOT_INO, b"large").ino
            now = time.time_ns()
            requests = (
                names.Create(directory, name_of(number), stat.S_IFREG | 0o644, 0, 0, now)
                for number in range(COUNT)
            )
            for _, answer in session.call_many(requests):
                assert isinstance(answer, names.Attr), answer
            session.call(names.CloseSession(), names.Done)
        with cluster.mount(base / "mnt") as mount:
            yield mount, mount.path / "group1" / "large"


def settled_bytes(mount: Mount) -> int:
    """Bytes sent to the storage so far."""
    return bytes_sent_to(mount.cluster.storage().address)


def test_listing_in_one_pass(large: tuple[Mount, Path]) -> None:
    mount, path = large
    storage = mount.cluster.storage()
    mount.remount()
    before = mount.rss_kib(), storage.rss_kib()
    for process in (mount, storage):
        with contextlib.suppress(PermissionError):
            process.reset_peak_rss()
    listed = os.listdir(os.fsencode(path))
    assert len(listed) == COUNT
    assert set(listed) == {name_of(number) for number in range(COUNT)}
    assert mount.peak_rss_kib() - before[0] < GROWTH_MAX_KIB
    assert storage.peak_rss_kib() - before[1] < GROWTH_MAX_KIB


def test_ls_l_costs_no_request_per_file(large: tuple[Mount, Path]) -> None:
    mount, path = large
    mount.remount()
    os.stat(path)
    sent = settled_bytes(mount)
    done = run(["ls", "-l", "--time-style=full-iso", path])
    assert done.stdout.count(b"\n") == COUNT + 1
    # The smallest request has over 30 bytes. A listing takes about 100 for each 1024 files.
    assert settled_bytes(mount) - sent < COUNT
    assert mount.rss_kib() < 300 << 10


def test_xattrs_of_each_file_cost_no_request_per_file(large: tuple[Mount, Path]) -> None:
    """Since coreutils 9.6 that is what ls -l asks for."""
    mount, path = large
    mount.remount()
    with os.scandir(path) as entries:
        first = [entry.path for entry in islice(entries, 5000)]
    sent = settled_bytes(mount)
    for file in first:
        assert os.listxattr(file) == []
    assert settled_bytes(mount) - sent < len(first)


def test_listing_while_it_changes(large: tuple[Mount, Path]) -> None:
    """What stays is listed exactly once, although others come and go meanwhile."""
    path = large[1]
    staying = {os.fsdecode(name_of(number)) for number in range(0, COUNT, 2)}
    seen: list[str] = []
    with os.scandir(path) as entries:
        for count, entry in enumerate(entries):
            seen.append(entry.name)
            if count % 2000 == 0:
                (path / f"new {count}").touch()
                with contextlib.suppress(FileNotFoundError):
                    (path / os.fsdecode(name_of(count + 5001 & ~1 | 1))).unlink()
    assert len(seen) == len(set(seen)), "nothing is listed twice"
    assert staying <= set(seen), "nothing that stayed is missed"


def test_memory_is_given_back_when_the_kernel_forgets(large: tuple[Mount, Path]) -> None:
    """Inodes that the kernel drops are dropped by the mount: many listings do not add up."""
    mount, path = large
    mount.remount()
    os.listdir(path)
    if not os.access("/proc/sys/vm/drop_caches", os.W_OK):
        pytest.skip("dropping the kernel's caches needs root")
    drop = Path("/proc/sys/vm/drop_caches")
    drop.write_text("2")
    first = mount.rss_kib()
    for _ in range(2):
        os.listdir(path)
        drop.write_text("2")
    wait_until(lambda: mount.rss_kib() < first + (24 << 10), "memory to stay where it was")

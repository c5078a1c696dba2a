"""Servers that die, hang and come back under a mount that is in use."""

from __future__ import annotations

import errno
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fdfsfuse.cli.mount_stats import find_reports
from tests.common.cluster import Cluster, Daemon
from tests.common.processes import Process
from tests.common.waiting import wait_until

MIB = 1 << 20


@contextmanager
def hung(process: Process) -> Iterator[None]:
    """The process does nothing in the block, and goes on behind it."""
    process.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        process.signal(signal.SIGCONT)


class InThreads:
    """Calls that are made at the same time; the errno of each, 0 for success, or None so far."""

    def __init__(self, calls: list[Callable[[], object]]) -> None:
        self.results: list[int | None] = [None] * len(calls)
        self._threads = [
            threading.Thread(target=self._run, args=(number, call))
            for number, call in enumerate(calls)
        ]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int, call: Callable[[], object]) -> None:
        try:
            call()
        except OSError as exc:
            self.results[number] = exc.errno
        else:
            self.results[number] = 0

    @property
    def done(self) -> int:
        return sum(result is not None for result in self.results)

    def join(self) -> list[int | None]:
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive()
        return self.results


def works(path: Path) -> bool:
    try:
        os.listdir(path)
    except OSError:
        return False
    return True


@pytest.mark.parametrize("failure", ["hangs", "dies"])
def test_the_other_volume_works_on(failure: str, tmp_path: Path, fuse: None) -> None:
    """A volume takes neither the requests of the others nor their time, however many wait."""
    with (
        Cluster(tmp_path / "cluster", groups=("one", "two")) as cluster,
        cluster.mount(tmp_path / "mnt", "timeout=6", "dirsync") as mount,
    ):
        one, two = mount.path / "one", mount.path / "two"
        directories = [one / f"d{i}" for i in range(150)]
        for directory in directories:
            directory.mkdir()
        storage = cluster.storage("one")
        if failure == "hangs":
            storage.signal(signal.SIGSTOP)
        else:
            storage.kill()
        try:
            started = time.monotonic()
            waiting = InThreads([(directory / "new").mkdir for directory in directories])
            for number in range(50):
                (two / f"f{number}").write_bytes(b"x" * 5000)
                assert (two / f"f{number}").read_bytes() == b"x" * 5000
                assert sorted(os.listdir(mount.path)) == ["one", "two"]
            # All that was done while the calls to the other volume were waiting still.
            assert waiting.done < 150 or time.monotonic() - started > 6
            assert set(waiting.join()) == {errno.EIO}
            # It is known to be down now: nobody waits for it any more.
            again = InThreads([(directory / "new").mkdir for directory in directories])
            assert set(again.join()) == {errno.EIO}
            assert mount.running
        finally:
            if failure == "hangs":
                storage.signal(signal.SIGCONT)
            else:
                storage.start()
        wait_until(lambda: works(one), "the volume to answer again")
        for directory in directories[:5]:
            (directory / "later").mkdir()


def test_hard_waits_for_as_long_as_it_takes(tmp_path: Path, fuse: None) -> None:
    with (
        Cluster(tmp_path / "cluster") as cluster,
        cluster.mount(tmp_path / "mnt", "hard", "timeout=1") as mount,
    ):
        path = mount.path / "group1"
        for name in ("d", "old"):
            (path / name).mkdir()
        storage = cluster.storage()
        storage.kill()
        waiting = InThreads(
            [
                (path / "new").mkdir,
                lambda: (path / "d" / "file").write_bytes(b"x" * 3 * MIB),
                # Another directory: one that is renamed first has no place for the file any more.
                lambda: os.rename(path / "old", path / "renamed"),
            ]
        )
        time.sleep(3)
        assert waiting.done == 0
        storage.start()
        assert waiting.join() == [0, 0, 0]
        assert (path / "d" / "file").read_bytes() == b"x" * 3 * MIB
        assert {entry.name for entry in path.iterdir()} >= {"d", "new", "renamed"}


def test_nothing_is_done_twice(tmp_path: Path, fuse: None) -> None:
    """A request that is repeated on another connection is answered, not carried out again."""
    with (
        Cluster(tmp_path / "cluster") as cluster,
        cluster.mount(tmp_path / "mnt") as mount,
    ):
        path = mount.path / "group1"
        storage = cluster.storage()
        stop = threading.Event()
        made: list[list[str]] = [[], [], []]

        def work(me: int) -> None:
            # Each of these fails when it is carried out a second time.
            directory = path / f"t{me}"
            directory.mkdir()
            while not stop.is_set():
                name = f"n{len(made[me])}"
                (directory / "x").mkdir()
                os.rename(directory / "x", directory / name)
                if len(made[me]) % 2:
                    (directory / name).rmdir()
                made[me].append(name)

        workers = InThreads([lambda me=me: work(me) for me in range(3)])  # type: ignore[misc]
        for _ in range(3):
            before = [len(names) for names in made]
            wait_until(
                lambda b=before: all(len(n) > c + 3 for n, c in zip(made, b, strict=True)),  # type: ignore[misc]
                "some work to be done",
                timeout_s=60,
            )
            storage.kill()
            storage.start()
        stop.set()
        assert workers.join() == [0, 0, 0]
        for me, names in enumerate(made):
            assert sorted(os.listdir(path / f"t{me}")) == sorted(names[::2])


class _OwnMachine:
    """Where mounts, and this test, connect from."""

    address = "127.0.0.1"


def unread_bytes(at: Daemon) -> int:
    """Bytes that have arrived at connections of a server and were not read yet."""
    ip = int.from_bytes(socket.inet_aton(str(at.settings["bind_addr"])), sys.byteorder)
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    rows = [line.split() for line in lines]
    own = [row for row in rows if row[1] == f"{ip:08X}:{at.port:04X}" and row[3] != "0A"]
    return sum(int(row[4].split(":")[1], 16) for row in own)


@pytest.mark.parametrize("done", [True, False], ids=["done", "not done"])
def test_a_change_in_flight_when_the_mount_is_cut_off(
    done: bool, tmp_path: Path, fuse: None
) -> None:
    """For longer than the lease; it is done once, whether the storage had got to it or not."""
    with (
        Cluster(
            tmp_path / "cluster", network=True, storage_conf={"names_session_lease": 4}
        ) as cluster,
        cluster.mount(tmp_path / "mnt", "timeout=60") as mount,
    ):
        storage = cluster.storage()
        top = mount.path / "group1" / "top"
        top.mkdir()
        (top / "gone").touch()
        handle = os.open(top / "file", os.O_CREAT | os.O_WRONLY)
        os.write(handle, b"x" * 1000)
        assert unread_bytes(storage) < 1000
        storage.signal(signal.SIGSTOP)
        calls = InThreads(
            [(top / ("d" * 250)).mkdir, (top / "gone").unlink, lambda: os.close(handle)]
        )
        wait_until(
            # Names, content and three frames with their heads.
            lambda: unread_bytes(storage) > 1000 + 250 + 3 * 26,
            "the requests to arrive",
        )
        cluster.network.cut(_OwnMachine(), storage)
        if done:
            storage.signal(signal.SIGCONT)
        else:
            storage.kill()
            storage.start()
        wait_until(lambda: "ended: not heard of" in storage.log(), "the session to end")
        cluster.network.heal()
        assert calls.join() == [0, 0, 0]
        assert sorted(os.listdir(top)) == ["d" * 250, "file"]
        assert (top / "file").read_bytes() == b"x" * 1000
        assert "has ended" in mount.log()


def test_trackers_may_be_away(tmp_path: Path, fuse: None) -> None:
    with (
        Cluster(tmp_path / "cluster") as cluster,
        cluster.mount(tmp_path / "mnt", "timeout=10") as mount,
    ):
        path = mount.path / "group1"
        with hung(cluster.tracker):
            (path / "while it hangs").write_bytes(b"x" * 2 * MIB)
            mount.clear_caches()
            assert (path / "while it hangs").read_bytes() == b"x" * 2 * MIB
            assert sorted(os.listdir(mount.path)) == ["group1"]
        cluster.tracker.kill()
        (path / "while it is away").write_bytes(b"y")
        assert sorted(os.listdir(mount.path)) == ["group1"]
        cluster.tracker.start()
        cluster.wait_active()
        mount.clear_caches()
        assert (path / "while it is away").read_bytes() == b"y"


@pytest.mark.parametrize(
    ("failure", "size"), [("hangs", MIB - 5), ("dies", MIB - 5), ("dies", 24 * MIB)]
)
def test_reading_goes_on_at_another_storage(
    failure: str, size: int, tmp_path: Path, fuse: None
) -> None:
    content = random.Random(1).randbytes(size)
    # One that hangs is waited for for 5 s before the other one is asked.
    timeout_s = 60 if failure == "hangs" else 8
    with (
        Cluster(tmp_path / "cluster", groups=("group1", "group1")) as cluster,
        cluster.mount(tmp_path / "mnt", f"timeout={timeout_s}") as mount,
    ):
        path = mount.path / "group1" / "file"
        path.write_bytes(content)
        cluster.wait_settled()
        primary = _primary(cluster, mount.path)
        mount.remount()
        with path.open("rb", buffering=0) as file:
            fd = file.fileno()
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
            read = os.pread(fd, 4096, 0)
            if failure == "hangs":
                primary.signal(signal.SIGSTOP)
            else:
                primary.kill()
            try:
                while part := os.pread(fd, 128 << 10, len(read)):
                    read += part
                if size > MIB:
                    assert not works(path.parent)  # now the volume is known to be down
                    _forget_pages(fd)
                    assert os.pread(fd, 4096, 4096) == content[4096:8192]
            finally:
                if failure == "hangs":
                    primary.signal(signal.SIGCONT)
                else:
                    primary.start()
        assert read == content
        wait_until(lambda: works(path.parent), "the volume to answer again")


def test_what_another_storage_lacks_is_not_read_from_it(tmp_path: Path, fuse: None) -> None:
    # Far less than the mount's timeout, which ends the vain attempt to read.
    conf = {"names_replica_timeout": 1}
    with (
        Cluster(tmp_path / "cluster", groups=("group1", "group1"), storage_conf=conf) as cluster,
        cluster.mount(tmp_path / "mnt", "timeout=6") as mount,
    ):
        path = mount.path / "group1" / "file"
        path.write_bytes(b"old" * MIB)
        cluster.wait_settled()
        primary = _primary(cluster, mount.path)
        (other,) = [storage for storage in cluster.storages if storage is not primary]
        with path.open("r+b", buffering=0) as file:
            fd = file.fileno()
            with hung(other):
                os.pwrite(fd, b"new", 0)
                os.fsync(fd)  # the other one is out of sync from here on
                primary.kill()
            _forget_pages(fd)
            with pytest.raises(OSError, match="Input/output error"):
                os.pread(fd, 3, 0)
            primary.start()
            wait_until(lambda: works(path.parent), "the volume to answer again")
            assert os.pread(fd, 3, 0) == b"new"


def _forget_pages(fd: int) -> None:
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _primary(cluster: Cluster, path: Path) -> Process:
    """The storage that keeps the names of the volume."""
    (report,) = find_reports(str(path))
    endpoint = report["volumes"]["group1"]["storage"]
    (found,) = [storage for storage in cluster.storages if storage.endpoint == endpoint]
    return found

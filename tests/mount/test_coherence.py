"""Two mounts of one volume: what one has done, the other sees when the call that did it returns."""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import random
import signal
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from fdfsfuse.cli.mount_stats import find_reports
from tests.common.cluster import Cluster
from tests.common.mount import Mount
from tests.common.waiting import wait_until

LEASE_S = 60
"""So long that a call that waits for it is told from one on a busy machine."""

CONF = {"names_session_lease": LEASE_S}


@pytest.fixture(scope="module")
def mounts(fuse: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Mount]]:
    base = tmp_path_factory.mktemp("coherence")
    with (
        Cluster(base, storage_conf=CONF) as cluster,
        cluster.mount(base / "one") as one,
        cluster.mount(base / "two") as two,
    ):
        yield one, two


@pytest.fixture
def pair(mounts: tuple[Mount, Mount], request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """The same new directory on both mounts."""
    name = request.node.name.replace("/", "_")
    paths = [mount.path / "group1" / name for mount in mounts]
    paths[0].mkdir()
    return paths[0], paths[1]


def seen(path: Path) -> dict[str, tuple[int, int, int, int, int, bytes]]:
    """All that a program can see of a directory: listing, attributes, content."""
    found = {}
    for name in os.listdir(path):
        entry = path / name
        info = entry.lstat()
        content = b""
        if stat.S_ISREG(info.st_mode):
            content = entry.read_bytes()
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(entry).encode()
        found[name] = (
            info.st_ino,
            info.st_mode,
            info.st_nlink,
            info.st_size,
            info.st_mtime_ns,
            content,
        )
    return found


def attributes(path: Path) -> list[int]:
    """stat() without the device and the times of access."""
    info = path.stat()
    times = [info.st_mtime_ns, info.st_ctime_ns]
    return [info.st_ino, info.st_mode, info.st_nlink, info.st_uid, info.st_gid, *times]


def _write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


def _append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


CHANGES: list[tuple[str, Callable[[Path], object]]] = [
    ("create", lambda d: _write(d / "new", b"new")),
    ("overwrite", lambda d: _write(d / "file", b"other content")),
    ("append", lambda d: _append(d / "file", b"more")),
    ("truncate", lambda d: os.truncate(d / "file", 2)),
    ("overwrite large", lambda d: _write(d / "file", b"x" * 3_000_000)),
    ("change in place", lambda d: _append(d / "file", b"y" * 100)),
    ("truncate large", lambda d: os.truncate(d / "file", 2_000_000)),
    ("chmod", lambda d: os.chmod(d / "file", 0o600)),
    ("utime", lambda d: os.utime(d / "file", ns=(5, 7))),
    ("link", lambda d: os.link(d / "file", d / "link")),
    ("symlink", lambda d: os.symlink("file", d / "symlink")),
    ("mkdir", lambda d: os.mkdir(d / "sub")),
    ("mkfifo", lambda d: os.mkfifo(d / "fifo")),
    ("rename", lambda d: os.rename(d / "link", d / "renamed")),
    ("rename over", lambda d: os.rename(d / "renamed", d / "new")),
    ("rename directory", lambda d: os.rename(d / "sub", d / "sub2")),
    ("unlink", lambda d: os.unlink(d / "file")),
    ("rmdir", lambda d: os.rmdir(d / "sub2")),
]


def test_every_change_is_seen_by_the_other(pair: tuple[Path, Path]) -> None:
    _write(pair[0] / "file", b"content")
    here = there = 0
    for number, (what, change) in enumerate(CHANGES):
        for path in pair:
            seen(path)
        # Names that the change makes were looked for in vain.
        for path in pair:
            for name in ("new", "link", "symlink", "sub", "fifo", "renamed", "sub2"):
                os.path.lexists(path / name)
        here, there = number % 2, 1 - number % 2
        change(pair[here])
        assert seen(pair[there]) == seen(pair[here]), what
        assert attributes(pair[there]) == attributes(pair[here]), what
        for name in ("new", "link", "symlink", "sub", "fifo", "renamed", "sub2", "file"):
            assert os.path.lexists(pair[there] / name) == os.path.lexists(pair[here] / name), what


def test_files_that_came_ahead_are_not_shown_when_the_other_has_changed_them(
    pair: tuple[Path, Path], mounts: tuple[Mount, Mount]
) -> None:
    names = [f"f{number:02}" for number in range(30)]
    for name in names:
        _write(pair[0] / name, b"old " + name.encode())
    before = calls(mounts[1])
    for name in names[:10]:
        assert (pair[1] / name).read_bytes() == b"old " + name.encode()
    assert (calls(mounts[1]) - before)["Open"] < 10
    _write(pair[0] / "f11", b"new")
    os.truncate(pair[0] / "f12", 1)
    _write(pair[0] / "f", b"another")
    os.rename(pair[0] / "f", pair[0] / "f13")
    os.unlink(pair[0] / "f14")
    os.rename(pair[0] / "f15", pair[0] / "f16")
    _append(pair[0] / "f17", b"more")
    found = {}
    for name in names[10:]:
        with contextlib.suppress(FileNotFoundError):
            found[name] = (pair[1] / name).read_bytes()
    expected = {name: b"old " + name.encode() for name in names[10:]}
    expected |= {"f11": b"new", "f12": b"o", "f13": b"another", "f16": b"old f15"}
    expected |= {"f17": b"old f17more"}
    del expected["f14"], expected["f15"]
    assert found == expected


def test_extended_attributes(pair: tuple[Path, Path]) -> None:
    _write(pair[0] / "file", b"content")
    assert os.listxattr(pair[1] / "file") == []
    os.setxattr(pair[0] / "file", "user.a", b"1")
    assert os.getxattr(pair[1] / "file", "user.a") == b"1"
    os.setxattr(pair[1] / "file", "user.a", b"2")
    assert os.getxattr(pair[0] / "file", "user.a") == b"2"
    os.removexattr(pair[0] / "file", "user.a")
    assert os.listxattr(pair[1] / "file") == []


def test_attributes_of_new_files_are_seen_by_the_other(pair: tuple[Path, Path]) -> None:
    """Those that the mount that made the files changes before the storage has answered."""
    one, two = pair
    for number in range(50):
        (one / f"{number}").mkdir()
        path, other = one / f"{number}" / "file", two / f"{number}" / "file"
        path.write_bytes(b"content")
        for value in range(5):
            os.setxattr(path, "user.a", b"%d" % value)
            path.chmod(0o600 + value)
            os.utime(path, ns=(value, value))
        found = other.stat()
        assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o604, 4)
        assert os.getxattr(other, "user.a") == b"4"
        # From now on both know it.
        os.setxattr(path, "user.a", b"5")
        path.chmod(0o640)
        assert os.getxattr(other, "user.a") == b"5"
        assert stat.S_IMODE(other.stat().st_mode) == 0o640
        os.removexattr(other, "user.a")
        assert os.listxattr(path) == []
    (report,) = find_reports(str(one.parent.parent))
    assert report["volumes"]["group1"]["ahead"]["answered"] > 0


def test_an_open_file_shows_what_the_other_has_stored(pair: tuple[Path, Path]) -> None:
    for size in (1000, 3_000_000):
        _write(pair[0] / "file", b"a" * size)
        with (pair[1] / "file").open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), size, 0) == b"a" * size
            _write(pair[0] / "file", b"b" * (size + 1))
            data = b""
            while part := os.pread(file.fileno(), size + 1, len(data)):
                data += part
            assert data == b"b" * (size + 1)
            assert os.fstat(file.fileno()).st_size == size + 1


def test_a_listing_that_is_open(pair: tuple[Path, Path]) -> None:
    for i in range(10):
        _write(pair[0] / f"f{i}", b"")
    with os.scandir(pair[1]) as entries:
        first = next(entries).name
        os.unlink(pair[0] / "f9")
        names = {first, *(entry.name for entry in entries)}
    assert names >= {f"f{i}" for i in range(9)}
    assert "f9" not in os.listdir(pair[1])


def test_lock_files_in_one_directory(pair: tuple[Path, Path]) -> None:
    """O_EXCL, unlink and renames over each other, at once: nobody waits for a lease."""
    rounds = 40
    held: list[int] = []
    problems: list[str] = []
    longest = [0.0, 0.0]

    def work(me: int) -> None:
        path = pair[me]
        for number in range(rounds):
            while True:
                try:
                    os.close(os.open(path / "lock", os.O_CREAT | os.O_EXCL | os.O_WRONLY))
                    break
                except FileExistsError:
                    time.sleep(0.001)
            held.append(me)
            if len(held) != 1:
                problems.append(f"{held} hold the lock")
            before = int((path / "counter").read_text()) if number or me in seen_counter else 0
            _write(path / f"counter.{me}", str(before + 1).encode())
            begun = time.monotonic()
            os.rename(path / f"counter.{me}", path / "counter")
            held.remove(me)
            os.unlink(path / "lock")
            longest[me] = max(longest[me], time.monotonic() - begun)

    _write(pair[0] / "counter", b"0")
    seen_counter = {0, 1}
    threads = [threading.Thread(target=work, args=(me,)) for me in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert problems == []
    assert [int((path / "counter").read_text()) for path in pair] == [2 * rounds] * 2
    assert max(longest) < LEASE_S / 2


@pytest.mark.parametrize("size", [1_000, 3_000_000])
def test_both_write_to_one_file(pair: tuple[Path, Path], size: int) -> None:
    """Disjoint ranges, small and large, held open over the other one's close()."""
    _write(pair[0] / "file", b"-" * size)
    with (pair[0] / "file").open("r+b") as one, (pair[1] / "file").open("r+b") as two:
        one.write(b"one")
        two.seek(size - 3)
        two.write(b"two")
        one.flush()
        two.flush()
    expected = b"one" + b"-" * (size - 6) + b"two"
    assert [(path / "file").read_bytes() for path in pair] == [expected] * 2


def test_both_append_and_change_at_once(pair: tuple[Path, Path]) -> None:
    """As programs do with a journal: each record is there once, each slot has the last value."""
    size, rounds = 1000, 25
    _write(pair[0] / "file", b"-" * size)
    expected = bytearray(b"-" * size)

    def work(me: int) -> None:
        draw = random.Random(me)
        for number in range(rounds):
            with (pair[me] / "file").open("ab", buffering=0) as file:
                file.write(b"%d:%03d;" % (me, 2 * number))
                file.write(b"%d:%03d;" % (me, 2 * number + 1))
            with (pair[me] / "file").open("r+b", buffering=0) as file:
                for _ in range(3):
                    slot = draw.randrange(50) * 20 + me * 10
                    expected[slot : slot + 10] = data = draw.randbytes(10)
                    os.pwrite(file.fileno(), data, slot)
                    assert os.pread(file.fileno(), 10, slot) == data

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(work, (0, 1)))
    contents = [(path / "file").read_bytes() for path in pair]
    assert contents[0] == contents[1]
    assert contents[0][:size] == expected
    records = contents[0][size:].split(b";")[:-1]
    for me in (0, 1):
        own = [record for record in records if record.startswith(b"%d:" % me)]
        assert own == [b"%d:%03d" % (me, number) for number in range(2 * rounds)]
    assert len(records) == 4 * rounds


def test_both_work_in_one_directory(pair: tuple[Path, Path]) -> None:
    """Creating, renaming and removing the same names from both sides: nobody waits for a lease."""
    longest = [0.0] * 4

    def work(me: int) -> None:
        path = pair[me % 2]
        for number in range(60):
            begun = time.monotonic()
            name = path / f"n{number % 7}"
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                if number % 3 == 0:
                    _write(name, b"x" * number)
                elif number % 3 == 1:
                    os.rename(name, path / f"n{(number * 5 + me) % 7}")
                else:
                    os.unlink(name)
            longest[me] = max(longest[me], time.monotonic() - begun)

    threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
        assert not thread.is_alive()
    assert max(longest) < LEASE_S / 2
    wait_until(
        lambda: seen(pair[0]) == seen(pair[1]), "both to see the same", timeout_s=LEASE_S / 2
    )


def test_both_rename_between_the_same_directories(pair: tuple[Path, Path]) -> None:
    """The kernel locks one and waits for the other, where a change waits for the other mount."""
    for name in ("0", "1"):
        (pair[0] / name).mkdir()
    longest = [0.0] * 6

    def work(me: int) -> None:
        mine = me % 2
        old, new = (pair[mine] / f"{number}" for number in (mine, 1 - mine))
        for number in range(60):
            made, moved = old / f"made{number % 5}", old / f"moved{number % 3}"
            begun = time.monotonic()
            if me < 2:
                made.mkdir()
                made.rmdir()
            elif me < 4:
                moved.mkdir()
                moved.rename(new / f"{me}").rmdir()
            else:
                for place in (old, new):
                    os.listdir(place)
                    os.path.lexists(place / made.name)
            longest[me] = max(longest[me], time.monotonic() - begun)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(work, range(6)))
    assert max(longest) < LEASE_S / 2
    for name in ("0", "1"):
        assert [os.listdir(path / name) for path in pair] == [[], []]


def test_a_stopped_mount_is_waited_for_no_longer_than_a_lease(
    mounts: tuple[Mount, Mount], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    one, path = mounts[0], pair[0]
    _write(path / "file", b"old")
    with one.cluster.mount(tmp_path / "mnt", "lease=3") as stopped:
        there = stopped.path / path.relative_to(one.path)
        assert seen(there)["file"][-1] == b"old"
        with (there / "file").open("rb", buffering=0) as file:
            os.pread(file.fileno(), 10, 0)
            stopped.signal(signal.SIGSTOP)
            try:
                begun = time.monotonic()
                _write(path / "file", b"new content")
                _write(path / "file2", b"another")
                os.mkdir(path / "sub")
                waited = time.monotonic() - begun
            finally:
                stopped.signal(signal.SIGCONT)
            assert waited < LEASE_S / 2
            assert seen(there) == seen(path)
            assert os.pread(file.fileno(), 20, 0) == b"new content"
            assert os.fstat(file.fileno()).st_size == len(b"new content")


@pytest.mark.parametrize("size", [20_000, 3_000_000])
def test_pages_of_an_open_file_are_relied_upon_no_longer_than_a_lease(
    size: int, mounts: tuple[Mount, Mount], pair: tuple[Path, Path], tmp_path: Path
) -> None:
    """While a mount is stopped nobody drops them: the kernel has to ask before it reads them."""
    one, path = mounts[0], pair[0] / "file"
    _write(path, b"a" * size)
    with (
        one.cluster.mount(tmp_path / "mnt", "lease=2") as stopped,
        (stopped.path / path.relative_to(one.path)).open("rb", buffering=0) as file,
        ThreadPoolExecutor(1) as pool,
    ):
        offset = 0
        while part := os.pread(file.fileno(), 1 << 20, offset):
            offset += len(part)
        stopped.signal(signal.SIGSTOP)
        try:
            with path.open("r+b", buffering=0) as other:
                os.pwrite(other.fileno(), b"b" * 5_000, 5_000)
            # In the middle: at the end of a file the kernel would ask in any case.
            reading = pool.submit(os.pread, file.fileno(), 4, 8_000)
            concurrent.futures.wait([reading], 0.1)
        finally:
            stopped.signal(signal.SIGCONT)
        assert reading.result(60) == b"bbbb"
        assert os.pread(file.fileno(), 4, 9_998) == b"bbaa"


def test_an_open_object_shows_what_a_client_has_changed_in_place(
    mounts: tuple[Mount, Mount],
) -> None:
    with mounts[0].cluster.client() as client:
        file_id = client.upload(b"a" * 20_000, appender=True, group="group1")
        with (mounts[0].path / file_id).open("rb", buffering=0) as file:
            assert os.pread(file.fileno(), 30_000, 0) == b"a" * 20_000
            client.modify(file_id, 5_000, b"b" * 5_000)
            wait_until(lambda: os.pread(file.fileno(), 4, 8_000) == b"bbbb", "the change")
            assert os.pread(file.fileno(), 4, 4_998) == b"aabb"
        client.delete(file_id)


def calls(mount: Mount) -> Counter[str]:
    """Requests to the storages so far, by kind; KeepAlive and the like left out."""
    (report,) = find_reports(str(mount.path))
    counted = Counter(
        {name: call["count"] for name, call in report["volumes"]["group1"]["calls"].items()}
    )
    for name in ("KeepAlive", "Holds", "StatFs"):
        counted.pop(name, None)
    return counted


def sync_directory(path: Path) -> None:
    """Wait until the storage has made what was changed in a directory."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def test_a_lone_mount_asks_little(fuse: None, tmp_path: Path) -> None:
    """What is held is not asked for: requests to the storage per system call."""
    with (
        Cluster(tmp_path / "cluster", storage_conf=CONF) as cluster,
        cluster.mount(tmp_path / "mnt") as mount,
    ):

        def settle() -> None:
            """A new session asks for the attributes of the root, by and by."""
            wait_until(lambda: calls(mount)["GetAttr"] > 0, "the session to be open")

        path = mount.path / "group1" / "d"
        path.mkdir()
        wait_until(lambda: calls(mount)["Grant"] == 1, "the grant of where changes are made")
        files = [path / f"f{i}" for i in range(20)]

        def cost(work: Callable[[Path], object]) -> dict[str, int]:
            before = calls(mount)
            for file in files:
                work(file)
            sync_directory(path)
            spent = calls(mount) - before
            # What overlapped with another request about the same inode is asked for again.
            return {
                kind: count
                for kind, count in spent.items()
                if count > 5 or kind not in ("Lookup", "GetAttr")
            }

        assert cost(lambda file: _write(file, b"x" * 4096)) == {
            "Grant": 1,
            "ReserveInodes": 1,
            "CreateFile": 20,
        }
        assert cost(os.stat) == {}
        # Not at once if another test run drops the kernel's caches.
        wait_until(lambda: cost(Path.read_bytes) == {}, "reading to cost nothing")
        assert cost(lambda file: file.with_suffix(".none").exists()) == {}
        assert cost(lambda file: _write(file, b"y" * 100)) == {"StoreContent": 20}
        assert cost(lambda file: os.chmod(file, 0o600)) == {"SetAttr": 20}
        assert cost(lambda file: os.rename(file, file.with_suffix(".new"))) == {"Rename": 20}
        assert cost(lambda file: os.rename(file.with_suffix(".new"), file)) == {"Rename": 20}
        assert cost(lambda file: os.listdir(path)) == {}
        assert cost(os.unlink) == {"Remove": 20}
        assert cost(os.path.lexists) == {}
        for file in files:
            _write(file, b"z" * 4096)
        mount.remount()
        settle()
        # Not known as a directory that it has made: looking in vain soon asks for all names.
        assert cost(lambda file: _write(file.with_suffix(".more"), b"x" * 4096)) == {
            "ReadDir": 1,
            "Grant": 1,
            "ReserveInodes": 1,
            "CreateFile": 20,
        }
        read = cost(Path.read_bytes)
        assert read.keys() == {"Open"}
        assert read["Open"] <= 6

"""Files that a mount makes before the storage is told of them: nobody can tell, whatever dies."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.common.cluster import Cluster
from tests.common.mount import Mount
from tests.common.waiting import wait_until
from tests.mount.test_coherence import calls

LEASE_S = 60
"""So long that a call that waits for it is told from one on a busy machine."""


@pytest.fixture(scope="module")
def mounts(fuse: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Mount, Mount]]:
    base = tmp_path_factory.mktemp("own")
    with (
        Cluster(base, storage_conf={"names_session_lease": LEASE_S}) as cluster,
        cluster.mount(base / "one") as one,
        cluster.mount(base / "two") as two,
    ):
        yield one, two


@pytest.fixture
def place(mounts: tuple[Mount, Mount], request: pytest.FixtureRequest) -> Path:
    """A new directory, as a path below both mounts."""
    path = Path("group1") / "".join(c if c.isalnum() else "-" for c in request.node.name)
    (mounts[0].path / path).mkdir()
    return path


def make(mount: Mount, path: Path, data: bytes = b"unborn") -> int:
    """A file that was made and written to, but not closed: its descriptor."""
    for _ in range(10):
        before = calls(mount)
        handle = os.open(mount.path / path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o640)
        os.write(handle, data)
        if not (calls(mount) - before).keys() & {"Create", "CreateFile", "StoreContent"}:
            return handle
        # On a machine that stood still for so long that the storage was told meanwhile.
        os.close(handle)
        os.unlink(mount.path / path)
    raise AssertionError("the storage is told of each file at once")


def open_exclusively(path: Path) -> None:
    with pytest.raises(FileExistsError):
        os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def rename_over(path: Path) -> None:
    (path.parent.parent / "target").mkdir(exist_ok=True)
    os.rename(path, path.parent.parent / "target" / path.parent.name)


def remove_directory(path: Path) -> None:
    with pytest.raises(OSError, match="not empty") as caught:
        os.rmdir(path.parent)
    assert caught.value.errno == errno.ENOTEMPTY


def list_directory(path: Path) -> None:
    assert os.listdir(path.parent) == [path.name]


def read(path: Path) -> None:
    assert path.read_bytes() == b"unborn"


def change_mode(path: Path) -> None:
    before = path.stat()
    path.chmod(0o600)
    assert path.stat().st_ino == before.st_ino


LOOKS: list[Callable[[Path], None]] = [
    open_exclusively,
    rename_over,
    remove_directory,
    list_directory,
    read,
    change_mode,
    Path.unlink,
]


@pytest.mark.parametrize("look", LOOKS, ids=[look.__name__ for look in LOOKS])
def test_the_first_look_of_another_mount(
    mounts: tuple[Mount, Mount], place: Path, look: Callable[[Path], None]
) -> None:
    one, two = mounts
    handle = make(one, place / "file")
    number = os.fstat(handle).st_ino
    begun = time.monotonic()
    look(two.path / place / "file")
    assert time.monotonic() - begun < LEASE_S / 2
    assert os.fstat(handle).st_ino == number
    os.write(handle, b", and on")
    os.close(handle)
    if (two.path / place / "file").exists():
        assert (two.path / place / "file").read_bytes() == b"unborn, and on"


_MAKER = """
import os, sys
handle = os.open(sys.argv[1], os.O_CREAT | os.O_EXCL | os.O_WRONLY)
os.write(handle, b"unborn")
print("made", flush=True)
sys.stdin.readline()
os.write(handle, b", and on")
os.close(handle)
"""
"""A process of its own: starting a storage in this one would close a copy of the descriptor."""


def test_a_killed_storage_forgets_no_file(mounts: tuple[Mount, Mount], place: Path) -> None:
    one, two = mounts
    os.close(make(one, place / "closed"))
    maker = subprocess.Popen(
        [sys.executable, "-c", _MAKER, one.path / place / "file"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert maker.stdout is not None
    assert maker.stdout.readline() == b"made\n"
    storage = one.cluster.storage()
    storage.kill()
    storage.start()
    begun = time.monotonic()
    open_exclusively(two.path / place / "file")
    assert time.monotonic() - begun < LEASE_S / 2
    assert sorted(os.listdir(two.path / place)) == ["closed", "file"]
    assert (two.path / place / "closed").read_bytes() == b"unborn"
    maker.communicate(b"close\n")
    assert maker.returncode == 0
    assert (two.path / place / "file").read_bytes() == b"unborn, and on"


def test_a_stopped_maker_is_waited_for_no_longer_than_its_lease(
    mounts: tuple[Mount, Mount], place: Path, tmp_path: Path
) -> None:
    two = mounts[1]
    with two.cluster.mount(tmp_path / "stopped", "lease=3") as stopped:
        stopped.allow_log("could not be stored")
        refused: int | None = None
        own = place / "own"
        (stopped.path / own).mkdir()
        late, taken = make(stopped, own / "late"), make(stopped, own / "taken")
        stopped.signal(signal.SIGSTOP)
        try:
            begun = time.monotonic()
            # The files were never closed: they are as good as lost, until their maker goes on.
            (two.path / own / "taken").write_bytes(b"by another one")
            assert time.monotonic() - begun < LEASE_S / 2
        finally:
            stopped.signal(signal.SIGCONT)
        os.close(late)
        try:
            os.close(taken)
        except OSError as exc:
            refused = exc.errno
        for mount in (stopped, two):
            assert sorted(os.listdir(mount.path / own)) == ["late", "taken"]
            assert (mount.path / own / "taken").read_bytes() == b"by another one"
            assert (mount.path / own / "late").read_bytes() == b"unborn"
    # Unless the storage was told before, by a machine that took its time.
    assert refused == errno.ESTALE or "could not be stored" not in stopped.log()


def test_what_a_killed_mount_leaves(
    mounts: tuple[Mount, Mount], place: Path, tmp_path: Path
) -> None:
    two = mounts[1]
    killed = two.cluster.mount(tmp_path / "killed", "lease=3")
    try:
        killed.mount()
        own = place / "own"
        (killed.path / own).mkdir()
        make(killed, own / "open")
        os.close(make(killed, own / "closed"))
        synced = make(killed, own / "synced")
        os.fsync(synced)
        killed.kill()
        wait_until(
            lambda: sorted(os.listdir(two.path / own)) == ["closed", "synced"],
            "what was stored to be seen",
            timeout_s=LEASE_S / 2,
        )
        for name in ("closed", "synced"):
            assert (two.path / own / name).read_bytes() == b"unborn"
    finally:
        killed.cleanup()

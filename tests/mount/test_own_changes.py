"""Changes that a mount answers before the storage has: nothing is lost, whatever dies."""

from __future__ import annotations

import os
import random
import signal
import stat
import threading
import time
from pathlib import Path

import pytest

from fdfsfuse.cli.mount_stats import find_reports
from fdfsfuse.client.names.session import PROMPT_S
from tests.common.cluster import Cluster
from tests.common.mount import Mount
from tests.common.waiting import wait_until
from tests.mount.test_coherence import sync_directory

XATTR = "user.value"
Model = dict[str, str]
"""What is in a directory: 'directory', the target of a symlink, or what `file` says."""


def file(mode: int, xattr: str) -> str:
    """A file with the value of an xattr, '' for none."""
    return f"file {mode:o} {xattr}"


class Worker:
    """Changes a directory at random; ``model`` is what was acknowledged."""

    def __init__(self, place: Path, seed: int) -> None:
        self.model: Model = {}
        self.count = 0
        self.error: BaseException | None = None
        self._place = place
        self._draw = random.Random(seed)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def step(self) -> None:
        """One change."""
        draw, model, place = self._draw, self.model, self._place
        name = f"n{draw.randrange(40)}"
        there = model.get(name)
        if there is None and draw.random() < 0.4:
            (place / name).mkdir()
            model[name] = "directory"
        elif there is None and draw.random() < 0.6:
            early = draw.choice(("", f"{self.count}"))
            with open(place / name, "xb", opener=lambda p, f: os.open(p, f, 0o644)) as made:
                if early:
                    os.setxattr(made.fileno(), XATTR, early.encode())
                made.write(b"content")
            model[name] = file(0o644, early)
        elif there is None:
            target = f"to{self.count}"
            (place / name).symlink_to(target)
            model[name] = target
        elif there.startswith("file") and draw.random() < 0.6:
            _, mode, xattr = there.split(" ")
            if draw.random() < 0.6:
                xattr = f"{self.count}"
                os.setxattr(place / name, XATTR, xattr.encode())
            elif xattr and draw.random() < 0.5:
                os.removexattr(place / name, XATTR)
                xattr = ""
            else:
                mode = f"{draw.randrange(0o1000):o}"
                os.chmod(place / name, int(mode, 8))
            model[name] = file(int(mode, 8), xattr)
        elif draw.random() < 0.4:
            new_name = f"n{draw.randrange(40)}"
            if "directory" in (there, model.get(new_name)) and new_name in model:
                return
            (place / name).rename(place / new_name)
            model[new_name] = model.pop(name)
        elif there == "directory":
            (place / name).rmdir()
            del model[name]
        else:
            (place / name).unlink()
            del model[name]
        self.count += 1

    def start(self) -> None:
        """Make changes in a thread until `stop`."""
        self._thread.start()

    def stop(self) -> None:
        """Raises what a change failed with."""
        self._stop.set()
        self._thread.join()
        if self.error is not None:
            raise self.error

    def wait_growth(self, count: int) -> None:
        """Wait for so many more changes."""
        wanted = self.count + count
        wait_until(lambda: self.count > wanted or self.error is not None, "changes to be made")

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.step()
        except BaseException as exc:
            self.error = exc


def ahead(mount: Mount) -> dict[str, int]:
    """What the mount tells of changes that it has answered before the storage."""
    (report,) = find_reports(str(mount.path))
    found: dict[str, int] = report["volumes"]["group1"]["ahead"]
    return found


def shown(place: Path) -> Model:
    """The directory, as a mount shows it."""
    found: Model = {}
    for path in place.iterdir():
        if path.is_symlink():
            found[path.name] = os.readlink(path)
        elif path.is_dir():
            found[path.name] = "directory"
        else:
            xattr = os.getxattr(path, XATTR).decode() if os.listxattr(path) else ""
            found[path.name] = file(stat.S_IMODE(path.stat().st_mode), xattr)
    return found


def test_nothing_is_lost_with_the_mount(fuse: None, tmp_path: Path) -> None:
    with (
        Cluster(tmp_path, storage_conf={"names_session_lease": 3}) as cluster,
        cluster.mount(tmp_path / "other") as other,
    ):
        answered: list[int] = []
        for seed in range(4):
            killed = cluster.mount(tmp_path / f"killed{seed}")
            try:
                killed.mount()
                name = f"place{seed}"
                (killed.path / "group1" / name).mkdir()
                worker = Worker(killed.path / "group1" / name, seed)
                for _ in range(50):
                    worker.step()
                before = ahead(killed)["answered"]
                for _ in range(random.Random(seed).randrange(50, 200)):
                    worker.step()
                killed.kill()
                answered.append(before)
                assert shown(other.path / "group1" / name) == worker.model
            finally:
                killed.cleanup()
        assert any(answered)


def test_nothing_is_lost_with_the_storage(fuse: None, tmp_path: Path) -> None:
    draw = random.Random(5)
    with Cluster(tmp_path) as cluster, cluster.mount(tmp_path / "mnt") as mount:
        place = mount.path / "group1" / "place"
        place.mkdir()
        worker = Worker(place, 1)
        worker.start()
        try:
            for _ in range(4):
                worker.wait_growth(50)
                time.sleep(draw.uniform(0, 0.2))
                cluster.storage().kill()
                time.sleep(draw.uniform(0, 0.2))
                cluster.storage().start()
        finally:
            worker.stop()
        assert shown(place) == worker.model
        sync_directory(place)
        counted = ahead(mount)
        assert counted["answered"] > 0
        assert counted["unanswered"] == counted["refused"] == 0
        mount.remount()
        assert shown(place) == worker.model


def test_a_storage_that_hangs_is_waited_for(fuse: None, tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, cluster.mount(tmp_path / "mnt", "timeout=2") as mount:
        place = mount.path / "group1" / "place"
        place.mkdir()
        for number in range(10):
            (place / f"before{number}").mkdir()
        sync_directory(place)
        storage = cluster.storage()
        storage.signal(signal.SIGSTOP)
        try:
            time.sleep(2 * PROMPT_S)
            with pytest.raises(OSError, match="Input/output error"):
                (place / "after").mkdir()
        finally:
            storage.signal(signal.SIGCONT)


@pytest.mark.parametrize("option", ["sync", "dirsync"])
def test_each_change_is_waited_for_if_that_is_wanted(
    fuse: None, tmp_path: Path, option: str
) -> None:
    with Cluster(tmp_path) as cluster, cluster.mount(tmp_path / "mnt", option) as mount:
        place = mount.path / "group1" / "place"
        place.mkdir()
        worker = Worker(place, 1)
        for _ in range(40):
            worker.step()
        assert ahead(mount) == {"answered": 0, "unanswered": 0, "refused": 0}
        assert shown(place) == worker.model

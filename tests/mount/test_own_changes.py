"""Changes that a mount answers before the storage has: nothing is lost, whatever dies."""

from __future__ import annotations

import json
import os
import random
import signal
import stat
import time
from pathlib import Path

import pytest

from fdfsfuse.cli.mount_stats import find_reports
from fdfsfuse.client.names.session import PROMPT_S
from tests.common.changes import XATTR, Model, Worker, file
from tests.common.cluster import Cluster
from tests.common.mount import Mount
from tests.common.reporting import Reporting
from tests.mount.test_coherence import sync_directory


class WorkerProcess(Reporting):
    """A `Worker` as a process."""

    def __init__(self, place: Path, seed: int) -> None:
        self._last = ""
        super().__init__(self._note, "tests.common.changes", place, seed)

    def _note(self, line: str) -> None:
        self._last = line

    def stop(self) -> Model:
        """End it. Returns what was acknowledged."""
        self.end()
        model: Model = json.loads(self._last)
        return model


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
        worker = WorkerProcess(place, 1)
        try:
            for _ in range(4):
                worker.wait_growth(50)
                time.sleep(draw.uniform(0, 0.2))
                cluster.storage().kill()
                time.sleep(draw.uniform(0, 0.2))
                cluster.storage().start()
        finally:
            model = worker.stop()
        assert shown(place) == model
        sync_directory(place)
        counted = ahead(mount)
        assert counted["answered"] > 0
        assert counted["unanswered"] == counted["refused"] == 0
        mount.remount()
        assert shown(place) == model


def test_a_storage_that_hangs_is_waited_for(fuse: None, tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster, cluster.mount(tmp_path / "mnt", "timeout=6") as mount:
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

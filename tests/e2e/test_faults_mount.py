"""Servers of a volume die under a mount: see tests/e2e/test_faults.py.

close() and fsync() return when every server in sync has the content, so nothing of that is lost,
and in the end every server has every file.
"""

from __future__ import annotations

import faulthandler
import os
import random
import time
from pathlib import Path

from tests.common.cluster import Cluster
from tests.common.mount_load import MountWriter
from tests.e2e.test_faults import TWO


def check_replicas(cluster: Cluster, directory: Path) -> None:
    """Every server has the content of every file below *directory*, under its id."""
    count = 0
    for path in sorted(directory.rglob("*")):
        content = path.read_bytes() if path.is_file() else b""
        if not content:
            continue
        name = os.getxattr(path, "user.fdfs.file_id").decode().split("/", 1)[1]
        for storage in cluster.storages:
            assert storage.path_of(name).read_bytes() == content, f"{path} on {storage.name}"
        count += 1
    assert count > 10


def test_kills_under_a_mount(fuse: None, tmp_path: Path, long_run: bool) -> None:
    draw = random.Random(3)
    if long_run:
        faulthandler.cancel_dump_traceback_later()
    with Cluster(tmp_path, groups=TWO) as cluster, cluster.mount(tmp_path / "mnt") as mount:
        top = mount.path / "group1"
        writers = [MountWriter(top / f"writer{number}", number) for number in (0, 1)]
        try:
            for number in range(40 if long_run else 4):
                victim = cluster.storages[number % 2]
                time.sleep(draw.uniform(0, 0.5))
                victim.kill()
                time.sleep(draw.uniform(0, 0.5))
                victim.start()
                for writer in writers:
                    writer.wait_growth(4)
        finally:
            for writer in writers:
                writer.kill()
        mount.remount()
        for writer in writers:
            writer.check()
        cluster.wait_active()
        cluster.wait_settled()
        check_replicas(cluster, top)

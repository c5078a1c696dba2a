"""What a mount has been told is stored is on both storages of a volume, byte for byte."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from tests.common.cluster import Cluster, Storage
from tests.common.waiting import wait_until

pytestmark = pytest.mark.usefixtures("fuse")


def founder_first(cluster: Cluster) -> tuple[Storage, Storage]:
    """The storage that keeps the names, and the other one."""
    one, two = cluster.storages
    keeps = (one.base_path / "data/names").is_dir()
    return (one, two) if keeps else (two, one)


def in_sync(founder: Storage) -> list[str]:
    """Ids of the peers in the founder's set."""
    path = founder.base_path / "data/names/in_sync.json"
    return list(json.loads(path.read_bytes())["in_sync"]) if path.exists() else []


def name_of(path: Path) -> str:
    """``M00/...`` of a file on the mount."""
    return os.getxattr(path, "user.fdfs.file_id").decode().partition("/")[2]


def write(path: Path, content: bytes) -> None:
    with path.open("wb", buffering=0) as file:
        view = memoryview(content)
        while view:
            view = view[file.write(view[: 1 << 20]) :]


def test_files_are_on_both_storages_when_they_are_closed(tmp_path: Path) -> None:
    rng = random.Random(7)
    conf = {"names_replica_timeout": 5}
    with Cluster(tmp_path, groups=("group1", "group1"), storage_conf=conf) as cluster:
        founder, other = founder_first(cluster)
        wait_until(lambda: in_sync(founder) == [other.address], "both are in sync")
        with cluster.mount(tmp_path / "mnt") as mount:
            volume = mount.path / "group1"
            for number, size in enumerate([1, 4096, 100_000, 3 << 20, 1 << 20]):
                path, content = volume / f"file{number}", rng.randbytes(size)
                write(path, content)
                assert other.path_of(name_of(path)).read_bytes() == content
            with (volume / "file3").open("r+b") as file:  # changed in place
                file.seek(1 << 20)
                file.write(b"changed")
                file.flush()
                os.fsync(file.fileno())
                stored = other.path_of(name_of(volume / "file3")).read_bytes()
                assert stored[1 << 20 :].startswith(b"changed")

            other.kill()
            write(volume / "alone", b"without the other one")
            assert in_sync(founder) == []
            other.start()
            wait_until(lambda: in_sync(founder) == [other.address], "it is in sync again")
            assert other.path_of(name_of(volume / "alone")).read_bytes() == b"without the other one"
            write(volume / "both", b"with the other one again")
            assert (
                other.path_of(name_of(volume / "both")).read_bytes() == b"with the other one again"
            )

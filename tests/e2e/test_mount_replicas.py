"""What a mount has been told is stored is on both storages of a volume, byte for byte."""

from __future__ import annotations

import json
import os
import random
from pathlib import Path

import pytest

from fdfsfuse.cli.mount_stats import find_reports
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


def metadata_of(storage: Storage, name: str) -> bytes:
    path = storage.path_of(name)
    return path.with_name(f"{path.name}-m").read_bytes()


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
            huge = [volume / "alone, huge", volume / "file3"]
            for path in huge:
                path.touch()
                os.truncate(path, 1 << 40)
                with path.open("r+b") as file:
                    file.seek(1 << 39)
                    file.write(b"far away")
            assert in_sync(founder) == []
            other.start()
            wait_until(lambda: in_sync(founder) == [other.address], "it is in sync again")
            assert other.path_of(name_of(volume / "alone")).read_bytes() == b"without the other one"
            for path in huge:
                copy = other.path_of(name_of(path))
                assert copy.stat().st_size == 1 << 40
                assert copy.stat().st_blocks * 512 < 10 << 20
                with copy.open("rb") as file, path.open("rb") as original:
                    assert file.read(4 << 20) == original.read(4 << 20)
                    file.seek(1 << 39)
                    assert file.read(8) == b"far away"
            write(volume / "both", b"with the other one again")
            assert (
                other.path_of(name_of(volume / "both")).read_bytes() == b"with the other one again"
            )


def test_xattrs_are_on_both_storages_for_who_knows_the_object(tmp_path: Path) -> None:
    """Also those that were answered ahead: who asks for the file id, or syncs, waits for them."""
    with Cluster(tmp_path, groups=("group1", "group1")) as cluster:
        founder, other = founder_first(cluster)
        wait_until(lambda: in_sync(founder) == [other.address], "both are in sync")
        with cluster.mount(tmp_path / "mnt") as mount, cluster.client() as client:
            place = mount.path / "group1" / "place"
            place.mkdir()
            for number in range(30):
                path = place / f"{number}"
                with path.open("wb") as file:
                    if number % 2:
                        os.setxattr(file.fileno(), "user.early", b"1")
                    file.write(b"content")
                for value in range(4):
                    os.setxattr(path, "user.value", b"%d" % value)
                expected = b"early\x021\x01value\x023" if number % 2 else b"value\x023"
                name = name_of(path)
                assert [metadata_of(storage, name) for storage in (founder, other)] == [
                    expected
                ] * 2
                os.setxattr(path, "user.value", b"4")
                assert metadata_of(other, name) == expected[:-1] + b"4"
                assert client.get_metadata(f"group1/{name}")["value"] == "4"
            (report,) = find_reports(str(mount.path))
            assert report["volumes"]["group1"]["ahead"]["answered"] > 0
            path = place / "synced"
            with path.open("xb") as file:
                file.write(b"content")
                file.flush()
                os.fsync(file.fileno())
                os.setxattr(file.fileno(), "user.value", b"5")
                os.fsync(file.fileno())
                founder.kill()
            (stored,) = [
                found
                for found in other.data_files()
                if found.name.endswith("-m") and found.read_bytes() == b"value\x025"
            ]
            assert stored.with_name(stored.name[:-2]).read_bytes() == b"content"

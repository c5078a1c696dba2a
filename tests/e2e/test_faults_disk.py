"""Full and lost disks under load: see tests/e2e/test_faults.py."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

from tests.common.cluster import Cluster, Storage
from tests.common.ledger import Ledger
from tests.common.load import Load
from tests.common.plain import exchange
from tests.common.small_disk import SmallDisk
from tests.common.waiting import wait_until
from tests.e2e.test_faults import TWO, settle_and_compare

LISTED = b"fetch_binlog_done=1"


def cluster_on(disk: SmallDisk, directory: Path) -> tuple[Cluster, Storage]:
    """A cluster, not started yet, and one of its two storages, which keeps everything on *disk*."""
    # Without reserved space, so that the disk really becomes full.
    cluster = Cluster(directory, groups=TWO, tracker_conf={"reserved_storage_space": "1"})
    storage = cluster.storages[1]
    storage.base_path = disk.path / "base"
    storage.store_paths = [disk.path / "path0"]
    storage.store_paths[0].mkdir()
    storage.configure(
        {"base_path": str(storage.base_path), "store_path0": str(disk.path / "path0")}
    )
    storage.allow_log("a disk failed|No space left|no space")
    return cluster, storage


def test_full_disk_of_a_server(disk: SmallDisk, tmp_path: Path) -> None:
    """Both as the source of files and as a replica: nothing acknowledged is lost or torn."""
    ledger = Ledger()
    cluster, _ = cluster_on(disk, tmp_path)
    with cluster:
        with Load(cluster, "group1", ledger, 3) as load:
            load.wait_acknowledged(60)
            disk.fill()
            wait_until(lambda: load.refused_for_space >= 3, "uploads to be refused")
            load.wait_acknowledged(30)
            disk.make_room()
            load.wait_acknowledged(30)
        settle_and_compare(cluster, ledger)


def test_full_disk_and_a_crash(disk: SmallDisk, tmp_path: Path) -> None:
    ledger = Ledger()
    cluster, small = cluster_on(disk, tmp_path)
    with cluster:
        with Load(cluster, "group1", ledger, 4) as load:
            load.wait_acknowledged(60)
            disk.fill()
            wait_until(lambda: load.refused_for_space >= 3, "uploads to be refused")
            small.kill()
            disk.make_room()
            small.start()
            load.wait_acknowledged(30)
        settle_and_compare(cluster, ledger)


def test_lost_disk_is_filled_again(tmp_path: Path) -> None:
    ledger = Ledger()
    with Cluster(tmp_path, groups=TWO, store_paths=2) as cluster:
        for number, storage in enumerate(cluster.storages):
            with Load(cluster, "group1", ledger, number) as load:
                load.wait_acknowledged(200)
            # What only it has is lost with its disk, as with FastDFS; so let it have nothing.
            cluster.wait_settled()
            with Load(cluster, "group1", ledger, number + 10) as load:
                storage.kill()
                shutil.rmtree(storage.store_paths[1] / "data")
                load.wait_acknowledged(30)
                storage.start()
                load.wait_acknowledged(30)
            settle_and_compare(cluster, ledger)


def test_interrupted_recovery_goes_on(tmp_path: Path) -> None:
    ledger = Ledger()
    with Cluster(tmp_path, groups=TWO, network=True) as cluster:
        source, storage = cluster.storages
        with Load(cluster, "group1", ledger, 1) as load:
            load.wait_acknowledged(300)
        cluster.wait_settled()
        # So slow that it is in the middle whenever it is killed.
        cluster.network.slow(source, storage, bytes_per_s=1e6, delay_s=0.1)
        storage.kill()
        data = storage.store_paths[0] / "data"
        shutil.rmtree(data)
        flag = data / ".recovery.flag"
        for _ in range(3):
            storage.launch()
            wait_until(lambda: flag.exists() and LISTED in flag.read_bytes(), "a list")
            storage.kill()
        assert flag.exists(), "the recovery was too quick to be interrupted"
        storage.launch()
        source.kill()
        source.start()
        cluster.network.heal()
        storage.wait_ready()
        settle_and_compare(cluster, ledger)
        assert not list(data.glob(".*recovery*"))


def test_lost_disk_does_not_bring_back_what_was_deleted(tmp_path: Path) -> None:
    """The server that has the files has not heard of the deletion when it sends them."""
    with Cluster(tmp_path, groups=TWO) as cluster:
        storage, peer = cluster.storages
        with socket.create_connection((storage.address, storage.port), 10) as sock:
            head = b"\0" + (7).to_bytes(8, "big") + b"txt\0\0\0"
            deleted, kept = (exchange(sock, 11, head + b"content")[16:] for _ in range(2))
            cluster.wait_settled()
            peer.kill()
            exchange(sock, 12, b"group1".ljust(16, b"\0") + deleted)
        storage.kill()
        with open(storage.base_path / "data/sync/binlog.000", "ab") as log:
            # Much has been received since: the deletion is none that a crash may have cut off.
            log.write(b"1795352879 a %s 0 0\n" % kept * 1500)
        shutil.rmtree(storage.store_paths[0] / "data")
        peer.start()
        storage.start()
        cluster.wait_active()
        cluster.wait_settled()
        for server in cluster.storages:
            assert server.path_of(kept.decode()).read_bytes() == b"content"
            assert not server.path_of(deleted.decode()).exists()


def test_lost_disk_of_the_only_server_is_refused(tmp_path: Path) -> None:
    with Cluster(tmp_path) as cluster:
        storage = cluster.storage()
        storage.stop()
        saved = tmp_path / "saved"
        (storage.store_paths[0] / "data").rename(saved)
        storage.launch()
        assert storage.wait() == 2
        assert "has lost its files: is the disk mounted?" in storage.log()
        saved.rename(storage.store_paths[0] / "data")
        storage.start()
        cluster.wait_active()

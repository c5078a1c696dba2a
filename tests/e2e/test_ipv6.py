"""A cluster on IPv6 with storage ids: daemons, clients, the mount."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

import fdfsfuse
from tests.common.cluster import Daemon, Storage
from tests.common.mount import is_mounted, unmount
from tests.common.plain import exchange
from tests.common.processes import Process, program
from tests.common.waiting import wait_until

HOST = "::1"
GROUPS = {"group1": "100001", "group2": "100002"}


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as sock:
            sock.bind((HOST, 0))
    except OSError:
        return False
    return True


pytestmark = pytest.mark.skipif(not has_ipv6(), reason="no IPv6 loopback address here")


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket(socket.AF_INET6) for _ in range(count)]
    try:
        for sock in sockets:
            sock.bind((HOST, 0))
        return [sock.getsockname()[1] for sock in sockets]
    finally:
        for sock in sockets:
            sock.close()


class IPv6Cluster:
    """One tracker and two groups on ::1, told apart by their ports."""

    def __init__(self, directory: Path) -> None:
        tracker_port, *ports = free_ports(1 + len(GROUPS))
        self.endpoint = f"[{HOST}]:{tracker_port}"
        self.directory = directory
        self.tracker = Daemon("tracker", "fdfs-trackerd", directory / "tracker", HOST, tracker_port)
        self.tracker.configure(
            {
                "base_path": str(self.tracker.base_path),
                "use_storage_id": "true",
                "storage_ids_filename": "storage_ids.conf",
                "id_type_in_filename": "id",
                "reserved_storage_space": "16MB",
            }
        )
        (directory / "tracker" / "storage_ids.conf").write_text(
            "".join(
                f"{storage_id} {group} [{HOST}]:{port}\n"
                for (group, storage_id), port in zip(GROUPS.items(), ports, strict=True)
            )
        )
        self.storages = []
        for number, (group, port) in enumerate(zip(GROUPS, ports, strict=True)):
            storage = Storage(directory / group, group, number, HOST, port)
            storage.configure(
                {
                    "group_name": group,
                    "base_path": str(storage.base_path),
                    "subdir_count_per_path": 4,
                    "tracker_server": self.endpoint,
                    "heart_beat_interval": 1,
                }
            )
            self.storages.append(storage)

    def start(self) -> None:
        for daemon in (self.tracker, *self.storages):
            daemon.launch()
        for daemon in (self.tracker, *self.storages):
            daemon.wait_ready()
        wait_until(
            lambda: self.writable_groups() == set(GROUPS),
            "both groups to be writable",
            timeout_s=60,
        )

    def writable_groups(self) -> set[str]:
        """Groups with a storage that takes uploads."""
        with self.tracker.connect() as sock:
            body = exchange(sock, 91)
        records = [body[start : start + 113] for start in range(0, len(body), 113)]
        return {
            record[:17].rstrip(b"\0").decode()
            for record in records
            if struct.unpack_from(">q", record, 73)[0]
        }

    def stop(self) -> None:
        for daemon in (*self.storages, self.tracker):
            daemon.stop()


@pytest.fixture(scope="module")
def ipv6(tmp_path_factory: pytest.TempPathFactory) -> Iterator[IPv6Cluster]:
    cluster = IPv6Cluster(tmp_path_factory.mktemp("ipv6"))
    cluster.start()
    yield cluster
    cluster.stop()


def test_answers_have_room_for_the_addresses(ipv6: IPv6Cluster) -> None:
    with ipv6.tracker.connect() as sock:
        body = exchange(sock, 104, b"group2".ljust(16, b"\0"))
        assert len(body) == 70
        assert body[16:61].rstrip(b"\0") == HOST.encode()
        assert struct.unpack(">q", body[61:69]) == (ipv6.storages[1].port,)
        query = b"group1".ljust(16, b"\0") + f"[{HOST}]:{ipv6.storages[0].port}".encode()
        assert exchange(sock, 70, query) == b"100001"
        assert exchange(sock, 95).decode() == ipv6.endpoint
        stats = exchange(sock, 97, b"\0=\0\0")
        assert f"[{HOST}]:{ipv6.storages[0].port}".encode() in stats
    with ipv6.storages[0].connect() as sock:
        stored = exchange(sock, 11, b"\0" + struct.pack(">q6s", 5, b"txt") + b"hello")
        info = exchange(sock, 22, stored)
        assert (len(info), info[24:].rstrip(b"\0")) == (70, HOST.encode())


async def test_a_client(ipv6: IPv6Cluster) -> None:
    async with fdfsfuse.Client(ipv6.endpoint) as client:
        file_id = await client.upload(b"content", extension="txt", group="group1")
        assert (await client.info(file_id)).source == "100001"
        assert await client.download(file_id, verify=True) == b"content"
        await client.set_metadata(file_id, {"a": "1"})
        assert await client.get_metadata(file_id) == {"a": "1"}
        await client.delete(file_id)
        assert not await client.exists(file_id)


def test_the_mount(ipv6: IPv6Cluster, fuse: None, tmp_path: Path) -> None:
    mount_point = tmp_path / "mnt"
    mount_point.mkdir()
    mount = Process(
        "mount-ipv6",
        [program("fdfs-mount"), ipv6.endpoint, str(mount_point), "-f"],
        ipv6.directory / "mount",
    )
    mount.launch()
    try:
        wait_until(
            lambda: (
                is_mounted(mount_point) and {p.name for p in mount_point.iterdir()} >= {*GROUPS}
            ),
            "the mount",
            timeout_s=60,
        )
        for group in GROUPS:
            (mount_point / group / "hello").write_text("world")
            assert (mount_point / group / "hello").read_text() == "world"
        wait_until(lambda: unmount(mount_point), "umount")
        assert mount.wait() == 0
    finally:
        if is_mounted(mount_point):
            unmount(mount_point, lazy=True)
        if mount.running:
            mount.kill()

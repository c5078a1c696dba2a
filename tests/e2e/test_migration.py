"""Servers of ours that take over from C servers, beside a C storage, and are given back."""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.common.cluster import Cluster, Storage
from tests.common.plain import exchange, recv_exactly
from tests.common.processes import program
from tests.common.stock_peer import StockStorage, brief, field, listed
from tests.common.waiting import wait_until

MARK = "MTI3LjAuMC43MQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAPinAAAAAEHsAms"
T = 1_700_000_000
STAT = "total_upload_count=41\ndist_path_index_high=2\ndist_path_index_low=5\n"
FLAG_OTHERS = {
    "current_trunk_file_id": "1",
    "trunk_last_compress_time": "0",
    "trunk_binlog_compress_stage": "0",
}


def name_of(content: bytes, source: str, *, sub: str = "00/01", appender: bool = False) -> str:
    """A name as a C storage gives it (protocol/file-id.md section 2)."""
    size = 1 << 63 | 0x1234 << 32 | (1 << 58 if appender else len(content))
    raw = socket.inet_aton(source) + struct.pack(">IQI", T, size, zlib.crc32(content))
    return f"M00/{sub}/{base64.urlsafe_b64encode(raw).decode()[:27]}123.txt"


class StockFiles:
    """Writes what a C storage leaves, and knows what it wrote."""

    def __init__(self, storage: Storage, peer_ip: str) -> None:
        self.storage = storage
        self.data = storage.store_paths[0] / "data"
        self.base = storage.base_path / "data"
        self.files: dict[str, bytes] = {}
        ip = storage.address
        for high in range(8):
            for low in range(8):
                (self.data / f"{high:02X}" / f"{low:02X}").mkdir(parents=True)
        for directory in ("sync", "trunk"):
            (self.base / directory).mkdir(parents=True)
        old = self.add(b"in the compressed binlog", ip)
        theirs = self.add(b"from the peer", peer_ip)
        appender = self.add(b"first, second", ip, appender=True)
        last = self.add(b"not sent yet", ip, sub="07/07")
        self.link = name_of(b"link", ip)
        (self.data / self.link[4:]).symlink_to(self.data / last[4:])
        (self.data / f"{last[4:]}-m").write_bytes(b"width\x021024")
        (self.data / ".cp7.tmp").write_bytes(b"half of someth")
        (self.data / ".fastdfs_vars").write_text(f"store_path_mark={MARK}\n")
        sent = f"{T} C {old}\n{T} c {theirs}\n{T} C {appender}\n"
        more = f"{T} A {appender} 5 8\n"
        rest = f"{T} C {last}\n{T} L {self.link} {last}\n{T} C {last}-m\n"
        self.last = last
        (self.base / "sync/binlog.000.gz").write_bytes(gzip.compress(sent.encode()))
        (self.base / "sync/binlog.001").write_text(more + rest)
        (self.base / "sync/binlog_index.dat").write_text("current_write=1\ncurrent_compress=1\n")
        self.mark = self.base / "sync" / f"{peer_ip}_{storage.port}.mark"
        self.mark.write_text(
            f"binlog_index=1\nbinlog_offset={len(more)}\nneed_sync_old=1\nsync_old_done=1\n"
            f"until_timestamp={T}\nscan_row_count=4\nsync_row_count=4\n"
        )
        self.flag = {
            "storage_join_time": str(T),
            "sync_old_done": "1",
            "sync_src_server": "",
            "sync_until_timestamp": "0",
            "last_ip_addr": ip,
            "last_server_port": str(storage.port),
            **FLAG_OTHERS,
            "store_path_mark0": MARK,
        }
        text = "".join(f"{key}={value}\n" for key, value in self.flag.items())
        (self.base / ".data_init_flag").write_text(text)
        (self.base / "storage_stat.dat").write_text(STAT)
        (self.base / "trunk/binlog").write_text(f"{T} A 0 0 0 1 256 512\n")
        (self.base / "storage_trunk.dat").write_text(f"0\n{T} A 0 0 0 1 256 512\n")
        (self.base / "fdfs_storaged.pid").write_text("4711")

    def add(
        self, content: bytes, source: str, *, sub: str = "00/01", appender: bool = False
    ) -> str:
        name = name_of(content[:5] if appender else content, source, sub=sub, appender=appender)
        self.files[name] = content
        (self.data / name[4:]).write_bytes(content)
        os.utime(self.data / name[4:], (T, T))
        return name


def write_tracker_files(cluster: Cluster, ips: list[str], port: int) -> None:
    """What a C tracker of group1 leaves (protocol/disk.md section 10)."""
    data = cluster.trackers[0].base_path / "data"
    data.mkdir(parents=True)
    (data / "storage_groups_new.dat").write_text(
        "[Global]\n\tgroup_count=1\n\n# group: group1\n[Group001]\n\tgroup_name=group1\n"
        f"\tstorage_port={port}\n\tstore_path_count=1\n\tsubdir_count_per_path=8\n"
        "\tcurrent_trunk_file_id=0\n\ttrunk_server=\n\tlast_trunk_server=\n\n"
    )
    servers = "".join(
        f"# storage: {ip}:{port}\n[Storage{number:03d}]\n\tgroup_name=group1\n\tip_addr={ip}\n"
        f"\tstatus=7\n\tversion=6.16.1\n\tjoin_time={T}\n\tstorage_port={port}\n"
        f"\tsync_src_server={ips[0] if number > 1 else ''}\n\tsync_until_timestamp={T}\n"
        "\tchangelog_offset=0\n\tstore_path_count=1\n\tsubdir_count_per_path=8\n"
        "\tupload_priority=10\n\ttotal_upload_count=7\n\n"
        for number, ip in enumerate(ips, 1)
    )
    (data / "storage_servers_new.dat").write_text(f"{servers}\n[Global]\n\tstorage_count=2\n")
    rows = "".join(f"group1,{ip},{T},{T}\n" for ip in ips)
    (data / "storage_sync_timestamp.dat").write_text(rows)
    (data / "storage_changelog.dat").write_text(f"{T} group1 127.9.9.9 4 \n")
    now = int(time.time())
    (data / ".tracker_status").write_text(f"up_time={now - 900}\nlast_check_time={now}\n")


@pytest.fixture
def taken_over(tmp_path: Path) -> Iterator[tuple[Cluster, StockFiles, StockStorage]]:
    """A cluster whose tracker and storage run on files of C servers, and their C peer."""
    cluster = Cluster(tmp_path)
    storage = cluster.storages[0]
    peer_ip = cluster.trackers[0].address.rpartition(".")[0] + ".40"
    files = StockFiles(storage, peer_ip)
    write_tracker_files(cluster, [storage.address, peer_ip], storage.port)
    with StockStorage((peer_ip, storage.port)) as peer, cluster:
        yield cluster, files, peer


def test_a_storage_takes_over_and_is_given_back(
    taken_over: tuple[Cluster, StockFiles, StockStorage],
) -> None:
    cluster, stock, peer = taken_over
    storage, tracker = cluster.storages[0], cluster.trackers[0]
    reports = peer.join((tracker.address, tracker.port), new=False)
    exchange(reports, 88, bytes(24))
    told = listed(exchange(reports, 84, struct.pack(">qq", 1000, 500)))
    assert told == {storage.address: 7, peer.address[0]: 7}
    # Everything is there, by its ids.
    group = field("group1", 16)
    with storage.connect() as sock:
        for name, content in {**stock.files, stock.link: stock.files[stock.last]}.items():
            assert exchange(sock, 14, bytes(16) + group + name.encode()) == content
        assert exchange(sock, 15, group + stock.last.encode()) == b"width\x021024"
        # The peer gets what it has not had, from the mark on.
        wait_until(lambda: f"{stock.last}-m" in peer.files, "the unsent changes")
        commands = [command for command, _, _ in peer.requests if command != 111]
        assert commands == [150, 9, 16, 19, 16]
        answer = exchange(sock, 11, struct.pack(">bq6s", -1, 3, b"txt") + b"new")
        new = answer[16:].decode()
        assert new.startswith("M00/02/05/"), "it goes on with the same sub directory"
        wait_until(lambda: new in peer.files, "the new file")
    assert set(peer.files) == {stock.last, f"{stock.last}-m", new}
    # A member that lost its disk gets the list of all files.
    text = b""
    with storage.connect() as sock:
        sock.sendall(struct.pack(">qBB", 17, 26, 0) + group + b"\0")
        assert recv_exactly(sock, 10) == bytes.fromhex("04000000000000006400")
        while piece := sock.recv(1 << 16):
            text += piece
    lines = text[:-8].decode().splitlines()
    assert struct.unpack(">q", text[-8:])[0] == len(text) - 8
    assert {line.split()[2] for line in lines} == {
        *stock.files,
        stock.link,
        f"{stock.last}-m",
        new,
    }
    storage.stop()
    _check_given_back(stock, new)


def test_a_group_that_was_moved_gets_a_tree(
    fuse: None, taken_over: tuple[Cluster, StockFiles, StockStorage], tmp_path: Path
) -> None:
    """Its trackers may have agreed on the C storage, when that was the first of its group."""
    cluster, stock, peer = taken_over
    storage, tracker = cluster.storages[0], cluster.trackers[0]
    at = (tracker.address, tracker.port)
    reports = peer.join(at, new=False)
    exchange(reports, 88, bytes(24))
    exchange(reports, 84, struct.pack(">qq", 1000, 500))

    def admin(server: str) -> str:
        command = [program("fdfs"), "admin", "names", "init", "group1", server]
        environment = os.environ | {"FDFS_TRACKERS": tracker.endpoint}
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    assert "not done at" in admin(peer.address[0])
    tracker.stop()
    agreed = {"promised": [1, ""], "accepted": [1, ""], "value": [peer.address[0], T]}
    text = json.dumps({"group1": agreed})
    (tracker.base_path / "data/founders.json").write_text(text)
    tracker.start()
    reports = peer.join(at, new=False)
    exchange(reports, 84, struct.pack(">qq", 1000, 500))
    wait_until(lambda: "done: found" in admin(storage.address), "the tree to be founded")
    assert "has a tree" in admin(storage.address)
    with cluster.mount(tmp_path / "mnt") as mount:
        volume = mount.path / "group1"
        assert os.listdir(volume / "M00/07/07") == [stock.last[10:]]
        (volume / stock.last).rename(volume / "named")
        assert (volume / "named").read_bytes() == stock.files[stock.last]
        assert os.getxattr(volume / "named", "user.width") == b"1024"
        (volume / "new").write_text("new")
        assert sorted(os.listdir(volume)) == ["M00", "named", "new"]
        assert storage.path_of(stock.last).read_bytes() == stock.files[stock.last]


def _check_given_back(stock: StockFiles, new: str) -> None:
    """What a C server needs to go on with is as it writes it."""
    sync = stock.base / "sync"
    binlog = (sync / "binlog.001").read_text()
    assert binlog.endswith(f" C {new}\n")
    index = (sync / "binlog_index.dat").read_text()
    assert index == "current_write=1\ncurrent_compress=1\n"
    mark = dict(line.split("=") for line in stock.mark.read_text().splitlines())
    assert (mark["binlog_index"], int(mark["binlog_offset"])) == ("1", len(binlog))
    assert (mark["need_sync_old"], mark["sync_old_done"]) == ("1", "1")
    assert mark["until_timestamp"] == str(T)
    assert len(mark) == 7
    lines = (stock.base / ".data_init_flag").read_text().splitlines()
    flag = dict(line.split("=", 1) for line in lines)
    assert stock.flag.items() <= flag.items()
    assert (stock.data / ".fastdfs_vars").read_text() == f"store_path_mark={MARK}\n"
    stat = (stock.base / "storage_stat.dat").read_text()
    assert "\ntotal_download_count=" in stat
    assert stat.startswith("total_upload_count=42\n")
    assert (stock.base / "trunk/binlog").read_text() == f"{T} A 0 0 0 1 256 512\n"
    assert (stock.base / "storage_trunk.dat").exists()
    for name, content in stock.files.items():
        assert (stock.data / name[4:]).read_bytes() == content
        assert (stock.data / name[4:]).stat().st_mtime == T


def test_a_c_storage_fills_a_new_one_of_ours(
    taken_over: tuple[Cluster, StockFiles, StockStorage],
) -> None:
    """The tracker names the C storage as source: it is the first by its id that is ACTIVE."""
    cluster, _, peer = taken_over
    tracker, ours = cluster.trackers[0], cluster.storages[0]
    at = (tracker.address, tracker.port)
    reports = peer.join(at, new=False)
    exchange(reports, 88, bytes(24))
    exchange(reports, 84, struct.pack(">qq", 1000, 500))
    ours.stop()
    added = cluster.add_storage()
    new = (added.address, added.port)

    def status() -> int:
        return exchange(peer.connect(at), 71, field("group1", 16) + f"{new[0]}:{new[1]}".encode())[
            0
        ]

    def waits() -> bool:
        return listed(exchange(reports, 83)).get(new[0]) == 1

    wait_until(waits, "it to wait for its source")
    sock = peer.connect(new)
    source = exchange(peer.connect(at), 86, field("group1", 16) + field(new[0], 16))
    assert source[:16].split(b"\0")[0].decode() == peer.address[0]
    exchange(sock, 9, field(peer.address[0], 16))
    exchange(peer.connect(at), 76, field("group1", 16) + brief(2, new))
    assert status() == 2
    content = b"old content"
    name = name_of(content, peer.address[0])
    head = struct.pack(">qqi", len(name), len(content), T) + field("group1", 16)
    exchange(sock, 16, head + name.encode() + content)
    exchange(peer.connect(at), 76, field("group1", 16) + brief(5, new))
    wait_until(lambda: status() == 7, "the new storage to be ACTIVE")
    assert added.path_of(name).read_bytes() == content
    assert added.path_of(name).stat().st_mtime == T

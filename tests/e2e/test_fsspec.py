"""``fdfs://`` in fsspec, as applications use it, on a real cluster."""

from __future__ import annotations

import contextlib
import gc
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from fdfsfuse import blocking
from tests.common.cluster import Cluster
from tests.common.waiting import wait_until


@pytest.fixture
def options(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Storage options of the cluster; nothing of them stays in fsspec's cache."""
    yield {"trackers": cluster.tracker.endpoint}
    fsspec.get_filesystem_class("fdfs").clear_instance_cache()


@pytest.fixture
def fs(options: dict[str, Any]) -> Any:
    return fsspec.filesystem("fdfs", **options)


def connections(cluster: Cluster) -> int:
    """TCP connections that this process has to the cluster."""
    hosts = {
        f"{int.from_bytes(socket.inet_aton(daemon.address), 'little'):08X}"
        for daemon in cluster.daemons
    }
    own = set()
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            own.add(os.readlink(link))
    table = Path("/proc/self/net/tcp").read_text().splitlines()[1:]
    return sum(
        1
        for fields in map(str.split, table)
        if fields[2].partition(":")[0] in hosts and f"socket:[{fields[9]}]" in own
    )


def test_files_are_written_and_read(fs: Any, options: dict[str, Any]) -> None:
    content = os.urandom(300_000)
    with fsspec.open("fdfs://group1/table.csv", "wb", **options) as file:
        file.write(content[:100])
        file.write(content[100:])
    file_id = file.file_id
    assert file_id.startswith("group1/M00/")
    assert file_id.endswith(".csv")
    with fsspec.open(f"fdfs://{file_id}", "rb", block_size=65536, **options) as file:
        assert file.read(10) == content[:10]
        file.seek(250_000)
        assert file.read() == content[250_000:]
    assert fs.cat_file(file_id) == content
    assert fs.cat_file(file_id, 10, 20) == content[10:20]
    assert fs.cat_file(file_id, -5) == content[-5:]
    assert fs.head(file_id, 7) == content[:7]
    info = fs.info(f"fdfs://{file_id}")
    assert (info["name"], info["size"], info["type"]) == (file_id, len(content), "file")
    assert fs.exists(file_id)
    assert fs.isfile(file_id)
    assert fs.ls(file_id, detail=False) == [file_id]
    assert fs.isdir("group1")
    assert fs.ls("group1") == []
    fs.rm(file_id)
    assert not fs.exists(file_id)
    with pytest.raises(FileNotFoundError):
        fs.cat_file(file_id)
    with pytest.raises(FileNotFoundError):
        fs.info("group1/nothing")


def test_local_files_and_text(fs: Any, options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("local")
    file_id = fs.put_file(str(tmp_path / "a.txt"), "group1/")
    assert file_id.endswith(".txt")
    fs.get(file_id, str(tmp_path / "b.txt"))
    assert (tmp_path / "b.txt").read_text() == "local"
    with fsspec.open(f"fdfs://{file_id}", "r", **options) as file:
        assert file.read() == "local"
    small = fs.pipe_file("group1/x.bin", b"")
    assert fs.cat_file(small) == b""
    with fs.open(small) as file:
        assert file.read() == b""
    with pytest.raises(ValueError, match="never changes"):
        fs.pipe_file(small, b"other")
    with pytest.raises(ValueError, match="not an appender"):
        fs.open(small, "ab")


def test_appenders_grow(fs: Any, options: dict[str, Any]) -> None:
    with blocking.Client(options["trackers"]) as client:
        file_id = client.upload(b"one", appender=True)
    with fs.open(file_id, "ab") as file:
        file.write(b" two")
    assert fs.cat_file(file_id) == b"one two"
    with fs.open(file_id, "wb") as file:
        file.write(b"three")
    assert fs.cat_file(file_id) == b"three"


def test_threads_share_connections(fs: Any, options: dict[str, Any]) -> None:
    file_id = fs.pipe_file("group1/x", b"content")
    problems: list[BaseException] = []

    # All at once, so that each has an identity of its own.
    together = threading.Barrier(8)

    def read() -> None:
        try:
            together.wait(60)
            own = fsspec.filesystem("fdfs", **options)
            for _ in range(20):
                assert own.cat_file(file_id) == b"content"
        except BaseException as exc:
            problems.append(exc)

    threads = [threading.Thread(target=read) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    kept = fsspec.get_filesystem_class("fdfs")._cache.values()
    assert len(kept) > 1, "fsspec makes one for each thread"
    assert {id(other.client) for other in kept} == {id(fs.client)}


def test_a_dropped_file_system_closes_its_connections(cluster: Cluster) -> None:
    fs = fsspec.filesystem("fdfs", trackers=cluster.tracker.endpoint)
    fs.pipe_file("group1/x", b"content")
    assert connections(cluster) >= 2
    fsspec.get_filesystem_class("fdfs").clear_instance_cache()
    del fs
    gc.collect()
    wait_until(lambda: connections(cluster) == 0, "the connections to be closed")


def test_the_trackers_may_come_from_the_environment(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FDFS_TRACKERS", raising=False)
    with pytest.raises(ValueError, match="FDFS_TRACKERS"):
        fsspec.filesystem("fdfs")
    monkeypatch.setenv("FDFS_TRACKERS", cluster.tracker.endpoint)
    assert (
        fsspec.filesystem("fdfs", skip_instance_cache=True).cat_file(
            fsspec.filesystem("fdfs").pipe_file("group1/x", b"content")
        )
        == b"content"
    )
    fsspec.get_filesystem_class("fdfs").clear_instance_cache()


def test_a_file_object_that_is_given_up_stores_nothing(fs: Any) -> None:
    file = fs.open("group1/x.txt", "wb", autocommit=False)
    file.write(b"never stored")
    file.close()
    file.discard()
    assert file.file_id is None

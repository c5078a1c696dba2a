"""A FastDFS client that others wrote (fastdfs-client, MIT) works with our servers.

It expects addresses of 46 bytes, so the tracker has response_ip_addr_size = IPv6. Only what
works in that client itself is used.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastdfs_client import FastdfsClient

from tests.common.cluster import Cluster
from tests.common.plain import PlainClient


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("wide")
    with Cluster(directory, tracker_conf={"response_ip_addr_size": "IPv6"}) as cluster:
        yield cluster


@pytest.fixture
def foreign(wide: Cluster, tmp_path: Path) -> Any:
    """Any, because half of its methods have no types."""
    conf = tmp_path / "client.conf"
    conf.write_text(f"connect_timeout = 5\ntracker_server = {wide.tracker.endpoint}\n")
    return FastdfsClient(conf)


@pytest.fixture
def plain(wide: Cluster) -> Iterator[PlainClient]:
    with wide.client() as client:
        yield client


@pytest.mark.parametrize("size", [1, 4096, 3_000_001])
def test_upload_and_download(foreign: Any, plain: PlainClient, size: int) -> None:
    data = random.Random(size).randbytes(size)
    answer = foreign.upload_by_buffer(data, "bin")
    file_id = answer["Remote file_id"]
    assert answer["Group name"] == "group1"
    assert foreign.download_to_buffer(file_id)["Content"] == data
    assert plain.download(file_id) == data
    middle = size // 2
    assert foreign.download_to_buffer(file_id, middle, 100)["Content"] == data[middle:][:100]


def test_files(foreign: Any, plain: PlainClient, tmp_path: Path) -> None:
    source, target = tmp_path / "photo.jpg", tmp_path / "copy.jpg"
    source.write_bytes(b"picture" * 10_000)
    file_id = foreign.upload_by_filename(source)["Remote file_id"]
    assert file_id.endswith(".jpg")
    foreign.download_to_file(str(target), file_id)
    assert target.read_bytes() == source.read_bytes()
    assert plain.info(file_id)[0] == 70_000
    foreign.delete_file(file_id)
    assert not plain.exists(file_id)


def test_appender(foreign: Any, plain: PlainClient) -> None:
    file_id = foreign.upload_appender_by_buffer(b"one", "log")["Remote file_id"]
    plain.append(file_id, b" two")
    assert foreign.download_to_buffer(file_id)["Content"] == b"one two"

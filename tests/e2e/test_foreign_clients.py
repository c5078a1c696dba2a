"""FastDFS clients that others wrote work with our servers.

fastdfs-client (PyPI, MIT) expects addresses of 46 bytes, so its tracker has response_ip_addr_size =
IPv6. py3Fdfs (PyPI) and fdfs (npm) run in processes of their own. What does not work in a client
against the C server either is left out.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fastdfs_client import FastdfsClient

from tests.common.cluster import Cluster
from tests.common.plain import PlainClient

ROOT = Path(__file__).parents[2]
SCRIPTS = Path(__file__).parent / "foreign"
FDFS_VERSION = "1.0.4"
TIMEOUT_S = 120


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    directory = tmp_path_factory.mktemp("wide")
    with Cluster(directory, tracker_conf={"response_ip_addr_size": "IPv6"}) as cluster:
        yield cluster


@pytest.fixture
def foreign(wide: Cluster, tmp_path: Path) -> Any:
    """Any, because half of its methods have no types."""
    conf = tmp_path / "client.conf"
    conf.write_text(f"connect_timeout = 60\ntracker_server = {wide.tracker.endpoint}\n")
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


def run_foreign(
    command: Sequence[str], cluster: Cluster, directory: Path, **environment: str
) -> dict[str, Any]:
    """What a script prints that uses a foreign client."""
    tracker = cluster.tracker
    done = subprocess.run(
        [*command, tracker.address, str(tracker.port), str(directory)],
        env={**os.environ, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


def check(result: dict[str, Any], cluster: Cluster) -> None:
    """What both scripts do, seen by a client that shares no code with anybody."""
    assert result["copied"]
    with cluster.client() as plain:
        assert result["by_name"].endswith(".jpg")
        assert plain.info(result["by_name"])[0] == 256_000
        assert result["by_buffer"].endswith(".txt")
        assert plain.download(result["by_buffer"]) == b"from memory"
        assert not plain.exists(result["deleted"])


def test_py3fdfs(cluster: Cluster, tmp_path: Path) -> None:
    result = run_foreign([sys.executable, str(SCRIPTS / "with_py3fdfs.py")], cluster, tmp_path)
    check(result, cluster)
    assert result["in_memory"] == "from memory"
    assert result["appended"] == "0123456789 and more"
    assert "No such file" in result["gone"]
    with cluster.client() as plain:
        assert plain.download(result["appender"]) == b"XYZ34567"


@pytest.fixture(scope="session")
def node_modules() -> Path:
    """The npm package fdfs, kept for the next run. Skips where it cannot be had; fails in CI."""
    home = ROOT / ".node"
    modules = home / "node_modules"
    about = modules / "fdfs" / "package.json"
    if (
        shutil.which("node")
        and about.exists()
        and json.loads(about.read_text())["version"] == FDFS_VERSION
    ):
        return modules
    options = ["--no-save", "--no-package-lock", "--no-audit", "--no-fund", "--ignore-scripts"]
    options += ["--fetch-retries", "6"]
    try:
        done = subprocess.run(
            ["npm", "install", "--prefix", str(home), *options, f"fdfs@{FDFS_VERSION}"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        if done.returncode == 0:
            return modules
        reason = f"npm install fdfs: {done.stderr[-1000:]}"
    except (FileNotFoundError, subprocess.TimeoutExpired) as exc:
        reason = f"npm cannot be run: {exc}"
    shutil.rmtree(home, ignore_errors=True)
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def test_fdfs_of_npm(node_modules: Path, cluster: Cluster, tmp_path: Path) -> None:
    command = ["node", "--no-deprecation", str(SCRIPTS / "with_fdfs.js")]
    result = run_foreign(command, cluster, tmp_path, NODE_PATH=str(node_modules))
    check(result, cluster)
    assert result["part"] == "memory"
    assert result["metadata"] == {"width": "2048", "height": "768"}
    assert result["info"]["size"] == 256_000
    group = result["by_name"].partition("/")[0]
    assert result["info"]["addr"] == cluster.storage(group).address
    assert result["gone"]
    with cluster.client() as plain:
        assert plain.download(result["appender"]) == b"01XYZ56789 and more"
        assert plain.info(result["by_name"])[2] == result["info"]["crc32"] & 0xFFFFFFFF

"""fdfs-storaged as a program: what an operator's mistakes are answered with."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.common.addresses import free_port, loopback_network
from tests.common.processes import Process, program
from tests.common.waiting import wait_until


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("fdfs-storaged"), *arguments], capture_output=True, text=True, timeout=120
    )


def write_conf(path: Path, base_path: Path) -> Path:
    """A storage on a port of its own, whose tracker is not there."""
    address = f"{loopback_network()}.2"
    path.write_text(
        f"group_name = group1\nbase_path = {base_path}\nbind_addr = {address}\n"
        f"port = {free_port([address])}\ntracker_server = {address}:{free_port([address])}\n"
    )
    return path


@pytest.fixture
def storage(tmp_path: Path) -> Iterator[Process]:
    """A storage that waits for its tracker."""
    conf = write_conf(tmp_path / "storage.conf", tmp_path / "base")
    process = Process("storage", [program("fdfs-storaged"), str(conf)], tmp_path)
    process.launch()
    wait_until(lambda: "waiting for a tracker" in process.log(), "the storage to wait")
    yield process
    process.stop()


def test_a_second_storage_is_kept_out_of_a_base_path(storage: Process, tmp_path: Path) -> None:
    assert "cannot connect: Connection refused\n" in storage.log()
    conf = write_conf(tmp_path / "second.conf", tmp_path / "base")
    second = run(str(conf))
    assert second.returncode == 1
    assert second.stderr == (f"fdfs-storaged: another storage runs on base_path {tmp_path}/base\n")


def test_the_base_path_of_a_killed_storage_is_free(storage: Process, tmp_path: Path) -> None:
    storage.kill()
    conf = write_conf(tmp_path / "second.conf", tmp_path / "base")
    again = Process("again", [program("fdfs-storaged"), str(conf)], tmp_path)
    again.launch()
    try:
        wait_until(lambda: "waiting for a tracker" in again.log(), "the storage to wait")
    finally:
        again.stop()


def test_a_base_path_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    result = run(str(write_conf(tmp_path / "storage.conf", Path("/proc/nothing"))))
    assert result.returncode == 2
    assert result.stderr == (
        "fdfs-storaged: base_path = /proc/nothing: No such file or directory\n"
    )

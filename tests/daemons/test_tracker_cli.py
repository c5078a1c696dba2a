"""fdfs-trackerd as a program: exit codes, one-line complaints, signals, kill -9."""

from __future__ import annotations

import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from fdfsfuse.proto.header import pack_header, pack_response
from tests.common.addresses import free_port, loopback_network
from tests.common.joins import new_storage
from tests.common.processes import Process, program

JOIN_REPLY = pack_response(bytes(17))


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [program("fdfs-trackerd"), *arguments], capture_output=True, text=True, timeout=120
    )


@pytest.fixture
def address() -> tuple[str, int]:
    host = f"{loopback_network()}.2"
    return host, free_port([host])


@pytest.fixture
def tracker(tmp_path: Path, address: tuple[str, int]) -> Iterator[Process]:
    conf = tmp_path / "tracker.conf"
    conf.write_text(
        f"base_path = {tmp_path}/base\nbind_addr = {address[0]}\nport = {address[1]}\n"
        "accept_threads = 2\nno_such_key = 1\n"
    )
    process = Process("tracker", [program("fdfs-trackerd"), str(conf)], tmp_path)
    yield process
    process.stop()


def exchange(address: tuple[str, int], source: str, request: bytes, size: int) -> bytes:
    with socket.create_connection(address, 10, source_address=(source, 0)) as sock:
        sock.sendall(request)
        data = b""
        while len(data) < size and (chunk := sock.recv(size - len(data))):
            data += chunk
        return data


def test_help_and_version() -> None:
    shown = run("--help")
    assert shown.returncode == 0
    assert "base_path" in shown.stdout
    assert "fdfs-trackerd" in run("--version").stdout


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "No such file or directory"),
        ("", "base_path is missing"),
        ("base_path = /x\nport = 70000\n", "tracker.conf:2: port = 70000: must be a whole number"),
        ("base_path = /proc/nothing\nport = 0\n", "base_path = /proc/nothing: No such file"),
    ],
)
def test_operator_mistakes_are_one_line_and_code_2(
    tmp_path: Path, text: str | None, words: str
) -> None:
    conf = tmp_path / "tracker.conf"
    if text is not None:
        conf.write_text(text)
    result = run(str(conf))
    assert result.returncode == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert result.stdout == ""


def test_wrong_usage() -> None:
    assert run().returncode == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_clean_stop(tracker: Process, number: int, address: tuple[str, int]) -> None:
    tracker.start()
    log = tracker.log()
    assert f"listens on {address[0]}:{address[1]}\n" in log
    assert "no group yet" in log
    assert "no_such_key: unknown key, ignored" in log
    assert exchange(address, address[0], pack_header(0, 111), 10) == pack_response()
    tracker.signal(number)
    assert tracker.wait() == 0
    assert "STOPPING=1" in tracker.notified() or "stopping" in tracker.log()


def test_a_port_in_use_is_code_1(
    tracker: Process, tmp_path: Path, address: tuple[str, int]
) -> None:
    tracker.start()
    conf = tmp_path / "second.conf"
    conf.write_text(
        f"base_path = {tmp_path}/other\nbind_addr = {address[0]}\nport = {address[1]}\n"
    )
    second = run(str(conf))
    assert second.returncode == 1
    assert f"cannot listen on {address[0]}:{address[1]}" in second.stderr
    assert "Traceback" not in second.stderr
    same_base = run(str(tmp_path / "tracker.conf"))
    assert same_base.returncode == 1
    assert "another tracker runs on base_path" in same_base.stderr


def test_kill_9_loses_no_acknowledged_join(tracker: Process, address: tuple[str, int]) -> None:
    storage = address[0].rpartition(".")[0] + ".3"
    join = new_storage(address[0], f"{address[0]}:{address[1]}").encode()
    tracker.start()
    request = pack_header(len(join), 81) + join
    assert exchange(address, storage, request, len(JOIN_REPLY)) == JOIN_REPLY
    tracker.kill()
    tracker.start()
    assert "1 group known" in tracker.log()
    listed = exchange(address, storage, pack_header(0, 91), 10 + 113)
    assert listed[10:16] == b"group1"

"""The control socket and ``fdfs mount-stats``: right numbers, also while the mount waits."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import threading
from collections.abc import Container
from pathlib import Path
from typing import Any

import pyfuse3
import pytest
import trio

from fdfsfuse.cli.mount_stats import find_reports, mount_stats, quantile
from fdfsfuse.errors import ConnectFailed
from fdfsfuse.fuse import control, mountpoint
from fdfsfuse.fuse.mountpoint import MountFailed, check_mountpoint
from fdfsfuse.fuse.mounttable import resolve
from fdfsfuse.fuse.stats import Stats
from tests.common.cluster import Cluster
from tests.common.mount import Mount
from tests.common.processes import program
from tests.common.waiting import wait_until


def run(*arguments: str | Path, code: int = 0) -> str:
    command = [program("fdfs"), "mount-stats", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == code, done.stderr
    return done.stdout if code == 0 else done.stderr


def report(mount: Mount) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(mount.path, "--json"))
    return found


@pytest.mark.skipif(os.geteuid() != 0, reason="clearing the caches mounts anew: needs root")
def test_requests_are_counted(mounted: Mount, volume: Path) -> None:
    before = report(mounted)
    for number in range(20):
        (volume / f"f{number}").write_bytes(b"x" * 1000)
    for _ in range(5):
        with pytest.raises(FileNotFoundError):
            os.rename(volume / "none", volume / "x")
    mounted.clear_caches()
    for number in range(20):
        assert len((volume / f"f{number}").read_bytes()) == 1000
    after = report(mounted)

    def grown(name: str, key: str = "count") -> float:
        old, new = (found["operations"].get(name, {}).get(key, 0) for found in (before, after))
        return float(new - old)

    assert grown("create") == 20
    assert grown("read") == 0  # open() has brought the content
    assert grown("lookup", "failed") == 0
    assert after["bytes"]["written"] - before["bytes"]["written"] == 20_000
    assert after["bytes"]["read"] - before["bytes"]["read"] == 20_000
    for operation in after["operations"].values():
        assert operation["count"] == sum(count for count, _ in operation["histogram"])
        assert 0 < operation["seconds"] <= operation["count"] * operation["max_seconds"] * 1.0001
    state = after["volumes"]["group1"]
    assert state["connected"]
    assert not state["down"]
    assert state["calls"]["CreateFile"]["count"] >= 20
    assert 0 < state["lease_left_seconds"] <= state["lease_seconds"]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ((), range(1, 5)),
        (("default_permissions",), range(1, 5)),
        pytest.param(
            ("allow_other", "suid"),
            range(29, 40),
            marks=pytest.mark.skipif(os.geteuid() != 0, reason="set-id bits work: needs root"),
        ),
    ],
)
def test_how_often_writing_asks_for_capabilities(
    options: tuple[str, ...], expected: Container[int], fuse: None, cluster: Cluster, tmp_path: Path
) -> None:
    with cluster.mount(tmp_path / "mnt", *options) as mount:
        before = report(mount)["operations"].get("getxattr", {"count": 0})["count"]
        path = mount.path / "group1" / "file"
        for _ in range(10):
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.write(fd, b"x")
            os.write(fd, b"y")
            os.close(fd)
        path.unlink()
        # Once more if the kernel has asked for attributes meanwhile.
        assert report(mount)["operations"]["getxattr"]["count"] - before in expected


def test_what_people_see(mounted: Mount, volume: Path) -> None:
    (volume / "f").write_bytes(b"x")
    text = run(mounted.path)
    assert text.startswith(f"{mounted.cluster.tracker.endpoint} on {mounted.path}, process")
    for part in (
        "create",
        "volume group1: connected to",
        "changes of names answered ahead: ",
        "timeout_s=30.0",
        "write buffer",
    ):
        assert part in text
    assert text.partition(",")[0] in run()
    assert "is not a mount of yours" in run("/nowhere", code=3)


def test_watching(mounted: Mount, volume: Path) -> None:
    command = [program("fdfs"), "mount-stats", str(mounted.path), "--watch", "--interval", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        heads = 0
        for line in process.stdout:
            heads += " on /" in line and ", process " in line
            if heads == 3:
                break
        process.send_signal(signal.SIGINT)


@pytest.fixture
def alone(fuse: None, tmp_path: Path) -> Any:
    with Cluster(tmp_path / "cluster") as cluster:
        yield cluster


def test_the_mount_tells_what_it_waits_for(alone: Cluster, tmp_path: Path) -> None:
    with alone.mount(tmp_path / "mnt", "hard") as mount:
        directory = mount.path / "group1"
        (directory / "file").write_bytes(b"x")
        storage = alone.storage()
        storage.signal(signal.SIGSTOP)
        thread = threading.Thread(target=(directory / "made").mkdir)
        thread.start()
        try:
            wait_until(lambda: report(mount)["waiting"], "a request to wait")
            waiting = report(mount)["waiting"][0]
            assert waiting["operation"] in ("lookup", "mkdir", "getattr")
            assert "wait for more than a second" in run(mount.path)
        finally:
            storage.signal(signal.SIGCONT)
            thread.join(60)
        assert (directory / "made").is_dir()
        noted = report(mount)["recent"]
        assert any(
            (item["operation"], item["what"], item["error"])
            == (waiting["operation"], waiting["what"], 0)
            for item in noted
        )
        assert all(item["seconds"] > 1 for item in noted)


def test_failures_are_noted(alone: Cluster, tmp_path: Path) -> None:
    # Longer than a storage may be silent before it is taken for one that does not answer anybody.
    with alone.mount(tmp_path / "mnt", "timeout=6") as mount:
        path = mount.path / "group1" / "made"
        alone.storage().signal(signal.SIGSTOP)
        try:
            with pytest.raises(OSError, match="Input/output error"):
                path.mkdir()
        finally:
            alone.storage().signal(signal.SIGCONT)
        assert errno.EIO in {item["error"] for item in report(mount)["recent"]}
        assert "EIO" in run(mount.path)
        assert report(mount)["volumes"]["group1"]["times_down"] >= 1
        wait_until(lambda: not report(mount)["volumes"]["group1"]["down"], "the volume to be up")


def test_the_socket(alone: Cluster, tmp_path: Path) -> None:
    """The socket is its user's alone, and goes away with the mount."""
    with alone.mount(tmp_path / "mnt") as mount:
        assert report(mount)["pid"] == mount.pid
        (path,) = control.sockets(str(mount.path))
        assert oct(path.stat().st_mode & 0o777) == oct(0o600)
        # Those who do not read keep nobody waiting.
        lazy = [socket.socket(socket.AF_UNIX) for _ in range(3)]
        for connection in lazy:
            connection.connect(str(path))
        assert report(mount)["pid"] == mount.pid
        for connection in lazy:
            connection.close()
    assert not path.exists()


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """``tmp_path``, which may be too long for the name of a socket, by a short one."""
    monkeypatch.chdir(tmp_path)
    return Path()


def test_stale_sockets_go(here: Path) -> None:
    stale, live = here / "a-1.sock", here / "b-2.sock"
    with socket.socket(socket.AF_UNIX) as dead, socket.socket(socket.AF_UNIX) as listening:
        dead.bind(str(stale))
        listening.bind(str(live))
        listening.listen()
        control.remove_stale(here)
        assert sorted(here.iterdir()) == [live]


def test_mounts_that_start_at_once(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One looks for stale sockets just before the other one's is listened on."""

    class Slow(socket.socket):
        def listen(self, *args: Any) -> None:
            control.remove_stale(here)
            super().listen(*args)

    monkeypatch.setattr(control, "directory", lambda: here)
    monkeypatch.setattr(socket, "socket", Slow)
    with control.ControlSocket("/mnt", lambda: {"mountpoint": "/mnt"}):
        (path,) = control.sockets("/mnt")
        assert control.ask(path) == {"mountpoint": "/mnt"}
    assert list(here.iterdir()) == []


def test_a_control_socket_that_cannot_be_made_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (long := tmp_path / ("x" * 200)).mkdir()
    monkeypatch.setattr(control, "directory", lambda: long)
    opened = []

    class Noted(socket.socket):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            opened.append(self)

    monkeypatch.setattr(socket, "socket", Noted)
    with control.ControlSocket("/mnt", dict):
        assert "AF_UNIX path too long" in caplog.text
    assert [made.fileno() for made in opened] == [-1]


def test_a_mount_that_hangs_is_no_reason_to_wait(
    mounted: Mount,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "hangs")
    with mounted.cluster.mount(tmp_path / "hangs", "attr_timeout=0") as other:
        other.signal(signal.SIGSTOP)
        try:
            found = find_reports(None)
            assert str(mounted.path) in {report["mountpoint"] for report in found}
            assert f"{other.path}: the mount does not answer" in capfd.readouterr().err
            monkeypatch.setattr(control, "TIMEOUT_S", 0.5)
            for path in (other.path, link):
                with pytest.raises(ConnectFailed, match="does not answer"):
                    find_reports(str(path))
            monkeypatch.setattr(mountpoint, "_ANSWER_S", 0.5)
            with pytest.raises(MountFailed, match="already mounted"):
                check_mountpoint(Path(resolve(str(link))))
        finally:
            other.signal(signal.SIGCONT)


def test_outcomes_are_told_apart() -> None:
    stats = Stats(str)
    outcomes: list[Exception | None] = [None, OSError(errno.ENOENT, ""), OSError(errno.EIO, "")]

    async def handler(number: int) -> int:
        problem = outcomes[number]
        if problem is not None:
            raise problem
        assert len(stats.operations["read"].running) == 1
        return number

    read = stats.counted("read", handler, lambda name, args, exc: exc.errno)
    assert trio.run(read, 0) == 0
    for number in (1, 2):
        with pytest.raises(pyfuse3.FUSEError):
            trio.run(read, number)
    operation = stats.operations["read"]
    assert (operation.count(), operation.refused, operation.failed) == (3, 1, 1)
    assert not operation.running
    assert 0 < operation.max_ns <= operation.total_ns
    assert [(noted.operation, noted.what, noted.error) for noted in stats.noted] == [
        ("read", "(2,)", errno.EIO)
    ]


def test_a_report_of_another_version(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(control, "directory", lambda: here)
    old = {"mountpoint": "/mnt", "version": "0.0", "pid": 1, "format": 0}
    with control.ControlSocket("/mnt", lambda: old):
        assert mount_stats.main(["/mnt"], standalone_mode=False) is None
    assert "/mnt: version 0.0 tells other things" in capsys.readouterr().out
    assert list(here.iterdir()) == []


@pytest.mark.parametrize(
    ("part", "wanted"), [(0.0, 0.1), (0.5, 0.1), (0.51, 0.2), (0.99, 0.4), (1.0, 0.4)]
)
def test_quantiles(part: float, wanted: float) -> None:
    assert quantile([(50, 0.1), (45, 0.2), (0, 0.3), (5, 0.4)], part) == wanted
    assert quantile([], part) == 0.0

"""Fixtures that start real daemons and mounts; see tests/common/cluster.py.

Every process that a test starts is watched: a traceback or an ERROR line in its log fails the
test, its log is shown when the test fails, and a test that hangs in a system call on a mount is
freed by killing the mount.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.common.cluster import Cluster
from tests.common.mount import Mount, why_no_fuse
from tests.common.processes import forget_ended, kill_all, started_processes
from tests.common.small_disk import SmallDisk, small_disk, why_no_small_disk
from tests.common.trees import directory_with_xattrs

HANG_TIMEOUT_S = 400.0


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--long", action="store_true", help="longer runs of randomised tests")


def pytest_configure(config: pytest.Config) -> None:
    """Let tests of hypothesis depend on no speed, and on chance only with --long."""
    settings.register_profile(
        "fdfsfuse",
        derandomize=not config.getoption("--long"),
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("fdfsfuse")
    # A handler, other than "ignore", is not inherited: under nohup or in the background of a script
    # the programs that tests start would not hear of these signals.
    for number in (signal.SIGHUP, signal.SIGINT):
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda *_: None)


@pytest.fixture
def long_run(request: pytest.FixtureRequest) -> bool:
    """Whether randomised tests should run for minutes instead of seconds."""
    return bool(request.config.getoption("--long"))


@pytest.fixture(scope="session", autouse=True)
def runtime_directory() -> Iterator[None]:
    """Give control sockets a place: without a login session, as after su, a user has none."""
    if os.geteuid() == 0:
        yield
        return
    # Not below tmp_path, whose name can be too long for the address of a socket.
    with (
        tempfile.TemporaryDirectory(prefix="fdfsfuse-run-") as path,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("XDG_RUNTIME_DIR", path)
        yield


@pytest.fixture(scope="session")
def fuse() -> None:
    """Ask for it in tests that mount: skips where nothing can be mounted, but fails in CI."""
    reason = why_no_fuse()
    if reason is not None:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    """A disk of 64 MiB. Skips without root, but fails in CI."""
    reason = why_no_small_disk()
    if reason is not None:
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
    with small_disk(tmp_path / "disk", 64) as made:
        yield made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A tracker and the volumes group1 and group2, shared by the tests of a module."""
    with Cluster(tmp_path_factory.mktemp("cluster"), groups=("group1", "group2")) as running:
        yield running


@pytest.fixture(scope="module")
def mounted(
    fuse: None, cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Mount]:
    """The cluster's mount, shared by the tests of a module."""
    with cluster.mount(tmp_path_factory.mktemp("mnt") / "fdfs") as mount:
        yield mount


@pytest.fixture
def volume(mounted: Mount, request: pytest.FixtureRequest) -> Path:
    """A new directory on the mount for one test."""
    name = "".join(c if c.isalnum() else "_" for c in request.node.name)
    path = mounted.path / "group1" / name
    path.mkdir()
    return path


@pytest.fixture
def local(tmp_path: Path) -> Iterator[Path]:
    """A new local directory to compare the mount with; it keeps xattrs."""
    parent = directory_with_xattrs([tmp_path, Path("/var/tmp"), Path.cwd()])
    if parent is None:
        pytest.skip("no local file system that keeps user xattrs")
    path = Path(tempfile.mkdtemp(prefix="fdfsfuse-local-", dir=parent))
    yield path
    subprocess.run(["chmod", "-R", "u+rwX", path], check=True)
    shutil.rmtree(path)


@pytest.fixture(autouse=True)
def watch_processes() -> Iterator[None]:
    """Free a test that hangs on a mount, and fail it when a log has an unexpected error."""
    watchdog = threading.Timer(HANG_TIMEOUT_S, _kill_mounts)
    watchdog.daemon = True
    watchdog.start()
    yield
    watchdog.cancel()
    bad = [line for process in started_processes() for line in process.new_bad_lines()]
    forget_ended()
    if bad:
        pytest.fail("unexpected lines in logs:\n" + "\n".join(bad))


def _kill_mounts() -> None:
    for process in started_processes():
        if isinstance(process, Mount) and process.running:
            process.signal(signal.SIGKILL)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed:
        for process in started_processes():
            report.sections.append((f"log of {process.name}", process.log()[-6000:]))
    return report


def pytest_sessionfinish(session: pytest.Session) -> None:
    kill_all()

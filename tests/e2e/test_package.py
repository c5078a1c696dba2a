"""The wheel and the sdist, installed into an empty environment: what a user gets works."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.common.addresses import loopback_network
from tests.common.mount import is_mounted
from tests.common.processes import Process

ROOT = Path(__file__).parents[2]
COMMANDS = ("fdfs", "fdfs-mount", "fdfs-trackerd", "fdfs-storaged")


def run(command: Sequence[str | Path], cwd: Path, **environment: str) -> str:
    """Run a command that must work, without the variables that lead back to this source tree."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV")}
    done = subprocess.run(
        command,
        cwd=cwd,
        env={**kept, **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the sdist, and the wheel that was built from the sdist."""
    out = tmp_path_factory.mktemp("dist")
    # As users build: from the sdist.  Without isolation, so that no network is needed.
    run([sys.executable, "-m", "build", "--no-isolation", "--outdir", out, ROOT], out)
    return out


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts directory of a new environment with nothing but the wheel.

    What the package depends on, and pip, is borrowed from this environment: the test is of our
    package, and pyfuse3 takes a minute to compile.
    """
    home = tmp_path_factory.mktemp("installed")
    run([sys.executable, "-m", "venv", "--without-pip", home / "venv"], home)
    python = home / "venv" / "bin" / "python"
    purelib = run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], home)
    borrowed = home / "borrowed"
    borrowed.mkdir()
    import trio

    for entry in Path(trio.__file__).parents[1].iterdir():
        # The editable install of this source tree is what must not be borrowed.
        if "fdfs" not in entry.name and entry.suffix != ".pth":
            (borrowed / entry.name).symlink_to(entry)
    (Path(purelib.strip()) / "borrowed.pth").write_text(f"{borrowed}\n")
    (wheel,) = built.glob("*.whl")
    run([python, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", wheel], home)
    where = run([python, "-c", "import fdfsfuse; print(fdfsfuse.__file__)"], home).strip()
    assert Path(where).is_relative_to(home), where
    return home / "venv" / "bin"


def test_wheel_has_the_packages_and_nothing_else(built: Path) -> None:
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        files = archive.namelist()
    (data,) = {name.split("/")[0] for name in files if ".data/" in name}
    units = {name for name in files if name.startswith(f"{data}/data/share/fdfsfuse/systemd/")}
    assert len(units) == 5
    tops = {name.split("/")[0] for name in files if ".dist-info/" not in name} - {data}
    assert tops == {"fdfsfuse", "fdfs_tracker", "fdfs_storage"}
    for package in tops:
        assert f"{package}/py.typed" in files
    assert not [name for name in files if "__pycache__" in name or name.endswith(".pyc")]


def test_sdist_has_what_its_readme_speaks_of(built: Path) -> None:
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    assert {
        "README.rst",
        "pyproject.toml",
        "docs/index.rst",
        "scripts/demo",
        "scripts/lib.sh",
        "scripts/test",
        "tests/e2e/test_package.py",
    } <= files
    assert not [name for name in files if name.startswith((".ci", ".venv", ".git/"))]


def test_installed_units_run_the_installed_commands(installed: Path, tmp_path: Path) -> None:
    run([installed / "fdfs", "install-units", "--to", tmp_path], tmp_path)
    unit = (tmp_path / "systemd/system/fdfs-trackerd.service").read_text()
    assert f"ExecStart={installed}/fdfs-trackerd /etc/fdfs/tracker.conf" in unit


@pytest.mark.parametrize("command", COMMANDS)
def test_installed_commands_answer(installed: Path, tmp_path: Path, command: str) -> None:
    version = run([sys.executable, "-c", "import fdfsfuse; print(fdfsfuse.__version__)"], ROOT)
    assert "Usage" in run([installed / command, "--help"], tmp_path)
    assert version.strip() in run([installed / command, "--version"], tmp_path)


def test_installed_mini_starts_and_stops(installed: Path, fuse: None, tmp_path: Path) -> None:
    home = tmp_path / "mini"
    command = [str(installed / "fdfs"), "mini", str(home), "--json", "--volumes", "1"]
    mini = Process("mini", [*command, "--address", f"{loopback_network()}.2"], tmp_path)
    # Nothing on PATH: the daemons come from the environment of the command itself.
    mini.environment = {"PATH": "/usr/bin:/bin"}
    try:
        mini.start()
        about = json.loads(mini.log())
        for name, pid in about["processes"].items():
            program = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0]
            assert Path(os.fsdecode(program)).parent == installed, name
        path = home / "mnt" / "group1" / "hello"
        path.write_text("world")
        assert run([installed / "fdfs", "id", path], tmp_path).startswith("group1/M00/")
        assert mini.terminate() == 0
        assert not is_mounted(home / "mnt")
    finally:
        mini.stop()

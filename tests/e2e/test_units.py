"""The units of systemd/: systemd itself finds nothing wrong with them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.common.processes import program

UNITS = ("fdfs-trackerd.service", "fdfs-storaged@.service", "fdfs-mount@.service")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `fdfs install-units` writes, for the environment that runs the tests."""
    target = tmp_path_factory.mktemp("etc")
    subprocess.run([program("fdfs"), "install-units", "--to", target], check=True)
    return target


@pytest.fixture(scope="module")
def analyze() -> str:
    path = shutil.which("systemd-analyze")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("systemd-analyze is not installed (package systemd)")
        pytest.skip("systemd-analyze is not installed (package systemd)")
    return path


def complaints(analyze: str, unit: Path) -> list[str]:
    """What `systemd-analyze verify` says of this unit.

    It may also complain of the machine (no D-Bus, units of other packages), and its exit code
    counts these, so only lines that name the unit are taken.
    """
    done = subprocess.run(
        [analyze, "verify", "--man=no", str(unit)], capture_output=True, text=True, check=False
    )
    name = unit.name.replace("@.", "@")
    names = (unit.name, name.removesuffix("service"), str(unit))
    lines = [line for line in done.stderr.splitlines() if any(name in line for name in names)]
    assert not done.returncode or done.stderr, "it failed and did not say why"
    return lines


@pytest.mark.parametrize("name", UNITS)
def test_systemd_finds_nothing_wrong(installed: Path, analyze: str, name: str) -> None:
    assert complaints(analyze, installed / "systemd" / "system" / name) == []


@pytest.mark.parametrize(
    ("good", "mistake"),
    [
        ("Type=notify", "Type=notifi"),
        ("Restart=on-failure", "Restrat=on-failure"),
        ("[Install]", "[Instal]"),
        ("ExecStart=/", "ExecStart="),
        ("/bin/fdfs-", "/bin/no-fdfs-"),
    ],
)
@pytest.mark.parametrize("name", UNITS)
def test_mistakes_are_found(
    installed: Path, analyze: str, tmp_path: Path, name: str, good: str, mistake: str
) -> None:
    text = (installed / "systemd" / "system" / name).read_text()
    assert good in text
    unit = tmp_path / name
    unit.write_text(text.replace(good, mistake))
    assert complaints(analyze, unit)


def test_commands_of_this_installation_are_run(installed: Path) -> None:
    scripts = sysconfig.get_path("scripts")
    for name in UNITS:
        text = (installed / "systemd" / "system" / name).read_text()
        command = name.split(".")[0].rstrip("@")
        assert f"ExecStart={scripts}/{command} " in text
        assert "/opt/fdfsfuse" not in text


def test_user_and_directories_can_be_made(installed: Path, tmp_path: Path) -> None:
    for tool, where in (("systemd-sysusers", "sysusers.d"), ("systemd-tmpfiles", "tmpfiles.d")):
        path = shutil.which(tool)
        if path is None or os.geteuid() != 0:
            pytest.skip(f"needs root and {tool}")
        (tmp_path / "etc").mkdir(exist_ok=True)
        command = [path, f"--root={tmp_path}", *(["--create"] if "tmp" in tool else [])]
        subprocess.run([*command, installed / where / "fdfs.conf"], check=True)
    users = dict(
        line.split(":", 1) for line in (tmp_path / "etc" / "passwd").read_text().splitlines()
    )
    assert users["fdfs"].split(":")[4] == "/var/lib/fdfs"
    state = (tmp_path / "var" / "lib" / "fdfs").stat()
    assert state.st_uid == int(users["fdfs"].split(":")[1])
    assert state.st_mode & 0o777 == 0o750
    assert (tmp_path / "etc" / "fdfs").is_dir()


def test_dry_run_writes_nothing(tmp_path: Path) -> None:
    command = [program("fdfs"), "install-units", "--to", str(tmp_path / "etc"), "--dry-run"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert str(tmp_path / "etc" / "sysusers.d" / "fdfs.conf") in done.stdout.splitlines()
    assert not (tmp_path / "etc").exists()


def test_no_permission_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("in the way")
    command = [program("fdfs"), "install-units", "--to", str(tmp_path / "etc" / "below")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1

"""``fdfs mini``: the whole product from one command, and nothing left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.common.addresses import loopback_network
from tests.common.mount import is_mounted, unmount
from tests.common.processes import Process, program
from tests.common.waiting import wait_until


class Mini(Process):
    """``fdfs mini DIR`` with loopback addresses of its own."""

    def __init__(self, directory: Path) -> None:
        self.home = directory / "mini"
        self.address = f"{loopback_network()}.2"
        super().__init__("fdfs-mini", [], directory)

    def run(self, *options: str) -> dict[str, Any]:
        """Start it, wait until it is ready, and return what ``--json`` tells."""
        self.log_path.unlink(missing_ok=True)
        self.command = [
            *(program("fdfs"), "mini", str(self.home)),
            *("--address", self.address, "--json", *options),
        ]
        self.start()
        lines = [line for line in self.log().splitlines() if line.startswith("{")]
        assert len(lines) == 1, self.log()
        description = json.loads(lines[0])
        assert isinstance(description, dict)
        return description


@pytest.fixture
def mini(tmp_path: Path) -> Iterator[Mini]:
    process = Mini(tmp_path)
    yield process
    if process.running:
        process.kill()
    for path in (process.home / "mnt", tmp_path / "else where"):
        if is_mounted(path):
            unmount(path, lazy=True)


def fdfs(*arguments: str, tracker: str) -> str:
    """What the ``fdfs`` command prints."""
    done = subprocess.run(
        [program("fdfs"), *arguments],
        env={**os.environ, "FDFS_TRACKERS": tracker},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def gone(pids: dict[str, int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids.values())


def test_files_come_back_with_the_directory(fuse: None, mini: Mini, tmp_path: Path) -> None:
    about = mini.run("--volumes", "3")
    mount = Path(about["mount"])
    assert mount == mini.home / "mnt"
    assert sorted(os.listdir(mount)) == ["group1", "group2", "group3"]
    content = os.urandom(100_000)
    path = mount / "group3" / "dir" / "file name"
    path.parent.mkdir()
    path.write_bytes(content)
    os.setxattr(path, "user.width", b"640")
    file_id = fdfs("id", str(path), tracker=about["tracker"])
    assert file_id.startswith("group3/M00/")

    assert mini.terminate() == 0
    assert not is_mounted(mount)
    assert gone(about["processes"])
    # The files are the user's; everything else can be read by him too.
    assert "tracker_server = " + about["tracker"] in (mini.home / "group3.conf").read_text()

    again = mini.run()
    assert again["tracker"] == about["tracker"]
    assert again["volumes"] == about["volumes"]
    assert path.read_bytes() == content
    assert os.getxattr(path, "user.width") == b"640"
    copy = tmp_path / "copy"
    fdfs("download", file_id, str(copy), tracker=about["tracker"])
    assert copy.read_bytes() == content
    # Ctrl-C, as a terminal sends it.
    mini.signal(signal.SIGINT)
    assert mini.wait() == 0
    assert not is_mounted(mount)
    assert gone(again["processes"])


def test_process_that_dies_is_reported_and_ends_the_rest(fuse: None, mini: Mini) -> None:
    elsewhere = mini.directory / "else where"
    elsewhere.mkdir()
    link = mini.directory / "link"
    link.symlink_to(elsewhere)
    about = mini.run("--volumes", "1", "--mount", str(link), "-o", "ro")
    assert about["mount"] == str(elsewhere)
    with pytest.raises(OSError, match="Read-only"):
        (elsewhere / "group1" / "file").touch()
    os.kill(about["processes"]["group1"], signal.SIGKILL)
    assert mini.wait() == 1
    assert "group1 ended with signal SIGKILL" in mini.log()
    assert about["logs"]["group1"] in mini.log()
    assert gone(about["processes"])
    assert not is_mounted(elsewhere)


def test_volume_of_two_storages_goes_on_when_one_is_stopped(mini: Mini, tmp_path: Path) -> None:
    about = mini.run("--no-mount", "--volumes", "1", "--replicas", "2")
    assert sorted(about["processes"]) == ["group1", "group1-2", "tracker"]
    source = tmp_path / "source"
    source.write_bytes(os.urandom(10_000))
    file_id = fdfs("upload", str(source), tracker=about["tracker"])
    ends = {name: Path(place["base_path"]) for name, place in about["volumes"]["group1"].items()}
    paths = [base / "data" / file_id.split("/", 2)[2] for base in ends.values()]
    wait_until(lambda: all(path.exists() for path in paths), "both storages to have the file")
    os.kill(about["processes"]["group1"], signal.SIGKILL)
    wait_until(lambda: "group1 has stopped (signal SIGKILL)" in mini.log(), "the message")
    copy = tmp_path / "copy"
    fdfs("download", file_id, str(copy), tracker=about["tracker"])
    assert copy.read_bytes() == source.read_bytes()
    assert f"fdfs-storaged {about['volumes']['group1']['group1']['conf']}" in mini.log()
    os.kill(about["processes"]["group1-2"], signal.SIGKILL)
    assert mini.wait() == 1  # nobody is left


def test_nothing_outlives_a_killed_mini(fuse: None, mini: Mini) -> None:
    about = mini.run("--volumes", "1")
    path = mini.home / "mnt" / "group1" / "kept"
    path.write_text("kept")
    mini.kill()
    wait_until(lambda: gone(about["processes"]), "the processes to end")
    about = mini.run()
    assert path.read_text() == "kept"
    # The mount's own death leaves a dead mount point, which the next run clears.
    os.kill(about["processes"]["mount"], signal.SIGKILL)
    assert mini.wait() == 1
    assert "mount ended with signal SIGKILL" in mini.log()
    mini.run()
    assert path.read_text() == "kept"
    mini.terminate()


def test_servers_only_and_one_run_per_directory(mini: Mini) -> None:
    about = mini.run("--no-mount", "--volumes", "1")
    assert about["mount"] is None
    assert sorted(about["processes"]) == ["group1", "tracker"]
    source = mini.home.parent / "source"
    source.write_bytes(b"plain FastDFS")
    file_id = fdfs("upload", str(source), tracker=about["tracker"])
    assert file_id.startswith("group1/M00/")
    second = subprocess.run(
        [program("fdfs"), "mini", str(mini.home)], capture_output=True, text=True, check=False
    )
    assert second.returncode == 2
    assert f"in use by process {mini.pid}" in second.stderr
    assert mini.terminate() == 0
    assert gone(about["processes"])


def test_readable_summary(mini: Mini) -> None:
    # Not told that it is supervised: then the end of the terminal would mean nothing.
    process = subprocess.Popen(
        [
            *(program("fdfs"), "mini", str(mini.home), "--no-mount", "--volumes", "1"),
            *("--address", mini.address),
        ],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    text = ""
    try:
        for line in process.stdout:
            text += line
            if "Ctrl-C ends it" in line:
                process.send_signal(signal.SIGHUP)  # the terminal was closed
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert "fdfs mini is running" in text
    assert f"tracker   {mini.address}:" in text
    assert "export FDFS_TRACKERS=" in text
    assert f"Stopped. The files stay in {mini.home}." in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["{}"], "is not empty and was not made by fdfs mini"),
        (["{}/file"], "file"),
        (["{}/new", "--address", "192.0.2.1"], "loopback only"),
        (["{}/new", "--no-mount", "--mount", "/mnt"], "--no-mount does not go with"),
        (["{}/new", "--volumes", "0"], "--volumes"),
    ],
)
def test_mistakes_are_one_line(tmp_path: Path, arguments: list[str], text: str) -> None:
    (tmp_path / "file").write_text("somebody's")
    done = subprocess.run(
        [program("fdfs"), "mini", *(argument.format(tmp_path) for argument in arguments)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    assert [entry.name for entry in tmp_path.iterdir() if entry.name != "new"] == ["file"]

"""The fdfs command against real daemons: what it prints, and its exit codes."""

from __future__ import annotations

import array
import fcntl
import io
import json
import os
import pty
import signal
import subprocess
import sys
import tempfile
import termios
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from fdfsfuse.cli.main import COMMANDS, fdfs, run
from tests.common.cluster import Cluster
from tests.common.mount import Mount
from tests.common.processes import program
from tests.common.waiting import wait_until

MISSING = "group1/M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt"
NO_GROUP9 = "fdfs: there is no volume group9; there are: group1, group2\n"


class Result(NamedTuple):
    """What a command did."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode().strip()

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Fdfs = Callable[..., Result]


def in_this_process(
    monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Fdfs:
    """Calls fdfs as a function."""

    def call(*arguments: str | Path, stdin: bytes = b"") -> Result:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        code = run(fdfs, "fdfs", [str(argument) for argument in arguments])
        captured = capsysbinary.readouterr()
        return Result(code, captured.out, captured.err.decode())

    return call


@pytest.fixture
def command(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsysbinary: pytest.CaptureFixture[bytes],
) -> Fdfs:
    """Runs fdfs in this process, in an empty directory, with the cluster's tracker."""
    monkeypatch.setenv("FDFS_TRACKERS", cluster.tracker.endpoint)
    monkeypatch.chdir(tmp_path)

    return in_this_process(monkeypatch, capsysbinary)


def upload(command: Fdfs, content: bytes, *options: str) -> str:
    result = command("upload", "-", *options, stdin=content)
    assert result.code == 0, result.err
    return result.text


def test_a_file_goes_there_and_back(command: Fdfs, tmp_path: Path) -> None:
    content = os.urandom(300_000)
    (tmp_path / "photo.jpg").write_bytes(content)
    result = command("upload", "photo.jpg", "-m", "width=1024")
    file_id = result.text
    assert file_id.endswith(".jpg")
    assert command("download", file_id, "copy.jpg").code == 0
    assert (tmp_path / "copy.jpg").read_bytes() == content
    (tmp_path / "there").mkdir()
    assert command("download", file_id, "there", "--json").data["size"] == len(content)
    assert (tmp_path / "there" / file_id.rpartition("/")[2]).read_bytes() == content
    assert command("download", file_id, "-").out == content
    with tempfile.TemporaryFile() as unnamed:
        subprocess.run(
            [program("fdfs"), "download", file_id, "/dev/stdout"], stdout=unnamed, check=True
        )
        unnamed.seek(0)
        assert unnamed.read() == content
    assert command("download", "--offset", "5", "--count", "7", file_id, "-").out == content[5:12]
    command("download", "--offset", "299990", file_id, "tail")
    assert (tmp_path / "tail").read_bytes() == content[-10:]
    info = command("info", "--json", file_id).data
    assert info["file_id"] == file_id
    assert info["kind"] == "normal"
    assert info["size"] == len(content)
    assert info["crc32"] == f"{zlib.crc32(content):08x}"
    assert "300000 bytes" in command("info", file_id).text
    assert command("meta", "get", file_id).text == "width=1024"
    assert command("delete", "--json", file_id).data == {"file_id": file_id}
    assert command("info", file_id).code == 3


def test_several_files_and_the_standard_input(command: Fdfs, tmp_path: Path) -> None:
    for name in ("a.txt", "b.tar.gz", "c"):
        (tmp_path / name).write_text(name)
    result = command("upload", "--json", "-g", "group2", "a.txt", "b.tar.gz", "c")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [line["file"] for line in lines] == ["a.txt", "b.tar.gz", "c"]
    assert all(line["file_id"].startswith("group2/") for line in lines)
    assert lines[1]["file_id"].endswith(".gz")
    assert upload(command, b"dump", "-e", "sql").endswith(".sql")
    empty = upload(command, b"")
    assert command("download", empty, "empty").code == 0
    assert (tmp_path / "empty").read_bytes() == b""


def test_metadata(command: Fdfs) -> None:
    file_id = upload(command, b"x")
    assert command("meta", "get", file_id, "--json").data == {}
    assert command("meta", "set", file_id, "b=2", "a=1").code == 0
    assert command("meta", "set", file_id, "a=x=y").code == 0
    assert command("meta", "get", file_id).text == "a=x=y\nb=2"
    assert command("meta", "get", file_id, "b").text == "2"
    assert command("meta", "get", file_id, "c").code == 3
    assert command("meta", "set", file_id, "--replace", "c=3").code == 0
    assert command("meta", "get", "--json", file_id).data == {"c": "3"}
    assert command("meta", "set", file_id, "--replace").code == 0
    assert command("meta", "get", file_id).out == b""
    assert command("meta", "set", file_id).code == 2
    assert command("meta", "set", file_id, "novalue").code == 2


def test_appenders(command: Fdfs) -> None:
    file_id = upload(command, b"one\n", "--appender")
    assert command("append", file_id, "-", "--json", stdin=b"two\n").data["size"] == 8
    assert command("download", file_id, "-").out == b"one\ntwo\n"
    normal = upload(command, b"x")
    result = command("append", normal, "-", stdin=b"y")
    assert result.code == 2
    assert "not an appender" in result.err


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["info", MISSING], 3, MISSING),
        (["download", MISSING, "x"], 3, MISSING),
        (["download", MISSING, "-"], 3, MISSING),
        (["delete", MISSING], 3, MISSING),
        (["meta", "get", MISSING], 3, MISSING),
        (["path", MISSING], 3, "no such file"),
        (["info", "group9/" + MISSING[7:]], 3, NO_GROUP9),
        (["path", "group9/" + MISSING[7:]], 3, NO_GROUP9),
        (["status", "group9"], 3, NO_GROUP9),
        (["upload", "-g", "group9", "-"], 3, NO_GROUP9),
        (["info", "nonsense"], 2, "not a file id"),
        (["upload", "no-such-file"], 2, "no-such-file"),
        (["append", MISSING, "/"], 2, "directory"),
        (["upload", "-e", "toolong1", "-"], 2, "not an extension"),
        (["download"], 2, "Missing argument"),
        (["no-such-command"], 2, "no-such-command"),
        (["info", "-t", "127.0.0.1:1", MISSING], 4, "Connection refused"),
        (["info", "-t", "nonsense:", MISSING], 2, "nonsense"),
        (["info", "--config", "/no/such.conf", MISSING], 2, "/no/such.conf"),
        (["id", "/no/such/file"], 3, "no such file"),
        (["id", "/etc/hostname"], 2, "not on a mount"),
        (["download", MISSING, "/no/such/directory/x"], 1, "/no/such/directory"),
    ],
)
def test_exit_codes(command: Fdfs, arguments: list[str], code: int, says: str) -> None:
    result = command(*arguments)
    assert says in result.err
    assert result.code == code
    assert result.out == b""
    assert "Traceback" not in result.err


def test_where_the_trackers_come_from(
    command: Fdfs, cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file_id = upload(command, b"x")
    monkeypatch.setenv("FDFS_TRACKERS", f"127.0.0.1:1,{cluster.tracker.endpoint}")
    assert command("info", file_id).code == 0
    monkeypatch.delenv("FDFS_TRACKERS")
    assert command("info", "-t", "127.0.0.1:1", "-t", cluster.tracker.endpoint, file_id).code == 0
    conf = tmp_path / "client.conf"
    conf.write_text(f"tracker_server = {cluster.tracker.endpoint}\n")
    assert command("info", "--config", conf, file_id).code == 0
    conf.write_text(f"tracker_server = {cluster.tracker.endpoint}\nconnect_timeout = soon\n")
    result = command("info", "--config", conf, file_id)
    assert result.code == 2
    assert f"{conf}:2" in result.err


def test_status(command: Fdfs) -> None:
    volumes = command("status", "--json").data["volumes"]
    assert [volume["name"] for volume in volumes] == ["group1", "group2"]
    for volume in volumes:
        (storage,) = volume["storages"]
        assert volume["state"] == "ok"
        assert volume["total_mb"] > volume["free_mb"] > 0
        assert volume["names"]["primary"] == storage["id"]
        assert volume["names"]["members"] == [storage["id"]]
        assert storage["state"] == "ACTIVE"
        assert storage["names_role"] == "primary"
        assert storage["heartbeat_age_s"] < 60
    text = command("status", "group1").text
    assert text.startswith("trackers  ok")
    assert "\ngroup1  ok: all storages are active" in text
    assert "group2" not in text


def test_status_says_why_a_volume_is_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    with Cluster(tmp_path) as cluster:
        monkeypatch.setenv("FDFS_TRACKERS", cluster.tracker.endpoint)
        cluster.storage().kill()

        def status() -> Any:
            assert run(fdfs, "fdfs", ["status", "--json"]) == 0
            return json.loads(capsysbinary.readouterr().out)["volumes"][0]

        wait_until(lambda: status()["state"] == "down", "the volume to be down")
        (storage,) = status()["storages"]
        assert storage["state"] == "OFFLINE"
        assert "not connected" in storage["why"]
        assert run(fdfs, "fdfs", ["upload", str(cluster.tracker.conf_path)]) == 4
        assert run(fdfs, "fdfs", ["info", MISSING]) == 4
        assert b"no storage of volume group1" in capsysbinary.readouterr().err
        assert run(fdfs, "fdfs", ["path", "--timeout", "0.5", MISSING]) == 4
        cluster.storage().start()
        cluster.wait_active()


def test_id_and_path(command: Fdfs, volume: Path, mounted: Mount) -> None:
    first = volume / "first name"
    first.write_bytes(b"content")
    os.link(first, volume / "second")
    file_id = command("id", first).text
    assert file_id.startswith("group1/M00/")
    assert command("download", file_id, "-").out == b"content"
    assert command("id", "--json", first).data == {"path": str(first), "file_id": file_id}
    names = sorted([str(first), str(volume / "second")])
    assert sorted(command("path", file_id).text.splitlines()) == names
    data = command("path", "--json", file_id).data
    assert sorted(data["mounted"]) == names
    root = str(mounted.path)
    assert sorted(root + "/" + item for item in data["paths"]) == names
    result = command("id", volume)
    assert result.code == 3
    assert "no file id" in result.err
    unnamed = upload(command, b"unnamed")
    result = command("path", unnamed)
    assert result.code == 3
    assert "has no name" in result.err


def test_path_with_a_mount_that_hangs(
    command: Fdfs, volume: Path, cluster: Cluster, tmp_path: Path
) -> None:
    first = volume / "name"
    first.write_bytes(b"content")
    file_id = command("id", first).text
    with cluster.mount(tmp_path / "hangs") as other:
        other.signal(signal.SIGSTOP)
        try:
            result = command("path", file_id, file_id)
        finally:
            other.signal(signal.SIGCONT)
        assert result.code == 0
        assert result.text.splitlines().count(str(first)) == 2
        # Not waited for again.
        assert result.err.count(f"{other.path}: the mount does not answer") == 1


# --- as processes ---------------------------------------------------------------------------------


@pytest.fixture
def environment(cluster: Cluster) -> dict[str, str]:
    return {**os.environ, "FDFS_TRACKERS": cluster.tracker.endpoint, "TERM": "xterm"}


def test_progress_on_a_terminal(environment: dict[str, str], tmp_path: Path) -> None:
    big, small = tmp_path / "big", tmp_path / "small"
    small.write_bytes(b"x")
    with big.open("wb") as file:
        file.truncate(64 << 20)
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [program("fdfs"), "upload", str(small), str(big)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    try:
        while data := os.read(ours, 65536):
            shown += data
    except OSError:
        pass  # the terminal's other side is closed
    finally:
        os.close(ours)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert [line[:5] for line in out.splitlines()] == [b"group", b"group"]
    assert b"2 files" in shown
    assert b"/s" in shown


def test_an_interrupt(environment: dict[str, str], tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    process = subprocess.Popen(
        [program("fdfs"), "upload", str(fifo)], env=environment, stderr=subprocess.PIPE
    )
    # Opening succeeds when the other side is open: then it is certainly uploading.
    with fifo.open("wb", buffering=0) as writer:
        writer.write(b"never ending")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert err.strip() == b"fdfs: interrupted"


def test_an_interrupt_while_standard_input_is_awaited(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [program("fdfs"), "upload", "-"],
        env=environment,
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(b"never ending")
    process.stdin.flush()
    fd = process.stdin.fileno()
    # The pipe is empty once the program has taken what was written, and waits for more.
    waiting = array.array("i", [1])

    def taken() -> bool:
        fcntl.ioctl(fd, termios.FIONREAD, waiting)
        return not waiting[0]

    wait_until(taken, "the input to be read")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=120) == 130
    assert process.stderr is not None
    with process.stderr, process.stdin:
        assert process.stderr.read().strip() == b"fdfs: interrupted"


def test_a_reader_that_goes_away(environment: dict[str, str]) -> None:
    script = f"{program('fdfs')} status --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], env=environment, capture_output=True, timeout=120)
    assert done.returncode in (0, 1)
    assert done.stderr == b""


def test_completion(environment: dict[str, str]) -> None:
    def complete(*words: str) -> set[str]:
        done = subprocess.run(
            [program("fdfs")],
            env={
                **environment,
                "_FDFS_COMPLETE": "bash_complete",
                "COMP_WORDS": " ".join(("fdfs", *words)),
                "COMP_CWORD": str(len(words)),
            },
            capture_output=True,
            check=True,
            timeout=120,
        )
        return {line.partition(",")[2] for line in done.stdout.decode().split()}

    assert complete("") == set(COMMANDS)
    assert complete("up") == {"upload"}
    assert complete("meta", "s") == {"set"}
    assert complete("upload", "--ext") == {"--extension"}


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts(shell: str, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    assert run(fdfs, "fdfs", ["completion", shell]) == 0
    script = capsysbinary.readouterr().out
    assert b"_FDFS_COMPLETE" in script
    if shell == "bash":
        subprocess.run(["bash", "-n"], input=script, check=True)


def test_help_needs_no_event_loop() -> None:
    code = (
        "import sys; from fdfsfuse.cli.main import fdfs, run; run(fdfs, 'fdfs', ['--help']);"
        "sys.exit('trio' in sys.modules or 'rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=120)
    assert done.returncode == 0
    for name in COMMANDS:
        assert name.encode() in done.stdout


@pytest.mark.parametrize("name", [name for name in COMMANDS if name != "mini"])
def test_every_command_explains_itself(
    name: str, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    assert run(fdfs, "fdfs", [name, "--help"]) == 0
    assert b"fdfs " + name.encode() in capsysbinary.readouterr().out

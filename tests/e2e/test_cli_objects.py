"""The commands of fdfs for objects, beyond those in test_cli: appenders, slaves, links, ids."""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

import pytest

from fdfsfuse.cli.decode import explain
from fdfsfuse.cli.main import COMMANDS
from fdfsfuse.cli.options import settings_of
from fdfsfuse.cli.url import make_token
from fdfsfuse.client.address import Address
from fdfsfuse.errors import UsageError
from tests.common.cluster import Cluster
from tests.e2e.test_cli import MISSING, Fdfs, command, in_this_process, upload

__all__ = ["command"]

APPENDER = "group1/M00/00/00/fwAAC2sC71yEb4YYAAAAACWd5eY757.log"


# --- appenders ------------------------------------------------------------------------------------


def test_modify_and_truncate(command: Fdfs) -> None:
    file_id = upload(command, b"0123456789", "--appender")
    assert command("modify", file_id, "4", "-", "--json", stdin=b"abcd").data["size"] == 10
    assert command("download", file_id, "-").out == b"0123abcd89"
    assert command("modify", file_id, "9", "-", "--json", stdin=b"xyz").data["size"] == 12
    assert command("truncate", file_id, "5", "--json").data["size"] == 5
    assert command("download", file_id, "-").out == b"0123a"
    assert command("truncate", file_id, "7").code == 0
    assert command("download", file_id, "-").out == b"0123a\0\0"
    behind = command("modify", file_id, "100", "-", stdin=b"x")
    assert behind.code == 5
    normal = upload(command, b"x")
    for arguments in (("modify", normal, "0", "-"), ("truncate", normal, "1")):
        result = command(*arguments, stdin=b"y")
        assert result.code == 2
        assert "not an appender" in result.err
    assert command("truncate", APPENDER, "1").code == 3


def test_an_appender_becomes_a_normal_file(command: Fdfs) -> None:
    file_id = upload(command, b"one\n", "--appender", "-e", "log")
    assert command("append", file_id, "-", stdin=b"two\n").code == 0
    data = command("regenerate", file_id, "--json").data
    assert data["old_id"] == file_id
    info = command("info", "--json", data["file_id"]).data
    assert info["kind"] == "normal"
    content = b"one\ntwo\n"
    assert info["crc32"] == f"{zlib.crc32(content):08x}"
    assert command("exists", "-q", file_id).code == 3
    assert command("download", "--verify", data["file_id"], "-").out == content
    again = command("regenerate", data["file_id"])
    assert again.code == 2


# --- slaves and links -----------------------------------------------------------------------------


def test_slaves(command: Fdfs, tmp_path: Path) -> None:
    master = upload(command, b"master", "-e", "png")
    (tmp_path / "small.jpg").write_bytes(b"small")
    slave = command("slave", master, "_120x120", "small.jpg", "-m", "width=120").text
    assert slave == master.replace(".png", "_120x120.jpg")
    assert command("download", slave, "-").out == b"small"
    assert command("meta", "get", slave).text == "width=120"
    assert command("info", "--json", slave).data["kind"] == "slave"
    again = command("slave", master, "_120x120", "small.jpg")
    assert again.code == 5
    other = command("slave", master, "_thumbnail", "-", "--json", stdin=b"x").data
    assert other["file_id"] == master.replace(".png", "_thumbnail.png")
    assert command("slave", MISSING, "_120x120", "small.jpg").code == 3


def test_links(command: Fdfs) -> None:
    file_id = upload(command, b"content", "-e", "txt")
    link = command("link", file_id).text
    assert link != file_id
    assert link.endswith(".txt")
    assert command("download", "--verify", link, "-").out == b"content"
    data = command("link", file_id, "-e", "bin", "--json").data
    assert data["target_id"] == file_id
    assert data["file_id"].endswith(".bin")
    assert command("delete", link).code == 0
    assert command("exists", "-q", file_id, data["file_id"]).code == 0
    assert command("link", MISSING).code == 3


def test_exists(command: Fdfs) -> None:
    file_id = upload(command, b"x")
    result = command("exists", file_id, MISSING)
    assert result.code == 3
    assert result.text == f"{file_id}: exists\n{MISSING}: missing"
    assert command("exists", "--json", file_id).data == {"file_id": file_id, "exists": True}
    assert command("exists", "-q", file_id).out == b""
    assert command("meta", "merge", file_id, "a=1").code == 0
    assert command("meta", "merge", file_id, "b=2").code == 0
    assert command("meta", "get", file_id).text == "a=1\nb=2"


# --- many files -----------------------------------------------------------------------------------


def test_a_directory_is_uploaded_with_a_manifest(command: Fdfs, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "b" / "c").mkdir(parents=True)
    contents = {f"b/{number:02}.txt": b"%d" % number for number in range(20)}
    contents |= {"a": b"first", "b/c/deep.tar": bytes(100_000)}
    for name, content in contents.items():
        (tree / name).write_bytes(content)
    (tree / "link").symlink_to("a")
    os.mkfifo(tree / "fifo")
    result = command("upload", "tree", "--manifest", "ids.json", "--jobs", "3")
    assert result.code == 0, result.err
    assert result.err.count("skipped") == 2
    files = json.loads((tmp_path / "ids.json").read_text())["files"]
    # In the order of the walk, however many were under way.
    assert [line.split("  ") for line in result.text.splitlines()] == [
        [file["file_id"], file["file"]] for file in files
    ]
    assert [file["file"] for file in files] == [
        "tree/a",
        *(f"tree/b/{number:02}.txt" for number in range(20)),
        "tree/b/c/deep.tar",
    ]
    for file in files:
        content = (tmp_path / file["file"]).read_bytes()
        assert (file["size"], file["crc32"]) == (len(content), f"{zlib.crc32(content):08x}")
        assert command("download", file["file_id"], "-").out == content


def test_what_was_stored_before_a_failure_is_known(command: Fdfs, tmp_path: Path) -> None:
    for name in "abcd":
        (tmp_path / name).write_text(name)
    (tmp_path / "c").chmod(0)
    with pytest.MonkeyPatch.context() as patch:
        real_open = Path.open

        def refuse(path: Path, *arguments: object, **keywords: object) -> object:
            if path.name == "c":  # root may read anything
                raise PermissionError(13, "Permission denied", str(path))
            return real_open(path, *arguments, **keywords)  # type: ignore[call-overload]

        patch.setattr(Path, "open", refuse)
        result = command("upload", "a", "b", "c", "d", "--jobs", "1", "--manifest", "ids.json")
    assert result.code == 1
    assert "c: Permission denied" in result.err
    files = json.loads((tmp_path / "ids.json").read_text())["files"]
    assert [file["file"] for file in files] == ["a", "b"]
    assert result.text.splitlines() == [file["file_id"] for file in files]


def test_bench_leaves_nothing(command: Fdfs, cluster: Cluster) -> None:
    storage = cluster.storage("group2")
    before = storage.data_files()
    arguments = ("bench", "-n", "20", "-s", "2K", "-j", "3", "-g", "group2")
    lines = [json.loads(line) for line in command(*arguments, "--json").out.splitlines()]
    assert [line["operation"] for line in lines] == ["upload", "exists", "download", "delete"]
    assert all(line["count"] == 20 and line["per_second"] > 0 for line in lines)
    assert "median ms" in command(*arguments).text
    assert storage.data_files() == before
    assert command("bench", "-s", "huge").code == 2


# --- offline --------------------------------------------------------------------------------------


@pytest.fixture
def offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsysbinary: pytest.CaptureFixture[bytes]
) -> Fdfs:
    """Runs fdfs in this process, with no tracker known."""
    monkeypatch.delenv("FDFS_TRACKERS", raising=False)
    monkeypatch.setattr("fdfsfuse.cli.options.DEFAULT_CONFIG", str(tmp_path / "none.conf"))
    monkeypatch.chdir(tmp_path)

    return in_this_process(monkeypatch, capsysbinary)


def test_decode_explains_every_field(offline: Fdfs) -> None:
    assert offline("decode", "--json", MISSING).data == {
        "file_id": MISSING,
        "group": "group1",
        "store_path": 0,
        "sub_directories": [0, 0],
        "path": "data/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551.txt",
        "kind": "normal",
        "source": "127.0.0.11",
        "created": 1795354458,
        "size": 11,
        "crc32": "0d4a1185",
        "random_bits": "7356f9",
        "padding": "551",
        "extension": "txt",
    }
    text = offline("decode", MISSING, APPENDER).text
    assert "11 bytes" in text
    assert "appender: can be appended to" in text


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (
            "M01/01/09/oYYBAGsC712AbEjgAAAACDm-hlI874.txt",
            {"source": "100001", "store_path": 1, "sub_directories": [1, 9], "size": 8},
        ),
        (
            "M00/00/00/fwAAC2sC7FIAAAABAAAABbHCoaM785.bin",
            {"size": 4294967301, "random_bits": None},
        ),
        (
            "M00/00/00/fwAAC2sC71qAc1b5AAAACw1KEYU551_150x150.jpg",
            {"kind": "slave", "master_size": 11, "size": None, "extension": "jpg"},
        ),
        (
            "M00/00/00/fwAAM2sC712IPPAcAAAAC9a6vZkAAAAAQAAAgAAAAEA400.txt",
            {
                "kind": "normal",
                "padding": "400",
                "trunk_file": {"file": "000001", "offset": 512, "slot_size": 256},
            },
        ),
        (
            "M01/00/00/fwAADGsC71uAEKgjAAAAAAAAAAA9294680",
            {"size": 0, "padding": "9294680", "extension": ""},
        ),
    ],
)
def test_decode(name: str, expected: dict[str, object]) -> None:
    fields = {field.key: field.value for field in explain(f"group1/{name}")}
    assert {key: fields[key] for key in expected} == expected


@pytest.mark.parametrize(
    "file_id", ["group1", "group1/x", "group1/M00/00/00/short", "group1/M00/00/00/" + "!" * 34]
)
def test_decode_refuses_what_is_no_id(offline: Fdfs, file_id: str) -> None:
    with pytest.raises(UsageError):
        explain(file_id)
    assert offline("decode", file_id).code == 2


def test_info_of_normal_files_needs_no_server(offline: Fdfs) -> None:
    result = offline("info", "--json", MISSING)
    assert result.code == 0
    assert "no tracker is known" in result.err
    assert result.data["crc32"] == "0d4a1185"
    assert result.data["source"] == "127.0.0.11"
    asked_for = offline("info", "--local", MISSING)
    assert (asked_for.code, asked_for.err) == (0, "")
    assert offline("info", APPENDER).code == 2
    only_the_cluster = offline("info", "--local", APPENDER)
    assert only_the_cluster.code == 2
    assert "only the cluster" in only_the_cluster.err


def test_crc32(offline: Fdfs, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"hello world")
    assert offline("crc32", "a").text == "0d4a1185  a"
    data = offline("crc32", "--json", "-", stdin=bytes(3_000_000)).data
    assert data == {"file": "-", "crc32": f"{zlib.crc32(bytes(3_000_000)):08x}", "size": 3_000_000}


# --- client.conf ----------------------------------------------------------------------------------


def client_conf(directory: Path, *lines: str) -> Path:
    path = directory / "client.conf"
    path.write_text("\n".join(["tracker_server = 10.0.0.1:22122", *lines, ""]))
    return path


def test_urls(offline: Fdfs, tmp_path: Path) -> None:
    plain = client_conf(tmp_path)
    assert offline("url", "--config", plain, MISSING).text == f"http://10.0.0.1/{MISSING}"
    assert offline("url", "--base", "https://x/", MISSING).text == f"https://x/{MISSING}"
    assert offline("url", "--token", "--config", plain, MISSING).code == 2
    assert offline("url", MISSING).code == 2
    checked = client_conf(
        tmp_path,
        "http.anti_steal.check_token = true",
        "http.anti_steal.secret_key = FastDFS1234567890",
        "http.tracker_server_port = 8080",
    )
    result = offline("url", "--config", checked, "--at", "1297930137", MISSING)
    token = make_token(MISSING.partition("/")[2], "FastDFS1234567890", 1297930137)
    assert result.text == f"http://10.0.0.1:8080/{MISSING}?token={token}&ts=1297930137"
    without = offline("url", "--config", checked, "--no-token", "--json", MISSING).data
    assert without == {"file_id": MISSING, "url": f"http://10.0.0.1:8080/{MISSING}"}


def test_a_token_of_fastdfs() -> None:
    # From the announcement of the feature, whose tokens were made with the group in the name.
    name = "group1/M01/01/01/wKgBD01c15nvKU1cAABAOeCdFS466570.c"
    token = make_token(name, "FastDFS1234567890", 1297930137)
    assert token == "b32cd06a53dea4376e43d71cc882f9cb"


def test_timeouts_come_from_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = client_conf(tmp_path, "connect_timeout = 2", "network_timeout = 7")
    monkeypatch.setenv("FDFS_TRACKERS", "10.0.0.9")
    settings = settings_of((), str(path), None)
    assert settings == ([Address("10.0.0.1", 22122)], 7, 2)
    assert settings_of(("10.0.0.2",), str(path), 3) == ([Address("10.0.0.2", 22122)], 3, 2)
    assert settings_of((), None, None).timeout_s == 30


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(offline: Fdfs, name: str) -> None:
    assert offline(name, "--help").code == 0
    page = Path(__file__).parents[2] / "docs" / "cli.rst"
    assert f"``fdfs {name}" in page.read_text()

"""The benchmarks run and report what they say; their figures are for people."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import client as client_bench
from benchmarks import mount as bench
from benchmarks import replication, wire


def test_on_any_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--dir", str(tmp_path), "--files", "40", "--size", "4", "--rounds", "2"]
    bench.main([*arguments, "--cold", "fadvise", "--json"])
    report = json.loads(capsys.readouterr().out)
    rows = report["rows"]
    assert {"create 4 KiB", "ls -lR cold", "write", "append 100 bytes", "cp -r, files"} <= set(rows)
    for row in rows.values():
        assert len(row["values"]) == 2
        assert min(row["values"]) > 0
    assert list(tmp_path.iterdir()) == [], "it cleans up"


def test_with_a_cluster_of_its_own(fuse: None, capsys: pytest.CaptureFixture[str]) -> None:
    bench.main(["--mini", "--only", "small,seq", "--files", "30", "--size", "4", "--rounds", "1"])
    printed = capsys.readouterr().out
    assert "create 4 KiB" in printed
    assert "storage us" in printed


@pytest.mark.parametrize(
    "arguments",
    [[], ["--mini", "--dir", "/"], ["--mini", "--only", "nonsense"], ["--mini", "--files", "0"]],
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        bench.main(arguments)
    assert stopped.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_replication() -> None:
    arguments = ["--files", "30", "--large", "16", "--delays", "3", "--json"]
    result = CliRunner().invoke(replication.main, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)
    assert {"delay, median ms", "source CPU us per small file", "source CPU us per MiB"} <= set(
        figures
    )
    assert min(figures.values()) >= 0


def test_cost_of_the_clients(capsys: pytest.CaptureFixture[str]) -> None:
    client_bench.main(["--count", "5"])
    printed = capsys.readouterr().out
    for what in ("bare sockets", "blocking, upload", "trio, download", "trio, delete"):
        assert what in printed


def test_cost_of_requests(tmp_path: Path) -> None:
    arguments = ["--directory", str(tmp_path), "--count", "12", "--large", "4", "-c", "2"]
    result = CliRunner().invoke(wire.main, arguments)
    assert result.exit_code == 0, result.output
    for what in ("echo in Python", "upload 4 KiB", "set metadata", "delete", "download, per MiB"):
        assert what in result.stdout
    assert list(tmp_path.iterdir()) == [], "it cleans up"

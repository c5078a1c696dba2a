"""The examples of docs/client.rst, run as they are against a cluster."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import fsspec
import pytest

from tests.common.cluster import Cluster

GUIDE = Path(__file__).parents[2] / "docs" / "client.rst"
TRACKER = '"10.0.0.1"'
_BLOCK = re.compile(r"^\.\. code-block:: python\n\n((?:(?:    .*)?\n)+)", re.MULTILINE)


def test_the_examples_of_the_guide(
    cluster: Cluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = GUIDE.read_text()
    namespace: dict[str, Any] = {"__name__": "guide"}
    blocks = list(_BLOCK.finditer(text))
    assert len(blocks) == text.count(".. code-block:: python")
    for block in blocks:
        line = text.count("\n", 0, block.start(1))
        source = textwrap.dedent(block[1]).replace(TRACKER, f'"{cluster.tracker.endpoint}"')
        # With its line numbers, so that a failure names the line of the guide.
        exec(compile("\n" * line + source, str(GUIDE), "exec"), namespace)
        if "def application" in source:
            check_application(namespace["application"], namespace["photo"])
    assert (tmp_path / "copy.jpg").read_bytes() == b"picture" * 10_000
    assert (tmp_path / "part.bin").read_bytes() == b"picture" * 2
    fsspec.get_filesystem_class("fdfs").clear_instance_cache()


def check_application(application: Any, file_id: str) -> None:
    """What the guide's web application answers."""
    said: list[str] = []

    def start_response(status: str, _: list[tuple[str, str]]) -> None:
        said.append(status)

    body = application({"PATH_INFO": f"/{file_id}"}, start_response)
    assert b"".join(body) == b"picture" * 10_000
    body.close()
    assert application({"PATH_INFO": "/nothing"}, start_response) == []
    assert said == ["200 OK", "404 Not Found"]

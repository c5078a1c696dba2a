"""Where small ranges that the page cache does not have are read: on the loop, or in a thread."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from fdfs_storage.disk_pace import DiskPace
from fdfs_storage.serving import small_reads
from tests.daemons.storage_server import Client, make_config, run_storage

CONTENT = bytes(range(256)) * 64


@pytest.mark.parametrize(
    ("waits_s", "quick"),
    [
        ((), True),
        ((0.0004,) * 20, True),
        ((0.002,) * 2, True),
        ((0.002,) * 3, False),
        ((0.002, 0.0001, 0.0001) * 20, True),
        ((0.002, 0.0001) * 20, False),
        ((0.3,), False),
    ],
)
def test_many_slow_waits_or_one_very_slow_send_the_next_to_threads(
    waits_s: tuple[float, ...], quick: bool
) -> None:
    pace = DiskPace(0.0005)
    now = 1000.0
    for took in waits_s:
        pace.waited(now, now + took)
        now += took
    assert pace.is_quick(now) is quick


def test_a_slow_disk_is_tried_again_now_and_then() -> None:
    pace = DiskPace(0.0005)
    pace.waited(1000.0, 1001.0)
    assert not pace.is_quick(1050.0)
    assert pace.is_quick(1051.5)
    pace.waited(1051.5, 1051.501)  # still slow
    assert not pace.is_quick(1051.502)
    assert pace.is_quick(1051.6)
    for _ in range(3):
        pace.waited(1051.6, 1051.6)  # quick again
    pace.waited(1051.6, 1051.601)
    assert pace.is_quick(1051.602)


class Disk:
    """Notes in which threads files are read; the page cache has nothing."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.on_loop: list[bool] = []
        self._pread = os.pread
        monkeypatch.setattr(os, "preadv", self._read_cached)
        monkeypatch.setattr(os, "pread", self._read)

    def _read_cached(self, *_args: Any) -> int:
        raise BlockingIOError

    def _read(self, *args: Any) -> bytes:
        self.on_loop.append(threading.current_thread() is threading.main_thread())
        return self._pread(*args)


async def read_twice(client: Client, name: str) -> None:
    assert await client.download(name) == CONTENT
    assert await client.download(name, 5000, 4096) == CONTENT[5000:9096]


async def test_a_quick_disk_is_waited_for_on_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_reads, "_SLOW_S", float("inf"))
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        name = await client.upload(CONTENT)
        disk = Disk(monkeypatch)
        await read_twice(client, name)
        assert disk.on_loop == [True, True]


async def test_a_file_system_that_cannot_read_from_the_page_cache_alone_is_just_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def refuse(*args: Any) -> int:
        asked.append(args)
        raise OSError(errno.EOPNOTSUPP, "no such flag")

    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        name = await client.upload(CONTENT)
        monkeypatch.setattr(os, "preadv", refuse)
        await read_twice(client, name)
        assert len(asked) == 1


async def test_a_slow_disk_is_waited_for_in_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(small_reads, "_SLOW_S", -1.0)
    monkeypatch.setattr("fdfs_storage.disk_pace._IN_THREAD_FACTOR", 1e12)
    async with run_storage(make_config(tmp_path)) as server, server.connect() as client:
        name = await client.upload(CONTENT)
        disk = Disk(monkeypatch)
        for _ in range(2):
            await read_twice(client, name)
        assert disk.on_loop == [True, True, True, False]
        counters = server.store.counters
        assert counters.success_download_count == counters.total_download_count == 4

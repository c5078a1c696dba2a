"""Syncing a file meanwhile: by the kernel where it can, and what goes wrong."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from fdfs_storage import background_sync
from fdfs_storage.background_sync import BackgroundSync


@pytest.fixture(params=["meanwhile", "afterwards"], autouse=True)
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "afterwards":
        monkeypatch.setattr(background_sync, "_NUMBERS", {})


def test_again_and_again(tmp_path: Path) -> None:
    sync = BackgroundSync()
    with (tmp_path / "file").open("wb", buffering=0) as file:
        for number in range(50):
            file.write(b"%d" % number)
            sync.start(file.fileno())
            sync.wait(file.fileno())
        file.write(b"without a start")
        sync.wait(file.fileno())


def test_what_cannot_be_synced(tmp_path: Path) -> None:
    sync = BackgroundSync()
    reading, writing = os.pipe()
    try:
        sync.start(writing)
        with pytest.raises(OSError, match="Invalid argument"):
            sync.wait(writing)
    finally:
        os.close(reading)
        os.close(writing)
    sync.start(writing)
    with pytest.raises(OSError, match="Bad file descriptor"):
        sync.wait(writing)
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"goes on")
        sync.start(file.fileno())
        sync.wait(file.fileno())


def test_what_the_disk_could_not_keep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = BackgroundSync()
    syscall = background_sync._syscall

    def failing(*arguments: object) -> int:
        done: int = syscall(*arguments)
        sync._event.result = -errno.ENOSPC
        return done

    def fail(fd: int) -> None:
        raise OSError(errno.ENOSPC, "no space")

    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"content")
        with monkeypatch.context() as context:
            context.setattr(background_sync, "_syscall", failing)
            context.setattr(os, "fdatasync", fail)
            sync.start(file.fileno())
            with pytest.raises(OSError, match=r"(?i)no space"):
                sync.wait(file.fileno())
        sync.start(file.fileno())
        sync.wait(file.fileno())
    sync.close()


def test_closing_while_one_is_under_way(tmp_path: Path) -> None:
    sync = BackgroundSync()
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"content")
        sync.start(file.fileno())
        sync.close()
        sync.wait(file.fileno())
    sync.close()


def test_finishing_without_asking_for_the_outcome(tmp_path: Path) -> None:
    sync = BackgroundSync()
    assert sync.finish() == 0
    with (tmp_path / "file").open("wb", buffering=0) as file:
        file.write(b"content")
        sync.start(file.fileno())
        assert sync.finish() == 0
        sync.wait(file.fileno())
